"""Checkpoints: orbax's manager, asynchronous, holding the state alone."""

import pathlib
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

T = TypeVar("T", bound=PyTree)


class CheckpointError(RuntimeError):
  """No checkpoint, or one that cannot be read."""


def open_manager(
  workdir: pathlib.Path, keep: int = 1, keep_every_steps: int = 0
) -> ocp.CheckpointManager:
  """The manager of workdir/checkpoints. Close it, or use it in a `with`.

  Args:
    workdir: the run's folder.
    keep: how many of the newest checkpoints are kept.
    keep_every_steps: keep those at its multiples too; 0: none besides.
  """
  return ocp.CheckpointManager(
    pathlib.Path(workdir).absolute() / "checkpoints",
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      keep_period=keep_every_steps or None,
      enable_async_checkpointing=True,
    ),
  )


def save(manager: ocp.CheckpointManager, step: int, state: PyTree) -> None:
  """Starts saving; returns once the state is copied off the devices."""
  manager.save(step, args=ocp.args.StandardSave(state))


def restore(manager: ocp.CheckpointManager, like: T, sharding) -> T:
  """The newest checkpoint, in the structure of `like`.

  Args:
    manager: from `open_manager`.
    like: the state's structure, shapes and dtypes (arrays or
      jax.ShapeDtypeStruct).
    sharding: where its arrays shall live.

  Raises:
    CheckpointError: there is none, it is damaged, or its structure differs.
  """
  step = manager.latest_step()
  if step is None:
    raise CheckpointError(f"no checkpoint in {manager.directory}: train first")
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
  )
  try:
    return manager.restore(step, args=ocp.args.StandardRestore(abstract))
  except Exception as error:  # orbax and tensorstore raise many kinds
    folder = manager.directory / str(step)
    raise CheckpointError(
      f"checkpoint {folder} cannot be read ({_first_line(error)}): move this"
      " folder away to go on from an older checkpoint"
    ) from error


def _first_line(error: Exception) -> str:
  text = (str(error) or type(error).__name__).splitlines()[0]
  return text if len(text) <= 200 else text[:200] + "..."
