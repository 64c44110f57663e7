"""Samples that are drawn while a run trains, and the alarms about them."""

import contextlib
import logging
import sys
import types

import built
import jax
import numpy as np
import pytest
import tensorboardX
import tiny
from built import compiled_once  # noqa: F401
from PIL import Image

from rad_jax import config as configs
from rad_jax.evaluation import collapse, progress, sampling
from rad_jax.training import loop, metrics, sharding, watch

FIELDS = dict(
  train__num_steps=16, train__log_every_steps=8, checkpoint__every_steps=8
)


def shower_of(seen, found=None):
  """Notes the steps, and how far the average has come; draws one pixel."""

  def shower(run, training_set, mesh, workdir):
    def show(ema_params, step):
      seen[step] = float(jax.tree.leaves(ema_params)[0].sum())
      path = workdir / "samples" / "progress" / f"step_{step}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("L", (3, 2), step).save(path)
      return path, {"training_spread": step / 10} | (found or {})

    return show

  return shower


def test_samples_are_shown_where_due_and_a_resumed_run_goes_on(
  tmp_path, monkeypatch
):
  """Every 5 steps in dispatches of 4: behind the first that comes so far."""
  seen, on_board = {}, {}

  def add_image(board, name, pixels, step, dataformats):
    assert (name, dataformats, pixels.shape) == ("samples", "HWC", (2, 3, 3))
    on_board[step] = int(pixels[0, 0, 0])

  monkeypatch.setattr(tensorboardX.SummaryWriter, "add_image", add_image)
  for num_steps, length in ((8, 1), (16, 4)):
    config = tiny.plane(
      **FIELDS
      | dict(train__num_steps=num_steps, train__steps_per_dispatch=length),
      train__sample_every_steps=5,
    )
    loop.train(built.run(config), tmp_path, shower_of(seen))
  assert [*seen] == [5, 12, 16]
  assert len({*seen.values()}) == 3
  rows = {row["step"]: row for row in metrics.read(tmp_path)}
  assert rows[8]["sample/training_spread"] == 0.5
  # Two pictures between two rows, as two steps: their mean.
  assert rows[16]["sample/training_spread"] == pytest.approx(1.4)
  assert on_board == {5: 5, 12: 12, 16: 16}


@pytest.mark.parametrize("every", [0, 17])
def test_no_sampler_is_compiled_for_nothing(every, tmp_path):
  config = tiny.plane(**FIELDS, train__sample_every_steps=every)
  fail = lambda *_: pytest.fail("compiled")
  loop.train(built.run(config), tmp_path, fail)


def test_a_measure_that_is_not_finite_stops_no_run(tmp_path):
  config = tiny.plane(**FIELDS, train__sample_every_steps=8)
  shower = shower_of({}, {"training_frechet": np.inf})
  loop.train(built.run(config), tmp_path, shower)
  row = metrics.read(tmp_path)[0]
  assert "sample/training_frechet" not in row
  assert row["sample/training_spread"] == 0.8


def test_pictures_go_to_weights_and_biases(tmp_path, monkeypatch):
  logged = []
  note = lambda values, step: logged.append((step, values))
  remote = contextlib.nullcontext(types.SimpleNamespace(log=note))
  wandb = types.SimpleNamespace(init=lambda **_: remote, Image=str)
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  path = tmp_path / "picture.png"
  Image.new("RGB", (3, 2)).save(path)
  with metrics.writer(tmp_path, 0, "dirt") as write:
    write(4, {}, path)
    write(8, {"a": 1.0})
  assert logged == [(4, {"samples": str(path)}), (8, {"a": 1.0})]
  assert metrics.read(tmp_path) == [{"step": 8, "a": 1.0}]


def test_speed_is_without_the_time_of_drawing(monkeypatch):
  now = [0.0]
  clock = types.SimpleNamespace(perf_counter=lambda: now[0])
  monkeypatch.setattr(watch, "time", clock)
  meter = watch.Meter()
  now[0] += 2.0
  with meter.timing("samples"):
    now[0] += 100.0
  assert meter.read(2, 10, 0.0)["images_per_second"] == 10.0


# ---- The lab's part ----


@pytest.fixture
def shown(tmp_path):
  """(show, the samples it drew, the run's parameters and the run)."""
  run = built.run(tiny.plane(**FIELDS, train__sample_every_steps=1))
  drawn = []
  draw = lambda x_0, path: drawn.append((x_0, path)) or path
  mesh = sharding.device_mesh()
  show = progress.shower(draw, run, run.open_training_set(), mesh, tmp_path)
  return show, drawn, jax.jit(run.initial_state)().ema_params, run


def test_samples_are_those_of_the_run_with_the_same_noise(shown, tmp_path):
  show, drawn, params, run = shown
  for step in (1, 2):
    path, found = show(params, step)
    assert path == tmp_path / "samples" / "progress" / f"step_{step}.png"
    assert found.keys() == {
      "training_spread",
      "training_frechet",
      "training_saturated",
    }
  (first, _), (second, _) = drawn
  np.testing.assert_array_equal(first, second)
  index = np.arange(len(first), dtype=np.int32)
  own = jax.jit(sampling.sampler(run))(params, index)
  np.testing.assert_allclose(first, own, rtol=1e-5, atol=1e-6)
  other = show(jax.tree.map(lambda x: x + 1, params), 3)[1]
  assert other != found


def test_an_alarm_is_told_once_and_not_of_an_unfinished_model(
  shown, monkeypatch, caplog
):
  show, _, params, _ = shown  # of a run of 16 steps
  caplog.set_level(logging.WARNING, "rad_jax")
  said = {3: ["a", "b"], 4: ["a"], 5: ["a"], 6: ["a", "c"], 7: []}
  told = {}
  for step, alarms in said.items():
    monkeypatch.setattr(collapse, "alarms", lambda _, alarms=alarms: alarms)
    caplog.clear()
    show(params, step)
    told[step] = caplog.messages
  assert [step for step, messages in told.items() if messages] == [4, 6]
  assert "step 6: the samples look collapsed: a; c; what may help" in told[6][0]
  assert "objective.lam" in told[6][0]


def test_samples_that_are_not_finite_are_no_picture(shown, caplog):
  show, drawn, params, _ = shown
  caplog.set_level(logging.WARNING, "rad_jax")
  assert show(jax.tree.map(lambda x: x * np.nan, params), 3) == (None, {})
  assert not drawn
  assert "step 3: the samples drawn are not finite" in caplog.text


def test_drawing_does_not_bind_a_run():
  assert "train.sample_every_steps" in configs.UNBOUND
