"""Image geometry: uint8 arrays [h, w, c] in [0, 255], crop before resize."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def center_crop(
  image: UInt8[np.ndarray, "h w c"], size: int
) -> UInt8[np.ndarray, "s s c"]:
  """Cuts the centred square of side `size` pixels.

  An odd margin leaves its extra pixel at the bottom and the right.

  Raises:
    ValueError: The image is smaller than `size`.

  Examples:
    >>> from rad_jax.data import images
    >>> image = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    >>> print(images.center_crop(image, 2)[..., 0])
    [[ 6  7]
     [11 12]]
  """
  height, width = image.shape[:2]
  if size > min(height, width):
    raise ValueError(f"crop_size {size} exceeds the image, {height}x{width}")
  top, left = (height - size) // 2, (width - size) // 2
  return image[top : top + size, left : left + size]


def resize(
  image: UInt8[np.ndarray, "h w c"], size: int
) -> UInt8[np.ndarray, "s s c"]:
  """Resizes to `size` pixels a side with an antialiased Lanczos filter.

  Not BOX: Pillow's box counts a pixel whole or not at all, so at a ratio that
  is no integer (CelebA's 140 to 64) its windows hold 2 or 3 pixels by turns,
  and edges jitter. Lanczos weighs every pixel by its distance.

  Examples:
    >>> from rad_jax.data import images
    >>> image = np.full((218, 178, 3), 200, np.uint8)
    >>> small = images.resize(image, 64)
    >>> small.shape, int(small.min()), int(small.max())
    ((64, 64, 3), 200, 200)
  """
  if image.shape[:2] == (size, size):
    return image
  grey = image.shape[2] == 1
  picture = Image.fromarray(
    np.ascontiguousarray(image[..., 0] if grey else image)
  )
  resized = np.array(picture.resize((size, size), Image.Resampling.LANCZOS))
  return resized[..., None] if grey else resized


def with_channels(
  image: UInt8[np.ndarray, "h w c"], num_channels: int
) -> UInt8[np.ndarray, "h w d"]:
  """Turns grey into RGB by repetition, RGB into grey by luma (ITU-R 601-2).

  Raises:
    ValueError: Any other change of channels.

  Examples:
    >>> from rad_jax.data import images
    >>> red = np.zeros((1, 1, 3), np.uint8)
    >>> red[..., 0] = 255
    >>> images.with_channels(red, 1).tolist()
    [[[76]]]
  """
  channels = image.shape[2]
  if channels == num_channels:
    return image
  if (channels, num_channels) == (1, 3):
    return np.repeat(image, 3, axis=2)
  if (channels, num_channels) == (3, 1):
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.convert("L"))[..., None]
  raise ValueError(f"cannot turn {channels} channels into {num_channels}")


def fit(
  image: UInt8[np.ndarray, "h w c"],
  crop_size: int,
  image_size: int,
  num_channels: int,
) -> UInt8[np.ndarray, "s s d"]:
  """Crops, resizes and converts an image to the model's shape.

  Args:
    image: In [0, 255].
    crop_size: Side of the centred square to keep, in pixels; 0 keeps the
      largest one. CelebA's custom is 140.
    image_size: Side of the result, in pixels.
    num_channels: 1 or 3.

  Returns:
    The image itself if it has the right shape already.

  Raises:
    ValueError: The crop exceeds the image, or channels cannot be converted.

  Examples:
    >>> from rad_jax.data import images
    >>> image = np.zeros((218, 178, 3), np.uint8)
    >>> images.fit(image, crop_size=140, image_size=64, num_channels=1).shape
    (64, 64, 1)
  """
  image = center_crop(image, crop_size or min(image.shape[:2]))
  return with_channels(resize(image, image_size), num_channels)
