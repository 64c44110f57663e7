"""rad_jax's side: steps and forward passes as contenders."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rad_jax import run as runs
from rad_jax.config import ConfigDict, is_synthetic
from rad_jax.training import chips


def batch(config: ConfigDict) -> dict[str, jax.Array]:
  """A batch of noise in the place of data, on the device."""
  generator = np.random.default_rng(0)
  shape = (config.train.batch_size, *runs.build(config).example_shape)
  if is_synthetic(config):
    x_0 = generator.standard_normal(shape, np.float32)
  else:
    x_0 = generator.integers(0, 256, shape, np.uint8)
  index = np.arange(config.train.batch_size, dtype=np.int32)
  return jax.device_put({"x_0": x_0, "index": index})


def step(config: ConfigDict) -> Callable[[], object]:
  """The training step, jitted, with its state donated."""
  fed = batch(config)
  state = jax.jit(runs.build(config).initial_state)()
  compiled = (
    jax.jit(
      runs.build(config).train_step(True),
      donate_argnums=0,
      compiler_options=chips.compiler_options(),
    )
    .lower(state, fed)
    .compile()
  )

  def run() -> Callable[[], object]:
    nonlocal state
    state, metrics = compiled(state, fed)
    return lambda: jax.block_until_ready(metrics)

  return run


def forward(config: ConfigDict, batch_size: int) -> Callable[[], object]:
  """One pass of the network, without dropout."""
  predict = jax.jit(
    runs.build(config).network.apply, compiler_options=chips.compiler_options()
  )
  params = jax.jit(lambda: runs.build(config).initial_state().params)()
  x_t = jnp.ones((batch_size, *runs.build(config).example_shape))
  t = jnp.full((batch_size,), 500)
  return lambda: jax.block_until_ready(predict(params, x_t, t))
