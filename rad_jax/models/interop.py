"""Our U-Net's parameters in the layouts of PyTorch's diffusion libraries.

diffusers' UNet2DModel (of which google/ddpm-cifar10-32 is one) and
improved-diffusion's UNetModel (Nichol & Dhariwal 2021, arXiv 2102.09672) hold
the U-Net of DDPM under other names and with other axes:

- a convolution's kernel is `[out, in, height, width]`, and `[height, width, in,
  out]` here; a dense layer's `[out, in]`, and `[in, out]` here;
- a shortcut is a 1x1 convolution, and a dense layer here; so are the layers of
  improved-diffusion's attention, in one dimension;
- improved-diffusion has query, key and value in one `qkv`, whose outputs are
  `[heads, 3, channels / heads]`.

Names and shapes do not tell epsilons, paddings, embeddings and heads: those are
arguments of `unet.unet`. Pure functions on NumPy arrays; every array of either
side is used exactly once.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from rad_jax.models import weights

State = Mapping[str, np.ndarray]
# What improved-diffusion packs into one tensor, in its order.
_PACKED = ("query", "key", "value")
# Attention's layers in diffusers before 0.15; the files were never rewritten.
_OLD_NAMES = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}


class _Size(NamedTuple):
  """What the numbering of blocks depends on.

  levels: of the network.
  per_level: residual blocks of a level on the way down.
  attended: the levels with attention.
  """

  levels: int
  per_level: int
  attended: frozenset[int]


class _Layout(NamedTuple):
  """Their names, and their axes of length one.

  block: (our name of a block, or of a layer outside blocks; size) -> theirs.
  layers: by kind of block, our names of its layers -> theirs.
  ones: the axes that their kernel of a layer has beyond ours.
  """

  block: Callable[[str, _Size], str]
  layers: dict[str, dict[str, str]]
  ones: dict[str, int]


class _Tensor(NamedTuple):
  """A tensor of theirs: its shape, and our path or packed paths."""

  shape: tuple[int, ...]
  paths: tuple[str, ...]


def _diffusers_block(name: str, size: _Size) -> str:
  match name.split("_"):
    case ["down", level, i, kind]:
      return f"down_blocks.{level}.{_PLURAL[kind]}.{i}"
    case ["downsample", level]:
      return f"down_blocks.{level}.downsamplers.0.conv"
    case ["middle", "attention"]:
      return "mid_block.attentions.0"
    case ["middle", i, "res"]:
      return f"mid_block.resnets.{i}"
    case ["up", level, i, kind]:
      return f"up_blocks.{size.levels - 1 - int(level)}.{_PLURAL[kind]}.{i}"
    case ["upsample", level]:
      return f"up_blocks.{size.levels - 1 - int(level)}.upsamplers.0.conv"
  return {
    "conv_in": "conv_in",
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
  }[name]


def _improved_block(name: str, size: _Size) -> str:
  """Blocks of each way are counted through, with what follows them inside."""
  down, up = size.per_level + 1, size.per_level + 1
  part = {"res": 0, "attention": 1}
  match name.split("_"):
    case ["down", level, i, kind]:
      return f"input_blocks.{1 + down * int(level) + int(i)}.{part[kind]}"
    case ["downsample", level]:
      return f"input_blocks.{down * (int(level) + 1)}.0.op"
    case ["middle", "attention"]:
      return "middle_block.1"
    case ["middle", i, "res"]:
      return f"middle_block.{2 * int(i)}"
    case ["up", level, i, kind]:
      above = size.levels - 1 - int(level)
      return f"output_blocks.{up * above + int(i)}.{part[kind]}"
    case ["upsample", level]:
      above = size.levels - 1 - int(level)
      last = 2 if int(level) in size.attended else 1
      return f"output_blocks.{up * (above + 1) - 1}.{last}.conv"
  return {
    "conv_in": "input_blocks.0.0",
    "time_0": "time_embed.0",
    "time_1": "time_embed.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
  }[name]


_PLURAL = {"res": "resnets", "attention": "attentions"}
_DIFFUSERS = _Layout(
  _diffusers_block,
  {
    "res": {
      "norm_in": "norm1",
      "conv_in": "conv1",
      "time": "time_emb_proj",
      "norm_out": "norm2",
      "conv_out": "conv2",
      "shortcut": "conv_shortcut",
    },
    "attention": {
      "norm": "group_norm",
      "query": "to_q",
      "key": "to_k",
      "value": "to_v",
      "output": "to_out.0",
    },
  },
  {"shortcut": 2},
)
_IMPROVED = _Layout(
  _improved_block,
  {
    "res": {
      "norm_in": "in_layers.0",
      "conv_in": "in_layers.2",
      "time": "emb_layers.1",
      "norm_out": "out_layers.0",
      "conv_out": "out_layers.3",
      "shortcut": "skip_connection",
    },
    "attention": {
      "norm": "norm",
      "query": "qkv",
      "key": "qkv",
      "value": "qkv",
      "output": "proj_out",
    },
  },
  {"shortcut": 2, "query": 1, "key": 1, "value": 1, "output": 1},
)


def from_pytorch(
  state: State, like: PyTree, num_heads: int = 1
) -> tuple[PyTree, str]:
  """Our parameters, from a state dict in either layout.

  Where an improved-diffusion network predicts a variance as well, that half of
  its output is left out.

  Args:
    state: names to arrays of any float type.
    like: the structure and shapes of our parameters: arrays or
      ShapeDtypeStructs.
    num_heads: of attention, on which improved-diffusion's packing depends.

  Returns:
    The parameters as float32 NumPy arrays, and the layout, "diffusers" or
    "improved-diffusion".

  Raises:
    weights.WeightsError: it is in neither layout, or of another network. All
      tensors that are missing, left over or of another shape are named.
  """
  if "input_blocks.0.0.weight" in state:
    name, layout = "improved-diffusion", _IMPROVED
    state = _without_variance(state, like)
  elif "conv_in.weight" in state:
    name, layout = "diffusers", _DIFFUSERS
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
  for key, tensor in tensors.items():
    array = np.asarray(state[key], np.float32)
    for path, part in zip(
      tensor.paths, _parts(array, len(tensor.paths), num_heads), strict=True
    ):
      flat[path] = _turned(part, (0, 1), (-1, -2)).reshape(shapes[path].shape)
  return traverse_util.unflatten_dict(flat, sep="/"), name


def to_diffusers(params: PyTree) -> dict[str, np.ndarray]:
  """The state dict of diffusers' UNet2DModel, as float32 NumPy arrays.

  Args:
    params: of our U-Net.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  state = {}
  for key, tensor in _tensors(params, _DIFFUSERS).items():
    array = np.asarray(flat[tensor.paths[0]], np.float32)
    state[key] = _turned(array, (-1, -2), (0, 1)).reshape(tensor.shape)
  return state


