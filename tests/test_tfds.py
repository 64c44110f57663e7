"""Preparing and reading TFDS sets without TensorFlow, and image geometry."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets as sklearn_datasets
from tensorflow_datasets.core import shuffle

sys.path.insert(0, os.path.dirname(__file__))
import cifar10_like

from rad_jax.data import builders, images, sources


@pytest.fixture(scope="module", autouse=True)
def _temporary_folders(tmp_path_factory):
  """Nothing is left in the temporary folder."""
  folder = tmp_path_factory.mktemp("tfds")
  with mock.patch.object(tempfile, "tempdir", str(folder)):
    yield
  assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
  """Data folder and the images that a prepared small cifar10 must give."""
  data_dir = tmp_path_factory.mktemp("cifar10")
  return data_dir, cifar10_like.prepare_cifar10_like(data_dir)


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("digits")
  builders.prepare("digits", str(data_dir))
  return data_dir


def load(source, transform=lambda image: image):
  shape = transform(source[0]).shape
  loaded = np.empty((len(source), *shape), np.uint8)
  assert sources.fill(loaded, source, transform) == 0
  return loaded


def _source(encoded):
  return sources.Source("cifar10", encoded, lambda file: images.decode(file, 3))


def _png(image):
  file = io.BytesIO()
  images.to_picture(image).save(file, "PNG")
  return file.getvalue()


def _random_image(height, width, channels=3):
  shape = (height, width, channels)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# Preparing.


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_round_trip_is_exact(cifar10, split):
  data_dir, expected = cifar10
  source = builders.open_source("cifar10", split, str(data_dir))
  np.testing.assert_array_equal(load(source), expected[split])


def test_cifar10_is_read_by_tfds_itself(cifar10):
  data_dir, expected = cifar10
  examples = tfds.data_source("cifar10", split="train", data_dir=str(data_dir))
  for example, image in zip(examples, expected["train"], strict=True):
    np.testing.assert_array_equal(example["image"], image)
    assert example["label"] == int(example["id"].decode()[-5:]) % 10


def test_cifar10_from_an_archive_laid_in_the_manual_folder(tmp_path):
  raw = cifar10_like.write_cifar10_like(tmp_path / "raw", 10, 5)
  manual = tmp_path / "downloads" / "manual"
  manual.mkdir(parents=True)
  archive = manual / "cifar-10-binary.tar.gz"
  with tarfile.open(archive, "w:gz") as tar:
    tar.add(raw, arcname=".")
  (url, real_info), *_ = builders.Cifar10.url_infos.items()
  checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
  info = type(real_info)(
    size=archive.stat().st_size, checksum=checksum, filename=archive.name
  )
  with mock.patch.object(builders.Cifar10, "url_infos", {url: info}):
    builders.prepare("cifar10", str(tmp_path))
  assert len(builders.open_source("cifar10", "train", str(tmp_path))) == 10


def test_downloads_are_checked_against_tfds_checksums(tmp_path):
  assert builders.Cifar10.url_infos == tfds.builder_cls("cifar10").url_infos
  assert builders.Lsun.url_infos == tfds.builder_cls("lsun").url_infos
  manual = tmp_path / "downloads" / "manual"
  manual.mkdir(parents=True)
  (manual / "cifar-10-binary.tar.gz").write_bytes(b"not the archive")
  with pytest.raises(builders.PreparationError, match="cifar-10-binary"):
    builders.prepare("cifar10", str(tmp_path))


def test_sets_beyond_memory_are_shuffled_on_disk(tmp_path, cifar10):
  _, expected = cifar10
  with mock.patch.object(shuffle, "MAX_MEM_BUFFER_SIZE", 20_000):
    prepared = cifar10_like.prepare_cifar10_like(tmp_path)
  np.testing.assert_array_equal(prepared["train"], expected["train"])
  source = builders.open_source("cifar10", "train", str(tmp_path))
  np.testing.assert_array_equal(source[20], expected["train"][20])


def test_lsun_from_lmdb(tmp_path):
  files = cifar10_like.prepare_lsun_like(tmp_path)
  for split, encoded in files.items():
    source = builders.open_source("lsun/bedroom", split, str(tmp_path))
    found = {image.tobytes() for image in load(source)}
    decoded = [np.array(Image.open(io.BytesIO(file))) for file in encoded]
    assert {image.shape for image in decoded} == {source[0].shape}
    assert found == {image.tobytes() for image in decoded}


def test_lsun_without_lmdb_fails_before_the_download(tmp_path):
  with (
    mock.patch.dict(sys.modules, {"lmdb": None}),
    mock.patch.object(
      tfds.download.DownloadManager,
      "download_and_extract",
      side_effect=AssertionError("downloaded"),
    ),
    pytest.raises(builders.PreparationError, match=r"rad_jax\[lsun\]"),
  ):
    builders.prepare("lsun/bedroom", str(tmp_path))


def test_digits_are_scikit_learns_in_its_order(digits_dir):
  source = builders.open_source("digits", "train", str(digits_dir))
  levels = sklearn_datasets.load_digits().images
  expected = np.floor(levels * 255 / 16 + 0.5)
  loaded = load(source)
  assert loaded.shape == (1797, 8, 8, 1) and loaded.max() == 255
  np.testing.assert_array_equal(loaded[..., 0], expected)


def test_digits_labels(digits_dir):
  examples = tfds.data_source("digits", split="train", data_dir=str(digits_dir))
  labels = [examples[index]["label"] for index in range(0, 1797, 100)]
  np.testing.assert_array_equal(
    labels, sklearn_datasets.load_digits().target[::100]
  )


def test_prepare_twice_leaves_the_files_alone(digits_dir):
  def modified():
    files = Path(digits_dir).rglob("*.array_record*")
    return {file: file.stat().st_mtime_ns for file in files}

  before = modified()
  builders.prepare("digits", str(digits_dir))
  assert before and modified() == before


def test_tfds_is_left_as_it_was(tmp_path):
  from_bucket = tfds.core.DatasetInfo.initialize_from_bucket
  builders.prepare("digits", str(tmp_path))
  assert tfds.core.DatasetInfo.initialize_from_bucket is from_bucket
  assert type(shuffle.tf) is not types.SimpleNamespace


def test_failed_download_names_set_url_and_remedy(tmp_path):
  error = requests.exceptions.ConnectionError("Name not known")
  url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
  error.request = requests.Request("GET", url)
  with (
    mock.patch.object(
      tfds.download.DownloadManager, "download_and_extract", side_effect=error
    ),
    pytest.raises(builders.PreparationError) as caught,
  ):
    builders.prepare("cifar10", str(tmp_path))
  message = str(caught.value)
  manual = str(tmp_path / "downloads" / "manual")
  for part in ("cifar10", url, "Name not known", "network", manual):
    assert part in message
  assert "put cifar-10-binary.tar.gz in" in message and "\n" not in message


def test_tensorflow_is_never_imported(tmp_path):
  code = (
    "import sys; sys.path.insert(0, sys.argv[1]); import cifar10_like as c\n"
    "from rad_jax.data import batches, builders, images, sources\n"
    "c.prepare_cifar10_like(sys.argv[2], 8, 4)\n"
    "source = builders.open_source('cifar10', 'train', sys.argv[2])\n"
    "read_at = sources.reader(source, lambda x: images.fit(x, 0, 16, 1))\n"
    "fetch = batches.fetch_from(read_at)\n"
    "next(batches.batches(fetch, 0, 0, 1, 4, 8))\n"
    "assert not [m for m in sys.modules if m.split('.')[0] == 'tensorflow']\n"
  )
  root = Path(__file__).parent
  subprocess.run(
    [sys.executable, "-c", code, str(root), str(tmp_path)],
    check=True,
    env={**os.environ, "PYTHONPATH": str(root.parent)},
  )


# Opening.


def test_not_prepared_is_quiet_and_names_set_and_folder(tmp_path, caplog):
  with pytest.raises(
    builders.NotPrepared, match="'celeb_a' is not prepared"
  ) as caught:
    builders.open_source("celeb_a", "train", str(tmp_path))
  assert str(tmp_path) in str(caught.value)
  assert isinstance(caught.value, FileNotFoundError)
  assert "\n" not in str(caught.value) and not caplog.records


def test_another_file_format_is_named(tmp_path):
  builders.prepare("digits", str(tmp_path))
  (info,) = Path(tmp_path).rglob("dataset_info.json")
  fields = json.loads(info.read_text())
  info.write_text(json.dumps({**fields, "fileFormat": "tfrecord"}))
  with pytest.raises(builders.NotPrepared, match="tfrecord"):
    builders.open_source("digits", "train", str(tmp_path))
  with pytest.raises(builders.PreparationError, match="tfrecord.*remove"):
    builders.prepare("digits", str(tmp_path))


@pytest.mark.parametrize(
  "name, suggestion",
  [
    ("cifer10", "'cifar10'"),
    ("digit", "'digits'"),
    ("lsun/bedrom", "'lsun/bedroom'"),
    ("downsampled_imagenet/64", "'downsampled_imagenet/64x64'"),
    ("cifar10/small", "no configs"),
    ("zzqqzz", "catalogue"),
  ],
)
def test_unknown_set_suggests_a_name(tmp_path, name, suggestion):
  with pytest.raises(ValueError, match=suggestion) as caught:
    builders.open_source(name, "train", str(tmp_path))
  assert name in str(caught.value) and len(str(caught.value)) < 200


def test_unknown_split_names_the_available(cifar10):
  with pytest.raises(ValueError, match="'trian'; available: test, train"):
    builders.open_source("cifar10", "trian", str(cifar10[0]))


def test_split_slices(cifar10):
  data_dir, expected = cifar10
  source = builders.open_source("cifar10", "train[10:20]", str(data_dir))
  np.testing.assert_array_equal(load(source), expected["train"][10:20])


def test_index_out_of_range(cifar10):
  source = builders.open_source("cifar10", "train", str(cifar10[0]))
  assert source.label == "dataset 'cifar10', split 'train'"
  for index in (-1, len(source)):
    with pytest.raises(IndexError, match=str(index)):
      source[index]


def test_broken_example_is_named():
  encoded = [_png(_random_image(8, 8)) for _ in range(5)]
  encoded[3] = encoded[3][:60]
  with pytest.raises(
    sources.ExampleError, match="cifar10: 1 of 5 .* example 3: "
  ):
    load(_source(encoded))


def test_images_of_two_shapes_are_fitted():
  source = _source([_png(_random_image(8, 8 + i // 3)) for i in range(5)])
  loaded = load(source, lambda image: images.fit(image, 0, 8, 3))
  assert loaded.shape == (5, 8, 8, 3)


def test_grey_files_in_a_colour_set_become_rgb():
  source = _source([_png(_random_image(8, 8, 1))])
  expected = np.repeat(_random_image(8, 8, 1), 3, axis=2)
  np.testing.assert_array_equal(source[0], expected)


# Geometry.


def test_celeb_a_crop():
  image = _random_image(218, 178)
  cropped = images.fit(image, 140, 140, 3)
  np.testing.assert_array_equal(cropped, image[39:179, 19:159])
  assert images.fit(image, 140, 64, 3).shape == (64, 64, 3)


@pytest.mark.parametrize(
  "shape, window",
  [
    ((20, 30), np.s_[:, 5:25]),
    ((30, 20), np.s_[5:25, :]),
    ((20, 23), np.s_[:, 1:21]),
  ],
)
def test_largest_square(shape, window):
  image = _random_image(*shape)
  np.testing.assert_array_equal(images.fit(image, 0, 20, 3), image[window])


def test_right_size_is_left_alone():
  image = _random_image(32, 32)
  assert np.shares_memory(images.fit(image, 0, 32, 3), image)


def test_crop_beyond_the_image():
  with pytest.raises(ValueError, match="crop_size 21 .* 20x30"):
    images.fit(_random_image(20, 30), 21, 16, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_antialiased(channels):
  """A fine checkerboard on a ramp: only the ramp may be left."""
  rows, columns = np.mgrid[:64, :64]
  ramp = 64 + columns + 0.5 * rows
  board = np.where((rows + columns) % 2, 30, -30)
  image = np.repeat((ramp + board)[..., None], channels, axis=2)
  resized = images.resize(image.astype(np.uint8), 16)
  pooled = ramp.reshape(16, 4, 16, 4).mean(axis=(1, 3))
  assert resized.shape == (16, 16, channels)
  inner = np.s_[2:-2, 2:-2]
  for channel in range(channels):
    difference = resized[..., channel][inner] - pooled[inner]
    assert np.abs(difference).max() < 2


def test_channels():
  image = _random_image(8, 8)
  luma = image @ np.array([0.299, 0.587, 0.114])
  grey = images.fit(image, 0, 8, 1)
  assert np.abs(grey[..., 0] - luma).max() <= 1
  np.testing.assert_array_equal(
    images.fit(grey, 0, 8, 3), np.repeat(grey, 3, axis=2)
  )
  with pytest.raises(ValueError, match="3 channels into 2"):
    images.fit(image, 0, 8, 2)
