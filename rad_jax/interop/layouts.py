"""Our U-Net's parameters in the layouts of PyTorch's diffusion libraries.

diffusers' UNet2DModel and improved-diffusion's UNetModel (arXiv 2102.09672)
have kernels `[out, in, height, width]`, some of 1x1 for our dense layers.
improved-diffusion packs query, key and value as one `qkv` with outputs
`[heads, 3, channels / heads]`. Epsilons, paddings and heads are not stored.
"""

import re
from collections.abc import Iterable

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from rad_jax.interop import weights

_LAYOUTS = ("diffusers", "improved-diffusion")  # the columns of the tables
_DIFFUSERS, _IMPROVED = range(2)
_OUTSIDE = {  # our layers outside blocks, and theirs
  "conv_in": ("conv_in", "input_blocks.0.0"),
  "time_0": ("time_embedding.linear_1", "time_embed.0"),
  "time_1": ("time_embedding.linear_2", "time_embed.2"),
  "norm_out": ("conv_norm_out", "out.0"),
  "conv_out": ("conv_out", "out.2"),
}
_INSIDE = {  # those of residual blocks, then of attention
  "norm_in": ("norm1", "in_layers.0"),
  "conv_in": ("conv1", "in_layers.2"),
  "time": ("time_emb_proj", "emb_layers.1"),
  "norm_out": ("norm2", "out_layers.0"),
  "conv_out": ("conv2", "out_layers.3"),
  "shortcut": ("conv_shortcut", "skip_connection"),
  "norm": ("group_norm", "norm"),
  "query": ("to_q", "qkv"),
  "key": ("to_k", "qkv"),
  "value": ("to_v", "qkv"),
  "output": ("to_out.0", "proj_out"),
}
_KINDS = {"res": ("resnets", 0), "attention": ("attentions", 1)}
# How many axes of length one their kernels have beyond ours.
_ONES = {"shortcut": (2, 2)} | dict.fromkeys(
  ("query", "key", "value", "output"), (0, 1)
)
# Attention's layers in diffusers before 0.15; the files were never rewritten.
_OLD_NAMES = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}

# Of a tensor of theirs: its shape, and our path or packed paths.
_Tensors = dict[str, tuple[tuple[int, ...], list[str]]]


def from_pytorch(
  state: weights.State, like: PyTree, num_heads: int = 1
) -> tuple[PyTree, str]:
  """Our parameters, float32 in the structure of `like`, and the layout's name.

  num_heads unpacks improved-diffusion's attention; the variances that it may
  predict are left out. WeightsError names all tensors that do not fit.
  """
  if "input_blocks.0.0.weight" in state:
    layout = _IMPROVED
    state = _without_variance(state, like)
  elif "conv_in.weight" in state:
    layout = _DIFFUSERS
    state = {_renamed(key): array for key, array in state.items()}
  else:
    raise weights.WeightsError(
      "the tensors are neither of diffusers' UNet2DModel nor of"
      f" improved-diffusion's UNetModel: {', '.join(sorted(state)[:3])} ..."
    )
  tensors = _tensors(like, layout)
  _check(state, tensors)
  shapes = traverse_util.flatten_dict(like, sep="/")
  flat = {}
  for key, (_, paths) in tensors.items():
    array, count = np.asarray(state[key], np.float32), len(paths)
    # Packed arrays are [heads, count, width] along their first axis.
    heads = num_heads if count > 1 else 1
    packed = array.reshape(heads, count, -1, *array.shape[1:])
    for i, path in enumerate(paths):
      part = packed[:, i].reshape(-1, *array.shape[1:])
      flat[path] = _turned(part, (0, 1), (-1, -2)).reshape(shapes[path].shape)
  return traverse_util.unflatten_dict(flat, sep="/"), _LAYOUTS[layout]


def to_diffusers(params: PyTree) -> dict[str, np.ndarray]:
  """The state dict of diffusers' UNet2DModel, as float32 NumPy arrays."""
  flat = traverse_util.flatten_dict(params, sep="/")
  state = {}
  for key, (shape, paths) in _tensors(params, _DIFFUSERS).items():
    array = np.asarray(flat[paths[0]], np.float32)
    state[key] = _turned(array, (-1, -2), (0, 1)).reshape(shape)
  return state


