"""TFDS builders that prepare array_record files without TensorFlow.

TFDS reads array_record as NumPy. Writing it stays free of TensorFlow too as
long as images reach the writer as encoded files and nothing opens a file with
`tf.io.gfile`. This module supplies what is missing for that:

* `Digits`, a real set that needs no download;
* `Cifar10` and `Lsun`, TFDS's own builders with another reader of the raw
  files. Name, version, features and URLs are inherited, so that what they
  prepare is read by `tfds.data_source("cifar10")` and
  `tfds.data_source("lsun/bedroom")`;
* Hugging Face's sets, "huggingface:owner__name" in TFDS's spelling, once
  prepared read without a network or their package;
* `prepare`, which also lends TFDS file functions while it extracts archives
  and shuffles sets of more than 1 GB on disk.
"""

import contextlib
import difflib
import importlib.util
import io
import os
import re
import resource
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.dataset_builders import (
  huggingface_dataset_builder,
)
from tensorflow_datasets.core.download import download_manager, extractor

from rad_jax.data import folder, synthetic

_CIFAR_SHAPE = (3, 32, 32)
_MAX_OPEN_FILES = 4096


class PreparationError(RuntimeError):
  """A dataset could not be prepared; the message is one line with the mend."""


class Digits(tfds.core.GeneratorBasedBuilder):
  """scikit-learn's 1,797 handwritten digits, as 8x8 grey images.

  The images lie inside the scikit-learn wheel, so this set needs no network.
  Their 17 levels, 0 to 16, are spread over 0 to 255. scikit-learn publishes
  no partition of them, and a generative model of so few images can spare
  none: split "train" holds all 1,797, in scikit-learn's order.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}

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
      homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    from sklearn import datasets  # Takes a second to import.

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for index, (image, label) in enumerate(
      zip(images, digits.target, strict=True)
    ):
      yield index, {"image": _png(image), "label": int(label)}


class Cifar10(tfds.builder_cls("cifar10"), skip_registration=True):  # type: ignore
  """TFDS's CIFAR-10, with the binary batches read by NumPy."""

  name = "cifar10"
  url_infos = tfds.builder_cls("cifar10").url_infos

  def _generate_examples(
    self, split_prefix: str, filepaths: Iterator[str]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    index = 0
    for path in filepaths:
      records = np.frombuffer(epath.Path(path).read_bytes(), np.uint8)
      for record in records.reshape(-1, 1 + np.prod(_CIFAR_SHAPE)):
        image = record[1:].reshape(_CIFAR_SHAPE).transpose(1, 2, 0)
        yield (
          index,
          {
            "id": f"{split_prefix}{index:05d}",
            "image": _png(image),
            "label": int(record[0]),
          },
        )
        index += 1


class Lsun(tfds.builder_cls("lsun"), skip_registration=True):  # type: ignore
  """TFDS's LSUN, with the LMDB read by the `lmdb` package.

  TFDS extracts the archive through memory: a category needs as much memory
  as its largest file (43 GB for `lsun/bedroom`).
  """

  name = "lsun"
  url_infos = tfds.builder_cls("lsun").url_infos

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    _import_lmdb()
    return super()._split_generators(dl_manager)

  def _generate_examples(
    self, extracted_dir: str | os.PathLike[str], file_path: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    path = os.path.join(extracted_dir, file_path)
    if not os.path.exists(os.path.join(path, "data.mdb")):
      raise FileNotFoundError(f"{path} holds no data.mdb")
    lmdb = _import_lmdb()
    with lmdb.open(path, readonly=True, lock=False) as environment:
      with environment.begin() as transaction:
        for index, (key, value) in enumerate(transaction.cursor()):
          yield index, {"id": key.decode(), "image": io.BytesIO(value)}


_BUILDERS = {"cifar10": Cifar10, "lsun": Lsun}
_HUGGING_FACE = "huggingface:"


def needs_preparation(name: str) -> bool:
  """Whether a set has files to prepare: no world does, and no folder."""
  return name != folder.NAME and name not in synthetic.WORLDS


def make_builder(
  name: str, data_dir: str | None = None, file_format: str | None = None
) -> tfds.core.DatasetBuilder:
  """Returns the builder of a set, ours where TFDS's own needs TensorFlow.

  Args:
    name: TFDS's name, `set[/config]`; a `:version` is for reading only. Or
      "huggingface:owner__name".
    data_dir: Root of the prepared sets; None is TFDS's default.
    file_format: Format to prepare in; None is that of the prepared files.

  Raises:
    ValueError: Nothing has this name; the message suggests a close one.
    PreparationError: A set of Hugging Face is not prepared, and its builder
      cannot be had: the package or the network is missing.
  """
  if name.startswith(_HUGGING_FACE):
    return _hugging_face(name, data_dir, file_format)
  path, _, version = name.partition(":")
  base, _, config = path.partition("/")
  kwargs = {"data_dir": data_dir, "file_format": file_format}
  kwargs = {key: value for key, value in kwargs.items() if value is not None}
  with quiet():
    try:
      if base in _BUILDERS and not version:
        return _BUILDERS[base](config=config or None, **kwargs)
      return tfds.builder(name, **kwargs)
    except ValueError as error:
      suggestion = _suggest(base, config)
      if suggestion is None:
        raise
      raise ValueError(f"unknown dataset {name!r}; {suggestion}") from error


def _hugging_face(
  name: str, data_dir: str | None, file_format: str | None
) -> tfds.core.DatasetBuilder:
  """The builder of prepared files, or else the one that downloads them.

  Not `tfds.builder`, which lists all sets of Hugging Face to find one.
  """
  local_name = name.removeprefix(_HUGGING_FACE)
  with quiet():
    try:
      return tfds.builder(local_name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
      pass
  if importlib.util.find_spec("datasets") is None:
    raise PreparationError(
      f"{name} is not prepared, which needs the package datasets: pip install "
      f"datasets, or read a local folder: --config.data.name={folder.NAME} "
      "--config.data.path=DIR"
    )
  try:
    with quiet():
      return huggingface_dataset_builder.HuggingfaceDatasetBuilder(
        hf_repo_id=local_name.replace("__", "/", 1),
        data_dir=data_dir,
        file_format=file_format,
      )
  except (RuntimeError, OSError) as error:
    cause = " ".join(str(error.__cause__ or error).split())[:300]
    raise PreparationError(
      f"{name} cannot be had from Hugging Face: {cause}: check the name and "
      "the network"
    ) from error


def prepare(name: str, data_dir: str | None = None) -> None:
  """Downloads a set and writes it as array_record; does nothing if it is there.

  Args:
    name: TFDS's name, such as "cifar10" or "lsun/bedroom".
    data_dir: Root of the prepared sets; None is TFDS's default.

  Raises:
    PreparationError: No network, a failed download or checksum, a missing
      package, a full disk, or files in the way that cannot be read.
    ValueError: Nothing has this name.
  """
  builder = make_builder(name, data_dir)
  if is_prepared(builder):
    if not random_access_formats(builder):
      raise PreparationError(
        f"{name} is already prepared in {builder.data_dir} as "
        f"{builder.info.file_format.value}, which has no random access: "
        "remove that folder or choose another data_dir"
      )
    return
  builder = make_builder(name, data_dir, file_format="array_record")
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    with quiet(), _files_without_tensorflow(), _many_open_files():
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
  if not is_prepared(builder):
    raise PreparationError(
      f"{name}: {builder.data_dir} exists but is not a prepared set: "
      "remove it and prepare again"
    )


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether the builder's files are there, in whatever format."""
  with quiet():
    return builder.is_prepared()


def random_access_formats(builder: tfds.core.DatasetBuilder) -> set[str]:
  """The formats of a prepared set that `tfds.data_source` can read."""
  readable = tfds.core.FileFormat.with_random_access()
  present = builder.info.available_file_formats()
  return {file_format.value for file_format in present & set(readable)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Holds back TFDS's warnings, such as the one on every missing folder."""
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)
  try:
    yield
  finally:
    absl.logging.set_verbosity(verbosity)


def _png(image: UInt8[np.ndarray, "..."]) -> io.BytesIO:
  """Encodes an image [h, w] or [h, w, 3] without loss."""
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
  file.seek(0)
  return file


def _import_lmdb() -> types.ModuleType:
  try:
    import lmdb
  except ImportError as error:
    raise PreparationError(
      "lsun needs the package lmdb: pip install 'rad_jax[lsun]'"
    ) from error
  return lmdb


@contextlib.contextmanager
def _files_without_tensorflow() -> Iterator[None]:
  """Lends TFDS's extractor and shuffler the file functions they take from TF.

  Both modules call nothing else of TensorFlow; `epath` is what the rest of
  TFDS opens its files with.
  """
  gfile = types.SimpleNamespace(
    GFile=lambda path, mode="r": epath.Path(path).open(mode),
    exists=lambda path: epath.Path(path).exists(),
    remove=lambda path: epath.Path(path).unlink(),
  )
  files = types.SimpleNamespace(
    io=types.SimpleNamespace(gfile=gfile),
    compat=types.SimpleNamespace(as_text=os.fsdecode),
    # `except ()` catches nothing.
    errors=types.SimpleNamespace(ResourceExhaustedError=()),
  )
  with (
    mock.patch.object(extractor, "tf", files, create=True),
    mock.patch.object(shuffle, "tf", files, create=True),
  ):
    yield


@contextlib.contextmanager
def _many_open_files() -> Iterator[None]:
  """Raises the limit on open files: the shuffler keeps 1,000 of them open."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  unlimited = resource.RLIM_INFINITY
  wanted = _MAX_OPEN_FILES if hard == unlimited else min(_MAX_OPEN_FILES, hard)
  if soft != unlimited and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _suggest(base: str, config: str) -> str | None:
  """What may have been meant; None if set and config exist."""
  names = set(tfds.list_builders(with_community_datasets=False))
  if base not in names:
    close = difflib.get_close_matches(base, names)
    if not close:
      return "TFDS's catalogue lists the names"
    return "did you mean " + " or ".join(map(repr, close)) + "?"
  configs = list(tfds.builder_cls(base).builder_configs)
  if not config or config in configs:
    return None
  if not configs:
    return f"{base!r} has no configs"
  close = difflib.get_close_matches(config, configs) or configs[:5]
  return "did you mean " + " or ".join(repr(f"{base}/{c}") for c in close) + "?"


def _explain(
  name: str, builder: tfds.core.DatasetBuilder, error: Exception
) -> str:
  """One line: the set, the cause with its URL, and the mend."""
  cause = " ".join(str(error).split())[:300] or type(error).__name__
  if isinstance(error, ImportError):
    return f"{name} could not be prepared: {cause}: install the package"
  request = getattr(error, "request", None)
  found = re.search(r"https?://[^\s'\"]+", str(error))
  url = getattr(request, "url", None) or (found and found.group().rstrip(".,"))
  info = (builder.url_infos or {}).get(url)
  filename = info.filename if info else "the file"
  manual = Path(builder.data_dir_root, "downloads", "manual")
  return (
    f"{name} could not be prepared{f' from {url}' if url else ''}: {cause}: "
    "check the network and the free disk space, or download "
    f"{url or 'its files'} by hand, put {filename} in {manual}, "
    "and prepare again"
  )
