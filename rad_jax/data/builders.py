"""TFDS sets, prepared and opened without TensorFlow.

TFDS writes array_record without it if images come encoded and nothing calls
`tf.io.gfile`: hence these builders and stand-ins.
"""

import contextlib
import difflib
import importlib.util
import os
import re
import resource
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.download import download_manager, extractor

from rad_jax.data import folder, images, sources

_HUGGING_FACE = "huggingface:"


class PreparationError(RuntimeError):
  """A set could not be prepared; the message, one line, says what to do."""


class NotPrepared(FileNotFoundError):
  """A set has no files that can be read."""


class Digits(tfds.core.GeneratorBasedBuilder):
  """scikit-learn's 1,797 digits, 8x8; levels 0 to 16 spread over 0 to 255."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="1,797 handwritten digits, 8x8 grey, from scikit-learn.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    from sklearn import datasets  # Takes a second to import.

    digits = datasets.load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    for index, image in enumerate(pixels):
      label = int(digits.target[index])
      yield index, {"image": images.to_picture(image), "label": label}


class Cifar10(tfds.builder_cls("cifar10"), skip_registration=True):  # type: ignore
  """TFDS's CIFAR-10, with the binary batches read by NumPy."""

  name = "cifar10"
  url_infos = tfds.builder_cls("cifar10").url_infos

  def _generate_examples(self, split_prefix, filepaths):
    raw = b"".join(epath.Path(path).read_bytes() for path in filepaths)
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    for index, record in enumerate(records):
      image = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
      example = {"image": images.to_picture(image), "label": int(record[0])}
      yield index, {"id": f"{split_prefix}{index:05d}", **example}


class Lsun(tfds.builder_cls("lsun"), skip_registration=True):  # type: ignore
  """TFDS's LSUN, read by `lmdb`; bedroom is extracted in 43 GB of memory."""

  name = "lsun"
  url_infos = tfds.builder_cls("lsun").url_infos

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    if importlib.util.find_spec("lmdb") is None:
      raise PreparationError(
        "lsun needs the package lmdb: pip install 'rad_jax[lsun]'"
      )
    return super()._split_generators(dl_manager)

  def _generate_examples(self, extracted_dir, file_path):
    import lmdb  # An extra of the package.

    path = Path(extracted_dir, file_path)
    if not (path / "data.mdb").exists():
      raise FileNotFoundError(f"{path} holds no data.mdb")
    environment = lmdb.open(str(path), readonly=True, lock=False)
    with environment, environment.begin() as transaction:
      for index, (key, value) in enumerate(transaction.cursor()):
        yield index, {"id": key.decode(), "image": value}


_BUILDERS = {"cifar10": Cifar10, "lsun": Lsun}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Holds back TFDS's warnings, such as the one on every missing folder."""
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)
  try:
    yield
  finally:
    absl.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
  """Lends a part of TFDS a stand-in."""
  original = getattr(owner, name)
  setattr(owner, name, stand_in)
  try:
    yield
  finally:
    setattr(owner, name, original)


@_quiet()
def open_source(
  name: str, split: str, data_dir: str | None = None
) -> sources.Source:
  """A split, or a slice "train[:90%]", in the files' order; or NotPrepared."""
  builder = make_builder(name, data_dir)
  if not _has_random_access(builder):
    found = _format(builder)
    how = f"is prepared as {found}, not as array_record,"
    raise NotPrepared(
      f"dataset {name!r} {how if found else 'is not prepared'} in "
      f"{builder.data_dir_root}"
    )
  num_channels = _num_channels(name, builder.info.features)
  decoders = {"image": tfds.decode.SkipDecoding()}
  try:
    records = builder.as_data_source(split=split, decoders=decoders)
  except ValueError as error:
    available = ", ".join(sorted(builder.info.splits))
    raise ValueError(
      f"dataset {name!r} has no split {split!r}; available: {available}"
    ) from error
  return sources.Source(
    f"dataset {name!r}, split {split!r}",
    records,
    lambda record: images.decode(record["image"], num_channels),
  )


@_quiet()
def prepare(name: str, data_dir: str | None = None) -> None:
  """Downloads a set as array_record unless it is there; or PreparationError."""
  builder = make_builder(name, data_dir)
  if _has_random_access(builder):
    return
  if found := _format(builder):
    raise PreparationError(
      f"{name} is already prepared in {builder.data_dir} as {found}, which has "
      "no random access: remove that folder or choose another data_dir"
    )
  builder = make_builder(name, data_dir, file_format="array_record")
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    _allow_open_files()
    with (
      _replaced(extractor, "tf", _FILES),
      _replaced(shuffle, "tf", _FILES),
    ):
      builder.download_and_prepare(download_config=config)
  except (
    OSError,
    ImportError,
    AssertionError,
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
    extractor.ExtractError,
  ) as error:
    raise PreparationError(_explain(name, builder, error)) from error
  if not _format(builder):
    raise PreparationError(
      f"{name}: {builder.data_dir} exists but is not a prepared set: "
      "remove it and prepare again"
    )


