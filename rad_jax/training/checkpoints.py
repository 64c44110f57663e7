"""Checkpoints: orbax's manager, asynchronous, holding the state alone."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

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

  It keeps the newest, and those at multiples of keep_every_steps. The end
  finishes all saves and raises as `save`; an error from within comes first.
  """
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    keep_period=keep_every_steps or None,
    enable_async_checkpointing=True,
  )
  folder = pathlib.Path(workdir).absolute() / "checkpoints"
  manager = ocp.CheckpointManager(folder, options=options)
  try:
    yield manager
  except BaseException:
    with contextlib.suppress(Exception):  # a failed save is told once
      manager.close()
    raise
  with _writing(manager):
    manager.close()


def save(manager: ocp.CheckpointManager, step: int, state: PyTree) -> None:
  """Starts to save a copy; WriteError may be of the checkpoint before."""
  with _writing(manager):
    manager.save(
      step,
      args=ocp.args.StandardSave(state),
      custom_metadata={_CHECKSUM: int(checksum(state))},
    )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until all that was saved is on the disk; raises as `save`."""
  with _writing(manager):
    manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager, like: PyTree, sharding) -> Any:
  """The newest checkpoint that can be read, shaped as `like`.

  A damaged one gives a warning; CheckpointError if none is whole.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  if not steps:
    raise CheckpointError(f"no checkpoint in {manager.directory}: train first")
  if isinstance(sharding, jax.sharding.Sharding):
    sharding = jax.tree.map(lambda _: sharding, like)
  placed = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  abstract = jax.tree.map(placed, like, sharding)
  damaged: list[str] = []
  for step in steps:
    try:
      found = manager.restore(step, args=ocp.args.StandardRestore(abstract))
      saved = (manager.metadata(step).custom_metadata or {}).get(_CHECKSUM)
      if saved not in (None, int(checksum(found))):
        raise ValueError("its checksum is not that of the values")
    except Exception as error:  # orbax and tensorstore raise many kinds
      path, cause = manager.directory / str(step), error
      damaged.append(f"checkpoint {path} cannot be read ({_first_line(error)})")
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
  """Renames later checkpoints to N.<why>, so that the run can save there."""
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
  """The sum of all bits' words, modulo 2^32: no format would see a bit flip."""
  total = jnp.uint32(0)
  for leaf in jax.tree.leaves(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    words = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, words)
    total += jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
  return total


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
