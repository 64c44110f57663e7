"""What a step of CIFAR-10 costs, in FLOPs as XLA counts them."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from rad_jax.training import build

ROOT = pathlib.Path(__file__).parent.parent


def cifar10_config():
  path = ROOT / "configs" / "cifar10.py"
  spec = importlib.util.spec_from_file_location("cifar10", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def step_flops(objective: str) -> float:
  config = cifar10_config()
  config.objective.name = objective
  # Draws cost the same whatever the objective and are slow to compile.
  state = jax.eval_shape(lambda: build.state(config))
  batch = {
    "x_0": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8),
    "index": jax.ShapeDtypeStruct((1,), jnp.int32),
  }
  compiled = (
    jax.jit(build.train_step(config), donate_argnums=0)
    .lower(state, batch)
    .compile({"xla_backend_optimization_level": 0})
  )
  return compiled.cost_analysis()["flops"]


def test_cost_of_the_objectives():
  """Random 6F and FGSM 8F against DDPM's 3F: 2 and 2.67 in passes."""
  ddpm = step_flops("ddpm")
  # One pass of the network at batch 1 is 12.4 GFLOP.
  assert ddpm == pytest.approx(3 * 12.4e9, rel=0.05)
  assert 1.9 < step_flops("robust_ran") / ddpm <= 2.02
  assert 2.5 < step_flops("robust_adv") / ddpm <= 2.70
