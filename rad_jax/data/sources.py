"""Random-access image sources: prepared TFDS sets read without TensorFlow."""

import dataclasses
import io
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from jaxtyping import UInt8
from PIL import Image

from rad_jax.data import builders

_LOG = logging.getLogger("rad_jax")
_PIL_MODES = {1: "L", 3: "RGB"}
_NUM_THREADS = 8
_CHUNK_SIZE = 64

Transform = Callable[[UInt8[np.ndarray, "h w c"]], UInt8[np.ndarray, "h w c"]]
# The image at an index, transformed.
Reader = Callable[[int], UInt8[np.ndarray, "h w c"]]


class NotPrepared(FileNotFoundError):
  """A set has no files that can be read.

  Attributes:
    name: TFDS's name of the set.
    data_dir: Root of the prepared sets that was searched.
  """

  def __init__(self, name: str, data_dir: str, reason: str = "is not prepared"):
    super().__init__(f"dataset {name!r} {reason} in {data_dir}")
    self.name = name
    self.data_dir = data_dir


class ExampleError(ValueError):
  """An example cannot be used; the message names set, split and index."""


@runtime_checkable
class Source(Protocol):
  """Images by index, each uint8 [h, w, c] in [0, 255]."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]: ...


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """The images of one split, decoded on access; safe to share among threads.

  The order is that of the files: TFDS fixes it when a set is prepared, by a
  hash of each example's key, so an index means the same image everywhere.

  Attributes:
    name: TFDS's name of the set.
    split: TFDS's name of the split, slices included.
    records: TFDS's data source with the image left encoded.
    num_channels: 1 or 3.
  """

  name: str
  split: str
  records: Sequence[Any]
  num_channels: int

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
    if not 0 <= index < len(self):
      raise IndexError(f"{self}: no example {index} among {len(self)}")
    try:
      return _decode(self.records[index]["image"], self.num_channels)
    except Exception as error:
      raise ExampleError(
        f"{self}: example {index} cannot be decoded: {error}"
      ) from error

  def __str__(self) -> str:
    return f"dataset {self.name!r}, split {self.split!r}"


def open_source(
  name: str, split: str, data_dir: str | None = None
) -> TfdsSource:
  """Opens one split of a prepared set.

  Args:
    name: TFDS's name, such as "cifar10" or "lsun/bedroom".
    split: TFDS's name of a split; slices such as "train[:90%]" work.
    data_dir: Root of the prepared sets; None is TFDS's default.

  Raises:
    NotPrepared: Nothing is prepared there, or in a format without random
      access.
    ValueError: No such set or split, or no uint8 images in it.
  """
  builder = builders.make_builder(name, data_dir)
  root = str(builder.data_dir_root)
  if not builders.is_prepared(builder):
    raise NotPrepared(name, root)
  if not builders.random_access_formats(builder):
    found = builder.info.file_format.value
    raise NotPrepared(
      name, root, f"is prepared as {found}, not as array_record,"
    )
  num_channels = _num_channels(name, builder.info.features)
  with builders.quiet():
    try:
      records = builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
      )
    except ValueError as error:
      available = ", ".join(sorted(builder.info.splits))
      raise ValueError(
        f"dataset {name!r} has no split {split!r}; available: {available}"
      ) from error
  return TfdsSource(name, split, records, num_channels)


def load(source: Source, read_at: Reader) -> UInt8[np.ndarray, "n h w c"]:
  """Reads a whole source into memory, with a progress bar on stderr.

  Args:
    source: Images of any size.
    read_at: Its `reader`.

  Raises:
    ExampleError: An image cannot be decoded or transformed, or comes out in
      another shape than the first.
  """
  first = read_at(0)
  images = np.empty((len(source), *first.shape), np.uint8)

  def read_chunk(start: int) -> int:
    stop = min(start + _CHUNK_SIZE, len(source))
    for index in range(start, stop):
      image = read_at(index)
      if image.shape != first.shape:
        raise ExampleError(
          f"{source}: example {index} has shape {image.shape}, "
          f"example 0 has {first.shape}"
        )
      images[index] = image
    return stop - start

  starts = range(0, len(source), _CHUNK_SIZE)
  with (
    futures.ThreadPoolExecutor(_NUM_THREADS) as pool,
    tqdm.tqdm(total=len(source), unit="image", desc="loading") as progress,
  ):
    for count in pool.map(read_chunk, starts):
      progress.update(count)
  return images


def reader(
  source: Source, transform: Transform, max_unreadable: int = 0
) -> Reader:
  """Returns a function from an index to its image; safe to share by threads.

  An image that cannot be decoded or transformed is named in the log, with the
  count of such, and the next that can stands in its place: indices stay what
  they are, and with them the order of the batches and the corruption.

  Args:
    source: Images of any size.
    transform: Brings each to one shape.
    max_unreadable: How many of them are put up with.

  Raises:
    ValueError: The source is empty.

  The function raises ExampleError at one image too many.
  """
  if not len(source):
    raise ValueError(f"{source} is empty")
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
      _LOG.warning("%s; the next one stands in (%s)", error, count)

  def read_at(index: int) -> UInt8[np.ndarray, "h w c"]:
    while True:
      try:
        return _read(source, index, transform)
      except ExampleError as error:
        note(index, error)
        index = (index + 1) % len(source)

  return read_at


def _read(
  source: Source, index: int, transform: Transform
) -> UInt8[np.ndarray, "h w c"]:
  try:
    return transform(source[index])
  except ExampleError:
    raise
  except ValueError as error:
    raise ExampleError(f"{source}: example {index}: {error}") from error


def _num_channels(name: str, features: tfds.features.FeaturesDict) -> int:
  image = features["image"] if "image" in features else None
  if not isinstance(image, tfds.features.Image):
    raise ValueError(
      f"dataset {name!r} has no feature 'image', only {sorted(features)}"
    )
  num_channels = image.shape[-1]
  if num_channels not in _PIL_MODES or image.np_dtype != np.uint8:
    raise ValueError(
      f"dataset {name!r} has images of {num_channels} channels of "
      f"{np.dtype(image.np_dtype)}; 1 or 3 of uint8 are supported"
    )
  return num_channels


def _decode(encoded: bytes, num_channels: int) -> UInt8[np.ndarray, "h w c"]:
  with Image.open(io.BytesIO(encoded)) as picture:
    image = np.array(picture.convert(_PIL_MODES[num_channels]))
  return image if image.ndim == 3 else image[..., None]
