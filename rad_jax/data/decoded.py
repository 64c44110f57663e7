"""The decoded set on disk: one memory-mapped array, which runs share."""

import contextlib
import logging
import os
import pathlib
import zlib
from collections.abc import Callable

import filelock
import numpy as np
from jaxtyping import UInt8

from rad_jax import files

_LOG = logging.getLogger("rad_jax")

Images = UInt8[np.ndarray, "n h w c"]


def read(path: pathlib.Path, shape: tuple[int, ...]) -> Images | None:
  """The array kept as `path`, mapped; None without one, or told, if damaged."""
  try:
    about = files.read_json(path.with_suffix(".json"))
    if not about:
      return None
    images = np.load(path, mmap_mode="r")
    if images.shape == shape and _about(images) == about:
      _LOG.info("the images are decoded already, in %s", path)
      return np.asarray(images)
    damage = "its checksum is another"
  except (OSError, ValueError, EOFError) as error:
    damage = str(error)
  _LOG.warning("%s is damaged, and not used: %s", path, damage)
  return None


def keep(
  path: pathlib.Path, shape: tuple[int, ...], fill: Callable[[Images], int]
) -> Images | None:
  """The array that fill(images) makes, mapped, and kept as `path`.

  fill returns how many images it could not read; a set with any is not kept for
  others. Processes that ask for the same wait for the one that makes it. None,
  told, if the disk does not take it.
  """
  part = path.with_suffix(".part")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_suffix(".lock")):
      if (images := read(path, shape)) is not None:
        return images
      try:
        images = _empty(part, shape)
        if fill(images):
          _LOG.warning("with unreadable images, no set is kept for later runs")
        else:
          os.replace(part, path)
          files.write_json(path.with_suffix(".json"), _about(images))
          _LOG.info("the decoded images are kept in %s", path)
        images.flags.writeable = False
        return images
      finally:
        part.unlink(missing_ok=True)
  except OSError as error:
    _LOG.warning(
      "%s: %s: the decoded images are not kept for later runs (data.cache)",
      path.parent,
      error.strerror or error,
    )
    return None


def _lock(path: pathlib.Path) -> contextlib.AbstractContextManager:
  """A lock that is held, for a `with`."""
  lock = filelock.FileLock(path)
  try:
    return lock.acquire(blocking=False)
  except filelock.Timeout:
    _LOG.info("another process decodes the images; waiting for %s", path)
    return lock.acquire()


def _empty(path: pathlib.Path, shape: tuple[int, ...]) -> Images:
  """A mapped array to be filled; OSError if the disk has no place for it."""
  images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
  if hasattr(os, "posix_fallocate"):  # else a full disk kills the process
    with path.open("r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
  return np.asarray(images)


def _about(images: Images) -> dict[str, int]:
  return {"crc32": zlib.crc32(images.data)}
