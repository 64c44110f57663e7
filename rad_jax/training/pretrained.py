"""Networks trained elsewhere, read for fine-tuning; ours, for diffusers.

The shapes of the tensors say much about a network, and not all: a diffusers
folder's config.json is compared with config.model.unet, its scheduler with
config.diffusion. A bare file says nothing of these: they are the user's word.
"""

import json
import logging
import pathlib
import re
from typing import Any

import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save_file

from rad_jax.config import ConfigDict, ConfigError
from rad_jax.diffusion import schedules
from rad_jax.models import interop, unet, weights

_LOG = logging.getLogger("rad_jax")
_FIELD = "config.train.init_from"
_FILE = "diffusion_pytorch_model.safetensors"
_SUFFIXES = (".safetensors", ".pt", ".pth")
_TO_FETCH = (
  "give a run's workdir, a diffusers folder, or a .safetensors or .pt file of"
  " a network as config.model.unet says (docs/interop.md)"
)
_NOT_THERE = "diffusers' UNet2DModel has no such network"
_PREDICTIONS = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}
_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
# What stands for unet.CONVENTIONS there.
_CONVENTIONS: dict[str, dict[str, Any]] = {
  "ddpm": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
  "improved": {"downsample_padding": 1, "flip_sin_to_cos": True}
  | {"freq_shift": 0},
}
# UNet2DModel's own defaults, for the fields that its config.json may lack.
_DEFAULTS: dict[str, Any] = {
  "sample_size": None,
  "in_channels": 3,
  "out_channels": 3,
  "layers_per_block": 2,
  "downsample_padding": 1,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "norm_eps": 1e-5,
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
  "time_embedding_dim": (None,),
  "time_embedding_type": ("positional",),
  "upsample_type": ("conv",),
}


def is_foreign(source: pathlib.Path) -> bool:
  """Whether it is another library's: a file, or a folder that no run wrote."""
  if source.suffix in _SUFFIXES or source.is_file():
    return True
  path = source / "config.json"
  if path.exists():
    return "_class_name" in json.loads(path.read_text())
  return any(_unet_folders(source)) or bool(_torch_files(source))


def load(source: pathlib.Path, config: ConfigDict, like: PyTree) -> PyTree:
  """The parameters of another library's network, for config.model.unet.

  Args:
    source: config.train.init_from: a folder that diffusers saved, a pipeline's
      or a UNet2DModel's; a folder of improved-diffusion's checkpoints; or a
      file of either layout, .safetensors or PyTorch's .pt.
    config: today's config. Its train.init_weights chooses where source has a
      moving average beside the raw weights.
    like: config's parameters: arrays or ShapeDtypeStructs.

  Returns:
    float32 NumPy arrays in the structure of `like`.

  Raises:
    ConfigError: the network, its noise schedule or what it predicts is not
      config's; or it is not clear which weights are meant. All differing
      fields are named.
    weights.WeightsError: a file is missing or cannot be read, or its tensors
      do not fit.
  """
  name = f"{_FIELD}={str(source)!r}"
  if config.model.name != "unet" or config.diffusion.process != "ddpm":
    raise ConfigError(
      f"{name} is a U-Net of DDPM's process: config.model.name must be unet,"
      " config.diffusion.process ddpm"
    )
  chosen = _choose(source, config.train.init_weights, name)
  folder = chosen if chosen.is_dir() else chosen.parent
  described = _json(folder / "config.json")
  kind = described.get("_class_name", "")
  if kind not in ("", "UNet2DModel"):
    raise ConfigError(f"{name} holds a {kind}, and no UNet2DModel")
  if kind:
    check_network(described, config, name)
  scheduler = _scheduler(folder)
  if scheduler:
    check_schedule(scheduler, config, name)
  else:
    _LOG.warning(
      "%s states no noise schedule: it must be config.diffusion's", source
    )
  state: dict[str, np.ndarray] = {}
  for file in _files(chosen):
    state |= weights.load(file, dict, _TO_FETCH)
  try:
    params, layout = interop.from_pytorch(
      state, like, config.model.unet.num_heads
    )
  except weights.WeightsError as error:
    raise weights.WeightsError(f"{name}: {error}; {_TO_FETCH}") from error
  _LOG.info("starting from %s, in %s's layout", chosen, layout)
  return params


