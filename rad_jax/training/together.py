"""Runs of one program trained side by side: vmap over runs, scan over steps.

A step of a network of some thousand parameters is over before the next one is
dispatched. Runs that differ in numbers alone (VARYING, and the corruption) are
stacked and trained as one program, compiled once. Each is what it would be by
itself (training.loop), up to rounding.
"""

import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

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
from rad_jax.training.state import State
from rad_jax.training.step import make_train_step

# The fields in which runs of one program may differ, and the section.
VARYING = ("seed", "objective.lam")
VARYING_SECTION = "data.corruption."


class Examples(NamedTuple):
  """Training sets as the runs see them.

  x_0: [runs, n, ...] in model units. sigma_c: known noise, [runs, n].
  """

  x_0: Float[Array, "runs n *example"]
  sigma_c: Float[Array, "runs n"]


def program(config: dict[str, Any]) -> tuple:
  """Equal for resolved configs that can be trained together."""
  return tuple(
    (path, str(value))
    for path, value in sorted(configs.flatten(config).items())
    if path not in (*configs.UNBOUND, *VARYING)
    and not path.startswith(VARYING_SECTION)
    and path.split(".")[0] not in ("sweep", "study", "evaluation", "purify")
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
  """The runs' training sets, images read once for all.

  Raises:
    NotPrepared, ValueError: as training_set.open_training_set.
  """
  if runs[0].is_synthetic:
    return [run.open_training_set() for run in runs]
  return [runs[0].open_training_set()] * len(runs)


def train(
  runs: Sequence[Run], sets: Sequence[TrainingSet], workdir: pathlib.Path
) -> State:
  """Trains all runs to the end, going on from workdir's checkpoint.

  Args:
    runs: of one `program`; without what `refuse` names.
    sets: the runs' training sets, of one size.
    workdir: of these runs alone, in this order; it holds their checkpoints.

  Returns:
    The states, with a leading axis of runs. A run that diverged is not finite
    there; the others do not notice.

  Raises:
    ConfigError: the runs cannot be trained together.
    CheckpointError: no checkpoint can be read, or written.
  """
  refuse(runs)
  first = runs[0]
  lams = jnp.array([run.objective.lam for run in runs])
  num_steps, every = first.train.num_steps, first.checkpoint.every_steps
  with checkpoints.open_manager(workdir) as manager:
    like = jax.eval_shape(lambda: initial_states(runs))
    if manager.latest_step() is None:
      states = jax.jit(lambda: initial_states(runs))()
    else:
      everywhere = sharding.replicated(sharding.device_mesh())
      states = checkpoints.restore(manager, like, everywhere)
      checkpoints.set_aside_after(manager, int(states.step[0]))
    done = int(states.step[0])
    if done == num_steps:
      return states
    found = examples(runs, sets)
    run_steps = jax.jit(partial(advance, first), donate_argnums=0)
    with tqdm(
      total=num_steps, initial=done, desc=f"{len(runs)} runs", unit="step"
    ) as bar:
      while done < num_steps:
        end = min(done + every, num_steps)
        index = indices(runs, done, end, sets[0].num_examples)
        states = run_steps(states, found, lams, index)
        checkpoints.save(manager, end, states)
        bar.update(end - done)
        done = end
    checkpoints.finish(manager)
  return states


def initial_states(runs: Sequence[Run]) -> State:
  """The states before the first step, stacked."""
  states = [run.initial_state() for run in runs]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def examples(runs: Sequence[Run], sets: Sequence[TrainingSet]) -> Examples:
  """Every run's training set, corrupted once for all its steps."""

  def of(run: Run, training_set: TrainingSet) -> Examples:
    index = np.arange(training_set.num_examples, dtype=np.int32)
    batch = {"x_0": training_set.fetch(index), "index": index}
    prepare = jax.jit(lambda b: run.prepare(b, jax.random.key(0)))
    return Examples(*prepare(batch))

  found = [of(*pair) for pair in zip(runs, sets, strict=True)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def indices(
  runs: Sequence[Run], first: int, end: int, num_examples: int
) -> Int[np.ndarray, "steps runs b"]:
  """Which examples each run sees in the steps first .. end - 1."""
  of = lambda run, step: batches.example_indices(
    run.config["seed"], step, run.train.batch_size, num_examples
  )
  return np.array(
    [[of(run, step) for run in runs] for step in range(first, end)]
  )


def advance(
  run: Run,
  states: State,
  sets: Examples,
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
    state, _ = step(state, {"x_0": own.x_0[rows], "sigma_c": own.sigma_c[rows]})
    return state

  def body(states, rows):
    return jax.vmap(one)(states, sets, lams, rows), None

  return jax.lax.scan(body, states, index)[0]


def one(states: PyTree, place: int) -> PyTree:
  """The state, or any part of it, of the run at a place."""
  return jax.tree.map(lambda leaf: leaf[place], states)
