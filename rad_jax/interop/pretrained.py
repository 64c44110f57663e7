"""Networks trained elsewhere, read for fine-tuning; ours, for diffusers.

A diffusers folder's config.json is compared with config.model.unet, its
scheduler with config.diffusion; of a bare file both are the user's word.
"""

import itertools
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save_file

from rad_jax import files
from rad_jax.diffusion import schedules
from rad_jax.interop import layouts, weights
from rad_jax.models import unet

_LOG = logging.getLogger("rad_jax")
_FILE = "diffusion_pytorch_model.safetensors"
_SCHEDULER_FILE = "scheduler_config.json"
_STEPS = "num_train_timesteps"  # an option of a scheduler
_TO_FETCH = (
  "give a run's workdir, a diffusers folder, or a .safetensors or .pt file of"
  " a network as config.model.unet says (docs/interop.md)"
)
_NOT_THERE = "diffusers' UNet2DModel has no such network"
_PREDICTIONS = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}
_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
_TIME_SHIFTS = ("default", "scale_shift")  # by our scale_shift
# What stands for unet.CONVENTIONS there.
_CONVENTIONS: dict[str, dict[str, Any]] = {
  name: {"norm_eps": unet.CONVENTIONS[name].epsilon} | options
  for name, options in {
    "ddpm": dict(downsample_padding=0, flip_sin_to_cos=False, freq_shift=1),
    "improved": dict(downsample_padding=1, flip_sin_to_cos=True, freq_shift=0),
  }.items()
}
# UNet2DModel's own defaults, for the fields that its config.json may lack.
_DEFAULTS: dict[str, Any] = _CONVENTIONS["improved"] | {
  "sample_size": None,
  "in_channels": 3,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "attn_norm_num_groups": None,
  "attention_head_dim": 8,
  "resnet_time_scale_shift": "default",
}
# Its options of which ours has one value (the first is its default).
_ONLY: dict[str, tuple[Any, ...]] = {
  "act_fn": ("silu", "swish"),
  "add_attention": (True,),
  "center_input_sample": (False,),
  "class_embed_type": (None,),
  "downsample_type": ("conv",),
  "mid_block_scale_factor": (1,),
  "mid_block_type": ("UNetMidBlock2D",),
  "num_class_embeds": (None,),
  "resnet_time_scale_shift": _TIME_SHIFTS,
  "time_embedding_dim": (None,),
  "time_embedding_type": ("positional",),
  "upsample_type": ("conv",),
}

Fields = Mapping[str, Any]  # a run's flattened config, lists for tuples


class MismatchError(ValueError):
  """Another library's network is not the config's, or can be no such one."""


def is_foreign(source: pathlib.Path) -> bool:
  """Whether it is another library's: a file, or a folder that no run wrote."""
  if source.suffix in weights.SUFFIXES or source.is_file():
    return True
  path = source / "config.json"
  if path.exists():
    return "_class_name" in files.read_json(path)
  return any(_unet_folders(source)) or bool(_torch_files(source))


def load(source: pathlib.Path, like: PyTree, fields: Fields) -> PyTree:
  """Another library's parameters, as float32 arrays in the structure of `like`.

  `source` is a folder of a diffusers pipeline or UNet2DModel, or of
  improved-diffusion's checkpoints, or a file of either layout. Raises
  MismatchError; WeightsError, or ValueError of JSON, if a file cannot be used.
  """
  name = f"config.train.init_from={str(source)!r}"
  if fields["model.name"] != "unet" or fields["diffusion.process"] != "ddpm":
    raise MismatchError(
      f"{name} is a U-Net of DDPM's process: config.model.name must be unet,"
      " config.diffusion.process ddpm"
    )
  chosen = _choose(source, fields["train.init_weights"], name)
  folder = chosen if chosen.is_dir() else chosen.parent
  described = files.read_json(folder / "config.json")
  kind = described.get("_class_name", "")
  if kind not in ("", "UNet2DModel"):
    raise MismatchError(f"{name} holds a {kind}, and no UNet2DModel")
  if kind:
    _check_network(described, fields, name)
  if scheduler := _scheduler(folder):
    _check_schedule(scheduler, fields, name)
  else:
    _LOG.warning(
      "%s states no noise schedule: it must be config.diffusion's", source
    )
  state, heads = _state(chosen), fields["model.unet.num_heads"]
  try:
    params, layout = layouts.from_pytorch(state, like, heads)
  except weights.WeightsError as error:
    raise weights.WeightsError(f"{name}: {error}; {_TO_FETCH}") from error
  _LOG.info("starting from %s, in %s's layout", chosen, layout)
  return params


