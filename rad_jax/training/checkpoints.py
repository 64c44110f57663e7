"""Checkpoints: the state, and what it is of, by orbax's asynchronous manager.

N/state holds the arrays; N/about holds JSON: the format's number, a digest of
the arrays, without which they are not taken, and what the caller says of them.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from rad_jax.version import __version__

_LOG = logging.getLogger("rad_jax")
# Of what a checkpoint holds. One of each is in tests/data.
FORMAT = 1


class CheckpointError(RuntimeError):
  """No checkpoint, or one that cannot be read."""


class FormatError(CheckpointError):
  """A checkpoint of another version of rad_jax."""


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
    # Else a damaged file of any checkpoint would keep the others from us.
    lightweight_initialize=True,
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


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: PyTree,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Starts to save a copy; WriteError may be of the checkpoint before.

  `about` is what JSON can hold, for `read_about`.
  """
  found = {
    "format": FORMAT,
    "rad_jax": __version__,
    "digest": digest(state),
    **(about or {}),
  }
  with _writing(manager):
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(found)
      ),
    )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until all that was saved is on the disk; raises as `save`."""
  with _writing(manager):
    manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager, like: PyTree, sharding) -> Any:
  """The newest checkpoint that can be read, shaped as `like`.

  A damaged one gives a warning; CheckpointError if none is whole, FormatError
  if one is of another version.
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
    path = manager.directory / str(step)
    try:
      about = read_about(manager, step)
      with ocp.StandardCheckpointer() as reader:
        found = reader.restore(path / "state", abstract)
      if about["digest"] != digest(found):
        raise ValueError("its digest is not that of the values")
    except FormatError:
      raise
    except Exception as error:  # orbax and tensorstore raise many kinds
      cause = error
      damaged.append(f"checkpoint {path} cannot be read ({_first_line(error)})")
      continue
    for line in damaged:
      _LOG.warning("%s: step %d is taken in its place", line, step)
    return found
  others = f", nor can the {len(steps) - 1} older" if len(steps) > 1 else ""
  raise CheckpointError(
    f"{damaged[0]}{others}: restore a copy, or train in another --workdir"
  ) from cause


def read_about(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """What a checkpoint was saved with beside its state; or FormatError."""
  path = manager.directory / str(step)
  about: dict[str, Any] = {}
  if not (path / "default").is_dir():  # as it was before formats had numbers
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      about = reader.restore(path / "about")
  if (format := about.get("format")) != FORMAT:
    raise FormatError(
      f"checkpoint {path} is of rad_jax {about.get('rad_jax', 'before 0.1.0')}"
      f" (format {format or 'without a number'}), and rad_jax {__version__}"
      f" reads format {FORMAT}: use that version, or train in another --workdir"
    )
  return about


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


def digest(state: PyTree) -> str:
  """A hash over the names, shapes, types and bits of all leaves."""
  leaves = jax.tree.leaves_with_path(state)
  sums = np.asarray(_sums([leaf for _, leaf in leaves])).tolist()
  described = [
    (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), found)
    for (path, leaf), found in zip(leaves, sums, strict=True)
  ]
  return hashlib.sha256(json.dumps(described).encode()).hexdigest()


@jax.jit
def _sums(leaves: list[Array]) -> Array:
  """[n, 4]: of each leaf four sums modulo 2^32 of its words, mixed.

  Computed where the leaves are. Each word is mixed with its place, so that two
  that are swapped are seen too.
  """

  def of(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    words = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
    bits = jax.lax.bitcast_convert_type(leaf, words).astype(jnp.uint32)
    place = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
    seeds = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)
    mixed = (_mix(bits ^ _mix(place + jnp.uint32(seed))) for seed in seeds)
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in mixed])

  return jnp.stack([of(leaf) for leaf in leaves])


def _mix(x: Array) -> Array:
  """MurmurHash3's last step (Appleby 2011): each bit of x moves all others."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)


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