def export(
  params: PyTree, config: ConfigDict, folder: pathlib.Path
) -> pathlib.Path:
  """Writes a folder that diffusers' DDPMPipeline.from_pretrained reads.

  Args:
    params: of config's network.
    config: of a U-Net on DDPM's process that predicts eps, x_0 or v.
    folder: made if missing; its files of an earlier export are replaced.

  Returns:
    folder.

  Raises:
    ConfigError: diffusers has no such network, schedule or prediction.
  """
  files = {
    "unet/config.json": network_config(config),
    "scheduler/scheduler_config.json": scheduler_config(config),
    "model_index.json": {
      "_class_name": "DDPMPipeline",
      "scheduler": ["diffusers", "DDPMScheduler"],
      "unet": ["diffusers", "UNet2DModel"],
    },
  }
  for path in files:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
  save_file(
    interop.to_diffusers(params), folder / "unet" / _FILE, {"format": "pt"}
  )
  for path, content in files.items():
    (folder / path).write_text(json.dumps(content, indent=2) + "\n")
  return folder


def network_config(config: ConfigDict) -> dict[str, Any]:
  """UNet2DModel's config.json.

  Raises:
    ConfigError: config's network is no U-Net, or one that UNet2DModel cannot
      be.
  """
  fields, data = config.model.unet, config.data
  if config.model.name != "unet":
    raise ConfigError(f"config.model.name={config.model.name!r}: {_NOT_THERE}")
  if fields.time_scale != 1:
    raise ConfigError(
      f"config.model.unet.time_scale={fields.time_scale}: {_NOT_THERE}"
    )
  groups = _groups(config)
  if groups is None:
    raise ConfigError(
      f"config.model.unet.num_groups=0: with {fields.channels} channels its"
      f" group norms differ in their number of groups, {_NOT_THERE}; train with"
      " a num_groups that is the same for all"
    )
  widths = [fields.channels * m for m in fields.channel_multipliers]
  sides = [data.image_size // 2**level for level in range(len(widths))]
  attend = [side in fields.attention_resolutions for side in sides]
  heads = fields.num_heads
  attended = {w for w, here in zip(widths, attend, strict=True) if here}
  attended.add(widths[-1])
  if heads > 1 and len(attended) > 1:
    raise ConfigError(
      f"config.model.unet.num_heads={heads}: with attention at widths"
      f" {sorted(attended)} its heads differ in width, {_NOT_THERE}"
    )
  return {
    "_class_name": "UNet2DModel",
    "sample_size": data.image_size,
    "in_channels": data.num_channels,
    "out_channels": data.num_channels,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "down_block_types": [
      "AttnDownBlock2D" if here else "DownBlock2D" for here in attend
    ],
    "up_block_types": [
      "AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attend)
    ],
    "block_out_channels": widths,
    "layers_per_block": fields.num_res_blocks,
    "dropout": fields.dropout,
    "act_fn": "silu",
    "attention_head_dim": None if heads == 1 else widths[-1] // heads,
    "norm_num_groups": groups,
    "attn_norm_num_groups": groups,
    "norm_eps": unet.CONVENTIONS[fields.conventions].epsilon,
    "resnet_time_scale_shift": (
      "scale_shift" if fields.scale_shift else "default"
    ),
  } | _CONVENTIONS[fields.conventions]


def scheduler_config(config: ConfigDict) -> dict[str, Any]:
  """DDPMScheduler's scheduler_config.json; samples as --mode=sample does.

  Raises:
    ConfigError: the process or the prediction is not among its.
  """
  diffusion, sampling = config.diffusion, config.sampling
  if diffusion.process != "ddpm" or diffusion.prediction not in _PREDICTIONS:
    raise ConfigError(
      f"config.diffusion.process={diffusion.process!r}, .prediction="
      f"{diffusion.prediction!r}: diffusers' DDPMScheduler has process ddpm"
      f" with prediction {', '.join(_PREDICTIONS)}"
    )
  scale = 1000 / diffusion.num_timesteps
  return {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": diffusion.num_timesteps,
    "beta_schedule": _SCHEDULES[diffusion.schedule],
    "beta_start": 1e-4 * scale,
    "beta_end": 0.02 * scale,
    "prediction_type": _PREDICTIONS[diffusion.prediction],
    "variance_type": f"fixed_{sampling.variance}",
    "clip_sample": sampling.clip_x_0 > 0,
    "clip_sample_range": sampling.clip_x_0 or 1.0,
    "timestep_spacing": "linspace",
  }


def check_network(
  described: dict[str, Any], config: ConfigDict, name: str
) -> None:
  """Raises ConfigError, with all differences, unless config has this network.

  Args:
    described: UNet2DModel's config.json.
    config: today's config.
    name: of the source, for the error.
  """
  theirs = _DEFAULTS | described
  widths = list(theirs["block_out_channels"])
  foreign = [
    f"{option}={theirs[option]!r}"
    for option, allowed in _ONLY.items()
    if theirs.get(option, allowed[0]) not in allowed
  ]
  convention = next(
    (
      key
      for key, options in _CONVENTIONS.items()
      if unet.CONVENTIONS[key].epsilon == theirs["norm_eps"]
      and all(theirs[option] == value for option, value in options.items())
    ),
    None,
  )
  if convention is None:
    options = ("norm_eps", *_CONVENTIONS["ddpm"])
    foreign.append(", ".join(f"{o}={theirs[o]!r}" for o in options))
  down, up = (
    [kind.removeprefix("UNetRes") for kind in theirs[f"{way}_block_types"]]
    for way in ("down", "up")
  )
  if not (
    set(down) <= {"DownBlock2D", "AttnDownBlock2D"}
    and up == [kind.replace("Down", "Up") for kind in reversed(down)]
  ):
    foreign.append(f"down_block_types={down}, up_block_types={up}")
  if any(width % widths[0] for width in widths):
    foreign.append(f"block_out_channels={widths}")
  if theirs["resnet_time_scale_shift"] not in ("default", "scale_shift"):
    option = "resnet_time_scale_shift"
    foreign.append(f"{option}={theirs[option]!r}")
  groups = theirs["norm_num_groups"]
  scale_shift = theirs["resnet_time_scale_shift"] == "scale_shift"
  of_middle = theirs["attn_norm_num_groups"]
  if (of_middle or (None if scale_shift else groups)) != groups:
    foreign.append(
      f"norm_num_groups={groups}, attn_norm_num_groups={of_middle}"
    )
  attended = [level for level, kind in enumerate(down) if "Attn" in kind]
  head = theirs["attention_head_dim"]
  heads = {widths[level] // head if head else 1 for level in (*attended, -1)}
  if len(heads) > 1:
    foreign.append(f"attention_head_dim={head} at several widths")
  if foreign:
    raise ConfigError(
      f"{name} is a network that ours cannot be: {'; '.join(foreign)}"
    )
  side = theirs["sample_size"] or config.data.image_size
  saved = {
    "data.image_size": side,
    "data.num_channels": theirs["in_channels"],
    "model.unet.channels": widths[0],
    "model.unet.channel_multipliers": [w // widths[0] for w in widths],
    "model.unet.num_res_blocks": theirs["layers_per_block"],
    "model.unet.attention_resolutions": sorted(side // 2**i for i in attended),
    "model.unet.conventions": convention,
    "model.unet.num_groups": groups,
    "model.unet.num_heads": heads.pop(),
    "model.unet.scale_shift": scale_shift,
    "model.unet.time_scale": 1.0,
  }
  fields = config.model.unet
  ours = {
    "data.image_size": config.data.image_size,
    "data.num_channels": config.data.num_channels,
    "model.unet.channels": fields.channels,
    "model.unet.channel_multipliers": list(fields.channel_multipliers),
    "model.unet.num_res_blocks": fields.num_res_blocks,
    "model.unet.attention_resolutions": sorted(fields.attention_resolutions),
    "model.unet.conventions": fields.conventions,
    "model.unet.num_groups": _groups(config) or 0,
    "model.unet.num_heads": fields.num_heads,
    "model.unet.scale_shift": fields.scale_shift,
    "model.unet.time_scale": fields.time_scale,
  }
  _refuse_differences(saved, ours, name)


def check_schedule(
  scheduler: dict[str, Any], config: ConfigDict, name: str
) -> None:
  """Raises ConfigError unless this scheduler is config.diffusion.

  Args:
    scheduler: the scheduler_config.json of any of diffusers' schedulers.
    config: today's config, of DDPM's process.
    name: of the source, for the error.
  """
  diffusion = config.diffusion
  expected = schedules.ALPHA_BAR[diffusion.schedule](diffusion.num_timesteps)
  alpha_bar = _alpha_bar(scheduler)
  if alpha_bar is None or not (
    alpha_bar.shape == expected.shape
    and np.allclose(alpha_bar, expected, rtol=1e-4, atol=1e-9)
  ):
    told = [option for option in scheduler if "beta" in option]
    told.append("num_train_timesteps")
    stated = ", ".join(
      f"{option}={scheduler[option]!r}"
      for option in told
      if scheduler.get(option) is not None
    )
    raise ConfigError(
      f"{name} was trained on another noise schedule ({stated:.200}) than"
      f" config.diffusion.schedule={diffusion.schedule!r} over"
      f" {diffusion.num_timesteps} timesteps"
    )
  prediction = scheduler.get("prediction_type", "epsilon")
  names = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
  _refuse_differences(
    {"diffusion.prediction": names.get(prediction, prediction)},
    {"diffusion.prediction": diffusion.prediction},
    name,
  )


def _refuse_differences(
  theirs: dict[str, Any], ours: dict[str, Any], name: str
) -> None:
  found = [
    f"{field}: {theirs[field]} -> {ours[field]}"
    for field in theirs
    if theirs[field] != ours[field]
  ]
  if found:
    raise ConfigError(
      f"{name} is another model than config's ({'; '.join(found)}): set these"
      " fields to the first values"
    )


def _alpha_bar(scheduler: dict[str, Any]) -> np.ndarray | None:
  """alpha_bar of the schedules that ours can be, [T]; None for others."""
  steps = scheduler.get("num_train_timesteps", 1000)
  kind = scheduler.get("beta_schedule", "linear")
  ends = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
  if scheduler.get("rescale_betas_zero_snr"):
    return None
  if scheduler.get("trained_betas") is not None:
    return np.cumprod(1 - np.asarray(scheduler["trained_betas"], np.float64))
  if kind == "linear":
    return np.cumprod(1 - np.linspace(*ends, steps))
  if kind == "squaredcos_cap_v2":
    return schedules.cosine_alpha_bar(steps)
  return None


def _groups(config: ConfigDict) -> int | None:
  """Groups of every group norm; None where they differ from norm to norm."""
  fields = config.model.unet
  if fields.num_groups:
    return fields.num_groups
  uniform = fields.channels % 32 == 0 and fields.channels > 32
  return 32 if uniform else None


def _choose(source: pathlib.Path, which: str, name: str) -> pathlib.Path:
  """The file, or the folder of a UNet2DModel, that `which` means in source."""
  field = "config.train.init_weights"
  both = f"{name} holds a moving average and raw weights: {field} must be"
  if source.is_file() or source.suffix in _SUFFIXES:
    found = re.fullmatch(r"(ema_[\d.]+_|model)\d+\.pt", source.name)
    held = ("raw" if found[1] == "model" else "ema") if found else ""
  else:
    folders = _unet_folders(source)
    files = _torch_files(source)
    if len(folders) == 2:
      if not which:
        raise ConfigError(f"{both} ema or raw")
      return folders[0 if which == "raw" else 1]
    if folders:
      source, held = folders[0], ""
    else:
      if not which:
        raise ConfigError(f"{both} ema or raw")
      return _newest(files, which, name)
  if which and which != held:
    holds = f"holds the {held} weights" if held else "does not say which it has"
    raise ConfigError(f'{field}={which!r}: {name} {holds}; set it to ""')
  return source


def _newest(files: list[pathlib.Path], which: str, name: str) -> pathlib.Path:
  """improved-diffusion's last checkpoint of the raw or averaged weights."""
  start = "ema_" if which == "ema" else "model"
  mine = [file for file in files if file.name.startswith(start)]
  step_of = lambda file: int(re.findall(r"(\d+)\.pt$", file.name)[0])
  last = [f for f in mine if step_of(f) == max(map(step_of, mine))]
  if len(last) != 1:
    raise ConfigError(
      f"{name} has {len(last)} files of the newest {which} weights"
      f" ({', '.join(f.name for f in last) or 'none'}): name the file"
    )
  return last[0]


def _torch_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """improved-diffusion's checkpoints, without those of its optimiser."""
  return sorted([*folder.glob("model*.pt"), *folder.glob("ema_*.pt")])


def _unet_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """diffusers' raw weights, and its moving average where it is kept apart."""
  if (folder / "unet_ema" / "config.json").exists():
    names = ["unet", "unet_ema"]
  else:
    names = ["unet", "."]
  found = [folder / name for name in names]
  found = [path for path in found if (path / "config.json").exists()]
  return found if "unet_ema" in names else found[:1]


def _files(chosen: pathlib.Path) -> list[pathlib.Path]:
  """The file itself, or all of a folder's shards."""
  if not chosen.is_dir():
    return [chosen]
  index = _json(chosen / f"{_FILE}.index.json")
  if index:
    return [chosen / name for name in sorted(set(index["weight_map"].values()))]
  return [chosen / _FILE]


def _scheduler(folder: pathlib.Path) -> dict[str, Any]:
  """A UNet2DModel's folder's scheduler_config.json; {} without."""
  for place in (folder, folder / "scheduler", folder.parent / "scheduler"):
    found = _json(place / "scheduler_config.json")
    if found:
      return found
  return {}


def _json(path: pathlib.Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(f"{path} is no JSON: {error}") from error
