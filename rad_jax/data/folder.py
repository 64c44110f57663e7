"""A local folder, or zip archive, of images, decoded by Pillow on access.

It is x.png, class/x.png, split/x.png or split/class/x.png, with images below at
any depth, and perhaps all in one folder; classes are ignored. The order is that
of the names.
"""

import collections
import contextlib
import logging
import pathlib
import threading
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from multiprocessing import pool
from typing import IO, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from rad_jax import files
from rad_jax.data import images, sources

_LOG = logging.getLogger("rad_jax")

NAME = "image_folder"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Folders of such a name are splits; if there is none, they are classes.
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")

# Pictures of more pixels are decoded one at a time: Pillow takes 4 bytes each.
_LARGE = 4_000_000
_ONE_LARGE = threading.Lock()
_ORIENTATION = 0x0112  # in EXIF
# Rows of a large picture that are converted at a time.
_BAND = 64
# Headers that are read to say what a folder holds.
_MOST_HEADERS = 10_000
# To be raised when other pixels come of the same file: sets are decoded anew.
_VERSION = 1


class FolderError(ValueError):
  """A folder of images cannot be used; one line."""


class _File(NamedTuple):
  name: str  # below the folder, or in the archive: "cat/x.png"
  size: int  # in bytes
  stamp: int  # when it was changed, in ns; in an archive, its CRC


Open = Callable[[str], IO[bytes]]


def open_folder(
  path: str,
  split: str,
  num_channels: int,
  crop_size: int = 0,
  image_size: int = 0,
  max_megapixels: float = 150.0,
) -> sources.Source:
  """Finds the images of a split, decoding none; FolderError without any.

  Decoded, an image is the centred square of side crop_size, 0 for the largest,
  box-filtered to no less than twice image_size; both 0: whole, as it is. One
  of more than max_megapixels is refused; Pillow would decode it in 4 bytes a
  pixel. What is found, and what not read, is logged.
  """
  root = pathlib.Path(path).expanduser()
  open_file, listed = _listed(root)
  reasons = [_why_skipped(file.name) for file in listed]
  read = sorted(
    file for file, why in zip(listed, reasons, strict=True) if not why
  )
  splits = _splits(root, read)
  if split not in splits:
    raise FolderError(
      f"{str(root)!r} has no split {split!r}; available:"
      f" {', '.join(sorted(splits))} (classes are not told apart: to train on"
      " one alone, give its folder as data.path)"
    )
  found = splits[split]
  # In their place are max_megapixels, and messages that name the file.
  Image.MAX_IMAGE_PIXELS = None
  warnings.filterwarnings("ignore", module="PIL")
  label = f"{str(root)!r}, split {split!r}"
  _LOG.info("%s: %s%s", label, _summary(open_file, found), _told(reasons))
  return sources.Source(
    label,
    found,
    partial(
      _decode, open_file, max_megapixels, num_channels, crop_size, image_size
    ),
  )


def digest(source: sources.Source) -> str:
  """A hash of the names and the sizes of a folder's images."""
  return files.digest([file[:2] for file in source.records])


def decoded_digest(path: str, source: sources.Source, *decoding: int) -> str:
  """A hash of all that its images' pixels are made from."""
  root = str(pathlib.Path(path).expanduser().resolve())
  made_by = (_VERSION, PIL.__version__, *decoding)
  return files.digest([root, made_by, source.records])


def _listed(root: pathlib.Path) -> tuple[Open, list[_File]]:
  """How to open a file by its name, and all files there are."""
  if root.is_dir():
    return lambda name: (root / name).open("rb"), [
      _File(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)
      for top in root.iterdir()  # these may be links to folders
      for path in (top.rglob("*") if top.is_dir() else [top])
      if path.is_file() and (stat := path.stat())
    ]
  if not root.is_file():
    raise FolderError(f"there is no folder or zip archive {str(root)!r}")
  try:
    archive = zipfile.ZipFile(root)
  except zipfile.BadZipFile as error:
    raise FolderError(
      f"{str(root)!r} is neither a folder nor a whole zip archive: {error}"
    ) from error
  return archive.open, [
    _File(info.filename, info.file_size, info.CRC)
    for info in archive.infolist()
    if not info.is_dir()
  ]


def _why_skipped(name: str) -> str:
  """What it is that isn't read; "" of an image."""
  path = pathlib.PurePosixPath(name)
  if any(part.startswith(".") for part in path.parts):
    return "hidden"
  suffix = path.suffix.lower()
  return "" if suffix in SUFFIXES else suffix or "without a suffix"


def _told(reasons: list[str]) -> str:
  common = collections.Counter(sorted(filter(None, reasons))).most_common()
  counts = [f"{n:,} {why}" for why, n in common]
  return f"; not read: {', '.join(counts)}" if counts else ""