# TFDS looks for sets in a bucket that is closed, and leaves a temporary folder.
@_replaced(tfds.core.DatasetInfo, "initialize_from_bucket", lambda _: None)
@_quiet()
def make_builder(
  name: str, data_dir: str | None = None, file_format: str | None = None
) -> tfds.core.DatasetBuilder:
  """The builder of a set, ours where TFDS's own needs TensorFlow.

  `name` is TFDS's, else ValueError, or "huggingface:owner__name", else
  PreparationError; with ":version" it is for reading only. None means TFDS's
  default data_dir, and the prepared files' file_format.
  """
  if name.startswith(_HUGGING_FACE):
    return _hugging_face(name, data_dir, file_format)
  path, _, version = name.partition(":")
  base, _, config = path.partition("/")
  kwargs = {"data_dir": data_dir, "file_format": file_format}
  kwargs = {key: value for key, value in kwargs.items() if value is not None}
  try:
    if base in _BUILDERS and not version:
      return _BUILDERS[base](config=config or None, **kwargs)
    return tfds.builder(name, **kwargs)
  except ValueError as error:
    if suggestion := _suggest(base, config):
      raise ValueError(f"unknown dataset {name!r}; {suggestion}") from error
    raise


def _hugging_face(
  name: str, data_dir: str | None, file_format: str | None
) -> tfds.core.DatasetBuilder:
  """The builder of prepared files, or else the one that downloads them."""
  local_name = name.removeprefix(_HUGGING_FACE)
  with contextlib.suppress(tfds.core.DatasetNotFoundError):
    return tfds.builder(local_name, data_dir=data_dir)
  if importlib.util.find_spec("datasets") is None:
    raise PreparationError(
      f"{name} is not prepared, which needs the package datasets: pip install "
      f"datasets, or read a local folder: --config.data.name={folder.NAME} "
      "--config.data.path=DIR"
    )
  try:
    # Not `tfds.builder`, which lists all sets of Hugging Face to find one.
    return tfds.dataset_builders.HuggingfaceDatasetBuilder(
      hf_repo_id=local_name.replace("__", "/", 1),
      data_dir=data_dir,
      file_format=file_format,
    )
  except (RuntimeError, OSError) as error:
    cause = " ".join(str(error.__cause__ or error).split())[:300]
    raise PreparationError(
      f"{name} cannot be loaded from Hugging Face: {cause}: check the name and "
      "the network"
    ) from error


def _format(builder: tfds.core.DatasetBuilder) -> str:
  """The format of a set's files; "" if it is not prepared."""
  return builder.info.file_format.value if builder.is_prepared() else ""


def _has_random_access(builder: tfds.core.DatasetBuilder) -> bool:
  readable = set(tfds.core.FileFormat.with_random_access())
  found = builder.is_prepared() and builder.info.available_file_formats()
  return bool(found and found & readable)


def _num_channels(name: str, features: tfds.features.FeaturesDict) -> int:
  image = features["image"] if "image" in features else None
  if not isinstance(image, tfds.features.Image):
    raise ValueError(
      f"dataset {name!r} has no feature 'image', only {sorted(features)}"
    )
  num_channels = image.shape[-1]
  if num_channels not in images.PIL_MODES or image.np_dtype != np.uint8:
    raise ValueError(
      f"dataset {name!r} has images of {num_channels} channels of "
      f"{np.dtype(image.np_dtype)}; 1 or 3 of uint8 are supported"
    )
  return num_channels


# All that TFDS's extractor and shuffler take from TensorFlow.
_FILES = types.SimpleNamespace(
  io=types.SimpleNamespace(
    gfile=types.SimpleNamespace(
      GFile=lambda path, mode="r": epath.Path(path).open(mode),
      exists=lambda path: epath.Path(path).exists(),
      remove=lambda path: epath.Path(path).unlink(),
    )
  ),
  compat=types.SimpleNamespace(as_text=os.fsdecode),
  # `except ()` catches nothing.
  errors=types.SimpleNamespace(ResourceExhaustedError=()),
)


def _allow_open_files() -> None:
  """Raises the process's limit: the shuffler keeps 1,000 files open."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _suggest(base: str, config: str) -> str | None:
  """What may have been meant; None if set and config exist."""
  names = tfds.list_builders(with_community_datasets=False)
  if base in names:
    configs = list(tfds.builder_cls(base).builder_configs)
    if not config or config in configs:
      return None
    if not configs:
      return f"{base!r} has no configs"
    close = difflib.get_close_matches(config, configs) or configs[:5]
    close = [f"{base}/{config}" for config in close]
  else:
    close = difflib.get_close_matches(base, names)
    if not close:
      return "TFDS's catalogue lists the names"
  return "did you mean " + " or ".join(map(repr, close)) + "?"


def _explain(
  name: str, builder: tfds.core.DatasetBuilder, error: Exception
) -> str:
  """One line: the set, the cause with its URL, and what to do."""
  cause = " ".join(str(error).split())[:300] or type(error).__name__
  if isinstance(error, ImportError):
    return f"{name} could not be prepared: {cause}: install the package"
  found = re.search(r"https?://[^\s'\"]+", str(error))
  url = getattr(getattr(error, "request", None), "url", None)
  url = url or (found and found.group().rstrip(".,"))
  info = (builder.url_infos or {}).get(url)
  filename = info.filename if info else "the file"
  manual = Path(builder.data_dir_root, "downloads", "manual")
  return (
    f"{name} could not be prepared{f' from {url}' if url else ''}: {cause}: "
    "check the network and the free disk space, or download "
    f"{url or 'its files'} by hand, put {filename} in {manual}, "
    "and prepare again"
  )
