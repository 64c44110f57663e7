"""The checks of a config: each field by config.FIELDS, then how they fit."""

import functools
import logging
import operator
from collections.abc import Iterator
from typing import Any

import jax

from rad_jax import config as configs
from rad_jax.config import ConfigDict, ConfigError, is_synthetic
from rad_jax.data import corruptions, folder
from rad_jax.robustness import attacks, objectives

_LOG = logging.getLogger("rad_jax")

# A field, whether its value fits the others, and what it must be if not.
Checks = Iterator[tuple[str, bool, str]]


def validate(
  config: ConfigDict, num_devices: int = 1, training: bool = True
) -> None:
  """Raises ConfigError, which names the field, if config cannot be run.

  The devices share train.batch_size, or sampling's unless `training`.
  """
  for path, fits, allowed in _checks(config, num_devices, training):
    if not fits:
      value = _get(config, path)
      raise ConfigError(f"config.{path}={value!r}: it must be {allowed}")
  if _may_collapse(config):
    _warn_of_collapse(config.objective.lam)


def _may_collapse(config: ConfigDict) -> bool:
  """Whether lambda is large for a U-Net on images, and samples not clipped."""
  return (
    config.objective.lam >= 1
    and config.model.name == "unet"
    and config.data.linear_rank == 0
    and config.sampling.clip_x_0 == 0
    and bool(objectives.OBJECTIVES[config.objective.name].target)
  )


@functools.cache
def _warn_of_collapse(lam: float) -> None:
  """Once, however many runs of a sweep are checked."""
  _LOG.warning(
    f"config.objective.lam={lam:g} with config.sampling.clip_x_0=0 can collapse"
    " a U-Net on images: take --config.objective.lam=0.3 or"
    " --config.sampling.clip_x_0=1"
  )


def _checks(config: ConfigDict, num_devices: int, training: bool) -> Checks:
  """All of them, the later ones for configs that pass the earlier ones."""
  for path, field in configs.FIELDS.items():
    if field.rule:
      yield path, field.rule.allows(_get(config, path)), field.rule.words
  yield from _data(config)
  yield from _corruption(config)
  yield from _diffusion(config)
  if config.model.name == "unet":
    yield from _unet(config)
  yield from _attack(config)
  path = "train.batch_size" if training else "sampling.batch_size"
  ok = _get(config, path) % num_devices == 0
  yield path, ok, f"a multiple of the number of devices, {num_devices}"
  if training:
    yield from _training(config, num_devices)
  yield from _sampling(config)
  yield from _evaluation(config)


def _get(config: ConfigDict, path: str) -> Any:
  return functools.reduce(operator.getitem, path.split("."), config)


def _data(config: ConfigDict) -> Checks:
  data = config.data
  is_folder = data.name == folder.NAME
  yield (
    "data.path",
    bool(data.path) == is_folder,
    f"the folder or zip archive of {folder.NAME}"
    if is_folder
    else f'"" where data.name is {data.name!r}: it is for {folder.NAME}',
  )
  elements = data.image_size**2 * data.num_channels
  ok = data.linear_rank <= elements
  yield "data.linear_rank", ok, f"in 0 .. {elements}, the elements of an image"
  yield (
    "data.linear_rank",
    data.linear_rank == 0 or data.loading != "stream",
    '0 where data.loading is "stream": the projection needs the whole set',
  )


def _corruption(config: ConfigDict) -> Checks:
  chosen = config.data.corruption
  kind, corruption = chosen.kind, corruptions.CORRUPTIONS[chosen.kind]
  ok = chosen.severity or chosen.sigma <= corruption.strongest
  allowed = f"at most {corruption.strongest:g} for {kind}"
  yield "data.corruption.sigma", ok, allowed
  ok = chosen.severity or kind != "jpeg" or chosen.sigma == round(chosen.sigma)
  yield "data.corruption.sigma", ok, "a whole number for jpeg, 100 - quality"
  ok = not (is_synthetic(config) and corruption.of_images)
  allowed = f"another for {config.data.name}: {kind} needs images"
  yield "data.corruption.kind", ok, allowed
  is_noise = kind == "gaussian" or chosen.fraction == 0
  yield (
    "objective.name",
    is_noise or not config.objective.name.startswith("noise_aware"),
    f"another where data.corruption.kind is {kind!r}: noise-aware training must"
    " know the sigma of Gaussian noise",
  )


def _diffusion(config: ConfigDict) -> Checks:
  diffusion = config.diffusion
  minimum = 21 if diffusion.schedule == "linear" else 1
  ok = diffusion.num_timesteps >= minimum
  allowed = f"at least {minimum} with the {diffusion.schedule} schedule"
  yield "diffusion.num_timesteps", ok, allowed
  ok = diffusion.sigma_max > diffusion.sigma_min
  allowed = f"above diffusion.sigma_min, {diffusion.sigma_min}"
  yield "diffusion.sigma_max", ok, allowed


