"""What JPEG loses, in JAX: ITU-T T.81 (1992) with libjpeg's conventions.

Planes Y, Cb and Cr (JFIF), the last two halved (4:2:0), have the DCT of their
8 x 8 blocks rounded to multiples of the quality's table. No entropy coding.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Float
from PIL import Image, JpegImagePlugin

_SIDE = 8
# The orthonormal DCT-II along one side of a block.
_DCT = scipy.fft.dct(np.eye(_SIDE), axis=0, norm="ortho").astype(np.float32)

# JFIF 1.02: Y, Cb - 128 and Cr - 128 of R, G and B.
_TO_YCC = np.array(
  [
    [0.299, 0.587, 0.114],
    [-0.168735892, -0.331264108, 0.5],
    [0.5, -0.418687589, -0.081312411],
  ],
  np.float32,
)
_FROM_YCC = np.linalg.inv(_TO_YCC.astype(np.float64)).astype(np.float32)


def round_trip(x: Float[Array, "h w c"], quality: int) -> Float[Array, "h w c"]:
  """x, clipped, as JPEG of quality 1 to 100; ValueError unless grey or RGB."""
  if x.shape[-1] not in (1, 3):
    raise ValueError(f"JPEG holds [h, w, 1] and [h, w, 3], not {x.shape}")
  levels = jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5) - 128
  tables = quantisation_tables(quality)
  if x.shape[-1] == 1:
    back = _quantised(levels[..., 0], tables[0])[..., None]
  else:
    back = _colour(levels, *tables)
  return jnp.clip(jnp.rint(back + 128), 0, 255) / 127.5 - 1


def quantisation_tables(quality: int) -> np.ndarray:
  """Of luminance and of chrominance, [2, 8, 8], as libjpeg writes them."""
  file = io.BytesIO()
  Image.new("RGB", (_SIDE, _SIDE)).save(file, "JPEG", quality=quality)
  file.seek(0)
  tables = JpegImagePlugin.JpegImageFile(file).quantization
  return np.array([tables[0], tables[1]], np.float32).reshape(2, _SIDE, _SIDE)


def _colour(rgb, luminance, chrominance):
  """RGB [h, w, 3] less 128 through the three planes, Cb and Cr at 4:2:0."""
  height, width, _ = rgb.shape
  ycc = jnp.rint(_times(rgb, _TO_YCC))
  even = _pad(ycc[..., 1:], 2)
  halves = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 2)
  # Halves round down and up by turns along a row, as libjpeg's do.
  bias = (1 + jnp.arange(halves.shape[2]) % 2)[None, :, None]
  chroma = jnp.floor((halves.sum(axis=(1, 3)) + bias) / 4)
  planes = [_quantised(chroma[..., i], chrominance) for i in range(2)]
  # Linear interpolation between the centres of 2 x 2 pixels: libjpeg's.
  chroma = jax.image.resize(jnp.stack(planes, -1), even.shape, "linear")
  luma = _quantised(ycc[..., 0], luminance)[..., None]
  back = jnp.concatenate([luma, chroma[:height, :width]], axis=-1)
  return _times(back, _FROM_YCC)


def _quantised(plane, table):
  """A plane [h, w], less 128, with its DCT coefficients rounded."""
  height, width = plane.shape
  padded = _pad(plane, _SIDE)
  rows, columns = padded.shape
  blocks = padded.reshape(rows // _SIDE, _SIDE, columns // _SIDE, _SIDE)
  steps = table[None, :, None, :]
  coefficients = _transformed(blocks, _DCT)
  coefficients = steps * jnp.rint(coefficients / steps)
  back = jnp.clip(jnp.rint(_transformed(coefficients, _DCT.T)), -128, 127)
  return back.reshape(rows, columns)[:height, :width]


def _transformed(blocks, matrix):
  """matrix @ block @ matrix.T of each block, [rows, 8, columns, 8]."""
  axes = "ai,rick,bk->racb"
  return jnp.einsum(axes, matrix, blocks, matrix, precision="highest")


def _pad(plane, multiple):
  """Repeats the last row and column up to sides that `multiple` divides."""
  sides = [(0, -side % multiple) for side in plane.shape[:2]]
  return jnp.pad(plane, sides + [(0, 0)] * (plane.ndim - 2), mode="edge")


def _times(colours, matrix):
  return jnp.einsum("hwc,dc->hwd", colours, matrix, precision="highest")
