"""The checks of a config: each names the field, its value and what is allowed.

Single fields are checked by the table in config.FIELDS; what follows there is
about fields that must fit each other.
"""

from collections.abc import Iterator
from typing import Any

from rad_jax import config as configs
from rad_jax.config import ConfigDict, ConfigError, is_synthetic
from rad_jax.data import corruptions, folder
from rad_jax.robustness import attacks, objectives

# A field, whether its value fits the others, and what it must be if not.
Check = tuple[str, bool, str]


def validate(
  config: ConfigDict, num_devices: int = 1, training: bool = True
) -> None:
  """Raises ConfigError, which names the field, if config cannot be run.

  Args:
    config: the config.
    num_devices: devices that share a batch.
    training: whether they share train.batch_size, or, where samples are
      drawn, sampling.batch_size.
  """
  for path, field in configs.fields():
    if field.rule:
      _refuse(
        config, path, field.rule.allows(_get(config, path)), field.rule.words
      )
  sections = [_data, _corruption, _diffusion, _network, _attack, _regulariser]
  for section in sections:
    for check in section(config):
      _refuse(config, *check)
  batch_size = "train.batch_size" if training else "sampling.batch_size"
  _refuse(
    config,
    batch_size,
    _get(config, batch_size) % num_devices == 0,
    f"a multiple of the number of devices, {num_devices}",
  )
  if training:
    for check in _training(config, num_devices):
      _refuse(config, *check)
  for check in [*_sampling(config), *_evaluation(config)]:
    _refuse(config, *check)


def _refuse(config: ConfigDict, path: str, fits: bool, allowed: str) -> None:
  if not fits:
    value = _get(config, path)
    raise ConfigError(f"config.{path}={value!r}: it must be {allowed}")


def _get(config: ConfigDict, path: str) -> Any:
  for name in path.split("."):
    config = config[name]
  return config


def _data(config: ConfigDict) -> Iterator[Check]:
  data = config.data
  is_folder = data.name == folder.NAME
  yield (
    "data.path",
    bool(data.path) == is_folder,
    f"the folder of {folder.NAME}"
    if is_folder
    else f'"" where data.name is {data.name!r}: it is for {folder.NAME}',
  )
  elements = data.image_size**2 * data.num_channels
  yield (
    "data.linear_rank",
    data.linear_rank <= elements,
    f"in 0 .. {elements}, the elements of an image",
  )
  yield (
    "data.linear_rank",
    data.linear_rank == 0 or data.loading != "stream",
    '0 where data.loading is "stream": the projection needs the whole set',
  )


def _corruption(config: ConfigDict) -> Iterator[Check]:
  kind, sigma = config.data.corruption.kind, config.data.corruption.sigma
  if config.data.corruption.severity == 0:
    strongest = corruptions.CORRUPTIONS[kind].strongest
    yield (
      "data.corruption.sigma",
      sigma <= strongest,
      f"at most {strongest:g} for {kind}",
    )
    yield (
      "data.corruption.sigma",
      kind != "jpeg" or sigma == round(sigma),
      "a whole number for jpeg, 100 - quality",
    )
  yield (
    "data.corruption.kind",
    not (is_synthetic(config) and corruptions.CORRUPTIONS[kind].of_images),
    f"another for {config.data.name}: {kind} needs images",
  )
  is_noise = kind == "gaussian" or config.data.corruption.fraction == 0
  yield (
    "objective.name",
    is_noise or not config.objective.name.startswith("noise_aware"),
    f"another where data.corruption.kind is {kind!r}: noise-aware training must"
    " know the sigma of Gaussian noise",
  )


def _diffusion(config: ConfigDict) -> Iterator[Check]:
  diffusion = config.diffusion
  minimum = 21 if diffusion.schedule == "linear" else 1
  yield (
    "diffusion.num_timesteps",
    diffusion.num_timesteps >= minimum,
    f"at least {minimum} with the {diffusion.schedule} schedule",
  )
  yield (
    "diffusion.sigma_max",
    diffusion.sigma_max > diffusion.sigma_min,
    f"above diffusion.sigma_min, {diffusion.sigma_min}",
  )