def export(
  params: PyTree, folder: pathlib.Path, fields: Fields
) -> pathlib.Path:
  """Writes a folder for diffusers' DDPMPipeline; MismatchError if none fits."""
  described = {
    "unet/config.json": _network_config(fields),
    f"scheduler/{_SCHEDULER_FILE}": _scheduler_config(fields),
    "model_index.json": {
      "_class_name": "DDPMPipeline",
      "scheduler": ["diffusers", "DDPMScheduler"],
      "unet": ["diffusers", "UNet2DModel"],
    },
  }
  for path, tree in described.items():
    files.write_json(folder / path, tree)
  state = layouts.to_diffusers(params)
  save_file(state, folder / "unet" / _FILE, {"format": "pt"})
  return folder


def _network_config(fields: Fields) -> dict[str, Any]:
  """UNet2DModel's config.json."""
  of = lambda field: fields[f"model.unet.{field}"]
  for path, needed in (("model.name", "unet"), ("model.unet.time_scale", 1)):
    if fields[path] != needed:
      raise MismatchError(f"config.{path}={fields[path]!r}: {_NOT_THERE}")
  groups = _groups(fields)
  if not groups:
    raise MismatchError(
      f"config.model.unet.num_groups=0: with {of('channels')} channels its"
      f" group norms differ in their number of groups, {_NOT_THERE}; train with"
      " a num_groups that is the same for all"
    )
  side, heads = fields["data.image_size"], of("num_heads")
  widths = [of("channels") * m for m in of("channel_multipliers")]
  sides = [side // 2**level for level in range(len(widths))]
  attend = [here in of("attention_resolutions") for here in sides]
  attended = {widths[-1], *itertools.compress(widths, attend)}
  if heads > 1 and len(attended) > 1:
    raise MismatchError(
      f"config.model.unet.num_heads={heads}: with attention at widths"
      f" {sorted(attended)} its heads differ in width, {_NOT_THERE}"
    )
  blocks = ["AttnDownBlock2D" if here else "DownBlock2D" for here in attend]
  return {
    "_class_name": "UNet2DModel",
    "sample_size": side,
    "in_channels": fields["data.num_channels"],
    "out_channels": fields["data.num_channels"],
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "down_block_types": blocks,
    "up_block_types": _way_up(blocks),
    "block_out_channels": widths,
    "layers_per_block": of("num_res_blocks"),
    "dropout": of("dropout"),
    "act_fn": "silu",
    "attention_head_dim": None if heads == 1 else widths[-1] // heads,
    "norm_num_groups": groups,
    "attn_norm_num_groups": groups,
    "resnet_time_scale_shift": _TIME_SHIFTS[of("scale_shift")],
  } | _CONVENTIONS[of("conventions")]


def _way_up(down: list[str]) -> list[str]:
  """The up_block_types that mirror these down_block_types."""
  return [kind.replace("Down", "Up") for kind in reversed(down)]


def _scheduler_config(fields: Fields) -> dict[str, Any]:
  """DDPMScheduler's scheduler_config.json; samples as --mode=sample does."""
  process = fields["diffusion.process"]
  prediction = fields["diffusion.prediction"]
  if process != "ddpm" or prediction not in _PREDICTIONS:
    raise MismatchError(
      f"config.diffusion.process={process!r}, .prediction={prediction!r}:"
      " diffusers' DDPMScheduler has process ddpm with prediction"
      f" {', '.join(_PREDICTIONS)}"
    )
  steps, clip = fields["diffusion.num_timesteps"], fields["sampling.clip_x_0"]
  return {
    "_class_name": "DDPMScheduler",
    _STEPS: steps,
    "beta_schedule": _SCHEDULES[fields["diffusion.schedule"]],
    "beta_start": 1e-4 * (1000 / steps),
    "beta_end": 0.02 * (1000 / steps),
    "prediction_type": _PREDICTIONS[prediction],
    "variance_type": f"fixed_{fields['sampling.variance']}",
    "clip_sample": clip > 0,
    "clip_sample_range": clip or 1.0,
    "timestep_spacing": "linspace",
  }


def _check_network(
  described: Mapping[str, Any], fields: Fields, name: str
) -> None:
  """Raises unless `fields` has the network of a UNet2DModel's config.json."""
  theirs = {**_DEFAULTS, **described}
  for option in ("down_block_types", "up_block_types"):
    theirs[option] = [kind.removeprefix("UNetRes") for kind in theirs[option]]
  if foreign := _foreign_options(theirs):
    raise MismatchError(
      f"{name} is a network that ours cannot be: {'; '.join(foreign)}"
    )
  side = theirs["sample_size"] or fields["data.image_size"]
  widths = theirs["block_out_channels"]
  attended = sorted(side // 2**level for level in _attended(theirs))
  saved = {
    "data.image_size": side,
    "data.num_channels": theirs["in_channels"],
    "model.unet.channels": widths[0],
    "model.unet.channel_multipliers": [w // widths[0] for w in widths],
    "model.unet.num_res_blocks": theirs["layers_per_block"],
    "model.unet.attention_resolutions": attended,
    "model.unet.conventions": _convention(theirs),
    "model.unet.num_groups": theirs["norm_num_groups"],
    "model.unet.num_heads": _heads(theirs).pop(),
    "model.unet.scale_shift": theirs["resnet_time_scale_shift"] != "default",
    "model.unet.time_scale": 1.0,
  }
  resolutions = "model.unet.attention_resolutions"
  ours = {**fields, resolutions: sorted(fields[resolutions])}
  ours["model.unet.num_groups"] = _groups(fields)
  _refuse_differences(saved, ours, name)


def _foreign_options(theirs: Mapping[str, Any]) -> list[str]:
  """The options with which a UNet2DModel is no network of ours."""
  shown = lambda *options: ", ".join(f"{o}={theirs[o]!r}" for o in options)
  down, widths = theirs["down_block_types"], theirs["block_out_channels"]
  groups = theirs["norm_num_groups"]
  # By default the middle's norm has the others' groups, but with scale_shift.
  scale_shift = theirs["resnet_time_scale_shift"] == "scale_shift"
  of_middle = theirs["attn_norm_num_groups"] or (not scale_shift and groups)
  found = [
    shown(option)
    for option, allowed in _ONLY.items()
    if theirs.get(option, allowed[0]) not in allowed
  ]
  if _convention(theirs) is None:
    found.append(shown(*_CONVENTIONS["ddpm"]))
  known = set(down) <= {"DownBlock2D", "AttnDownBlock2D"}
  if not known or theirs["up_block_types"] != _way_up(down):
    found.append(shown("down_block_types", "up_block_types"))
  if any(width % widths[0] for width in widths):
    found.append(shown("block_out_channels"))
  if of_middle != groups:
    found.append(shown("norm_num_groups", "attn_norm_num_groups"))
  if len(_heads(theirs)) > 1:
    found.append(f"{shown('attention_head_dim')} at several widths")
  return found


def _convention(theirs: Mapping[str, Any]) -> str | None:
  fits = lambda of: all(theirs[option] == of[option] for option in of)
  return next((name for name, of in _CONVENTIONS.items() if fits(of)), None)


def _attended(theirs: Mapping[str, Any]) -> list[int]:
  """Levels with attention."""
  kinds = theirs["down_block_types"]
  return [level for level, kind in enumerate(kinds) if "Attn" in kind]


def _heads(theirs: Mapping[str, Any]) -> set[int]:
  """The numbers of heads that its attention blocks have."""
  widths, head = theirs["block_out_channels"], theirs["attention_head_dim"]
  levels = (*_attended(theirs), -1)
  return {widths[level] // head if head else 1 for level in levels}


def _check_schedule(
  scheduler: Mapping[str, Any], fields: Fields, name: str
) -> None:
  """Raises unless a scheduler_config.json of diffusers' is config.diffusion."""
  schedule = fields["diffusion.schedule"]
  steps = fields["diffusion.num_timesteps"]
  expected = schedules.ALPHA_BAR[schedule](steps)
  alpha_bar = _alpha_bar(scheduler)
  if alpha_bar is None or not (
    alpha_bar.shape == expected.shape
    and np.allclose(alpha_bar, expected, rtol=1e-4, atol=1e-9)
  ):
    stated = ", ".join(
      f"{option}={value!r}"
      for option, value in scheduler.items()
      if value is not None and ("beta" in option or option == _STEPS)
    )
    raise MismatchError(
      f"{name} was trained on another noise schedule ({stated:.200}) than"
      f" config.diffusion.schedule={schedule!r} over {steps} timesteps"
    )
  prediction = scheduler.get("prediction_type", "epsilon")
  names = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
  saved = {"diffusion.prediction": names.get(prediction, prediction)}
  _refuse_differences(saved, fields, name)


def _refuse_differences(theirs: Fields, ours: Fields, name: str) -> None:
  """Raises with all fields of theirs that ours has otherwise."""
  found = "; ".join(
    f"{path}: {value} -> {ours[path]}"
    for path, value in theirs.items()
    if value != ours[path]
  )
  if found:
    raise MismatchError(
      f"{name} is another model than config's ({found}): set these fields to"
      " the first values"
    )


def _alpha_bar(scheduler: Mapping[str, Any]) -> np.ndarray | None:
  """alpha_bar of the schedules that ours can be, [T]; None for others."""
  steps = scheduler.get(_STEPS, 1000)
  kind = scheduler.get("beta_schedule", "linear")
  ends = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
  betas = scheduler.get("trained_betas")
  if scheduler.get("rescale_betas_zero_snr"):
    return None
  if betas is None and kind == _SCHEDULES["cosine"]:
    return schedules.cosine_alpha_bar(steps)
  if betas is None and kind == "linear":
    betas = np.linspace(*ends, steps)
  return None if betas is None else np.cumprod(1 - np.array(betas, np.float64))


def _groups(fields: Fields) -> int:
  """Groups of every group norm; 0 where they differ from norm to norm."""
  channels = fields["model.unet.channels"]
  uniform = channels % 32 == 0 and channels > 32
  return fields["model.unet.num_groups"] or (32 if uniform else 0)


def _choose(source: pathlib.Path, which: str, name: str) -> pathlib.Path:
  """The file, or the folder of a UNet2DModel, that `which` means in source."""
  held = ""
  if source.is_file() or source.suffix in weights.SUFFIXES:
    found = re.fullmatch(r"(ema_[\d.]+_|model)\d+\.pt", source.name)
    if found:
      held = "raw" if found[1] == "model" else "ema"
  else:
    folders = _unet_folders(source)
    if len(folders) != 1 and not which:
      raise MismatchError(
        f"{name} holds a moving average and raw weights:"
        " config.train.init_weights must be ema or raw"
      )
    if not folders:
      return _newest(_torch_files(source), which, name)
    source = folders[-1]
    if len(folders) == 2:
      return folders[which == "ema"]
  if which and which != held:
    holds = f"holds the {held} weights" if held else "does not say which it has"
    raise MismatchError(
      f'config.train.init_weights={which!r}: {name} {holds}; set it to ""'
    )
  return source


def _newest(
  checkpoints: list[pathlib.Path], which: str, name: str
) -> pathlib.Path:
  """improved-diffusion's last checkpoint of the raw or averaged weights."""
  start = "ema_" if which == "ema" else "model"
  found = [path for path in checkpoints if path.name.startswith(start)]
  steps = [int(re.findall(r"(\d+)\.pt$", path.name)[0]) for path in found]
  last = [p for p, s in zip(found, steps, strict=True) if s == max(steps)]
  if len(last) != 1:
    raise MismatchError(
      f"{name} has {len(last)} files of the newest {which} weights"
      f" ({', '.join(path.name for path in last) or 'none'}): name the file"
    )
  return last[0]


def _torch_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """improved-diffusion's checkpoints, without those of its optimiser."""
  return sorted([*folder.glob("model*.pt"), *folder.glob("ema_*.pt")])


def _unet_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """diffusers' raw weights, and its moving average where it is kept apart."""
  has_config = lambda path: (path / "config.json").exists()
  found = [*filter(has_config, (folder / "unet", folder / "unet_ema"))]
  return found or [*filter(has_config, [folder])]


def _state(chosen: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a file, or of all of a folder's shards."""
  if not chosen.is_dir():
    return weights.load(chosen, dict, _TO_FETCH)
  index = files.read_json(chosen / f"{_FILE}.index.json")
  state: dict[str, np.ndarray] = {}
  for name in sorted({*index.get("weight_map", {"": _FILE}).values()}):
    state |= weights.load(chosen / name, dict, _TO_FETCH)
  return state


def _scheduler(folder: pathlib.Path) -> dict[str, Any]:
  """The scheduler_config.json of a UNet2DModel's folder; {} without."""
  places = folder, folder / "scheduler", folder.parent / "scheduler"
  found = (files.read_json(place / _SCHEDULER_FILE) for place in places)
  return next(filter(None, found), {})
