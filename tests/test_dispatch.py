"""Several steps as one program, and the training set on the devices."""

import contextlib
import itertools
import os
import sys
import types

import built
import faulty
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from built import compiled_once  # noqa: F401

from rad_jax import checks
from rad_jax import config as configs
from rad_jax.data import batches
from rad_jax.experiments import engine
from rad_jax.training import dispatch, hosts, loop, metrics, passes, watch

FIELDS = dict(
  train__num_steps=16, train__log_every_steps=8, checkpoint__every_steps=8
)
SWITCHED = FIELDS | dict(regulariser__start=0.5, objective__lam=3.0)


def assert_close(a, b):
  a, b = (
    jax.tree.leaves((s.step, s.params, s.ema_params, s.opt_state))
    for s in (a, b)
  )
  for x, y in zip(a, b, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def assert_same_rows(workdir, other):
  rows, others = faulty.values_of(workdir), faulty.values_of(other)
  assert len(rows) == len(others)
  for row, expected in zip(rows, others, strict=True):
    assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("length", [1, 3, 4, 100])
@pytest.mark.parametrize("done", [0, 5, 19, 20])
@pytest.mark.parametrize(
  "timetable",
  [passes.Timetable(), passes.Timetable(7), passes.Timetable(4, every=3)],
)
def test_plan_has_every_step_once_and_keeps_to_the_beat(
  timetable, done, length
):
  parts = list(dispatch.plan(timetable, done, 20, length))
  assert [s for part in parts for s in part.steps] == list(range(done + 1, 21))
  ends = {part.steps[-1] for part in parts}
  assert ends >= {s for s in range(done + 1, 21) if s % length == 0}
  for part in parts:
    assert len(part.steps) <= length
    on = {passes.is_on(timetable, s - 1) for s in part.steps}
    assert on == {part.regularised}
  # As few as there can be.
  for part, following in itertools.pairwise(parts):
    last = part.steps[-1]
    assert last % length == 0 or part.regularised != following.regularised


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one_by_one")
  return loop.train(built.run(tiny.plane(**FIELDS)), workdir), workdir


def test_run_does_not_depend_on_where_its_set_is(one_by_one, tmp_path):
  state, workdir = one_by_one
  config = tiny.plane(data__loading="device", **FIELDS)
  assert_close(loop.train(built.run(config), tmp_path), state)
  assert_same_rows(tmp_path, workdir)


def test_switched_regulariser_and_the_set_on_the_device(tmp_path):
  alone = built.run(tiny.plane(**SWITCHED))
  together = built.run(
    tiny.plane(train__steps_per_dispatch=4, data__loading="device", **SWITCHED)
  )
  assert_close(
    loop.train(together, tmp_path / "together"),
    loop.train(alone, tmp_path / "alone"),
  )
  assert_same_rows(tmp_path / "together", tmp_path / "alone")


def test_interrupted_run_finds_back_to_the_beat(
  one_by_one, tmp_path, monkeypatch
):
  """From step 3, saved by a run of single steps, on in fours."""
  state, workdir = one_by_one
  answers = iter([False, False, True])
  monkeypatch.setattr(
    hosts,
    "stop_requests",
    lambda: contextlib.nullcontext(lambda: next(answers)),
  )
  with pytest.raises(loop.Interrupted, match="step 3 of 16"):
    loop.train(built.run(tiny.plane(**FIELDS)), tmp_path)
  monkeypatch.undo()
  config = tiny.plane(train__steps_per_dispatch=4, **FIELDS)
  assert_close(loop.train(built.run(config), tmp_path), state)
  assert [row["step"] for row in metrics.read(tmp_path)] == [3, 8, 16]
  row, expected = (faulty.values_of(each)[-1] for each in (tmp_path, workdir))
  assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_monitor_watches_the_first_step_of_a_dispatch(tmp_path, monkeypatch):
  seen = []

  def monitor(state, batch):
    jax.debug.callback(
      lambda *of: seen.append(tuple(map(int, of))),
      state.step,
      batch["index"][0],
    )
    return {"pgd_gain": 1.0 * batch["x_0"].shape[0]}

  config = tiny.plane(
    train__steps_per_dispatch=4,
    data__loading="device",
    attack__monitor_every_steps=8,
    **SWITCHED,
  )
  loop.train(built.run(config)._replace(monitor=monitor), tmp_path)
  jax.effects_barrier()
  assert sorted(seen) == [
    (step, batches.example_indices(config.seed, step, 16, 64)[0])
    for step in (4, 12)
  ]
  rows = metrics.read(tmp_path)
  assert [row.get("train/pgd_gain") for row in rows] == [16, 16]


def test_bad_step_is_named_within_its_dispatch(tmp_path, monkeypatch):
  faulty.poisoned(monkeypatch, 6, np.nan)
  config = tiny.plane(train__steps_per_dispatch=4, **FIELDS)
  with pytest.raises(watch.NonFiniteLoss, match="at step 6; no checkpoint"):
    loop.train(built.run(config), tmp_path)


@pytest.mark.slow
def test_program_and_set_stay_on_the_devices():
  """Of 4 devices each has all examples, and its share of the indices."""
  code = """
import jax, tiny
from rad_jax import run as runs
from rad_jax.training import dispatch, loop, sharding
config = tiny.plane(
  data__loading="device", train__steps_per_dispatch=4, checkpoint__every_steps=8
)
mesh, run = sharding.device_mesh(), runs.build(config)
batch = next(
  loop.dispatched_batches(run, run.open_training_set(), 0, mesh)
)
print({
  name: (x.shape, x.addressable_shards[0].data.shape)
  for name, x in sorted(batch.items())
})
like = sharding.of_state(mesh, jax.eval_shape(runs.build(config).initial_state))
state = jax.jit(runs.build(config).initial_state, out_shardings=like)()
program = loop.compile_step(runs.build(config), state, batch, mesh)
state, metrics = program(state, batch)
print(int(state.step), metrics["loss"].shape, "all-gather" in program.as_text())
"""
  process = faulty.run(
    [sys.executable, "-c", code],
    PYTHONPATH=os.pathsep.join([str(faulty.ROOT), str(faulty.ROOT / "tests")]),
    JAX_NUM_CPU_DEVICES="4",
  )
  assert process == (
    0,
    "{'index': ((4, 16), (4, 4)), 'whole_set': ((64, 3), (64, 3))}\n"
    "4 (4,) False\n",
  )


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"train__steps_per_dispatch": 0}, "at least 1"),
    ({"train__steps_per_dispatch": 3}, "divisor of train.log_every_steps, 8"),
    (
      {"train__steps_per_dispatch": 8, "checkpoint__every_steps": 4},
      "divisor of checkpoint.every_steps, 4",
    ),
    (
      {"train__steps_per_dispatch": 8, "attack__monitor_every_steps": 4},
      "divisor of attack.monitor_every_steps, 4",
    ),
    ({"train__steps_per_dispatch": 8, "train__debug": True}, "train.debug"),
  ],
)
def test_what_a_dispatch_cannot_be(fields, message):
  with pytest.raises(configs.ConfigError, match=message):
    tiny.plane(**FIELDS | fields)


