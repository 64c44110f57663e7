"""Opens the clean training set, whatever kind of source it comes from."""

from typing import Any, NamedTuple

import numpy as np

from rad_jax.data import (
  batches,
  builders,
  examples,
  folder,
  images,
  sources,
  subspace,
  synthetic,
)


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
  unless linear_rank is 0, onto that many principal components of the set.
  """
  if name in synthetic.WORLDS:
    # Apart from the streams [seed, epoch] of the data order.
    generator = np.random.default_rng([seed, 0, 1])
    return _in_memory(synthetic.WORLDS[name]().sample(generator, num_examples))
  files = ""
  if name == folder.NAME:
    source = folder.open_folder(
      path, split, num_channels, crop_size, image_size, max_megapixels
    )
    files, crop_size = folder.digest(path, source), 0  # it has been cut
  else:
    source = builders.open_source(name, split, data_dir or None)
  fit = lambda image: images.fit(image, crop_size, image_size, num_channels)
  read_at = sources.reader(source, fit, max_unreadable)
  if loading == "stream":
    return TrainingSet(batches.fetch_from(read_at), len(source), files=files)
  x_0 = sources.load(source, read_at)
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
