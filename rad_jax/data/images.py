"""Images as uint8 arrays [h, w, c] in [0, 255]: decoding, crop, resize."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "h w c"]
# Pillow's name of images of 1 or 3 channels.
PIL_MODES = {1: "L", 3: "RGB"}


def decode(encoded: bytes, num_channels: int) -> np.ndarray:
  """An encoded image as uint8 [h, w, num_channels]."""
  with Image.open(io.BytesIO(encoded)) as picture:
    return from_picture(picture, num_channels)


def from_picture(picture: Image.Image, num_channels: int) -> np.ndarray:
  """Pillow's image with 1 channel, grey by luma (ITU-R 601-2), or 3, RGB."""
  pixels = np.array(picture.convert(PIL_MODES[num_channels]))
  return pixels.reshape(picture.height, picture.width, num_channels)


def to_picture(image: Pixels) -> Image.Image:
  """Pillow's image of an array of 1 or 3 channels."""
  pixels = image[..., 0] if image.shape[2] == 1 else image
  return Image.fromarray(np.ascontiguousarray(pixels))


def resize(image: Pixels, size: int) -> UInt8[np.ndarray, "s s c"]:
  """Antialiased Lanczos to `size` a side; box filters jitter at 140 to 64."""
  if image.shape[:2] == (size, size):
    return image
  resized = to_picture(image).resize((size, size), Image.Resampling.LANCZOS)
  return from_picture(resized, image.shape[2])


def centred_square(
  width: int, height: int, crop_size: int
) -> tuple[int, int, int]:
  """Left, top and side of the square; ValueError if the image is smaller."""
  side = crop_size or min(height, width)
  if side > min(height, width):
    raise ValueError(f"crop_size {side} exceeds the image, {height}x{width}")
  return (width - side) // 2, (height - side) // 2, side


def fit(
  image: Pixels, crop_size: int, image_size: int, num_channels: int
) -> UInt8[np.ndarray, "s s d"]:
  """The centred square of side crop_size (0: largest), resized, converted."""
  height, width, channels = image.shape
  left, top, side = centred_square(width, height, crop_size)
  image = resize(image[top : top + side, left : left + side], image_size)
  if channels == num_channels:
    return image
  if {channels, num_channels} != set(PIL_MODES):
    raise ValueError(f"cannot turn {channels} channels into {num_channels}")
  return from_picture(to_picture(image), num_channels)
