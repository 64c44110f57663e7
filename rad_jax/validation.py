"""The checks of a config: each names the field, its value and the mend."""

import math
from collections.abc import Iterable
from typing import Any

from rad_jax.config import (
  EXTRACTORS,
  PROTOCOLS,
  SAMPLERS,
  ConfigDict,
  ConfigError,
  corruption_strength,
  is_synthetic,
)
from rad_jax.data import corruptions, folder
from rad_jax.diffusion import parametrisation, schedules
from rad_jax.robustness import attacks, objectives, radius


def validate(
  config: ConfigDict, num_devices: int = 1, training: bool = True
) -> None:
  """Raises ConfigError, which names the field, if config cannot be run.

  Args:
    config: the config.
    num_devices: devices that share a batch.
    training: whether it is train.batch_size that they share, or, where
      samples are drawn, sampling.batch_size.
  """
  _within(config, "seed", 0 <= config.seed < 2**32, "in [0, 2**32)")
  _data(config)
  _diffusion(config)
  _model(config)
  _method(config)
  _optimizer(config)
  _counts(config)
  batch_size = "train.batch_size" if training else "sampling.batch_size"
  _within(
    config,
    batch_size,
    _get(config, batch_size) % num_devices == 0,
    f"a multiple of the number of devices, {num_devices}",
  )
  if training:
    _training(config, num_devices)
  _sampling(config)
  _evaluation(config)
  _one_of(config, "sweep.match", ("steps", "passes", "seconds"))


def _within(config: ConfigDict, path: str, ok: bool, allowed: str) -> None:
  """Raises ConfigError, which says what is allowed at `path`, if not ok."""
  if not ok:
    value = _get(config, path)
    raise ConfigError(f"config.{path}={value!r}: it must be {allowed}")


def _one_of(config: ConfigDict, path: str, names: Iterable[str]) -> None:
  """Raises ConfigError if the field is not one of the names."""
  known = _get(config, path) in names
  _within(config, path, known, "one of " + ", ".join(sorted(names)))


def _positive(config: ConfigDict, path: str) -> None:
  """Raises ConfigError if the field is below 1."""
  _within(config, path, _get(config, path) >= 1, "at least 1")


def _get(config: ConfigDict, path: str) -> Any:
  for name in path.split("."):
    config = config[name]
  return config


def _data(config: ConfigDict) -> None:
  data, corruption = config.data, config.data.corruption
  _one_of(config, "data.loading", ("memory", "device", "stream"))
  _one_of(config, "data.corruption.kind", corruptions.CORRUPTIONS)
  p = corruption.fraction
  _within(config, "data.corruption.fraction", 0 <= p <= 1, "in [0, 1]")
  _strength(config)
  is_folder = data.name == folder.NAME
  _within(
    config,
    "data.path",
    bool(data.path) == is_folder,
    f"the folder of {folder.NAME}"
    if is_folder
    else f'"" where data.name is {data.name!r}: it is for {folder.NAME}',
  )
  _within(config, "data.crop_size", data.crop_size >= 0, "at least 0")
  elements = data.image_size**2 * data.num_channels
  _within(
    config,
    "data.linear_rank",
    0 <= data.linear_rank <= elements,
    f"in 0 .. {elements}, the elements of an image",
  )
  _within(config, "data.num_channels", data.num_channels in (1, 3), "1 or 3")
  _within(config, "data.max_unreadable", data.max_unreadable >= 0, "at least 0")
  for path in ("data.num_examples", "data.image_size", "data.num_threads"):
    _positive(config, path)
  _within(
    config,
    "data.linear_rank",
    data.linear_rank == 0 or data.loading != "stream",
    '0 where data.loading is "stream": the projection needs the whole set',
  )


