"""The benchmarks' arithmetic, and that they run; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import settings, table, timing
from rad_jax import checks

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
  """A clock that goes on by hand."""
  now = [0.0]
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
  return now


def test_contenders_take_turns_and_what_is_short_is_repeated(clock):
  done = []

  def work(name, seconds):
    def run():
      done.append(name)
      clock[0] += seconds

    return run

  times = timing.interleaved(
    {"short": work("short", 0.25), "long": work("long", 2.0)}, 3, 1.0
  )
  assert {name: list(t) for name, t in times.items()} == {
    "short": [0.25] * 3,
    "long": [2.0] * 3,
  }
  # Each twice to see how long it takes; then four of the one to one.
  turn = ["short"] * 4 + ["long"]
  assert done == ["short"] * 2 + ["long"] * 2 + turn * 3


def test_work_on_a_device_is_waited_for_once(clock):
  """Dispatch takes 1 s, the device 3 s: only the last is waited for."""
  done_at = [0.0]

  def run():
    clock[0] += 1.0
    done_at[0] = max(done_at[0], clock[0]) + 3.0
    return wait

  def wait():
    clock[0] = done_at[0]

  assert timing.seconds_of(run, repeats=4) == (1.0 + 4 * 3.0) / 4


def test_ratio_is_the_median_of_the_pairs():
  """Of 2, 3 and 100, where the ratio of the medians is 30."""
  times = {"a": np.array([2.0, 30.0, 100.0]), "b": np.array([1.0, 10.0, 1.0])}
  assert timing.ratio(times, "a", "b") == 3


def test_table_has_the_machine_and_a_table_for_each_benchmark():
  text = table.markdown(
    {"device": "1 x cpu", "jax": "0.9"},
    [
      {"benchmark": "train", "setting": "mlp", "seconds": 0.004},
      {"benchmark": "train", "setting": "unet", "over_ddpm": 2.5},
      {"benchmark": "data wait", "share_waiting": 0.0123},
    ],
  )
  assert (
    text
    == """\
device 1 x cpu, jax 0.9

### train

| setting | ms | over own DDPM |
| --- | --- | --- |
| mlp | 4 |  |
| unet |  | 2.50 |

### data wait

| waiting |
| --- |
| 1.23% |"""
  )


@pytest.mark.parametrize("name", settings.SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_settings_are_configs(name, dtype):
  config = settings.load(name, "robust_adv", dtype)
  checks.validate(config)
  assert config.objective.name == "robust_adv"
  assert config.model.dtype == dtype
  assert settings.load(name, "ddpm", dtype, 12).train.batch_size == 12


@pytest.mark.slow
def test_one_command_one_table_and_json(tmp_path):
  out = tmp_path / "rows.json"
  done = subprocess.run(
    [
      sys.executable,
      *("-m", "benchmarks", "--only", "train", "sampling"),
      *("--settings", "mlp", "--rounds", "1", "--batch_size", "8"),
      *("--out", str(out)),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(out.read_text())
  assert {"device", "processor", "jax"} <= found["machine"].keys()
  train = [row for row in found["rows"] if row["benchmark"] == "train"]
  assert [row["passes_over_ddpm"] for row in train] == [1, 2, 8 / 3]
  assert train[0]["over_ddpm"] == 1
  (sampling,) = (r for r in found["rows"] if r["benchmark"] == "sampling")
  assert sampling["evaluations"] == 50
  assert table.markdown(found["machine"], found["rows"]) in done.stdout


@pytest.mark.slow
def test_peer_has_our_parameters_and_our_loss():
  """PyTorch's, where it is installed, of the same network and batch size."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  from benchmarks import peer, train

  config = settings.load("digits_unet", "robust_adv", "float32", 2)
  (name,) = (
    n
    for n in train._peers({o: config for o in train.OBJECTIVES}, ("eager",))
    if n.endswith("robust_adv")
  )
  model = peer.network(config)
  before = [p.detach().clone() for p in model.parameters()]
  peer.step(config, model, model)()
  moved = [
    bool(torch.any(a != b))
    for a, b in zip(before, model.parameters(), strict=True)
  ]
  assert name == "torch eager, robust_adv"
  assert sum(moved) > len(moved) / 2
