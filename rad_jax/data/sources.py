"""Random-access images: decoded by index, fitted, read whole or one by one."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from multiprocessing import pool
from typing import Any

import numpy as np
import tqdm
from jaxtyping import UInt8

from rad_jax.data.images import Pixels

_LOG = logging.getLogger("rad_jax")
_NUM_THREADS = 8
_CHUNK_SIZE = 64

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
      message = f"{self.label}: example {index} cannot be decoded: {error}"
      raise ExampleError(message) from error


def reader(
  source: Source, transform: Transform, max_unreadable: int = 0
) -> Reader:
  """A function from an index to its image; safe to share among threads.

  An image that cannot be used is logged, and the next one takes its place, so
  that indices stay; ExampleError at more than max_unreadable of them.
  """
  if not len(source):
    raise ValueError(f"{source.label} is empty")
  allowed = min(max_unreadable, len(source) - 1)
  lock, unreadable = threading.Lock(), set[int]()

  def note(index: int, error: ExampleError) -> None:
    with lock:
      if index in unreadable:
        return
      unreadable.add(index)
      count = f"{len(unreadable)} of at most {max_unreadable} unreadable"
      if len(unreadable) > allowed:
        raise ExampleError(f"{error} ({count}: data.max_unreadable)") from error
      _LOG.warning("%s; the next one takes its place (%s)", error, count)

  def read_at(index: int) -> Pixels:
    while True:
      try:
        image = source[index]
        try:
          return transform(image)
        except ValueError as error:
          message = f"{source.label}: example {index}: {error}"
          raise ExampleError(message) from error
      except ExampleError as error:
        note(index, error)
        index = (index + 1) % len(source)

  return read_at


def load(source: Source, read_at: Reader) -> UInt8[np.ndarray, "n h w c"]:
  """All images of a source; ExampleError as its reader, or if shapes differ."""
  shape = read_at(0).shape
  images = np.empty((len(source), *shape), np.uint8)

  def read(index: int) -> None:
    image = read_at(index)
    if image.shape != shape:
      raise ExampleError(
        f"{source.label}: example {index} has shape {image.shape}, "
        f"example 0 has {shape}"
      )
    images[index] = image

  with pool.ThreadPool(_NUM_THREADS) as threads:
    done = threads.imap(read, range(len(source)), _CHUNK_SIZE)
    for _ in tqdm.tqdm(done, "loading", len(source), unit="image"):
      pass
  return images
