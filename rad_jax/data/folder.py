"""A local folder of images as a data set, decoded by Pillow on access.

It is x.png, class/x.png, split/x.png or split/class/x.png, with images below at
any depth; classes are ignored. The order is that of the names.
"""

import contextlib
import logging
import pathlib
import threading
from functools import partial

import numpy as np
from PIL import Image, ImageOps

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


class FolderError(ValueError):
  """A folder of images cannot be used; one line."""


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
  pixel.
  """
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise FolderError(f"there is no folder {str(root)!r}")
  splits = _splits(root)
  if split not in splits:
    raise FolderError(
      f"folder {str(root)!r} has no split {split!r}; available: "
      + ", ".join(sorted(splits))
    )
  found = splits[split]
  classes = {image.parent for image in found}
  in_folders = f" in {len(classes)} folders" if len(classes) > 1 else ""
  _LOG.info("%s: %d images%s, split %r", root, len(found), in_folders, split)
  # In its place, max_megapixels is checked, with a message of its own.
  Image.MAX_IMAGE_PIXELS = None
  return sources.Source(
    f"folder {str(root)!r}, split {split!r}",
    found,
    partial(_decode, max_megapixels, num_channels, crop_size, image_size),
  )


def digest(path: str, source: sources.Source) -> str:
  """A hash of the names, below `path`, and the sizes of its images."""
  root = pathlib.Path(path).expanduser()
  return files.digest(
    [
      (image.relative_to(root).as_posix(), image.stat().st_size)
      for image in source.records
    ]
  )


def _decode(
  max_megapixels: float,
  num_channels: int,
  crop_size: int,
  image_size: int,
  path: pathlib.Path,
) -> np.ndarray:
  """An image, upright by EXIF, of 8 bits a channel, transparency on white."""
  try:
    with Image.open(path) as picture:
      pixels = picture.width * picture.height
      if pixels > max_megapixels * 1e6:
        raise ValueError(
          f"{pixels / 1e6:.0f} megapixels, more than"
          f" data.max_megapixels={max_megapixels:g}; at most 4 bytes of memory"
          " go to each"
        )
      with _ONE_LARGE if pixels > _LARGE else contextlib.nullcontext():
        square = _square(picture, num_channels, crop_size, image_size)
        return images.from_picture(square, num_channels)
  except Exception as error:
    raise ValueError(f"{path}: {error}") from error


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


def _splits(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """The images of each split; FolderError if they are none, or not clear."""
  flat = _images(root.iterdir())
  below = {
    folder.name: found
    for folder in sorted(root.iterdir())
    if not folder.name.startswith(".")
    and folder.is_dir()
    and (found := _images(folder.rglob("*")))
  }
  if flat and below:
    raise FolderError(
      f"folder {str(root)!r} holds {len(flat)} images itself, and"
      f" {sum(map(len, below.values()))} in {', '.join(below)}: move them"
      " together, or give one of these folders as data.path"
    )
  if not flat and not below:
    raise FolderError(
      f"folder {str(root)!r} holds no images, neither itself nor in folders;"
      f" {', '.join(SUFFIXES)} are read"
    )
  if any(name.lower() in SPLITS for name in below):
    return below
  return {"train": flat or [path for found in below.values() for path in found]}


def _images(paths) -> list[pathlib.Path]:
  """Those that are images by their names, sorted; hidden files are not."""
  is_image = lambda path: (
    path.suffix.lower() in SUFFIXES
    and not path.name.startswith(".")
    and path.is_file()
  )
  return sorted(filter(is_image, paths), key=pathlib.Path.as_posix)
