"""Small stand-ins for downloads, laid out as the real archives are."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rad_jax.data import builders

LABEL_NAMES = (
  "airplane automobile bird cat deer dog frog horse ship truck".split()
)
_RECORDS_FOLDER = "cifar-10-batches-bin"


def cifar10_like_images(num_images: int, seed: int) -> np.ndarray:
  """Deterministic images, uint8 [n, 32, 32, 3], no two alike.

  Each is a sloped plane of colour with noise: symmetric in nothing, so that a
  transposed axis or a swapped channel shows.
  """
  rng = np.random.default_rng(seed)
  rows, columns = np.mgrid[:32, :32][..., None]
  slopes = rng.uniform(-2, 2, (2, num_images, 1, 1, 3))
  noise = rng.normal(0, 8, (num_images, 32, 32, 3))
  images = 128 + slopes[0] * rows + slopes[1] * columns + noise
  return np.clip(images, 0, 255).astype(np.uint8)


def write_cifar10_like(folder: Path, num_train: int, num_test: int) -> Path:
  """Writes binary batches as in the real archive; returns their root.

  Image i of either split has label i % 10.
  """
  batches = folder / _RECORDS_FOLDER
  batches.mkdir(parents=True)
  names = "\n".join([*LABEL_NAMES, "", ""])
  (batches / "batches.meta.txt").write_text(names)
  train = _records(cifar10_like_images(num_train, seed=0))
  for number, part in enumerate(np.array_split(train, 5), start=1):
    (batches / f"data_batch_{number}.bin").write_bytes(part.tobytes())
  test = _records(cifar10_like_images(num_test, seed=1))
  (batches / "test_batch.bin").write_bytes(test.tobytes())
  return folder


def prepare_cifar10_like(
  data_dir: Path, num_train: int = 64, num_test: int = 16
) -> dict[str, np.ndarray]:
  """Prepares a small `cifar10` below `data_dir` without a download.

  Returns:
    For "train" and "test" the images, uint8 [n, 32, 32, 3], in the order of
    `tfds.data_source`.
  """
  raw = write_cifar10_like(Path(data_dir, "raw"), num_train, num_test)
  with no_download(raw):
    builders.prepare("cifar10", str(data_dir))
  images = {
    "train": cifar10_like_images(num_train, seed=0),
    "test": cifar10_like_images(num_test, seed=1),
  }
  return {
    split: values[_prepared_order(split, data_dir)]
    for split, values in images.items()
  }


def prepare_lsun_like(
  data_dir: Path, num_train: int = 6, num_validation: int = 2
) -> dict[str, list[bytes]]:
  """Prepares a small `lsun/bedroom` of JPEGs below `data_dir`.

  Returns:
    For "train" and "validation" the JPEG files, in the LMDB's order.
  """
  files = {
    "train": [_jpeg(i) for i in range(num_train)],
    "validation": [_jpeg(100 + i) for i in range(num_validation)],
  }
  roots = {}
  for short, split in (("train", "train"), ("val", "validation")):
    roots[short] = Path(data_dir, "raw", short)
    _write_lmdb(roots[short] / f"bedroom_{short}_lmdb", files[split])
  with no_download(roots):
    builders.prepare("lsun/bedroom", str(data_dir))
  return files


@contextlib.contextmanager
def no_download(extracted: Path | dict[str, Path]) -> Iterator[None]:
  """Lets every download end at once with the extracted folders given."""
  with mock.patch.object(
    tfds.download.DownloadManager,
    "download_and_extract",
    lambda self, urls: extracted,
  ):
    yield


def _records(images: np.ndarray) -> np.ndarray:
  """One label byte and the pixels, channels first: uint8 [n, 3073]."""
  labels = (np.arange(len(images)) % 10).astype(np.uint8)[:, None]
  pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  return np.concatenate([labels, pixels], axis=1)


def _prepared_order(split: str, data_dir: Path) -> list[int]:
  """Position in the raw files of each prepared example, from TFDS's ids."""
  examples = tfds.data_source("cifar10", split=split, data_dir=str(data_dir))
  return [int(example["id"].decode().split("_")[1]) for example in examples]


def _jpeg(seed: int) -> bytes:
  """A JPEG of 40x30 pixels (width by height)."""
  pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG")
  return file.getvalue()


def _write_lmdb(folder: Path, values: list[bytes]) -> None:
  import lmdb

  folder.mkdir(parents=True)
  with lmdb.open(str(folder), map_size=1 << 20) as environment:
    with environment.begin(write=True) as transaction:
      for index, value in enumerate(values):
        transaction.put(f"{index:08x}".encode(), value)
