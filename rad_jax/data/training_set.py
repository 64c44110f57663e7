"""Opens the clean training set, whatever kind of source it comes from."""

import logging
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from rad_jax.data import (
  batches,
  builders,
  decoded,
  examples,
  folder,
  images,
  sources,
  subspace,
  synthetic,
)

_LOG = logging.getLogger("rad_jax")


class TrainingSet(NamedTuple):
  """The clean training set, by index."""

  fetch: batches.Fetch  # uint8 images, or float32 in model units
  num_examples: int
  x_0: np.ndarray | None = None  # all [n, ...]; None if read when needed
  files: str = ""  # a hash of the names and sizes of a folder's images

  @property
  def identity(self) -> dict[str, Any]:
    """What tells it from another set, as JSON has it."""
    return {"num_examples": self.num_examples, "files": self.files}


def open_training_set(
  name: str,
  *,
  seed: int,
  num_examples: int,
  path: str,
  split: str,
  data_dir: str,
  cache: str,
  loading: str,
  crop_size: int,
  image_size: int,
  num_channels: int,
  max_megapixels: float,
  max_unreadable: int,
  linear_rank: int,
) -> TrainingSet:
  """Opens, and unless loading is "stream" reads, a training set.

  Synthetic sets have num_examples drawn by seed. Images, of the folder `path`
  or of TFDS's data_dir ("" is its default), go through `images.fit`, then,
  unless linear_rank is 0, onto that many principal components of the set. A
  folder's are kept in, and if possible taken from, the folder `cache`.
  """
  if name in synthetic.WORLDS:
    # Apart from the streams [seed, epoch] of the data order.
    generator = np.random.default_rng([seed, 0, 1])
    return _in_memory(synthetic.WORLDS[name]().sample(generator, num_examples))
  files, kept = "", None
  if name == folder.NAME:
    decoding = (num_channels, crop_size, image_size)
    source = folder.open_folder(path, split, *decoding, max_megapixels)
    files, crop_size = folder.digest(source), 0  # it has been cut
    if cache:
      of_pixels = folder.decoded_digest(path, source, *decoding)
      kept = pathlib.Path(cache).expanduser() / f"{of_pixels}.npy"
  else:
    source = builders.open_source(name, split, data_dir or None)
  if len(source) == 1:
    _LOG.warning("%s: of one image, nothing but it is learnt", source.label)
  fit = lambda image: images.fit(image, crop_size, image_size, num_channels)
  shape = (len(source), image_size, image_size, num_channels)
  x_0 = decoded.read(kept, shape) if kept else None
  if x_0 is None and loading == "stream":
    read_at = sources.reader(source, fit, max_unreadable)
    return TrainingSet(batches.fetch_from(read_at), len(source), files=files)
  fill = lambda empty: sources.fill(empty, source, fit, max_unreadable)
  if x_0 is None and kept:
    x_0 = decoded.keep(kept, shape, fill)
  # Of uint8, and of the floats that a projection takes.
  bytes_each = math.prod(shape[1:]) * ((x_0 is None) + 16 * bool(linear_rank))
  remedy = f"set data.{'linear_rank=0' if linear_rank else 'loading=stream'}"
  sources.refuse_too_large(source, shape[1:], bytes_each, remedy)
  if x_0 is None:
    x_0 = np.empty(shape, np.uint8)
    fill(x_0)
  if linear_rank:
    x_0 = examples.to_model_range(x_0)
    x_0 = subspace.project(subspace.fit(x_0, linear_rank), x_0)
  return _in_memory(x_0)._replace(files=files)


def example_shape(
  name: str, image_size: int, num_channels: int
) -> tuple[int, ...]:
  """The shape of one example, as the network sees it."""
  if name in synthetic.WORLDS:
    return synthetic.WORLDS[name]().mean.shape
  return (image_size, image_size, num_channels)


def _in_memory(x_0: np.ndarray) -> TrainingSet:
  return TrainingSet(lambda indices: x_0[indices], len(x_0), x_0)


def evenly(total: int, count: int) -> np.ndarray:
  """`count` indices spread evenly over 0 .. total - 1, int32."""
  return np.linspace(0, total - 1, count).astype(np.int32)


def needs_preparation(name: str) -> bool:
  """Whether a set has files to prepare: synthetic sets and folders do not."""
  return name != folder.NAME and name not in synthetic.WORLDS
