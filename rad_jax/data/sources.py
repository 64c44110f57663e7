"""Random-access images: decoded by index, fitted, read whole or one by one."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from multiprocessing import pool
from typing import Any

import numpy as np
import psutil
import tqdm
from jaxtyping import UInt8

from rad_jax.data.images import Pixels

_LOG = logging.getLogger("rad_jax")
NUM_THREADS = 8
_CHUNK_SIZE = 64
_MOST_NAMED = 20  # unreadable images, in one message

Transform = Callable[[Pixels], Pixels]
# The image at an index, transformed.
Reader = Callable[[int], Pixels]


class ExampleError(ValueError):
  """An example cannot be used; the message names set, split and index."""


@dataclasses.dataclass(frozen=True)
class Source:
  """Images by index, decoded on access; safe to share among threads."""

  label: str  # set and split, as messages name them
  records: Sequence[Any]
  decode: Callable[[Any], Pixels]  # of any size, in [0, 255]

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Pixels:
    if not 0 <= index < len(self):
      raise IndexError(f"{self.label}: no example {index} among {len(self)}")
    try:
      return self.decode(self.records[index])
    except Exception as error:
      message = f"{self.label}: example {index}: {error}"
      raise ExampleError(message) from error


def reader(
  source: Source, transform: Transform, max_unreadable: int = 0
) -> Reader:
  """A function from an index to its image; safe to share among threads.

  An image that cannot be used is logged, and the next one takes its place, so
  that indices stay; ExampleError at more than max_unreadable of them.
  """
  _refuse_empty(source)
  lock, unreadable = threading.Lock(), set[int]()

  def note(index: int, error: ExampleError) -> None:
    with lock:
      if index in unreadable:
        return
      unreadable.add(index)
      if remedy := _remedy(source, len(unreadable), max_unreadable):
        raise ExampleError(f"{error}: {remedy}") from error
      _LOG.warning("%s: the next one takes its place", error)

  def read_at(index: int) -> Pixels:
    while True:
      try:
        return _read(source, transform, index)
      except ExampleError as error:
        note(index, error)
        index = (index + 1) % len(source)

  return read_at


def fill(
  images: UInt8[np.ndarray, "n h w c"],
  source: Source,
  transform: Transform,
  max_unreadable: int = 0,
) -> int:
  """Reads a whole source into an array; returns how many were unreadable.

  They are named together, in an ExampleError at more than max_unreadable; else
  they are logged, and the next one takes the place of each.
  """
  _refuse_empty(source)
  unreadable: dict[int, ExampleError] = {}

  def read(index: int) -> None:
    try:
      images[index] = _read(source, transform, index)
    except ExampleError as error:
      unreadable[index] = error

  with pool.ThreadPool(NUM_THREADS) as threads:
    done = threads.imap(read, range(len(source)), _CHUNK_SIZE)
    for _ in tqdm.tqdm(done, "loading", len(source), unit="image"):
      pass
  if unreadable:
    _tell(source, unreadable, max_unreadable)
  for index in unreadable:
    stand_in = index
    while stand_in in unreadable:
      stand_in = (stand_in + 1) % len(source)
    images[index] = images[stand_in]
  return len(unreadable)


def refuse_too_large(
  source: Source, shape: tuple[int, ...], bytes_each: int, remedy: str
) -> None:
  """Raises ValueError if all images of a source don't fit into free memory."""
  needed = len(source) * bytes_each
  free = psutil.virtual_memory().available
  if needed > free:
    raise ValueError(
      f"{source.label}: its {len(source):,} images of {shape} take"
      f" {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free, enough"
      f" for {free // bytes_each:,}: {remedy}"
    )


def _read(source: Source, transform: Transform, index: int) -> Pixels:
  image = source[index]
  try:
    return transform(image)
  except ValueError as error:
    message = f"{source.label}: example {index}: {error}"
    raise ExampleError(message) from error


def _tell(
  source: Source, unreadable: dict[int, ExampleError], max_unreadable: int
) -> None:
  """Names unreadable images in the log, or in an ExampleError."""
  named = [
    str(unreadable[index]).removeprefix(f"{source.label}: ")
    for index in sorted(unreadable)[:_MOST_NAMED]
  ]
  if len(unreadable) > len(named):
    named += [f"and {len(unreadable) - len(named):,} more"]
  told = (
    f"{source.label}: {len(unreadable):,} of {len(source):,} images cannot be"
    f" read: {'; '.join(named)}"
  )
  if remedy := _remedy(source, len(unreadable), max_unreadable):
    raise ExampleError(f"{told}: {remedy}")
  _LOG.warning("%s: the next one takes the place of each", told)


def _refuse_empty(source: Source) -> None:
  if not len(source):
    raise ValueError(f"{source.label} is empty")


def _remedy(source: Source, count: int, max_unreadable: int) -> str:
  """What to do about so many unreadable images; "" where they are allowed."""
  if count == len(source):
    return "there is no other"
  if count <= max_unreadable:
    return ""
  return (
    f"mend or remove what cannot be read, or set data.max_unreadable={count},"
    " and the next image takes its place"
  )
