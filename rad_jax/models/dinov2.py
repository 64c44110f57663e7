"""DINOv2's vision transformers, whose features are those of FD_DINOv2.

The networks of Oquab et al. 2023 (arXiv 2304.07193), without registers: S, B
and L, and g, whose MLP is gated. The feature is the class token after the last
layer norm, as Stein et al. 2023 (arXiv 2306.04675) took it of ViT-L/14. Where
the papers are silent, what those authors' own code does was taken:

- images are resized to 224 x 224 as Pillow does, whatever their aspect:
  bicubic with a = -1/2, antialiased where they shrink, first along rows, then
  along columns, each time rounded to 8 bits. Of their code's two ways it is
  the one by default; the other does not round;
- positions, learned on a grid of 37 x 37, are interpolated to 16 x 16:
  bicubic with a = -3/4, not antialiased, the border repeated, and sampled as
  if 16.1 cells covered the grid. See `POSITION_OFFSET`.

Inference only: layer scales are folded into the products before them. Weights
are the user's: see `WEIGHTS_HELP`.
"""

import math
import pathlib
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from rad_jax.models import weights

SIZE = 224
PATCH = 14
# Added to the 16 cells of a side, against rounding of the output's size, when
# positions are interpolated. Meta's code has it; Hugging Face's has none.
POSITION_OFFSET = 0.1
WEIGHTS_HELP = (
  "no DINOv2 weights: fetch"
  " https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/"
  "dinov2_vitl14_pretrain.pth (ViT-L/14, 1.2 GB), or model.safetensors of"
  " https://huggingface.co/facebook/dinov2-large, and pass its path as"
  " --config.evaluation.dinov2_weights=PATH"
)
_GRID = SIZE // PATCH
_HEAD = 64
_LAYER_NORM_EPS = 1e-6
# Of ImageNet's pixels, in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
# Parts of Meta's keys, and what Hugging Face's have in their place.
_HUGGING_FACE = (
  ("cls_token", "embeddings.cls_token"),
  ("pos_embed", "embeddings.position_embeddings"),
  ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
  ("blocks.", "encoder.layer."),
  ("attn.proj", "attention.output.dense"),
  ("attn.", "attention.attention."),
  ("ls1.gamma", "layer_scale1.lambda1"),
  ("ls2.gamma", "layer_scale2.lambda1"),
  ("mlp.w12", "mlp.weights_in"),
  ("mlp.w3", "mlp.weights_out"),
  ("norm.", "layernorm."),
)