def _model(config: ConfigDict) -> None:
  model = config.model
  _one_of(config, "model.name", ("mlp", "unet"))
  _one_of(config, "model.dtype", ("float32", "bfloat16", "float16"))
  for path in (
    "model.mlp.width",
    "model.mlp.depth",
    "model.unet.channels",
    "model.unet.num_res_blocks",
  ):
    _positive(config, path)
  dropout = model.unet.dropout
  _within(config, "model.unet.dropout", 0 <= dropout < 1, "in [0, 1)")
  if model.name == "unet":
    _unet(config)


def _unet(config: ConfigDict) -> None:
  """That its levels, groups and heads fit the images."""
  data, model = config.data, config.model
  _within(
    config,
    "model.name",
    not is_synthetic(config),
    f"mlp for {data.name}, whose examples are points",
  )
  channels = model.unet.channels
  _within(
    config,
    "model.unet.channels",
    channels >= 4 and channels % 2 == 0,
    "even and at least 4",
  )
  multipliers = model.unet.channel_multipliers
  _within(
    config,
    "model.unet.channel_multipliers",
    all(isinstance(m, int) and m >= 1 for m in multipliers),
    "whole numbers from 1",
  )
  levels = len(multipliers)
  factor = 2 ** max(levels - 1, 0)
  _within(
    config,
    "model.unet.channel_multipliers",
    levels >= 1 and data.image_size % factor == 0,
    f"of a length that lets data.image_size {data.image_size} be halved"
    " once a level after the first",
  )
  sides = {data.image_size // 2**level for level in range(levels)}
  _within(
    config,
    "model.unet.attention_resolutions",
    sides.issuperset(model.unet.attention_resolutions),
    f"among the sides of the feature maps, {sorted(sides)}",
  )
  _one_of(config, "model.unet.conventions", ("ddpm", "improved"))
  groups, heads = model.unet.num_groups, model.unet.num_heads
  _within(
    config,
    "model.unet.num_groups",
    groups == 0 or (groups > 0 and channels % groups == 0),
    f"0, or a divisor of model.unet.channels, {channels}",
  )
  attended = [
    channels * multiplier
    for level, multiplier in enumerate(multipliers)
    if level == levels - 1
    or data.image_size // 2**level in model.unet.attention_resolutions
  ]
  _within(
    config,
    "model.unet.num_heads",
    heads >= 1 and all(width % heads == 0 for width in attended),
    f"a divisor of the channels where attention is, {attended}",
  )
  _within(config, "model.unet.time_scale", model.unet.time_scale > 0, "above 0")


def _optimizer(config: ConfigDict) -> None:
  optimizer = config.optimizer
  _within(
    config,
    "optimizer.learning_rate",
    0 < optimizer.learning_rate < math.inf,
    "above 0 and finite",
  )
  _within(
    config, "optimizer.warmup_steps", optimizer.warmup_steps >= 0, "at least 0"
  )
  _one_of(config, "optimizer.decay", ("constant", "cosine", "linear"))
  _within(config, "optimizer.b1", 0 <= optimizer.b1 < 1, "in [0, 1)")
  _within(config, "optimizer.b2", 0 <= optimizer.b2 < 1, "in [0, 1)")
  _within(
    config,
    "optimizer.max_grad_norm",
    optimizer.max_grad_norm >= 0,
    "at least 0",
  )
  _within(
    config, "optimizer.ema_decay", 0 <= optimizer.ema_decay < 1, "in [0, 1)"
  )


def _counts(config: ConfigDict) -> None:
  """All that is counted, and how often something is done."""
  for path in (
    "train.num_steps",
    "train.batch_size",
    "train.steps_per_dispatch",
    "train.log_every_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "sampling.num_samples",
    "sampling.batch_size",
    "evaluation.num_reference",
    "evaluation.subspace_rank",
    "evaluation.frechet_dims",
    "sweep.processes",
    "study.seeds",
    "study.group_size",
    "study.processes",
    "diagnose.num_examples",
    "diagnose.power_iterations",
  ):
    _positive(config, path)
  _within(
    config,
    "evaluation.num_samples",
    config.evaluation.num_samples >= 2,
    "at least 2: a covariance is taken",
  )
  keep_every = config.checkpoint.keep_every_steps
  _within(
    config,
    "checkpoint.keep_every_steps",
    keep_every >= 0 and keep_every % config.checkpoint.every_steps == 0,
    "0 or a multiple of checkpoint.every_steps",
  )


def _sampling(config: ConfigDict) -> None:
  sampling, diffusion = config.sampling, config.diffusion
  _one_of(config, "sampling.sampler", SAMPLERS)
  _within(config, "sampling.stop_sigma", sampling.stop_sigma >= 0, "at least 0")
  _one_of(config, "sampling.variance", ("small", "large"))
  _within(config, "sampling.eta", 0 <= sampling.eta <= 1, "in [0, 1]")
  _within(config, "sampling.clip_x_0", sampling.clip_x_0 >= 0, "at least 0")
  for path in ("sampling.num_steps", "diagnose.num_levels"):
    _positive(config, path)
    _within(
      config,
      path,
      diffusion.process != "ddpm"
      or _get(config, path) <= diffusion.num_timesteps,
      f"1 to diffusion.num_timesteps, {diffusion.num_timesteps}",
    )


def _training(config: ConfigDict, num_devices: int) -> None:
  """How the batch and the state are cut, and what may go wrong."""
  train, fraction = config.train, config.regulariser.batch_fraction
  _one_of(config, "train.init_weights", ("", "ema", "raw"))
  _within(
    config,
    "train.fsdp",
    train.fsdp >= 1 and num_devices % train.fsdp == 0,
    f"a divisor of the number of devices, {num_devices}",
  )
  regularised = round(fraction * train.batch_size)
  pieces = train.micro_batches * num_devices
  _within(
    config,
    "train.micro_batches",
    train.micro_batches == 1
    or (
      train.micro_batches > 1
      and regularised % pieces == 0
      and train.batch_size % pieces == 0
    ),
    "1, or such that its pieces divide evenly over the devices"
    f" ({num_devices}): train.batch_size {train.batch_size}, and"
    f" {regularised} regularised examples",
  )
  _within(
    config,
    "train.micro_batches",
    train.micro_batches == 1 or config.regulariser.free_replays == 1,
    "1 with regulariser.free_replays, which updates on the whole batch",
  )
  together = train.steps_per_dispatch
  for path, every in (
    ("train.log_every_steps", train.log_every_steps),
    ("checkpoint.every_steps", config.checkpoint.every_steps),
    ("attack.monitor_every_steps", config.attack.monitor_every_steps),
  ):
    _within(
      config,
      "train.steps_per_dispatch",
      every % together == 0,
      f"a divisor of {path}, {every}: what is done every so many steps is done"
      " between dispatches",
    )
  _within(
    config,
    "train.steps_per_dispatch",
    together == 1 or not train.debug,
    "1 with train.debug, which looks into each step",
  )
  _within(config, "train.max_skipped", train.max_skipped >= 0, "at least 0")
  _within(
    config,
    "train.rollback_above",
    train.rollback_above == 0 or 1 < train.rollback_above < math.inf,
    "0, or above 1",
  )
  _within(config, "train.max_rollbacks", train.max_rollbacks >= 1, "at least 1")
  steps = train.profile_steps
  _within(
    config,
    "train.profile_steps",
    len(steps) == 0 or (len(steps) == 2 and 1 <= steps[0] <= steps[1]),
    "(), or (first, last)",
  )


def _strength(config: ConfigDict) -> None:
  """How strong the corruption is, and whether the data can have it."""
  kind, sigma = config.data.corruption.kind, config.data.corruption.sigma
  severity = config.data.corruption.severity
  _within(
    config, "data.corruption.severity", severity in range(6), "0, or 1 to 5"
  )
  _within(config, "data.corruption.sigma", 0 <= sigma < math.inf, "at least 0")
  if severity == 0:
    strongest = corruptions.STRONGEST.get(kind, math.inf)
    _within(
      config,
      "data.corruption.sigma",
      sigma <= strongest,
      f"at most {strongest:g} for {kind}",
    )
    _within(
      config,
      "data.corruption.sigma",
      kind != "jpeg" or sigma == round(sigma),
      "a whole number for jpeg, 100 - quality",
    )
  _within(
    config,
    "data.corruption.kind",
    not (is_synthetic(config) and kind in corruptions.OF_IMAGES),
    f"another for {config.data.name}: {kind} needs images",
  )


def _evaluation(config: ConfigDict) -> None:
  fields = config.evaluation
  for name, allowed in (("protocols", PROTOCOLS), ("samplers", SAMPLERS)):
    _within(
      config,
      f"evaluation.{name}",
      set(fields[name]) <= set(allowed),
      "among " + ", ".join(allowed),
    )
  _one_of(config, "evaluation.extractor", EXTRACTORS)
  _within(
    config,
    "evaluation.extractor",
    not is_synthetic(config) or fields.extractor == "pca",
    f"pca for {config.data.name}, whose examples are points",
  )
  _within(
    config,
    "evaluation.held_out",
    not (fields.held_out and is_synthetic(config)),
    f"'' for {config.data.name}, which has no splits",
  )
  _one_of(config, "evaluation.attack_norm", attacks.BALLS)
  _within(
    config,
    "evaluation.attack_budgets",
    len(fields.attack_budgets) > 0 and min(fields.attack_budgets) >= 0,
    "one number or more, of at least 0",
  )
  steps = fields.step_counts
  limit = config.diffusion.num_timesteps
  _within(
    config,
    "evaluation.step_counts",
    "steps" not in fields.protocols
    or (
      len(steps) > 0
      and min(steps) >= 2
      and (config.diffusion.process != "ddpm" or max(steps) <= limit)
    ),
    f"one number or more, 2 to diffusion.num_timesteps, {limit}",
  )
  for name in (
    "extractor_dims",
    "num_levels",
    "num_level_examples",
    "num_step_samples",
    "attack_steps",
    "attack_levels",
    "attack_every",
    "num_attack_samples",
  ):
    _positive(config, f"evaluation.{name}")
  purify = config.purify
  _within(config, "purify.t_star", 0 < purify.t_star < 1, "in (0, 1)")
  _one_of(config, "purify.sampler", SAMPLERS)
  _positive(config, "purify.num_steps")
  _positive(config, "purify.num_examples")


def _diffusion(config: ConfigDict) -> None:
  diffusion = config.diffusion
  _one_of(config, "diffusion.process", ("ddpm", "edm", "flow"))
  _one_of(config, "diffusion.prediction", parametrisation.PREDICTIONS)
  _one_of(config, "diffusion.weighting", parametrisation.WEIGHTINGS)
  _one_of(config, "diffusion.schedule", schedules.ALPHA_BAR)
  _one_of(config, "diffusion.time", ("uniform", "logit_normal"))
  minimum = 21 if diffusion.schedule == "linear" else 1
  _within(
    config,
    "diffusion.num_timesteps",
    diffusion.num_timesteps >= minimum,
    f"at least {minimum} with the {diffusion.schedule} schedule",
  )
  for name in ("sigma_min", "sigma_data", "log_std", "rho"):
    _within(
      config, f"diffusion.{name}", 0 < diffusion[name] < math.inf, "above 0"
    )
  _within(
    config,
    "diffusion.sigma_max",
    diffusion.sigma_min < diffusion.sigma_max < math.inf,
    f"above diffusion.sigma_min, {diffusion.sigma_min}",
  )
  _within(
    config, "diffusion.log_mean", math.isfinite(diffusion.log_mean), "finite"
  )


def _method(config: ConfigDict) -> None:
  """The objective, its attack, and where they are on."""
  objective, attack = config.objective, config.attack
  regulariser, corruption = config.regulariser, config.data.corruption
  _one_of(config, "objective.name", objectives.OBJECTIVES)
  _one_of(config, "objective.lambda_t", radius.LAMBDAS)
  _one_of(config, "objective.radius", radius.RADII)
  _one_of(config, "objective.beta_role", ("additive", "multiplicative"))
  _one_of(config, "objective.radius_units", ("noise", "state"))
  _within(config, "objective.lam", 0 <= objective.lam < math.inf, "at least 0")
  _within(config, "objective.beta", 0 < objective.beta <= 1, "in (0, 1]")
  _within(
    config, "objective.omega", 1 <= objective.omega < math.inf, "at least 1"
  )

  _one_of(config, "attack.name", ("", "none", "gaussian", *attacks.ATTACKS))
  _one_of(config, "attack.norm", attacks.BALLS)
  _one_of(config, "attack.goal", objectives.GOALS)
  _one_of(config, "attack.dtype", ("", "float32", "bfloat16"))
  for name in ("num_steps", "start", "momentum"):
    value = attack[name]
    _within(
      config, f"attack.{name}", value == -1 or value >= 0, "at least 0, or -1"
    )
  step_size = attack.step_size
  _within(
    config,
    "attack.step_size",
    step_size == -1 or 0 < step_size <= 2,
    "in (0, 2], or -1",
  )
  _within(
    config,
    "attack.monitor_every_steps",
    attack.monitor_every_steps >= 0,
    "at least 0",
  )

  chosen = objectives.OBJECTIVES[objective.name]
  name = attack.name or chosen.attack
  climbs = name in attacks.ATTACKS
  _within(
    config,
    "attack.name",
    chosen.target is not None or name == "none",
    f'"" or "none": {objective.name} has nothing to perturb',
  )
  _within(
    config,
    "attack.monitor_every_steps",
    climbs or attack.monitor_every_steps == 0,
    f"0 where the attack is {name}: there is nothing to compare PGD with",
  )
  _positive(config, "regulariser.every_steps")
  _positive(config, "regulariser.free_replays")
  _within(
    config,
    "regulariser.warmup_steps",
    regulariser.warmup_steps >= 0,
    "at least 0",
  )
  _within(config, "regulariser.start", 0 <= regulariser.start < 1, "in [0, 1)")
  fraction = regulariser.batch_fraction
  _within(config, "regulariser.batch_fraction", 0 < fraction <= 1, "in (0, 1]")
  _positive(config, "train.batch_size")
  rows = fraction * config.train.batch_size
  _within(
    config,
    "regulariser.batch_fraction",
    abs(rows - round(rows)) < 1e-6 and round(rows) >= 1,
    f"a whole number of train.batch_size's {config.train.batch_size} examples",
  )
  _within(
    config,
    "regulariser.free_replays",
    regulariser.free_replays == 1 or climbs,
    f"1 where the attack is {name}: there is no w to climb",
  )
  _within(
    config,
    "regulariser.free_replays",
    regulariser.free_replays == 1
    or (regulariser.every_steps == 1 and regulariser.start == 0),
    "1 where regulariser.start or .every_steps leaves steps out: all steps"
    " must make the same number of updates",
  )
  if objective.name.startswith("noise_aware"):
    _within(
      config,
      "objective.name",
      corruption.kind == "gaussian" or corruption.fraction == 0,
      f"another where data.corruption.kind is {corruption.kind!r}: noise-aware"
      " training must know the sigma of Gaussian noise",
    )
  if objective.name == "noise_aware":
    sigma = corruption_strength(config)
    _within(
      config,
      "sampling.stop_sigma",
      corruption.fraction < 1 or config.sampling.stop_sigma >= sigma,
      f"at least data.corruption.sigma, {sigma}, where every example"
      " is dirty: below it noise_aware has nothing to learn from",
    )
