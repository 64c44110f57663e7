"""What diffusers' JSON files say of a network and its noise; ours, as theirs.

A description is the content of a UNet2DModel's config.json or of a
scheduler_config.json; fields are a config's, flat, by dotted path.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from rad_jax.diffusion import schedules
from rad_jax.models import unet

_STEPS = "num_train_timesteps"  # an option of a scheduler
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

Fields = Mapping[str, Any]


class MismatchError(ValueError):
  """Another library's network is not the config's, or can be no such one."""


def network_fields(
  described: Mapping[str, Any], name: str, side: int | None = None
) -> dict[str, Any]:
  """The fields of a UNet2DModel; MismatchError if ours can be no such one.

  `name` is what errors call it; `side` is its images', where it states none.
  """
  kind = described.get("_class_name")
  if kind != "UNet2DModel":
    raise MismatchError(f"{name} holds a {kind}, and no UNet2DModel")
  theirs = {**_DEFAULTS, **described}
  theirs["sample_size"] = side = theirs["sample_size"] or side
  for option in ("down_block_types", "up_block_types"):
    theirs[option] = [kind.removeprefix("UNetRes") for kind in theirs[option]]
  if foreign := _foreign_options(theirs):
    raise MismatchError(
      f"{name} is a network that ours cannot be: {'; '.join(foreign)}"
    )
  widths = theirs["block_out_channels"]
  return {
    "data.image_size": side,
    "data.num_channels": theirs["in_channels"],
    "model.unet.channels": widths[0],
    "model.unet.channel_multipliers": tuple(w // widths[0] for w in widths),
    "model.unet.num_res_blocks": theirs["layers_per_block"],
    "model.unet.attention_resolutions": tuple(
      side // 2**level for level in _attended(theirs)
    ),
    "model.unet.conventions": _convention(theirs),
    "model.unet.num_groups": theirs["norm_num_groups"],
    "model.unet.num_heads": _heads(theirs).pop(),
    "model.unet.scale_shift": theirs["resnet_time_scale_shift"] != "default",
    "model.unet.time_scale": 1.0,
  }


def process_fields(scheduler: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The fields of a scheduler; MismatchError if ours has no such noise."""
  alpha_bar, steps = _alpha_bar(scheduler), scheduler.get(_STEPS, 1000)
  found = [
    schedule
    for schedule, ours in schedules.ALPHA_BAR.items()
    if alpha_bar is not None
    and len(alpha_bar) == steps
    and np.allclose(alpha_bar, ours(steps), rtol=1e-4, atol=1e-9)
  ]
  if not found:
    stated = ", ".join(
      f"{option}={value!r}"
      for option, value in scheduler.items()
      if value is not None and ("beta" in option or option == _STEPS)
    )
    raise MismatchError(
      f"{name} was trained on a noise schedule that ours cannot be"
      f" ({stated:.200}): config.diffusion.schedule has"
      f" {', '.join(schedules.ALPHA_BAR)}"
    )
  prediction = scheduler.get("prediction_type", "epsilon")
  names = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
  if prediction not in names:
    raise MismatchError(
      f"{name} predicts {prediction!r}, and ours one of {', '.join(names)}"
    )
  return {
    "diffusion.schedule": found[0],
    "diffusion.num_timesteps": steps,
    "diffusion.prediction": names[prediction],
  }


def groups(fields: Fields) -> int:
  """Groups of every group norm; 0 where they differ from norm to norm."""
  channels = fields["model.unet.channels"]
  uniform = channels % 32 == 0 and channels > 32
  return fields["model.unet.num_groups"] or (32 if uniform else 0)


def unet_config(fields: Fields) -> dict[str, Any]:
  """UNet2DModel's config.json."""
  of = lambda field: fields[f"model.unet.{field}"]
  for path, needed in (("model.name", "unet"), ("model.unet.time_scale", 1)):
    if fields[path] != needed:
      raise MismatchError(f"config.{path}={fields[path]!r}: {_NOT_THERE}")
  num_groups = groups(fields)
  if not num_groups:
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
    "norm_num_groups": num_groups,
    "attn_norm_num_groups": num_groups,
    "resnet_time_scale_shift": _TIME_SHIFTS[of("scale_shift")],
  } | _CONVENTIONS[of("conventions")]


def scheduler_config(fields: Fields) -> dict[str, Any]:
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
  if not isinstance(theirs["sample_size"], int):
    found.append(shown("sample_size"))
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


def _way_up(down: list[str]) -> list[str]:
  """The up_block_types that mirror these down_block_types."""
  return [kind.replace("Down", "Up") for kind in reversed(down)]


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
