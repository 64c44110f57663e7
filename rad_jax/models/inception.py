"""Inception-v3 as the Frechet Inception Distance was defined with it.

The network of the TensorFlow graph of 2015-12-05 (Szegedy et al. 2015, arXiv
1512.00567; Heusel et al. 2017, arXiv 1706.08500), whose weights are not
Keras's or torchvision's, and which differs from them:

- images are resized as TensorFlow 1 did: bilinear, corners not aligned, pixel
  centres not moved by a half;
- the 3x3 average pools leave the padding out of the average;
- the last block has a max pool where the one before has an average;
- there are 1008 classes.

Inference only: batch norms are folded into the convolutions. Weights are the
user's: see `WEIGHTS_HELP`.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num, PyTree

from rad_jax.models import weights

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
  """The last average pool, [b, 2048], and the logits, [b, 1008]."""

  pool: Float[Array, "b 2048"]
  logits: Float[Array, "b 1008"]


class _Conv(NamedTuple):
  """A convolution, its batch norm and relu."""

  name: str
  channels: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"


class _Fork(NamedTuple):
  """Chains of steps side by side, their outputs concatenated.

  The prefix goes before the names of their convolutions.
  """

  prefix: str
  branches: tuple[tuple["_Step", ...], ...]


_Pool = Callable[[Array], Array]
_Step = _Conv | _Fork | _Pool


def _average(x: Array) -> Array:
  return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _halved(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _strided(name: str, channels: int) -> _Conv:
  return _Conv(name, channels, (3, 3), stride=2, padding="VALID")


def _block_a(prefix: str, pool: int) -> _Fork:
  return _Fork(
    prefix,
    (
      (_Conv("branch1x1", 64),),
      (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
      (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _Conv("branch3x3dbl_3", 96, (3, 3)),
      ),
      (_average, _Conv("branch_pool", pool)),
    ),
  )


def _block_b(prefix: str) -> _Fork:
  return _Fork(
    prefix,
    (
      (_strided("branch3x3", 384),),
      (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _strided("branch3x3dbl_3", 96),
      ),
      (_halved,),
    ),
  )


def _block_c(prefix: str, width: int) -> _Fork:
  return _Fork(
    prefix,
    (
      (_Conv("branch1x1", 192),),
      (
        _Conv("branch7x7_1", width),
        _Conv("branch7x7_2", width, (1, 7)),
        _Conv("branch7x7_3", 192, (7, 1)),
      ),
      (
        _Conv("branch7x7dbl_1", width),
        _Conv("branch7x7dbl_2", width, (7, 1)),
        _Conv("branch7x7dbl_3", width, (1, 7)),
        _Conv("branch7x7dbl_4", width, (7, 1)),
        _Conv("branch7x7dbl_5", 192, (1, 7)),
      ),
      (_average, _Conv("branch_pool", 192)),
    ),
  )


def _block_d(prefix: str) -> _Fork:
  return _Fork(
    prefix,
    (
      (_Conv("branch3x3_1", 192), _strided("branch3x3_2", 320)),
      (
        _Conv("branch7x7x3_1", 192),
        _Conv("branch7x7x3_2", 192, (1, 7)),
        _Conv("branch7x7x3_3", 192, (7, 1)),
        _strided("branch7x7x3_4", 192),
      ),
      (_halved,),
    ),
  )


def _block_e(prefix: str, pool: _Pool) -> _Fork:
  def cross(branch: str) -> _Fork:
    return _Fork(
      branch,
      ((_Conv("a", 384, (1, 3)),), (_Conv("b", 384, (3, 1)),)),
    )

  return _Fork(
    prefix,
    (
      (_Conv("branch1x1", 320),),
      (_Conv("branch3x3_1", 384), cross("branch3x3_2")),
      (
        _Conv("branch3x3dbl_1", 448),
        _Conv("branch3x3dbl_2", 384, (3, 3)),
        cross("branch3x3dbl_3"),
      ),
      (pool, _Conv("branch_pool", 192)),
    ),
  )


_STEPS: tuple[_Step, ...] = (
  _strided("Conv2d_1a_3x3", 32),
  _Conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
  _Conv("Conv2d_2b_3x3", 64, (3, 3)),
  _halved,
  _Conv("Conv2d_3b_1x1", 80),
  _Conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
  _halved,
  _block_a("Mixed_5b.", 32),
  _block_a("Mixed_5c.", 64),
  _block_a("Mixed_5d.", 64),
  _block_b("Mixed_6a."),
  _block_c("Mixed_6b.", 128),
  _block_c("Mixed_6c.", 160),
  _block_c("Mixed_6d.", 160),
  _block_c("Mixed_6e.", 192),
  _block_d("Mixed_7a."),
  _block_e("Mixed_7b.", _average),
  _block_e("Mixed_7c.", _maximum),
)


class _Inception(nn.Module):
  """The network on images of SIZE, in (pixel - 128) / 128."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> Outputs:
    pool = jnp.mean(self._run(_STEPS, x, prefix=""), axis=(1, 2))
    return Outputs(pool, nn.Dense(CLASSES, name="fc")(pool))

  def _run(self, steps: tuple[_Step, ...], x: Array, prefix: str) -> Array:
    for step in steps:
      if isinstance(step, _Conv):
        x = nn.relu(
          nn.Conv(
            step.channels,
            step.kernel,
            step.stride,
            step.padding,
            name=prefix + step.name,
          )(x)
        )
      elif isinstance(step, _Fork):
        inner = prefix + step.prefix
        outputs = [self._run(branch, x, inner) for branch in step.branches]
        x = jnp.concatenate(outputs, axis=-1)
      else:
        x = step(x)
    return x


def apply(params: PyTree, images: Num[Array, "b h w c"]) -> Outputs:
  """Runs the network on images of any size; safe under jit.

  Args:
    params: of `load_weights`.
    images: as for `preprocessed`.
  """
  outputs: Any = _Inception().apply({"params": params}, preprocessed(images))
  return outputs


def preprocessed(
  images: Num[Array, "b h w c"],
) -> Float[Array, "b 299 299 3"]:
  """What the network sees of images: resized, in (pixel - 128) / 128.

  Args:
    images: uint8, or float in [-1, 1], which is not rounded to 8 bits; c is 3,
      or 1 for grey.

  Raises:
    ValueError: c is neither 1 nor 3.
  """
  b, height, width, channels = images.shape
  if channels not in (1, 3):
    raise ValueError(f"Inception sees 1 or 3 channels, not {channels}")
  pixels = images.astype(jnp.float32)
  if images.dtype != jnp.uint8:
    pixels = (pixels + 1) * 127.5
  pixels = jnp.broadcast_to(pixels, (b, height, width, 3))
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
  shape = [1] * x.ndim
  shape[axis] = SIZE
  part = (place - below.astype(np.float32)).reshape(shape)
  low, high = jnp.take(x, below, axis), jnp.take(x, above, axis)
  return low + (high - low) * part


def load_weights(path: str | pathlib.Path) -> PyTree:
  """Reads the params of `apply` from a file.

  Args:
    path: as for `weights.load`.

  Raises:
    WeightsError: there is no path or file, it cannot be read, or it is not
      this network's.
  """
  return weights.load(path, from_state_dict, WEIGHTS_HELP)


def from_state_dict(state: Mapping[str, np.ndarray]) -> PyTree:
  """The params of `apply` from pytorch-fid's state dict.

  Args:
    state: float arrays by torchvision's names; kernels are [out, in, h, w].
      Keys of no use here are passed over.

  Raises:
    WeightsError: a key is missing, or its array has another shape.
  """

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
