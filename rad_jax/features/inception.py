"""Inception-v3 as the Frechet Inception Distance was defined with it.

TensorFlow's graph of 2015-12-05 (Szegedy et al. 2015, arXiv 1512.00567; Heusel
et al. 2017, arXiv 1706.08500). Keras's and torchvision's have other weights,
another resize and 1000 classes, not 1008; here 3x3 average pools leave the
padding out, and the last block has a max pool.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree, UInt8

from rad_jax.interop import weights

SIZE = 299
CLASSES = 1008
WEIGHTS_HELP = (
  "no Inception weights: fetch pt_inception-2015-12-05-6726825d.pth from"
  " https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights (96 MB;"
  " its sha256 starts with 6726825d), and pass its path as"
  " --config.evaluation.inception_weights=PATH"
)
_BATCH_NORM_EPS = 1e-3


class Outputs(NamedTuple):
  """The last average pool, and the logits."""

  pool: Float[Array, "b 2048"]
  logits: Float[Array, "b 1008"]


def _conv(
  x: Array, name: str, channels: int, *size: int, padding: str = ""
) -> Array:
  """Convolution and relu; `size`: height, width and stride, 1 if left out."""
  height, width, stride = (*size, 1, 1, 1)[:3]
  padding = padding or ("SAME" if stride == 1 else "VALID")
  kernel = height, width
  return nn.relu(nn.Conv(channels, kernel, stride, padding, name=name)(x))


def _chain(x: Array, name: str, *layers: tuple[int, ...]) -> Array:
  """Convolutions, each by its channels and size."""
  for i, layer in enumerate(layers, 1):
    x = _conv(x, f"{name}_{i}", *layer)
  return x


def _joined(*branches: Array) -> Array:
  return jnp.concatenate(branches, axis=-1)


_halved = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
_maximum = functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
_average = functools.partial(
  nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False
)


def _block_a(x: Array, name: str, pool: int) -> Array:
  return _joined(
    _conv(x, f"{name}.branch1x1", 64),
    _chain(x, f"{name}.branch5x5", (48,), (64, 5, 5)),
    _chain(x, f"{name}.branch3x3dbl", (64,), (96, 3, 3), (96, 3, 3)),
    _conv(_average(x), f"{name}.branch_pool", pool),
  )


def _block_b(x: Array, name: str) -> Array:
  return _joined(
    _conv(x, f"{name}.branch3x3", 384, 3, 3, 2),
    _chain(x, f"{name}.branch3x3dbl", (64,), (96, 3, 3), (96, 3, 3, 2)),
    _halved(x),
  )


def _block_c(x: Array, name: str, width: int) -> Array:
  seven = (width,), (width, 1, 7), (192, 7, 1)
  twice = (width,), (width, 7, 1), (width, 1, 7), (width, 7, 1), (192, 1, 7)
  return _joined(
    _conv(x, f"{name}.branch1x1", 192),
    _chain(x, f"{name}.branch7x7", *seven),
    _chain(x, f"{name}.branch7x7dbl", *twice),
    _conv(_average(x), f"{name}.branch_pool", 192),
  )


def _block_d(x: Array, name: str) -> Array:
  seven = (192,), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)
  return _joined(
    _chain(x, f"{name}.branch3x3", (192,), (320, 3, 3, 2)),
    _chain(x, f"{name}.branch7x7x3", *seven),
    _halved(x),
  )


def _block_e(x: Array, name: str, pool: Callable[[Array], Array]) -> Array:
  three = _conv(x, f"{name}.branch3x3_1", 384)
  twice = _chain(x, f"{name}.branch3x3dbl", (448,), (384, 3, 3))
  return _joined(
    _conv(x, f"{name}.branch1x1", 320),
    _conv(three, f"{name}.branch3x3_2a", 384, 1, 3),
    _conv(three, f"{name}.branch3x3_2b", 384, 3, 1),
    _conv(twice, f"{name}.branch3x3dbl_3a", 384, 1, 3),
    _conv(twice, f"{name}.branch3x3dbl_3b", 384, 3, 1),
    _conv(pool(x), f"{name}.branch_pool", 192),
  )


class _Inception(nn.Module):
  """The network on images of SIZE, in (pixel - 128) / 128."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> Outputs:
    x = _conv(x, "Conv2d_1a_3x3", 32, 3, 3, 2)
    x = _conv(x, "Conv2d_2a_3x3", 32, 3, 3, padding="VALID")
    x = _halved(_conv(x, "Conv2d_2b_3x3", 64, 3, 3))
    x = _conv(x, "Conv2d_3b_1x1", 80)
    x = _halved(_conv(x, "Conv2d_4a_3x3", 192, 3, 3, padding="VALID"))
    for name, channels in (("5b", 32), ("5c", 64), ("5d", 64)):
      x = _block_a(x, f"Mixed_{name}", channels)
    x = _block_b(x, "Mixed_6a")
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x = _block_c(x, f"Mixed_{name}", width)
    x = _block_d(x, "Mixed_7a")
    x = _block_e(x, "Mixed_7b", _average)
    x = _block_e(x, "Mixed_7c", _maximum)
    pool = jnp.mean(x, axis=(1, 2))
    return Outputs(pool, nn.Dense(CLASSES, name="fc")(pool))


