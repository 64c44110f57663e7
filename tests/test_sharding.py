"""One program on one device and on four."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from rad_jax import checks
from rad_jax import config as configs
from rad_jax.training import sharding

ROOT = pathlib.Path(__file__).parents[1]

# Runs in a process of its own: JAX fixes the number of devices at first use.
# SGD, not Adam, which turns rounding noise in a zero gradient into a step.
SCRIPT = """
import json
import sys

import jax

jax.config.update("jax_num_cpu_devices", 4)

import jax.numpy as jnp
import numpy as np
import optax

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.diffusion import samplers
from rad_jax.models.network import Network
from rad_jax.robustness.method import as_predictor
from rad_jax.training import loop, sharding, step
from rad_jax.training.state import initial_state


def init(key, x_t, t):
  a, b = jax.random.split(key)
  return {
    "a": jax.random.normal(a, (3, 16)), "b": jax.random.normal(b, (16, 3)),
  }


def apply(params, x_t, t, dropout_key=None):
  h = jnp.tanh(x_t @ params["a"] + t[:, None] / 50)
  if dropout_key is not None:  # one mask for the whole batch, as linen draws it
    h = h * jax.random.bernoulli(dropout_key, 0.5, h.shape)
  return h @ params["b"]


config = configs.default()
config.data.name = "oblique_plane"
config.data.corruption.fraction = 0.5
config.diffusion.num_timesteps = 50
config.objective.lam = 3.0
config.train.batch_size = 8
config.sampling.num_steps = 4
run_ = runs.build(config)
network, optimizer = Network(init, apply), optax.sgd(0.01)
method = run_.method._replace(predictor=as_predictor(network))
run_ = run_._replace(
  initial_state=lambda: initial_state(
    network, optimizer, (3,), run_.keys.init, run_.keys.train
  ),
  train_step=lambda regularised: step.make_train_step(
    method, optimizer, config.optimizer.ema_decay, run_.prepare
  ),
)


def sampled(params, index):
  return samplers.sample(
    lambda x_t, level: method.predictor(params, x_t, level),
    run_.process.grid(4),
    samplers.ddpm("small"),
    run_.keys.sampling,
    index,
    (3,),
    1.0,
  )


x_0 = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
batch = {"x_0": x_0, "index": np.arange(8, dtype=np.int32)}


class NoCheckpoint:
  def latest_step(self):
    return None


def run(mesh):
  state = loop.resume_or_start(run_, NoCheckpoint(), mesh)
  placed = sharding.place(batch, sharding.by_example(mesh))
  rows = [shard.data.shape[0] for shard in placed["x_0"].addressable_shards]
  compiled = loop.compile_step(run_, state, placed, mesh)
  after, metrics = compiled(state, placed)
  draw = jax.jit(
    sampled,
    in_shardings=(sharding.replicated(mesh), sharding.by_example(mesh)),
    out_shardings=sharding.replicated(mesh),
  )
  copies = {len(x.sharding.device_set) for x in jax.tree.leaves(after.params)}
  return rows, sorted(copies), metrics, after.params, draw


first = np.array(jax.devices()[:1]).reshape(1, 1)
one = jax.sharding.Mesh(first, ("data", "fsdp"))
rows_1, copies_1, metrics_1, params_1, draw_1 = run(one)
rows_4, copies_4, metrics_4, params_4, draw_4 = run(sharding.device_mesh())
params = jax.device_get(params_1)
samples_1 = np.concatenate(
  [draw_1(params, np.arange(i, i + 4, dtype=np.int32)) for i in (0, 4)]
)
samples_4 = np.asarray(draw_4(params, np.arange(8, dtype=np.int32)))
differences = jax.tree.map(
  lambda a, b: float(np.max(np.abs(np.asarray(a) - np.asarray(b)))),
  params_1, params_4,
)
json.dump(
  {
    "rows": [rows_1, rows_4],
    "copies": [copies_1, copies_4],
    "metrics": [
      {name: float(x) for name, x in m.items()} for m in (metrics_1, metrics_4)
    ],
    "params": max(jax.tree.leaves(differences)),
    "samples": float(np.max(np.abs(samples_1 - samples_4))),
    "spread": float(np.min(np.std(samples_1, axis=0))),
  },
  sys.stdout,
)
"""


@pytest.fixture(scope="module")
def found():
  process = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout)


@pytest.mark.slow
def test_batch_is_split_and_state_is_replicated(found):
  assert found["rows"] == [[8], [2, 2, 2, 2]]
  assert found["copies"] == [[1], [4]]


@pytest.mark.slow
def test_loss_and_update_do_not_depend_on_the_devices(found):
  one, four = found["metrics"]
  assert one["w_linf"] > 0.03
  assert one["regulariser"] > 0
  assert one == pytest.approx(four, rel=1e-5, abs=1e-5)
  assert found["params"] < 1e-5


@pytest.mark.slow
def test_samples_depend_on_their_index_alone(found):
  assert found["samples"] < 1e-5
  assert found["spread"] > 0.1


def test_batch_that_the_devices_cannot_share_is_refused():
  config = configs.default()
  config.train.batch_size = 6
  with pytest.raises(configs.ConfigError, match=r"train\.batch_size=6.*4$"):
    checks.validate(config, num_devices=4)


def test_each_process_loads_its_rows(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  rows = []
  for index in range(4):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    rows.append(np.arange(12)[sharding.process_rows(12)])
  np.testing.assert_array_equal(rows, np.arange(12).reshape(4, 3))
