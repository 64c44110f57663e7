"""What training shows of itself: samples of the average, and alarms."""

import logging
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from rad_jax.data.training_set import TrainingSet, evenly
from rad_jax.evaluation import collapse, sampling
from rad_jax.evaluation.subject import pairs
from rad_jax.run import Run
from rad_jax.training import chips, hosts, loop, sharding

_LOG = logging.getLogger("rad_jax")

_NUM_SAMPLES = 64
_NUM_SEEN = 1000
# A model is unfinished, not collapsed, before this share of its training.
_UNFINISHED = 0.25


def shower(
  draw: Callable[[np.ndarray, pathlib.Path], pathlib.Path],
  run: Run,
  training_set: TrainingSet,
  mesh: Mesh,
  workdir: pathlib.Path,
) -> loop.Show:
  """Compiles the run's sampler; draw(x_0, path) makes a picture of samples.

  The samples are the same each time but for the parameters. All processes
  draw them, and the first one makes the picture.
  """
  share = -(-_NUM_SAMPLES // mesh.size)
  index = np.arange(share * mesh.size, dtype=np.int32)
  by_example = sharding.by_example(mesh)
  index = sharding.place(index[sharding.process_rows(len(index))], by_example)
  like = jax.eval_shape(run.initial_state).ema_params
  _LOG.info("compiling the sampler, for train.sample_every_steps")
  with hosts.compiling():
    sample = jax.jit(
      sampling.sampler(run),
      in_shardings=(sharding.of_state(mesh, like), by_example),
      out_shardings=sharding.replicated(mesh),
      compiler_options=chips.compiler_options(),
    )
    compiled = sample.lower(like, index).compile()
  total = training_set.num_examples
  _, seen = pairs(run, training_set, evenly(total, min(_NUM_SEEN, total)))
  folder = workdir / "samples" / "progress"
  told = 0

  def show(ema_params, step: int) -> tuple[pathlib.Path | None, loop.Measures]:
    nonlocal told
    x_0 = np.asarray(compiled(ema_params, index))
    if not np.isfinite(x_0).all():
      _LOG.warning("step %d: the samples drawn are not finite", step)
      return None, {}
    found = collapse.against_training(x_0, seen)
    alarms = collapse.alarms(found)
    if len(alarms) > told and step >= _UNFINISHED * run.train.num_steps:
      told = len(alarms)
      _LOG.warning(
        "step %d: the samples look collapsed: %s; %s",
        step,
        "; ".join(alarms),
        collapse.advice(run),
      )
    path = folder / f"step_{step}.png"
    return draw(x_0, path) if hosts.is_first() else None, found

  return show
