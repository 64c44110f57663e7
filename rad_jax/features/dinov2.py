"""DINOv2's vision transformers, whose features are those of FD_DINOv2.

S, B, L and g (gated MLPs) of Oquab et al. 2023 (arXiv 2304.07193), without
registers. The feature is the class token (Stein et al. 2023, arXiv 2306.04675).
"""

import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from rad_jax.interop import weights

SIZE = 224
PATCH = 14
# Added to the side in `interpolated` by Meta's code, not by Hugging Face's.
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
# Mean and standard deviation of ImageNet's pixels, in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_HUGGING_FACES = "embeddings.cls_token"  # a key that only those have
# Parts of Meta's keys, and what Hugging Face's have in their place.
_RENAMED = (
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
  """The class token of images of any size, c 3, or 1; safe under jit."""
  x = jax.lax.conv_general_dilated(
    preprocessed(images),
    params["patch"]["kernel"],
    (PATCH, PATCH),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  b, _, _, width = x.shape
  token = jnp.broadcast_to(params["class_token"], (b, 1, width))
  x = x.reshape(b, -1, width) + params["positions"][None]
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
  """Resized and standardised as ImageNet; ValueError unless c is 3, or 1."""
  channels = images.shape[-1]
  if channels not in (1, 3):
    raise ValueError(f"DINOv2 sees 1 or 3 channels, not {channels}")
  x = resized(images) / 255
  return (x - _MEAN[None, None, None]) / _STD[None, None, None]


def resized(images: UInt8[Array, "b h w c"]) -> Float[Array, "b 224 224 c"]:
  """Pillow's bicubic resize (a = -1/2, antialiased), 8 bits after each axis.

  Pillow rounds some ties otherwise: 1 pixel in 100 at 64 x 64, else fewer.
  """
  b, height, _, c = images.shape
  x = images.astype(jnp.float32)
  for shape in ((b, height, SIZE, c), (b, SIZE, SIZE, c)):
    x = jax.image.resize(x, shape, "bicubic", antialias=True)
    x = jnp.floor(jnp.clip(x, 0, 255) + 0.5)
  return x


def load_weights(path: str | pathlib.Path) -> PyTree:
  """Reads the params of `apply` from a file; see `weights.load`."""
  return weights.load(path, from_state_dict, WEIGHTS_HELP)


def from_state_dict(
  state: weights.State, position_offset: float = POSITION_OFFSET
) -> PyTree:
  """Params from Meta's or Hugging Face's state dict; or WeightsError."""
  if any("register_tokens" in key for key in state):
    raise weights.WeightsError(
      "the weights are of a network with registers: use those of one without"
    )
  width = _shape(state, "cls_token")[2]
  if width % _HEAD:
    raise weights.WeightsError(
      f"the weights are of width {width}, which is no multiple of {_HEAD}"
    )
  side = math.isqrt(_shape(state, "pos_embed")[1] - 1)
  positions = _take(state, "pos_embed", 1, 1 + side**2, width)[0]
  grid = positions[1:].reshape(side, side, width)
  grid = interpolated(grid, _GRID, position_offset)
  kernel = _take(state, "patch_embed.proj.weight", width, 3, PATCH, PATCH)
  bias = _take(state, "patch_embed.proj.bias", width)
  prefix = re.escape(_key(state, "blocks."))
  numbers = re.findall(rf"^{prefix}(\d+)\.", "\n".join(state), re.MULTILINE)
  depth = 1 + max(map(int, numbers), default=0)
  blocks = [_block_params(state, f"blocks.{i}", width) for i in range(depth)]
  params = {
    "patch": {"kernel": kernel.transpose(2, 3, 1, 0)},
    "positions": grid.reshape(-1, width) + bias,
    "class_token": _take(state, "cls_token", 1, 1, width) + positions[0],
    "blocks": jax.tree.map(lambda *x: np.stack(x), *blocks),
    "norm": _layer(state, "norm", width),
  }
  return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


def _block_params(state: weights.State, prefix: str, width: int) -> PyTree:
  """A block's params; its layer scales are in "proj" and the last "mlp"."""
  gated = _key(state, "blocks.0.mlp.w12.weight") in state
  first, last = ("w12", "w3") if gated else ("fc1", "fc2")
  hidden = 8 * math.ceil(width / 3) if gated else 4 * width
  layer = lambda key, *sizes: _layer(state, f"{prefix}.{key}", *sizes)

  def scaled(key: str, fan_in: int, scale: str) -> dict[str, np.ndarray]:
    factor = _take(state, f"{prefix}.{scale}", width)
    return {k: x * factor for k, x in layer(key, width, fan_in).items()}

  return {
    "norm1": layer("norm1", width),
    "qkv": layer("attn.qkv", 3 * width, width),
    "proj": scaled("attn.proj", width, "ls1.gamma"),
    "norm2": layer("norm2", width),
    first: layer(f"mlp.{first}", (1 + gated) * hidden, width),
    last: scaled(f"mlp.{last}", hidden, "ls2.gamma"),
  }


def _layer(
  state: weights.State, key: str, outputs: int, fan_in: int = 0
) -> dict[str, np.ndarray]:
  """The params of a dense layer, or, without `fan_in`, of a norm."""
  shape, name = (
    ((outputs, fan_in), "kernel") if fan_in else ((outputs,), "scale")
  )
  weight = _take(state, f"{key}.weight", *shape).T
  return {name: weight, "bias": _take(state, f"{key}.bias", outputs)}


def _take(state: weights.State, key: str, *shape: int) -> np.ndarray:
  """The array of Meta's key, whichever keys the state has."""
  if ".qkv." in key and _HUGGING_FACES in state:
    part = shape[0] // 3, *shape[1:]
    names = [key.replace("qkv", name) for name in ("query", "key", "value")]
    return np.concatenate([_take(state, name, *part) for name in names])
  array = weights.take(state, _key(state, key), shape)
  return array.astype(np.float32, copy=False)


def _shape(state: weights.State, key: str) -> tuple[int, ...]:
  """An array's shape, which must have three axes."""
  key = _key(state, key)
  if np.ndim(state.get(key, 0.0)) != 3:
    raise weights.WeightsError(f"the weights have no 3-D {key}")
  return state[key].shape


def _key(state: weights.State, key: str) -> str:
  """The state's own key for Meta's."""
  if _HUGGING_FACES in state:
    for metas, theirs in _RENAMED:
      key = key.replace(metas, theirs)
  return key


def interpolated(
  grid: Float[np.ndarray, "g g width"], side: int, offset: float
) -> Float[np.ndarray, "side side width"]:
  """Positions resized by PyTorch's bicubic (a = -3/4), not antialiased."""
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
