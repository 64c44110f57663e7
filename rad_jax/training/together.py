"""Runs of one program trained side by side: vmap over runs, scan over steps.

Small networks that differ in numbers alone (VARYING, and the corruption) are
one program. Each is what it would be by itself (training.loop), up to rounding.
"""

import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from rad_jax import config as configs
from rad_jax.config import ConfigError
from rad_jax.data import batches
from rad_jax.data.training_set import TrainingSet
from rad_jax.run import Run
from rad_jax.training import checkpoints, passes, sharding
from rad_jax.training import workdir as workdirs
from rad_jax.training.state import State
from rad_jax.training.step import make_train_step

# The fields in which runs of one program may differ, and the section.
VARYING = ("seed", "objective.lam")
VARYING_SECTION = "data.corruption."
_NOT_OF_TRAINING = ("sweep.", "study.", "evaluation.", "purify.")


def program(config: dict[str, Any]) -> tuple:
  """Equal for resolved configs that can be trained together."""
  return tuple(
    (path, str(value))
    for path, value in sorted(configs.flatten(config).items())
    if path not in (*configs.UNBOUND, *VARYING)
    and not path.startswith((VARYING_SECTION, *_NOT_OF_TRAINING))
  )


def refuse(runs: Sequence[Run]) -> None:
  """Raises ConfigError if the runs cannot be trained together."""
  first = runs[0]
  for other in runs[1:]:
    differing = set(program(first.config)) ^ set(program(other.config))
    if differing:
      paths = ", ".join(sorted({path for path, _ in differing}))
      raise ConfigError(f"runs trained together must be equal in {paths}")
  for path, plain in (
    ("data.flip", first.is_synthetic or not first.data.flip),
    ("data.loading", first.data.loading != "stream"),
    ("train.init_from", not first.train.init_from),
    ("train.micro_batches", first.train.micro_batches == 1),
    ("train.max_skipped", first.train.max_skipped == 0),
    ("regulariser", first.timetable == passes.Timetable()),
  ):
    if not plain:
      raise ConfigError(f"runs trained together have no config.{path}")


def training_sets(runs: Sequence[Run]) -> list[TrainingSet]:
  """The runs' training sets, images read once for all."""
  if runs[0].is_synthetic:
    return [run.open_training_set() for run in runs]
  return [runs[0].open_training_set()] * len(runs)


def train(
  runs: Sequence[Run], sets: Sequence[TrainingSet], workdir: pathlib.Path
) -> State:
  """Trains all runs to the end, going on from workdir's checkpoint.

  The folder is of these runs alone, in this order; their sets are of one size.
  The states have a leading axis of runs; one that diverged is not finite there.
  """
  refuse(runs)
  lams = jnp.array([run.objective.lam for run in runs])
  num_steps, every = runs[0].train.num_steps, runs[0].checkpoint.every_steps
  with (
    workdirs.held(workdir),
    checkpoints.open_manager(workdir) as manager,
  ):
    start = lambda: _stacked([run.initial_state() for run in runs])
    if manager.latest_step() is None:
      states = jax.jit(start)()
    else:
      like = jax.eval_shape(start)
      everywhere = sharding.replicated(sharding.device_mesh())
      states = checkpoints.restore(manager, like, everywhere)
      checkpoints.set_aside_after(manager, int(states.step[0]))
    done = int(states.step[0])
    if done == num_steps:
      return states
    found = examples(runs, sets)
    run_steps = jax.jit(partial(advance, runs[0]), donate_argnums=0)
    with tqdm(
      total=num_steps, initial=done, desc=f"{len(runs)} runs", unit="step"
    ) as bar:
      for first_step in range(done, num_steps, every):
        end = min(first_step + every, num_steps)
        index = indices(runs, first_step, end, sets[0].num_examples)
        states = run_steps(states, found, lams, index)
        checkpoints.save(manager, end, states)
        bar.update(end - first_step)
    checkpoints.finish(manager)
  return states


def _stacked(trees: Sequence[PyTree]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def examples(
  runs: Sequence[Run], sets: Sequence[TrainingSet]
) -> tuple[Float[Array, "runs n *example"], Float[Array, "runs n"]]:
  """Every run's training set and its known noise, corrupted once for all."""

  def of(run: Run, training_set: TrainingSet):
    index = np.arange(training_set.num_examples, dtype=np.int32)
    batch = {"x_0": training_set.fetch(index), "index": index}
    return jax.jit(lambda b: run.prepare(b, jax.random.key(0)))(batch)

  return _stacked([of(*pair) for pair in zip(runs, sets, strict=True)])


def indices(
  runs: Sequence[Run], first: int, end: int, num_examples: int
) -> Int[np.ndarray, "steps runs b"]:
  """Which examples each run sees in the steps first .. end - 1."""
  of = lambda run, step: batches.example_indices(
    run.config["seed"], step, run.train.batch_size, num_examples
  )
  return np.array([[of(run, i) for run in runs] for i in range(first, end)])


def advance(
  run: Run,
  states: State,
  sets: tuple[Array, Array],
  lams: Float[Array, " runs"],
  index: Int[Array, "steps runs b"],
) -> State:
  """The states after so many steps of the run's program. Jit-able."""

  def one(state, own, lam, rows):
    # The examples are corrupted already; only their noise is to be known.
    step = make_train_step(
      run.method._replace(lambda_t=partial(run.method.lambda_t.func, lam)),
      run.optimizer,
      run.config["optimizer"]["ema_decay"],
      lambda batch, _: (batch["x_0"], batch["sigma_c"]),
    )
    x_0, sigma_c = own
    return step(state, {"x_0": x_0[rows], "sigma_c": sigma_c[rows]})[0]

  body = lambda states, rows: (jax.vmap(one)(states, sets, lams, rows), None)
  return jax.lax.scan(body, states, index)[0]


def one(states: PyTree, place: int) -> PyTree:
  """The state, or any part of it, of the run at a place."""
  return jax.tree.map(lambda leaf: leaf[place], states)