def _network(config: ConfigDict) -> Iterator[Check]:
  """That a U-Net's levels, groups and heads fit the images."""
  if config.model.name != "unet":
    return
  unet, side = config.model.unet, config.data.image_size
  yield (
    "model.name",
    not is_synthetic(config),
    f"mlp for {config.data.name}, whose examples are points",
  )
  yield "model.unet.channels", unet.channels % 2 == 0, "even and at least 4"
  multipliers = unet.channel_multipliers
  yield (
    "model.unet.channel_multipliers",
    all(isinstance(m, int) and m >= 1 for m in multipliers),
    "whole numbers from 1",
  )
  levels = len(multipliers)
  yield (
    "model.unet.channel_multipliers",
    levels >= 1 and side % 2 ** max(levels - 1, 0) == 0,
    f"of a length that lets data.image_size {side} be halved"
    " once a level after the first",
  )
  sides = [side // 2**level for level in range(levels)]
  yield (
    "model.unet.attention_resolutions",
    set(sides).issuperset(unet.attention_resolutions),
    f"among the sides of the feature maps, {sorted(sides)}",
  )
  yield (
    "model.unet.num_groups",
    unet.num_groups == 0 or unet.channels % unet.num_groups == 0,
    f"0, or a divisor of model.unet.channels, {unet.channels}",
  )
  attended = [
    unet.channels * multiplier
    for side, multiplier in zip(sides, multipliers, strict=True)
    if side == sides[-1] or side in unet.attention_resolutions
  ]
  yield (
    "model.unet.num_heads",
    all(width % unet.num_heads == 0 for width in attended),
    f"a divisor of the channels where attention is, {attended}",
  )


def _attack(config: ConfigDict) -> Iterator[Check]:
  objective = objectives.OBJECTIVES[config.objective.name]
  name = config.attack.name or objective.attack
  climbs = name in attacks.ATTACKS
  yield (
    "attack.name",
    objective.target is not None or name == "none",
    f'"" or "none": {config.objective.name} has nothing to perturb',
  )
  yield (
    "attack.monitor_every_steps",
    climbs or config.attack.monitor_every_steps == 0,
    f"0 where the attack is {name}: there is nothing to compare PGD with",
  )
  yield (
    "regulariser.free_replays",
    climbs or config.regulariser.free_replays == 1,
    f"1 where the attack is {name}: there is no w to climb",
  )


def _regulariser(config: ConfigDict) -> Iterator[Check]:
  regulariser, batch_size = config.regulariser, config.train.batch_size
  rows = regulariser.batch_fraction * batch_size
  yield (
    "regulariser.batch_fraction",
    abs(rows - round(rows)) < 1e-6 and round(rows) >= 1,
    f"a whole number of train.batch_size's {batch_size} examples",
  )
  yield (
    "regulariser.free_replays",
    regulariser.free_replays == 1
    or (regulariser.every_steps == 1 and regulariser.start == 0),
    "1 where regulariser.start or .every_steps leaves steps out: all steps"
    " must make the same number of updates",
  )


def _training(config: ConfigDict, num_devices: int) -> Iterator[Check]:
  """How the batch and the state are cut, and what is done between programs."""
  train, regulariser = config.train, config.regulariser
  yield (
    "train.fsdp",
    num_devices % train.fsdp == 0,
    f"a divisor of the number of devices, {num_devices}",
  )
  regularised = round(regulariser.batch_fraction * train.batch_size)
  pieces = train.micro_batches * num_devices
  yield (
    "train.micro_batches",
    train.micro_batches == 1
    or (regularised % pieces == 0 and train.batch_size % pieces == 0),
    "1, or such that its pieces divide evenly over the devices"
    f" ({num_devices}): train.batch_size {train.batch_size}, and"
    f" {regularised} regularised examples",
  )
  yield (
    "train.micro_batches",
    train.micro_batches == 1 or regulariser.free_replays == 1,
    "1 with regulariser.free_replays, which updates on the whole batch",
  )
  for path in (
    "train.log_every_steps",
    "checkpoint.every_steps",
    "attack.monitor_every_steps",
  ):
    yield (
      "train.steps_per_dispatch",
      _get(config, path) % train.steps_per_dispatch == 0,
      f"a divisor of {path}, {_get(config, path)}: what is done every N steps"
      " is done between dispatches",
    )
  yield (
    "train.steps_per_dispatch",
    train.steps_per_dispatch == 1 or not train.debug,
    "1 with train.debug, which looks into each step",
  )
  checkpoint = config.checkpoint
  yield (
    "checkpoint.keep_every_steps",
    checkpoint.keep_every_steps % checkpoint.every_steps == 0,
    "0 or a multiple of checkpoint.every_steps",
  )


def _sampling(config: ConfigDict) -> Iterator[Check]:
  timesteps = config.diffusion.num_timesteps
  for path in ("sampling.num_steps", "diagnose.num_levels"):
    yield (
      path,
      config.diffusion.process != "ddpm" or _get(config, path) <= timesteps,
      f"1 to diffusion.num_timesteps, {timesteps}",
    )
  corruption = config.data.corruption
  sigma = configs.corruption_strength(config)
  yield (
    "sampling.stop_sigma",
    config.objective.name != "noise_aware"
    or corruption.fraction < 1
    or config.sampling.stop_sigma >= sigma,
    f"at least data.corruption.sigma, {sigma}, where every example is dirty:"
    " below it noise_aware has nothing to learn from",
  )


def _evaluation(config: ConfigDict) -> Iterator[Check]:
  chosen, name = config.evaluation, config.data.name
  yield (
    "evaluation.extractor",
    not is_synthetic(config) or chosen.extractor == "pca",
    f"pca for {name}, whose examples are points",
  )
  yield (
    "evaluation.held_out",
    not (chosen.held_out and is_synthetic(config)),
    f"'' for {name}, which has no splits",
  )
  timesteps = config.diffusion.num_timesteps
  yield (
    "evaluation.step_counts",
    "steps" not in chosen.protocols
    or config.diffusion.process != "ddpm"
    or max(chosen.step_counts) <= timesteps,
    f"one number or more, 2 to diffusion.num_timesteps, {timesteps}",
  )