def _turned(
  array: np.ndarray, source: tuple[int, int], target: tuple[int, int]
) -> np.ndarray:
  """A kernel with its axes of outputs and inputs moved; vectors as they are."""
  if array.ndim == 1:
    return array
  return np.ascontiguousarray(np.moveaxis(array, source, target))


def _tensors(like: PyTree, layout: int) -> _Tensors:
  """All tensors of a network of these parameters, by their name."""
  flat = traverse_util.flatten_dict(like, sep="/")
  found: _Tensors = {}
  # Queries come before keys, and values last, as improved-diffusion packs them.
  for path in sorted(flat, key=lambda p: ("/value/" in p, "/key/" in p)):
    *block, layer, leaf = path.split("/")
    key = _block(block[0] if block else layer, flat)[layout]
    if block:
      key += f".{_INSIDE[layer][layout]}"
    key += ".bias" if leaf == "bias" else ".weight"
    shape = flat[path].shape
    if leaf == "kernel":
      ones = _ONES.get(layer, (0, 0))[layout]
      shape = (shape[-1], shape[-2], *shape[:-2], *[1] * ones)
    before, paths = found.get(key, ((0,), []))
    found[key] = (before[0] + shape[0], *shape[1:]), [*paths, path]
  return found


def _block(name: str, paths: Iterable[str]) -> tuple[str, str]:
  """Both layouts' names of a block or outer layer; `paths` are all of ours."""
  down = re.findall(r"^down_(\d+)_(\d+)_(\w+)/", "\n".join(paths), re.MULTILINE)
  levels, numbers, _ = zip(*down, strict=True)
  last_level, per_level = max(map(int, levels)), max(map(int, numbers)) + 2
  match name.split("_"):
    case ["down", level, i, kind]:
      (plural, part), n = _KINDS[kind], 1 + per_level * int(level) + int(i)
      return f"down_blocks.{level}.{plural}.{i}", f"input_blocks.{n}.{part}"
    case ["downsample", level]:
      n, theirs = per_level * (int(level) + 1), "downsamplers.0.conv"
      return f"down_blocks.{level}.{theirs}", f"input_blocks.{n}.0.op"
    case ["middle", "attention"]:
      return "mid_block.attentions.0", "middle_block.1"
    case ["middle", i, "res"]:
      return f"mid_block.resnets.{i}", f"middle_block.{2 * int(i)}"
    case ["up", level, i, kind]:
      above = last_level - int(level)
      (plural, part), n = _KINDS[kind], per_level * above + int(i)
      return f"up_blocks.{above}.{plural}.{i}", f"output_blocks.{n}.{part}"
    case ["upsample", level]:
      above = last_level - int(level)
      attended = any(n == level and kind == "attention" for n, _, kind in down)
      n = per_level * (above + 1) - 1
      theirs = f"output_blocks.{n}.{1 + attended}.conv"
      return f"up_blocks.{above}.upsamplers.0.conv", theirs
  return _OUTSIDE[name]


def _renamed(key: str) -> str:
  """diffusers' name of today."""
  if ".attentions." not in key:
    return key
  block, layer, leaf = key.rsplit(".", 2)
  return f"{block}.{_OLD_NAMES.get(layer, layer)}.{leaf}"


def _without_variance(
  state: weights.State, like: PyTree
) -> dict[str, np.ndarray]:
  """Only the first half of the outputs, where there are twice as many."""
  channels = like["conv_out"]["bias"].shape[0]
  is_twice = lambda key: (
    key.startswith("out.2.") and state[key].shape[:1] == (2 * channels,)
  )
  return {k: x[:channels] if is_twice(k) else x for k, x in state.items()}


def _check(state: weights.State, tensors: _Tensors) -> None:
  """Raises unless the state has these tensors, and no others."""
  problems = {
    "missing": tensors.keys() - state.keys(),
    "left over": state.keys() - tensors.keys(),
    "of another shape": {
      f"{key} {state[key].shape}, expected {shape}"
      for key, (shape, _) in tensors.items()
      if key in state and state[key].shape != shape
    },
  }
  found = [
    f"{what}: {', '.join(sorted(n))}" for what, n in problems.items() if n
  ]
  if found:
    raise weights.WeightsError(
      "the tensors are of another network than config.model.unet"
      f" ({'; '.join(found)})"
    )
