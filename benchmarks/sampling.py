"""Sampling: one compiled call, held against its network evaluations."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ours, settings, timing
from rad_jax import run as runs
from rad_jax.evaluation import sampling
from rad_jax.training import chips


def rows(
  name: str, dtype: str, batch_size: int, rounds: int, num_steps: int = 50
) -> list[dict]:
  """The sampler of one setting, over num_steps levels of DDIM.

  "over_forwards" is the time over that of as many passes of the network.
  """
  config = settings.load(name, "ddpm", dtype, batch_size)
  config.sampling.update(sampler="ddim", num_steps=num_steps)
  run = runs.build(config)
  draw = jax.jit(
    sampling.sampler(run), compiler_options=chips.compiler_options()
  )
  params = jax.jit(lambda: run.initial_state().params)()
  index = jnp.arange(config.train.batch_size)
  times = timing.interleaved(
    {
      "sampling": lambda: jax.block_until_ready(draw(params, index)),
      "forward": ours.forward(config, config.train.batch_size),
    },
    rounds,
  )
  seconds = float(np.median(times["sampling"]))
  evaluations = sampling.evaluations(run)
  return [
    {
      "benchmark": "sampling",
      "setting": name,
      "dtype": dtype,
      "batch_size": config.train.batch_size,
      "evaluations": evaluations,
      "seconds": seconds,
      "samples_per_second": config.train.batch_size / seconds,
      "over_forwards": timing.ratio(times, "sampling", "forward") / evaluations,
    }
  ]
