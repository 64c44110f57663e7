"""What a step exchanges on many devices, and what that is predicted to cost."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import scaling

ROOT = pathlib.Path(__file__).parents[1]

COUNT = """
import json

from benchmarks import scaling, settings
from rad_jax import run as runs
from rad_jax.training.state import num_parameters
import jax

found = {}
for name, changes in {
  "ddpm": {},
  "robust_ran": {},
  "robust_adv": {},
  "micro_batches": {"train.micro_batches": 2},
}.items():
  objective = "robust_adv" if name == "micro_batches" else name
  config = settings.load("mlp", objective, "float32", 32)
  config.update_from_flattened_dict(changes)
  found[name] = scaling.collectives(scaling.compiled(config).as_text())
shapes = jax.eval_shape(runs.build(config).initial_state)
print(json.dumps({
  "devices": jax.device_count(),
  "parameters": num_parameters(shapes),
  "found": found,
}))
"""


@pytest.fixture(scope="module")
def counted():
  return json.loads(output_of(COUNT, JAX_NUM_CPU_DEVICES="4"))


def output_of(code: str, **environment: str) -> str:
  """The last line that is printed."""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=os.environ | environment,
    check=True,
    capture_output=True,
    text=True,
  )
  return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, passes",
  [("ddpm", 1), ("robust_ran", 2), ("robust_adv", 2), ("micro_batches", 2)],
)
def test_gradient_is_all_reduced_for_each_pass_that_it_goes_through(
  counted, name, passes
):
  """On a CPU, where XLA does not join them. The attack's are each device's."""
  assert counted["devices"] == 4
  assert list(counted["found"][name]) == ["all-reduce"]
  calls, size = counted["found"][name]["all-reduce"]
  # And a few scalars: the loss, its terms, the largest w.
  assert 0 <= size - passes * 4 * counted["parameters"] <= 4 * 8
  assert passes <= calls <= passes + 3


@pytest.mark.slow
def test_attack_adds_no_collective(counted):
  """FGSM costs two passes more than a random w, and no word between chips."""
  assert counted["found"]["robust_adv"] == counted["found"]["robust_ran"]


FOR_TPU = """
import json
from benchmarks import scaling, settings, train

found, devices = {}, scaling.slice_of_tpus("v5e:2x4")
for objective in train.OBJECTIVES:
  config = settings.load("mlp", objective, "float32", 64)
  program = scaling.compiled(config, devices).as_text()
  found[objective] = scaling.collectives(program)["all-reduce"].bytes
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_tpu_joins_the_gradients_of_both_passes():
  """XLA's compiler for TPU v5e, without one: one all-reduce, whatever is run.

  Where `pip install libtpu` was.
  """
  pytest.importorskip("libtpu")
  found = json.loads(output_of(FOR_TPU, JAX_PLATFORMS="cpu"))
  for objective in ("robust_ran", "robust_adv"):
    assert 0 <= found[objective] - found["ddpm"] <= 4 * 8


PROGRAM = """
%a = f32[128,3]{1,0} all-reduce(f32[128,3]{1,0} %x), channel_id=1
%b = (f32[8]{0}, bf16[]) all-reduce-start(%y, %z), channel_id=2
%c = (f32[8]{0}, bf16[]) all-reduce-done(%b)
%d = f32[16]{0} all-gather(f32[4]{0} %u), dimensions={0}
%g = f32[16]{0} all-gather(f32[4]{0} %v), channel_id=7, dimensions={0}
%h = f32[16]{0} all-gather(f32[4]{0} %w), channel_id=7, dimensions={0}
%e = f32[4]{0} add(f32[4]{0} %u, f32[4]{0} %all-reduce)
"""


def test_collectives_are_counted_with_their_bytes():
  assert scaling.collectives(PROGRAM) == {
    "all-reduce": (2, 128 * 3 * 4 + 8 * 4 + 2),
    "all-gather": (2, 128),
  }


CHIP = scaling.Chip(1e12, 1e9, 0.0, lambda n: n)


def test_efficiency_in_closed_form():
  """A second of work; 2 (n - 1) / n seconds of exchange."""
  of = lambda n, overlap: scaling.efficiency(
    CHIP, n, 0.5e12, 1e9, mfu=0.5, overlap=overlap
  )
  assert of(1, 0.0) == 1
  assert of(2, 0.0) == pytest.approx(1 / 2)
  assert of(4, 0.0) == pytest.approx(1 / 2.5)
  assert of(4, 0.5) == pytest.approx(1 / 2)
  assert of(2, 1.0) == 1


def test_what_costs_no_time_to_send_costs_nothing():
  fast = CHIP._replace(bandwidth=math.inf)
  assert scaling.efficiency(fast, 1024, 1e12, 1e9, mfu=1.0, overlap=0.0) == 1


def test_more_passes_for_one_exchange_are_more_efficient():
  for chip in scaling.CHIPS.values():
    for n in (8, 1024):
      three, eight = (
        scaling.efficiency(chip, n, passes * 1e12, 1.4e8, 0.4, 0.0)
        for passes in (3, 8)
      )
      assert three < eight < 1


def test_latency_is_paid_for_each_hop():
  slow = CHIP._replace(bandwidth=math.inf, hop=0.1)
  found = scaling.efficiency(slow, 10, 0.5e12, 1e9, mfu=0.5, overlap=0.0)
  assert found == pytest.approx(1 / 2)


def test_axes_of_a_torus():
  assert scaling.CHIPS["TPU v5p"].hops(512) == pytest.approx(2 * 3 * 7)
  assert scaling.CHIPS["TPU v5e"].hops(256) == pytest.approx(2 * 2 * 15)
