"""A local folder of images as a data set, decoded by Pillow on access.

As `tfds.ImageFolder` (which needs TensorFlow) has it: split/label/x.png, labels
ignored; or flat, as one split, "train". The order is that of the names.
"""

import pathlib
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from rad_jax import files
from rad_jax.data import images, sources

NAME = "image_folder"
SUFFIXES = (".jpeg", ".jpg", ".png")


class FolderError(ValueError):
  """A folder of images cannot be used; one line."""


def open_folder(path: str, split: str, num_channels: int) -> sources.Source:
  """Finds the images of a split, decoding none; FolderError without any."""
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise FolderError(f"there is no folder {str(root)!r}")
  splits = _splits(root)
  if not splits:
    raise FolderError(
      f"folder {str(root)!r} holds no images, neither itself nor as "
      f"split/label/x.png; {', '.join(SUFFIXES)} are read"
    )
  if split not in splits:
    raise FolderError(
      f"folder {str(root)!r} has no split {split!r}; available: "
      + ", ".join(sorted(splits))
    )
  return sources.Source(
    f"folder {str(root)!r}, split {split!r}",
    splits[split],
    partial(_decode, num_channels=num_channels),
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


def _decode(path: pathlib.Path, num_channels: int) -> np.ndarray:
  """An image, upright by EXIF, 8 bits a channel, transparency on white."""
  try:
    with Image.open(path) as picture:
      upright = ImageOps.exif_transpose(picture)
      if upright.mode.startswith(("I", "F")):
        raise ValueError(f"mode {upright.mode} has more than 8 bits a channel")
      if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
      return images.from_picture(upright, num_channels)
  except Exception as error:
    raise ValueError(f"{path}: {error}") from error


def _splits(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """The images of a flat folder, or else of each subfolder, at any depth."""
  if flat := _images(root.iterdir()):
    return {"train": flat}
  return {
    folder.name: paths
    for folder in root.iterdir()
    if not folder.name.startswith(".") and (paths := _images(folder.rglob("*")))
  }


def _images(paths) -> list[pathlib.Path]:
  """Those that are images by their names, sorted; hidden files are not."""
  is_image = lambda path: (
    path.suffix.lower() in SUFFIXES
    and not path.name.startswith(".")
    and path.is_file()
  )
  return sorted(filter(is_image, paths), key=pathlib.Path.as_posix)
