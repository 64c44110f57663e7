"""Checkpoints: orbax's manager, asynchronous, holding the state alone."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

T = TypeVar("T", bound=PyTree)

_LOG = logging.getLogger("rad_jax")
_CHECKSUM = "checksum"


class CheckpointError(RuntimeError):
  """No checkpoint, or one that cannot be read."""


class WriteError(CheckpointError):
  """A checkpoint that cannot be written."""


@contextlib.contextmanager
def open_manager(
  workdir: pathlib.Path, keep: int = 1, keep_every_steps: int = 0
) -> Iterator[ocp.CheckpointManager]:
  """Within its `with`, the manager of workdir/checkpoints.

  The end waits until all that was saved is on the disk, and raises as `save`
  does; an error from within comes first.

  Args:
    workdir: the run's folder.
    keep: how many of the newest checkpoints are kept.
    keep_every_steps: keep those at its multiples too; 0: none besides.
  """
  manager = ocp.CheckpointManager(
    pathlib.Path(workdir).absolute() / "checkpoints",
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      keep_period=keep_every_steps or None,
      enable_async_checkpointing=True,
    ),
  )
  try:
    yield manager
  except BaseException:
    with contextlib.suppress(Exception):  # a failed save is told once
      manager.close()
    raise
  with _writing(manager):
    manager.close()


def save(manager: ocp.CheckpointManager, step: int, state: PyTree) -> None:
  """Starts saving; returns once the state is copied off the devices.

  Raises:
    WriteError: this checkpoint or the one before cannot be written, as where
      the disk is full; those on the disk stay.
  """
  with _writing(manager):
    manager.save(
      step,
      args=ocp.args.StandardSave(state),
      custom_metadata={_CHECKSUM: int(checksum(state))},
    )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until all that was saved is on the disk.

  Raises:
    WriteError: as `save`.
  """
  with _writing(manager):
    manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager, like: T, sharding) -> T:
  """The newest checkpoint that can be read, in the structure of `like`.

  A damaged one is passed over with a warning.

  Args:
    manager: from `open_manager`.
    like: the state's structure, shapes and dtypes (arrays or
      jax.ShapeDtypeStruct).
    sharding: where its arrays shall live: one for all, or a tree of them.

  Raises:
    CheckpointError: there is none, all are damaged, or their structure
      differs.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  if not steps:
    raise CheckpointError(f"no checkpoint in {manager.directory}: train first")
  if isinstance(sharding, jax.sharding.Sharding):
    sharding = jax.tree.map(lambda _: sharding, like)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    like,
    sharding,
  )
  damaged: list[str] = []
  for step in steps:
    try:
      found = manager.restore(step, args=ocp.args.StandardRestore(abstract))
      _compare_checksum(manager, step, found)
    except Exception as error:  # orbax and tensorstore raise many kinds
      damaged.append(
        f"checkpoint {manager.directory / str(step)} cannot be read"
        f" ({_first_line(error)})"
      )
      cause = error
      continue
    for line in damaged:
      _LOG.warning("%s: step %d is taken in its place", line, step)
    return found
  others = f", nor can the {len(steps) - 1} older" if len(steps) > 1 else ""
  raise CheckpointError(
    f"{damaged[0]}{others}: bring back a copy, or train in another --workdir"
  ) from cause


def set_aside_after(
  manager: ocp.CheckpointManager, step: int, why: str = "damaged"
) -> None:
  """Renames the checkpoints after a step to N.damaged, or N.<why>.

  So that the run can save there again; nothing is deleted.
  """
  newer = [saved for saved in manager.all_steps() if saved > step]
  if not newer:
    return
  for saved in newer:
    folder = pathlib.Path(manager.directory) / str(saved)
    aside = folder.with_suffix(f".{why}")
    while aside.exists():
      aside = aside.with_name(aside.name + "_")
    if jax.process_index() == 0:
      folder.replace(aside)
    _LOG.warning("%s is kept as %s", folder, aside.name)
  multihost_utils.sync_global_devices("checkpoints are set aside")
  manager.reload()


@jax.jit
def checksum(state: PyTree) -> Array:
  """The sum of all bits' words, modulo 2^32: the same on any topology.

  Formats have no sum of their own over array values: a flipped bit would go
  unseen.
  """
  total = jnp.uint32(0)
  for leaf in jax.tree.leaves(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    words = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, words)
    total += jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
  return total


def _compare_checksum(manager, step: int, state: PyTree) -> None:
  metadata = manager.metadata(step)
  saved = (metadata.custom_metadata or {}).get(_CHECKSUM) if metadata else None
  if saved is not None and saved != int(checksum(state)):
    raise ValueError("its checksum is not that of the values")


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # orbax and tensorstore raise many kinds
    manager.reload()
    newest = manager.latest_step()
    kept = "no checkpoint" if newest is None else f"step {newest}"
    raise WriteError(
      f"no checkpoint can be written to {manager.directory}"
      f" ({_first_line(error)}); {kept} is there. Make room, or see to the"
      " disk, and run the same command again"
    ) from error


def _first_line(error: Exception) -> str:
  text = (str(error) or type(error).__name__).splitlines()[0]
  return text if len(text) <= 200 else text[:200] + "..."