def apply(
  params: PyTree, images: UInt8[Array, "b h w c"]
) -> Float[Array, "b width"]:
  """The class token of images of any size; safe under jit.

  Args:
    params: of `load_weights`.
    images: as for `preprocessed`.
  """
  x = jax.lax.conv_general_dilated(
    preprocessed(images),
    params["patch"]["kernel"],
    (PATCH, PATCH),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  b, _, _, width = x.shape
  x = x.reshape(b, -1, width) + params["positions"][None]
  token = jnp.broadcast_to(params["class_token"], (b, 1, width))
  x = jnp.concatenate([token, x], axis=1)
  x, _ = jax.lax.scan(_block, x, params["blocks"])
  return _norm(params["norm"], x[:, :1])[:, 0]


def _block(
  x: Float[Array, "b t width"], params: PyTree
) -> tuple[Float[Array, "b t width"], None]:
  b, t, width = x.shape
  qkv = _dense(params["qkv"], _norm(params["norm1"], x))
  qkv = qkv.reshape(b, t, 3, width // _HEAD, _HEAD)
  mixed = jax.nn.dot_product_attention(
    qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation="xla"
  )
  x = x + _dense(params["proj"], mixed.reshape(b, t, width))
  y = _norm(params["norm2"], x)
  if "w12" in params:
    gate, y = jnp.split(_dense(params["w12"], y), 2, axis=-1)
    y = _dense(params["w3"], jax.nn.silu(gate) * y)
  else:
    y = jax.nn.gelu(_dense(params["fc1"], y), approximate=False)
    y = _dense(params["fc2"], y)
  return x + y, None


def _dense(params: PyTree, x: Float[Array, "b t k"]) -> Float[Array, "b t m"]:
  return x @ params["kernel"] + params["bias"][None, None]


def _norm(params: PyTree, x: Float[Array, "b t k"]) -> Float[Array, "b t k"]:
  mean = x.mean(axis=-1, keepdims=True)
  variance = x.var(axis=-1, keepdims=True)
  x = (x - mean) * jax.lax.rsqrt(variance + _LAYER_NORM_EPS)
  return x * params["scale"][None, None] + params["bias"][None, None]


def preprocessed(
  images: UInt8[Array, "b h w c"],
) -> Float[Array, "b 224 224 3"]:
  """What the network sees of images: resized, standardised as ImageNet.

  Args:
    images: c is 3, or 1 for grey.

  Raises:
    ValueError: c is neither 1 nor 3.
  """
  channels = images.shape[-1]
  if channels not in (1, 3):
    raise ValueError(f"DINOv2 sees 1 or 3 channels, not {channels}")
  x = resized(images) / 255
  return (x - _MEAN[None, None, None]) / _STD[None, None, None]


def resized(images: UInt8[Array, "b h w c"]) -> Float[Array, "b 224 224 c"]:
  """Pillow's bicubic resize to SIZE, of 8-bit images.

  Where a value falls halfway between two levels, Pillow's fixed-point weights
  may round it to the other one: a pixel in a hundred at 64 x 64, else fewer.
  """
  b, height, _, c = images.shape
  x = images.astype(jnp.float32)
  for shape in ((b, height, SIZE, c), (b, SIZE, SIZE, c)):
    x = jax.image.resize(x, shape, "bicubic", antialias=True)
    x = jnp.floor(jnp.clip(x, 0, 255) + 0.5)
  return x


def load_weights(path: str | pathlib.Path) -> PyTree:
  """Reads the params of `apply` from a file.

  Args:
    path: as for `weights.load`.

  Raises:
    WeightsError: there is no path or file, it cannot be read, or it is not
      one of these networks'.
  """
  return weights.load(path, from_state_dict, WEIGHTS_HELP)


def from_state_dict(
  state: Mapping[str, np.ndarray], position_offset: float = POSITION_OFFSET
) -> PyTree:
  """The params of `apply` from a state dict of Meta's or Hugging Face's keys.

  Width, depth and the kind of MLP are read off the keys and shapes.

  Args:
    state: float arrays; matrices are [out, in]. Keys of no use here are passed
      over.
    position_offset: see `interpolated`; 0 is as Hugging Face's code does.

  Raises:
    WeightsError: a key is missing, its array has another shape, or the network
      is another one, such as one with registers.
  """
  if any("register_tokens" in key for key in state):
    raise weights.WeightsError(
      "the weights are of a network with registers: take those without"
    )
  source = _Source(state)
  width = source.size("cls_token", axis=2)
  if width % _HEAD:
    raise weights.WeightsError(
      f"the weights are of width {width}, which is no multiple of {_HEAD}"
    )
  side = math.isqrt(source.size("pos_embed", axis=1) - 1)
  positions = source.take("pos_embed", 1, 1 + side**2, width)[0]
  grid = positions[1:].reshape(side, side, width)
  grid = interpolated(grid, _GRID, position_offset)
  kernel = source.take("patch_embed.proj.weight", width, 3, PATCH, PATCH)
  bias = source.take("patch_embed.proj.bias", width)
  blocks = [source.block(i, width) for i in range(source.depth())]
  params = {
    "patch": {"kernel": kernel.transpose(2, 3, 1, 0)},
    "positions": grid.reshape(-1, width) + bias,
    "class_token": source.take("cls_token", 1, 1, width) + positions[0],
    "blocks": jax.tree.map(lambda *x: np.stack(x), *blocks),
    "norm": source.norm("norm", width),
  }
  return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


class _Source:
  """A state dict, asked for by Meta's keys whichever its own are."""

  def __init__(self, state: Mapping[str, np.ndarray]):
    self._state = state
    self._is_hugging_face = "embeddings.cls_token" in state

  def _key(self, key: str) -> str:
    for metas, theirs in _HUGGING_FACE if self._is_hugging_face else ():
      key = key.replace(metas, theirs)
    return key

  def size(self, key: str, axis: int) -> int:
    """The array's size along an axis of three."""
    if np.ndim(self._state.get(self._key(key), 0.0)) != 3:
      raise weights.WeightsError(f"the weights have no 3-D {self._key(key)}")
    return self._state[self._key(key)].shape[axis]

  def depth(self) -> int:
    """How many blocks there are, one at least."""
    prefix = re.escape(self._key("blocks."))
    found = [re.match(rf"{prefix}(\d+)\.", key) for key in self._state]
    return 1 + max((int(match[1]) for match in found if match), default=0)

  def take(self, key: str, *shape: int) -> np.ndarray:
    array = weights.take(self._state, self._key(key), shape)
    return array.astype(np.float32, copy=False)

  def norm(self, key: str, width: int) -> dict[str, np.ndarray]:
    return {
      "scale": self.take(f"{key}.weight", width),
      "bias": self.take(f"{key}.bias", width),
    }

  def dense(self, key: str, fan_in: int, outputs: int) -> dict[str, np.ndarray]:
    return {
      "kernel": self.take(f"{key}.weight", outputs, fan_in).T,
      "bias": self.take(f"{key}.bias", outputs),
    }

  def block(self, i: int, width: int) -> PyTree:
    """A block's params; its layer scales are in "proj" and the last "mlp"."""
    prefix = f"blocks.{i}"
    gated = self._key("blocks.0.mlp.w12.weight") in self._state
    first, last = ("w12", "w3") if gated else ("fc1", "fc2")
    hidden = 8 * math.ceil(width / 3) if gated else 4 * width

    def scaled(key: str, fan_in: int, scale: str) -> dict[str, np.ndarray]:
      factor = self.take(f"{prefix}.{scale}", width)
      dense = self.dense(f"{prefix}.{key}", fan_in, width)
      return {name: values * factor for name, values in dense.items()}

    return {
      "norm1": self.norm(f"{prefix}.norm1", width),
      "qkv": self._projections(f"{prefix}.attn", width),
      "proj": scaled("attn.proj", width, "ls1.gamma"),
      "norm2": self.norm(f"{prefix}.norm2", width),
      first: self.dense(f"{prefix}.mlp.{first}", width, (1 + gated) * hidden),
      last: scaled(f"mlp.{last}", hidden, "ls2.gamma"),
    }

  def _projections(self, key: str, width: int) -> dict[str, np.ndarray]:
    """Those to queries, keys and values, side by side."""
    if not self._is_hugging_face:
      return self.dense(f"{key}.qkv", width, 3 * width)
    names = ("query", "key", "value")
    parts = [self.dense(f"{key}.{name}", width, width) for name in names]
    return jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *parts)


def interpolated(
  grid: Float[np.ndarray, "g g width"], side: int, offset: float
) -> Float[np.ndarray, "side side width"]:
  """A grid of positions, resized as PyTorch's bicubic without antialiasing.

  jax.image has another cubic and another border.

  Args:
    grid: one row and column per cell.
    side: of the result; of a grid of that side nothing is changed.
    offset: cell i lies at (i + 1/2) g / (side + offset) - 1/2, which is off
      the middle unless it is 0.
  """
  cells = len(grid)
  if side == cells:
    return grid
  place = (np.arange(side) + 0.5) * cells / (side + offset) - 0.5
  rows = np.zeros((side, cells))
  for tap in range(-1, 3):
    cell = np.floor(place).astype(int) + tap
    rows[np.arange(side), np.clip(cell, 0, cells - 1)] += _cubic(place - cell)
  return np.einsum("ig,jh,ghw->ijw", rows, rows, grid, optimize=True)


def _cubic(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
  """Keys' kernel (1981) with a = -3/4, for |x| <= 2."""
  a, d = -0.75, np.abs(x)
  near = (a + 2) * d**3 - (a + 3) * d**2 + 1
  return np.where(d <= 1, near, a * (d**3 - 5 * d**2 + 8 * d - 4))