def _summary(open_file: Open, found: list[_File]) -> str:
  """How many images, in how many folders, their sides and Pillow's modes."""
  looked_at = found[:: 1 + len(found) // _MOST_HEADERS]

  def header(file: _File) -> tuple[int, int, str] | None:
    try:
      with open_file(file.name) as opened, Image.open(opened) as picture:
        return min(picture.size), max(picture.size), picture.mode
    except Exception:  # it is named when it is decoded
      return None

  with pool.ThreadPool(sources.NUM_THREADS) as threads:
    headers = list(filter(None, threads.map(header, looked_at)))
  folders = len({file.name.rpartition("/")[0] for file in found})
  parts = [f"{len(found):,} images"]
  parts += [f"in {folders:,} folders"] * (folders > 1)
  if headers:
    shortest, longest, modes = zip(*headers, strict=True)
    counts = collections.Counter(sorted(modes)).most_common()
    least, most = min(shortest), max(longest)
    sides = (
      f"side {most:,}" if least == most else f"sides {least:,} to {most:,}"
    )
    parts += [f"of {sides} and modes"]
    parts += [", ".join(f"{mode} ({n:,})" for mode, n in counts)]
  if len(looked_at) < len(found):
    parts += [f"(as {len(looked_at):,} of them tell)"]
  return " ".join(parts)


def _decode(
  open_file: Open,
  max_megapixels: float,
  num_channels: int,
  crop_size: int,
  image_size: int,
  file: _File,
) -> np.ndarray:
  """An image, upright by EXIF, of 8 bits a channel, transparency on white."""
  try:
    with open_file(file.name) as opened, Image.open(opened) as picture:
      pixels = picture.width * picture.height
      if pixels > max_megapixels * 1e6:
        raise ValueError(
          f"{pixels / 1e6:.0f} megapixels, more than"
          f" data.max_megapixels={max_megapixels:g}; decoding takes up to 4"
          " bytes for each pixel"
        )
      with _ONE_LARGE if pixels > _LARGE else contextlib.nullcontext():
        square = _square(picture, num_channels, crop_size, image_size)
        return images.from_picture(square, num_channels)
  except UnidentifiedImageError as error:
    raise ValueError(f"{file.name}: no image of a known format") from error
  except Exception as error:
    reason = str(error) or type(error).__name__
    raise ValueError(f"{file.name}: {reason}") from error


def _square(
  picture: Image.Image, num_channels: int, crop_size: int, image_size: int
) -> Image.Image:
  """The centred square, shrunk where it is large; upright and opaque."""
  if not crop_size and image_size:  # JPEG can be decoded at an eighth
    shorter = min(picture.size)
    ratio = max(shorter // (2 * image_size), 1)
    picture.draft(None, (picture.width // ratio, picture.height // ratio))
  picture.load()  # it turns TIFF upright
  orientation = picture.getexif().get(_ORIENTATION, 1)
  left, top, side = images.centred_square(*picture.size, crop_size)
  factor = side // (2 * image_size) if image_size else 1
  if factor < 2:
    upright = _upright(_opaque(picture), orientation)
    if not crop_size:
      return upright
    left, top, _ = images.centred_square(*upright.size, side)
    return upright.crop((left, top, left + side, top + side))
  size = -(-side // factor)
  shrunk = Image.new(images.PIL_MODES[num_channels], (size, size))
  rows = factor * -(-_BAND // factor)
  for y in range(0, side, rows):
    box = (left, top + y, left + side, top + min(y + rows, side))
    band = _opaque(picture.crop(box)).convert(shrunk.mode).reduce(factor)
    shrunk.paste(band, (0, y // factor))
  return _upright(shrunk, orientation)


def _opaque(picture: Image.Image) -> Image.Image:
  """Of 8 bits a channel, without transparency."""
  if picture.mode.startswith("I;16"):
    pixels = np.array(picture) >> 8
    return Image.fromarray(pixels.astype(np.uint8))
  if picture.mode.startswith(("I", "F")):
    raise ValueError(f"mode {picture.mode} has no largest value")
  if not picture.has_transparency_data:
    return picture
  white = Image.new("RGBA", picture.size, "white")
  return Image.alpha_composite(white, picture.convert("RGBA"))


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
  picture.getexif()[_ORIENTATION] = orientation
  return ImageOps.exif_transpose(picture)


def _splits(
  root: pathlib.Path, found: list[_File], inside: str = ""
) -> dict[str, list[_File]]:
  """The images of each split; FolderError if they are none, or not clear."""
  flat: list[_File] = []
  below: dict[str, list[_File]] = {}
  for file in found:
    top, is_below, _ = file.name.removeprefix(inside).partition("/")
    (below.setdefault(top, []) if is_below else flat).append(file)
  where = str(root / inside)
  if flat and below:
    raise FolderError(
      f"{where!r} holds {len(flat)} images itself, and"
      f" {len(found) - len(flat)} in {', '.join(below)}: move them"
      " into one folder, or set data.path to one of these"
    )
  if not flat and not below:
    raise FolderError(
      f"{where!r} holds no images, neither itself nor in folders;"
      f" {', '.join(SUFFIXES)} are read, and a zip archive as data.path itself"
    )
  if any(name.lower() in SPLITS for name in below):
    return below
  deeper = sorted(filter(None, map(_split_in, found)))
  if deeper and len(below) > 1:
    raise FolderError(
      f"{where!r} has a split below another folder, {deeper[0]}: give that"
      " folder as data.path, or rename the split"
    )
  if deeper:
    return _splits(root, found, f"{inside}{next(iter(below))}/")
  return {"train": found}


def _split_in(file: _File) -> str:
  """The folder of a file that has a split's name, or ""."""
  for folder in pathlib.PurePosixPath(file.name).parents:
    if folder.name.lower() in SPLITS:
      return str(folder)
  return ""