def test_a_unet_is_refused_on_a_cpu_alone(monkeypatch):
  config = tiny.load("cifar10", train__steps_per_dispatch=10)
  with pytest.raises(configs.ConfigError, match="1 for a U-Net on a CPU"):
    checks.validate(config)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  checks.validate(config)


def test_xla_does_not_rearrange_convolutions_in_loops(optimised):
  """Why a U-Net is refused; where this fails, it need not be any longer."""

  def gradient(x, w):
    conv = lambda w: jax.lax.conv_general_dilated(
      x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.grad(lambda w: jnp.sum(conv(w) ** 2))(w)

  x, w = jnp.ones((4, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
  looped = lambda x, w: jax.lax.scan(
    lambda w, _: (w + gradient(x, w), None), w, length=3
  )
  texts = [
    jax.jit(function).lower(x, w).compile().as_text()
    for function in (gradient, looped)
  ]
  as_given = "dim_labels=f01b_i01o->01bf"
  assert [as_given in text for text in texts] == [False, True]


def test_seconds_of_a_step_are_of_one_step(monkeypatch):
  """By a clock that goes on by 2 s in each dispatch of 8 steps."""
  now = [0.0]

  def compile_step(*_):
    def run(state, batch):
      assert batch["index"].shape == (8, 16)
      now[0] += 2.0
      return state, {}

    return run

  clock = types.SimpleNamespace(perf_counter=lambda: now[0])
  monkeypatch.setattr(engine, "time", clock)
  monkeypatch.setattr(loop, "compile_step", compile_step)
  config = tiny.plane(train__steps_per_dispatch=8, **FIELDS)
  assert engine.step_seconds(config) == 0.25
