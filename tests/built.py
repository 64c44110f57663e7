"""Runs that tests train again and again: their steps are compiled once."""

import functools

import jax
import pytest

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.run import Run
from rad_jax.training import loop

# What changes neither the step nor the state.
APART = (
  "attack.monitor_every_steps",
  "checkpoint.",
  "data.loading",
  "evaluation.",
  "sampling.",
  "train.debug",
  "train.init_from",
  "train.log_every_steps",
  "train.profile_steps",
  "train.rollback_above",
  "train.sample_every_steps",
  "train.steps_per_dispatch",
  "train.wandb_project",
)
_FIRST: dict[tuple, Run] = {}


def run(config: ConfigDict) -> Run:
  """runs.build, but that runs of one program share their jitted steps."""
  found = runs.build(config)
  constant = config.optimizer.decay == "constant" and not (
    config.regulariser.start
  )
  apart = (*APART, "train.num_steps") if constant else APART
  key = tuple(
    (path, str(value))
    for path, value in sorted(configs.flatten(found.config).items())
    if not path.startswith(apart)
  )
  if key not in _FIRST:
    step = found.train_step
    _FIRST[key] = found._replace(
      train_step=functools.cache(lambda on: jax.jit(step(on)))
    )
  first = _FIRST[key]
  return found._replace(
    initial_state=first.initial_state, train_step=first.train_step
  )


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
  """A module that has this by its name compiles a step of `run` once."""
  honest, compiled = loop.compile_step, {}

  def compile_step(run, state, batch, mesh, regularised=True):
    of_batch = jax.tree.map(lambda x: (x.shape, str(x.dtype)), batch)
    fields = run.train.debug, run.train.steps_per_dispatch > 1
    key = run.train_step, regularised, fields, str(of_batch)
    if key not in compiled:
      compiled[key] = honest(run, state, batch, mesh, regularised)
    return compiled[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "compile_step", compile_step)
    yield