def _turned(
  array: np.ndarray, source: tuple[int, int], target: tuple[int, int]
) -> np.ndarray:
  """A kernel with its axes of outputs and inputs moved; vectors as they are."""
  if array.ndim == 1:
    return array
  return np.ascontiguousarray(np.moveaxis(array, source, target))


def _parts(array: np.ndarray, count: int, num_heads: int) -> list[np.ndarray]:
  """Unpacks `[heads, count, width]` along the first axis."""
  packed = array.reshape(
    num_heads if count > 1 else 1, count, -1, *array.shape[1:]
  )
  return [packed[:, i].reshape(-1, *array.shape[1:]) for i in range(count)]


def _tensors(like: PyTree, layout: _Layout) -> dict[str, _Tensor]:
  """All tensors of a network of these parameters, by their name."""
  flat = traverse_util.flatten_dict(like, sep="/")
  size = _size(flat)
  packing = lambda path: next(
    (i for i, name in enumerate(_PACKED) if f"/{name}/" in path), -1
  )
  found: dict[str, _Tensor] = {}
  for path in sorted(flat, key=packing):
    *block, layer, leaf = path.split("/")
    key = layout.block(block[0] if block else layer, size)
    shape = flat[path].shape
    if leaf == "kernel":
      ones = layout.ones.get(layer, 0) if block else 0
      shape = (shape[-1], shape[-2], *shape[:-2], *[1] * ones)
    if block:
      key += "." + layout.layers[block[0].rpartition("_")[2]][layer]
    key += ".bias" if leaf == "bias" else ".weight"
    if key in found:
      before = found[key]
      shape = (before.shape[0] + shape[0], *shape[1:])
      found[key] = _Tensor(shape, (*before.paths, path))
    else:
      found[key] = _Tensor(shape, (path,))
  return found


def _size(paths: Iterable[str]) -> _Size:
  """From the names of our parameters."""
  blocks = {path.split("/")[0] for path in paths}
  down = [re.fullmatch(r"down_(\d+)_(\d+)_(\w+)", name) for name in blocks]
  found = [(int(m[1]), int(m[2]), m[3]) for m in down if m]
  return _Size(
    levels=1 + max(level for level, _, _ in found),
    per_level=1 + max(i for _, i, _ in found),
    attended=frozenset(
      level for level, _, kind in found if kind == "attention"
    ),
  )


def _renamed(key: str) -> str:
  """diffusers' name of today."""
  if ".attentions." not in key:
    return key
  block, layer, leaf = key.rsplit(".", 2)
  return f"{block}.{_OLD_NAMES.get(layer, layer)}.{leaf}"


def _without_variance(state: State, like: PyTree) -> dict[str, np.ndarray]:
  """Only the first half of the outputs, where there are twice as many."""
  channels = like["conv_out"]["bias"].shape[0]
  cut = {
    key: state[key][:channels]
    for key in ("out.2.weight", "out.2.bias")
    if key in state and state[key].shape[:1] == (2 * channels,)
  }
  return {**state, **cut}


def _check(state: State, tensors: Mapping[str, _Tensor]) -> None:
  misshapen = [
    f"{key} {state[key].shape}, expected {tensor.shape}"
    for key, tensor in tensors.items()
    if key in state and state[key].shape != tensor.shape
  ]
  problems = {
    "missing": sorted(tensors.keys() - state.keys()),
    "left over": sorted(state.keys() - tensors.keys()),
    "of another shape": sorted(misshapen),
  }
  found = [f"{what}: {', '.join(n)}" for what, n in problems.items() if n]
  if found:
    raise weights.WeightsError(
      f"the tensors are of another network than config.model.unet ("
      f"{'; '.join(found)})"
    )