def apply(params: PyTree, images: UInt8[Array, "b h w c"]) -> Outputs:
  """The network's outputs on images of any size, c 3, or 1; safe under jit."""
  outputs: Any = _Inception().apply({"params": params}, preprocessed(images))
  return outputs


def preprocessed(
  images: UInt8[Array, "b h w c"],
) -> Float[Array, "b 299 299 3"]:
  """What the network sees; ValueError unless c is 3, or 1 for grey."""
  *sides, channels = images.shape
  if channels not in (1, 3):
    raise ValueError(f"Inception sees 1 or 3 channels, not {channels}")
  pixels = jnp.broadcast_to(images.astype(jnp.float32), (*sides, 3))
  return (resized(pixels) - 128) / 128


def resized(x: Float[Array, "b h w c"]) -> Float[Array, "b 299 299 c"]:
  """TensorFlow 1's resize_bilinear to SIZE, align_corners=False."""
  return _stretched(_stretched(x, axis=2), axis=1)


def _stretched(x: Array, axis: int) -> Array:
  """Output i lies at i * (sides' ratio) of the input: no half is added."""
  side = x.shape[axis]
  place = np.arange(SIZE, dtype=np.float32) * np.float32(side / SIZE)
  below = place.astype(np.int32)
  above = np.minimum(below + 1, side - 1)
  part = place - below.astype(np.float32)
  part = np.expand_dims(part, [i for i in range(x.ndim) if i != axis])
  low, high = jnp.take(x, below, axis), jnp.take(x, above, axis)
  return low + (high - low) * part


def load_weights(path: str | pathlib.Path) -> PyTree:
  """Reads the params of `apply` from a file; see `weights.load`."""
  return weights.load(path, from_state_dict, WEIGHTS_HELP)


def from_state_dict(state: weights.State) -> PyTree:
  """Params from pytorch-fid's state dict; or WeightsError."""

  def take(key: str, *shape: int) -> np.ndarray:
    return np.asarray(weights.take(state, key, shape), np.float64)

  def folded(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    height, width, inputs, outputs = shape
    kernel = take(f"{name}.conv.weight", outputs, inputs, height, width)
    mean = take(f"{name}.bn.running_mean", outputs)
    variance = take(f"{name}.bn.running_var", outputs)
    scale = take(f"{name}.bn.weight", outputs)
    scale = scale / np.sqrt(variance + _BATCH_NORM_EPS)
    shift = take(f"{name}.bn.bias", outputs) - mean * scale
    return {"kernel": kernel.transpose(2, 3, 1, 0) * scale, "bias": shift}

  params = {
    name: folded(name, like["kernel"].shape)
    for name, like in shapes().items()
    if name != "fc"
  }
  params["fc"] = {
    "kernel": take("fc.weight", CLASSES, 2048).T,
    "bias": take("fc.bias", CLASSES),
  }
  return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


@functools.cache
def shapes() -> PyTree:
  """The params of `apply`, as shapes without values."""
  images = jnp.zeros((1, SIZE, SIZE, 3))
  init = lambda: _Inception().init(jax.random.key(0), images)
  return jax.eval_shape(init)["params"]