def _unet(config: ConfigDict) -> Checks:
  """That a U-Net's levels, groups and heads fit the images."""
  unet, side = config.model.unet, config.data.image_size
  ok = not is_synthetic(config)
  allowed = f"mlp for {config.data.name}, whose examples are points"
  yield "model.name", ok, allowed
  yield "model.unet.channels", unet.channels % 2 == 0, "even and at least 4"
  multipliers = unet.channel_multipliers
  ok = all(isinstance(m, int) and m >= 1 for m in multipliers)
  yield "model.unet.channel_multipliers", ok, "whole numbers from 1"
  yield (
    "model.unet.channel_multipliers",
    multipliers and side % 2 ** (len(multipliers) - 1) == 0,
    f"of a length that lets data.image_size {side} be halved"
    " once for each level after the first",
  )
  sides = [side // 2**level for level in range(len(multipliers))]
  ok = set(sides).issuperset(unet.attention_resolutions)
  allowed = f"among the sides of the feature maps, {sorted(sides)}"
  yield "model.unet.attention_resolutions", ok, allowed
  ok = unet.num_groups == 0 or unet.channels % unet.num_groups == 0
  allowed = f"0, or a divisor of model.unet.channels, {unet.channels}"
  yield "model.unet.num_groups", ok, allowed
  attended = [
    unet.channels * multiplier
    for side, multiplier in zip(sides, multipliers, strict=True)
    if side == sides[-1] or side in unet.attention_resolutions
  ]
  ok = all(width % unet.num_heads == 0 for width in attended)
  allowed = f"a divisor of the channels where attention is, {attended}"
  yield "model.unet.num_heads", ok, allowed


def _attack(config: ConfigDict) -> Checks:
  objective = objectives.OBJECTIVES[config.objective.name]
  name = config.attack.name or objective.attack
  climbs = name in attacks.ATTACKS
  ok = objective.target is not None or name == "none"
  allowed = f'"" or "none": {config.objective.name} has nothing to perturb'
  yield "attack.name", ok, allowed
  yield (
    "attack.monitor_every_steps",
    climbs or config.attack.monitor_every_steps == 0,
    f"0 where the attack is {name}: there is nothing to compare PGD with",
  )
  regulariser, batch_size = config.regulariser, config.train.batch_size
  goal, free = config.attack.goal, regulariser.free_replays > 1
  ok = not free or goal == "J"
  allowed = "J with regulariser.free_replays, which raise the loss itself"
  yield "attack.goal", ok, allowed
  at_rest = objectives.GOALS[goal](objective) in objectives.AT_REST
  yield (
    "attack.start",
    not climbs or free or not at_rest or config.attack.start != 0,
    f"above 0 where attack.goal is {goal}: its gradient at w = 0 is 0, and w"
    " would stay there",
  )
  ok = climbs or not free
  allowed = f"1 where the attack is {name}: the attack takes no steps"
  yield "regulariser.free_replays", ok, allowed
  rows = regulariser.batch_fraction * batch_size
  ok = abs(rows - round(rows)) < 1e-6 and round(rows) >= 1
  allowed = f"a whole number of train.batch_size's {batch_size} examples"
  yield "regulariser.batch_fraction", ok, allowed
  in_all_steps = regulariser.every_steps == 1 and regulariser.start == 0
  yield (
    "regulariser.free_replays",
    regulariser.free_replays == 1 or in_all_steps,
    "1 where regulariser.start or .every_steps leaves steps out: all steps"
    " must make the same number of updates",
  )


def _training(config: ConfigDict, num_devices: int) -> Checks:
  """How the batch and the state are cut, and what is done between programs."""
  train, regulariser = config.train, config.regulariser
  ok = num_devices % train.fsdp == 0
  yield "train.fsdp", ok, f"a divisor of the number of devices, {num_devices}"
  regularised = round(regulariser.batch_fraction * train.batch_size)
  pieces = train.micro_batches * num_devices
  yield (
    "train.micro_batches",
    train.micro_batches == 1
    or regularised % pieces == train.batch_size % pieces == 0,
    "1, or such that its pieces divide evenly over the devices"
    f" ({num_devices}): train.batch_size {train.batch_size}, and"
    f" {regularised} regularised examples",
  )
  ok = train.micro_batches == 1 or regulariser.free_replays == 1
  allowed = "1 with regulariser.free_replays, which updates on the whole batch"
  yield "train.micro_batches", ok, allowed
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
  on_cpu = jax.default_backend() == "cpu"
  yield (
    "train.steps_per_dispatch",
    train.steps_per_dispatch == 1
    or not (on_cpu and config.model.name == "unet"),
    "1 for a U-Net on a CPU: XLA computes gradients of convolutions slowly"
    " inside a loop there, and a step takes 12 times as long",
  )
  ok = train.steps_per_dispatch == 1 or not train.debug
  allowed = "1 with train.debug, which looks into each step"
  yield "train.steps_per_dispatch", ok, allowed
  checkpoint = config.checkpoint
  ok = checkpoint.keep_every_steps % checkpoint.every_steps == 0
  allowed = "0 or a multiple of checkpoint.every_steps"
  yield "checkpoint.keep_every_steps", ok, allowed


def _sampling(config: ConfigDict) -> Checks:
  timesteps = config.diffusion.num_timesteps
  for path in ("sampling.num_steps", "diagnose.num_levels"):
    ok = config.diffusion.process != "ddpm" or _get(config, path) <= timesteps
    yield path, ok, f"1 to diffusion.num_timesteps, {timesteps}"
  sigma = configs.corruption_strength(config)
  yield (
    "sampling.stop_sigma",
    config.objective.name != "noise_aware"
    or config.data.corruption.fraction < 1
    or config.sampling.stop_sigma >= sigma,
    f"at least data.corruption.sigma, {sigma}, where every example is dirty:"
    " below it noise_aware has nothing to learn from",
  )


def _evaluation(config: ConfigDict) -> Checks:
  chosen, name = config.evaluation, config.data.name
  ok = not is_synthetic(config) or chosen.extractor == "pca"
  yield "evaluation.extractor", ok, f"pca for {name}, whose examples are points"
  ok = not (chosen.held_out and is_synthetic(config))
  yield "evaluation.held_out", ok, f"'' for {name}, which has no splits"
  timesteps = config.diffusion.num_timesteps
  yield (
    "evaluation.step_counts",
    "steps" not in chosen.protocols
    or config.diffusion.process != "ddpm"
    or max(chosen.step_counts) <= timesteps,
    f"one number or more, 2 to diffusion.num_timesteps, {timesteps}",
  )
