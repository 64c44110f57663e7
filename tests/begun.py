"""Runs that have a checkpoint without training, whose step is not compiled."""

import pathlib

import jax
import numpy as np

from rad_jax.run import Run
from rad_jax.training import checkpoints, workdir
from rad_jax.training.state import State


def begin(run: Run, folder: pathlib.Path, step: int = 20) -> State:
  """Saves the run with moved parameters, and an average that is another."""
  state = jax.jit(run.initial_state)()
  draw = np.random.default_rng(0).normal
  moved = lambda x: (x + 0.1 * draw(size=x.shape)).astype(np.float32)
  params, average = (jax.tree.map(moved, state.params) for _ in range(2))
  state = state._replace(step=np.int32(step), params=params, ema_params=average)
  folder.mkdir(exist_ok=True)
  workdir.claim(folder, run)
  with checkpoints.open_manager(folder) as manager:
    checkpoints.save(manager, step, state)
  return state
