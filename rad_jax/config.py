"""The configuration: every field with its unit and range, and its checks.

Files in configs/ are thin overrides of `default()`. Any field is a flag:
--config.objective.lam=1.0. Only the border (main, build, the entries of
training and evaluation) reads this object; pure functions take arguments.
"""

import math
from typing import Any, TypeAlias

import ml_collections
from jaxtyping import PyTree

from rad_jax.data import corruptions, folder, synthetic
from rad_jax.diffusion import parametrisation, schedules
from rad_jax.robustness import attacks, objectives, radius

ConfigDict: TypeAlias = ml_collections.ConfigDict


EXTRACTORS = ("pca", "random_conv", "inception", "dinov2")
SAMPLERS = ("ddpm", "ddim", "euler", "heun", "dpm_solver")
# Of --mode=evaluate; what each measures stands in evaluation.evaluate.
PROTOCOLS = (
  "truth",
  "quality",
  "reconstruction",
  "flow",
  "score",
  "steps",
  "memorisation",
  "attack",
  "portrait",
)


class ConfigError(ValueError):
  """A field, or a combination of fields, that no run can have."""


def default() -> ConfigDict:
  """All fields at their defaults: the CIFAR-10 setting of DDPM."""
  return ConfigDict(
    {
      # Root of all randomness: data order, corruption, weights, noise.
      "seed": 0,
      "data": {
        # A TFDS name, or a world of data.synthetic: oblique_plane,
        # three_gaussians; or image_folder.
        "name": "cifar10",
        # Of image_folder: the folder, split/label/x.png or x.png in it.
        "path": "",
        # TFDS's name of a split, or a folder in path.
        "split": "train",
        # TFDS folder; "" is TFDS's own (~/tensorflow_datasets).
        "data_dir": "",
        # "memory" decodes once and keeps the set; "device" keeps it on every
        # device; "stream" decodes on the fly.
        "loading": "memory",
        # Decoding threads of "stream".
        "num_threads": 16,
        # How many images that cannot be decoded are put up with: each is
        # logged, and the next one stands in its place.
        "max_unreadable": 0,
        # Points of a synthetic world.
        "num_examples": 10_000,
        # Side of the centred square cut out first, pixels; 0: the largest.
        "crop_size": 0,
        # Side to which images are resized, pixels.
        "image_size": 32,
        "num_channels": 3,  # or 1: grey
        # Random horizontal flips, after the corruption.
        "flip": True,
        # Project the set onto its leading principal components, so that its
        # true subspace is known; 0 leaves it as it is.
        "linear_rank": 0,
        "corruption": {
          # "gaussian" adds noise; "outlier" replaces by uniform noise;
          # "salt_and_pepper", "mask", "jpeg", "blur".
          "kind": "gaussian",
          # Share p of dirty training examples, in [0, 1].
          "fraction": 0.0,
          # Strength. gaussian: standard deviation, and outlier: half-range,
          # both in [-1, 1] units; salt_and_pepper: share of the elements;
          # mask: share of the area; jpeg: 100 - quality, whole, to 99; blur:
          # standard deviation in pixels.
          "sigma": 0.2,
          # 1 .. 5 takes the strength from corruptions.SEVERITIES, and sigma
          # is not looked at; 0 takes sigma.
          "severity": 0,
        },
      },
      "diffusion": {
        "process": "ddpm",  # or "edm", "flow"
        # What the network predicts: eps, x_0, v, velocity, edm.
        "prediction": "eps",
        # "own": the plain loss on what is predicted; or "eps", "min_snr".
        "weighting": "own",
        "schedule": "linear",  # of ddpm; or "cosine"
        "num_timesteps": 1000,  # of ddpm
        # Of edm: the sampler's ends,
        "sigma_min": 0.002,
        "sigma_max": 80.0,  # the noisier one
        "rho": 7.0,  # and spacing;
        # and the mean and standard deviation of ln sigma in training.
        "log_mean": -1.2,
        "log_std": 1.2,  # of ln sigma
        # Standard deviation of the data, for edm's process and prediction.
        "sigma_data": 0.5,
        # Of flow, the law of t in training: "uniform" or "logit_normal".
        "time": "uniform",
      },
      "model": {
        "name": "unet",  # or "mlp"
        # Compute type; parameters and statistics stay float32.
        "dtype": "float32",  # or "bfloat16"; "float16" with a loss scale
        "unet": {
          "channels": 128,  # of the first level, even
          # One for each level; the sides halve from level to level.
          "channel_multipliers": (1, 2, 2, 2),
          "num_res_blocks": 2,  # of each level on the way down
          # Sides, in pixels, at which attention is used.
          "attention_resolutions": (16,),
          "dropout": 0.1,  # probability, in [0, 1)
          # Recompute activations in the backward pass: less memory.
          "remat": False,
          # These are for networks trained elsewhere (docs/interop.md).
          # Norms, paddings and embedding of "ddpm" or of "improved".
          "conventions": "ddpm",
          # Of every group norm; 0: 32, or fewer where a layer is too narrow.
          "num_groups": 0,
          # Of attention.
          "num_heads": 1,
          # The time scales a norm as well as shifting.
          "scale_shift": False,
          # What the time index is multiplied by before it is embedded.
          "time_scale": 1.0,
        },
        "mlp": {
          "width": 128,  # of the hidden layers
          "depth": 3,  # number of hidden layers
        },
      },
      "objective": {
        # A name in robustness.objectives.OBJECTIVES.
        "name": "robust_adv",
        # Weight of the regulariser, at least 0.
        "lam": 0.3,
        "lambda_t": "constant",  # or "inverse_std"
        # r(t): "seed", "noise_scale", "constant".
        "radius": "seed",
        # Exponent of the radius, at least 1.
        "omega": 2.0,
        # Floor (or factor) of the radius, noise units, in (0, 1].
        "beta": 8 / 255,
        "beta_role": "additive",  # or "multiplicative"
        "beta_law": "fixed",  # or "uniform": drawn for each example
        # "noise": |w| <= r; "state": |sigma_t w| <= r, with DDPM's sigma_t.
        "radius_units": "noise",
        # No gradient through the regulariser's target.
        "stop_gradient": False,
      },
      "attack": {
        # "" is the objective's own; or none, gaussian, uniform, fgsm, n_fgsm,
        # pgd, mi_fgsm.
        "name": "",
        "norm": "linf",  # or "l2": root mean square of w's elements <= r
        # What it raises: "J", "residual", "denoising".
        "goal": "J",
        # These override the attack's own numbers; -1 leaves them.
        "num_steps": -1,
        # In units of the radius, in (0, 2].
        "step_size": -1.0,
        # Scale of the random start, in units of the radius.
        "start": -1.0,
        # Decay of the gradients' sum, for mi_fgsm.
        "momentum": -1.0,
        # Compute type of the attack's passes; "" is model.dtype.
        "dtype": "",
        # Log how much more PGD-10 finds, every N steps; 0 does not. It costs
        # some 27 forward passes each time.
        "monitor_every_steps": 0,
      },
      # Where the regulariser is on, for cheaper training.
      "regulariser": {
        # One step in N has it. lam is not scaled up.
        "every_steps": 1,
        # Share of each batch that has it, in (0, 1].
        "batch_fraction": 1.0,
        # Share of the training that goes by before it starts, in [0, 1).
        "start": 0.0,
        # Steps over which lam then rises from 0.
        "warmup_steps": 0,
        # Updates on each batch, w climbing by the gradient of the one before;
        # 1 is off.
        "free_replays": 1,
      },
      "optimizer": {
        "learning_rate": 2e-4,  # of Adam, after warm-up
        "warmup_steps": 5000,  # it rises linearly from 0
        "decay": "constant",  # or "cosine", "linear"
        # Decays of Adam's averages of the gradient and of its square.
        "b1": 0.9,
        "b2": 0.999,  # of its square
        # Clip the gradient's global norm; 0 does not clip.
        "max_grad_norm": 1.0,
        # Of the parameters' moving average, in [0, 1).
        "ema_decay": 0.9999,
      },
      "train": {
        "num_steps": 800_000,  # of the whole run, resumptions included
        # Global: over all devices and processes.
        "batch_size": 128,
        # Steps that run as one program. More are faster where the network is
        # small; the run is saved, watched and stopped between programs.
        "steps_per_dispatch": 1,
        "log_every_steps": 100,  # metrics are means over them
        # Pieces of the batch, one after the other: as many times less memory.
        "micro_batches": 1,
        # Devices that share a copy of parameters, average and optimiser state,
        # each holding a part of it; 1: every device holds all.
        "fsdp": 1,
        # Steps with a NaN or an infinity that are passed over before the run
        # stops; 0: it stops at the first.
        "max_skipped": 0,
        # A logged loss above so many times the median of those before it takes
        # the run back to its last checkpoint, past this data; 0: never.
        "rollback_above": 0.0,
        # How often, before the run stops.
        "max_rollbacks": 3,
        # (a, b): steps a .. b are traced for TensorBoard's profiler.
        "profile_steps": (),
        # A Weights & Biases project to log to as well.
        "wandb_project": "",
        # Slow: NaNs are raised where they arise, and reused keys refused.
        "debug": False,
        # What a new run's parameters are taken from: a run's workdir, a
        # diffusers folder, a .safetensors or .pt file; "" draws them.
        "init_from": "",
        # "ema" or "raw", where init_from has both; "": a run's sampling.ema
        # says which, and elsewhere there is one set.
        "init_weights": "",
      },
      "checkpoint": {
        "every_steps": 5000,  # and after the last
        "keep": 3,  # the newest so many
        # Those at a multiple of so many steps are kept as well; 0: none.
        "keep_every_steps": 0,
      },
      "sampling": {
        # "ddpm", "ddim", "euler" (ddim at eta 0), "heun", "dpm_solver".
        "sampler": "ddpm",
        # Noise levels visited; 1 .. num_timesteps for ddpm's process.
        "num_steps": 1000,
        # Levels of sigma / alpha below it are skipped, for models that were
        # trained on noisy data alone; 0 skips none.
        "stop_sigma": 0.0,
        "variance": "small",  # of ddpm; or "large"
        "eta": 0.0,  # of ddim, in [0, 1]
        # Half-range of every clean estimate, data units; 0 does not clip.
        "clip_x_0": 1.0,
        # Use the moving average of the parameters.
        "ema": True,
        "num_samples": 64,  # of --mode=sample
        "batch_size": 64,  # over all devices, of every mode that samples
      },
      # --mode=diagnose.
      "diagnose": {
        # Noise levels, evenly spaced along the sampler's grid.
        "num_levels": 10,
        # Clean training examples at each.
        "num_examples": 256,
        # Steps of the Lipschitz estimate.
        "power_iterations": 10,
      },
      # --mode=sweep: a tuple of values for each axis of the grid; () is the
      # config's own value.
      "sweep": {
        "objective": (),  # of objective.name
        "lam": (),  # of objective.lam
        "radius": (),  # of objective.radius
        "beta": (),  # of objective.beta
        "fraction": (),  # of data.corruption.fraction
        "sigma": (),  # of data.corruption.sigma
        "seed": (),  # of seed
        # Runs have the same "steps", "passes" (the network passes of
        # train.num_steps steps of ddpm) or "seconds" (their time here).
        "match": "steps",
        # Runs at the same time, each in a process of its own.
        "processes": 1,
      },
      # --mode=study: runs for all combinations, of names in experiments.study.
      "study": {
        # And "colour", a folder of images at data.path.
        "worlds": ("oblique_plane", "three_gaussians", "digits"),
        # p50-s0.1: 50% with noise of sigma 0.1.
        "corruptions": (
          "clean",
          "p50-s0.1",
          "p50-s0.2",
          "p90-s0.1",
          "p90-s0.2",
          "outliers",
        ),
        "methods": (  # -lam3: objective.lam 3
          "ddpm",
          "invariance",
          "robust_ran",
          "robust_adv-lam1",
          "robust_adv-lam3",
          "noise_aware",
        ),
        "seeds": 3,  # 0 to one below
        # Runs trained together at most.
        "group_size": 18,
        # A text of paragraphs that the report shows; "": none.
        "notes": "",
        # Groups at the same time, each in a process of its own.
        "processes": 1,
      },
      "evaluation": {
        # Names in PROTOCOLS; each writes its part of evaluation.json.
        "protocols": ("truth",),
        "num_samples": 5000,  # of the model
        # Clean examples of an image set that samples are held against, at
        # most, evenly spaced.
        "num_reference": 5000,
        # Rank of the clean subspace of a set that is not linearised.
        "subspace_rank": 16,
        # Principal components in which the Frechet distance is taken.
        "frechet_dims": 32,
        # Of quality and memorisation: a name in EXTRACTORS.
        "extractor": "pca",
        "extractor_dims": 64,  # of "pca"
        # Path of the FID Inception's weights, .safetensors or .pth.
        "inception_weights": "",
        # Path of DINOv2's weights, .safetensors or .pth.
        "dinov2_weights": "",
        # File of reference features, shared among runs; "": one in the run.
        "reference": "",
        # Split of the data that was not trained on; "": none.
        "held_out": "",
        # Of reconstruction, flow and score: noise levels, and clean examples.
        "num_levels": 8,
        "num_level_examples": 256,  # at each noise level
        # Of the protocol "steps".
        "samplers": ("ddpm", "ddim", "heun", "dpm_solver"),
        "step_counts": (10, 30, 100, 300, 1000),  # each by each sampler
        "num_step_samples": 1000,  # by each
        # Of the protocol "attack": budgets in noise units,
        "attack_budgets": (0.0, 0.1, 0.3),
        "attack_norm": "linf",  # or "l2"
        "attack_steps": 5,  # of the gradient
        "attack_levels": 20,  # of the sampler,
        "attack_every": 4,  # of which every so-many-th is attacked
        "num_attack_samples": 256,  # at each budget
        # Workdir of a run whose network is attacked instead; "": none.
        "transfer_from": "",
      },
      # --mode=purify: noise an input up to t_star, and come back.
      "purify": {
        # An .npz file with x_0 [n, ...] in model units; "": the training
        # examples as the run saw them.
        "input": "",
        # Noise level in (0, 1), as DDPM's sigma_t: 0.32 is t 100 of 1000.
        "t_star": 0.32,
        # Levels of the whole grid, of which those below t_star are visited.
        "num_steps": 1000,
        # As sampling.sampler: "ddpm" is stochastic, "ddim" deterministic.
        "sampler": "ddpm",
        "num_examples": 64,  # of the input
      },
    }
  )


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """config itself for "", shrunk to seconds for "smoke"."""
  if name == "":
    return config
  if name != "smoke":
    raise ConfigError(f"unknown variant {name!r}: leave it out, or use :smoke")
  if config.data.name not in synthetic.WORLDS:
    config.data.image_size = min(config.data.image_size, 32)
    if not config.data.linear_rank:
      config.data.update(loading="stream", num_threads=2)
  config.data.num_examples = 512
  config.model.unet.update(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(config.data.image_size // 2,),
  )
  config.model.mlp.update(width=16, depth=2)
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 5)
  config.train.update(num_steps=20, batch_size=16, log_every_steps=5)
  config.checkpoint.update(every_steps=10, keep_every_steps=0)
  config.sampling.update(num_steps=10, num_samples=16, batch_size=16)
  config.evaluation.update(
    num_samples=64,
    num_reference=64,
    num_levels=3,
    num_level_examples=16,
    step_counts=(3, 6),
    num_step_samples=16,
    attack_levels=4,
    attack_every=2,
    attack_steps=2,
    num_attack_samples=16,
  )
  config.purify.update(num_steps=20, num_examples=16)
  config.diagnose.update(num_levels=3, num_examples=16, power_iterations=3)
  return config


def corruption_strength(config: ConfigDict) -> float:
  """The strength of data.corruption: its sigma, or what severity names."""
  fields = config.data.corruption
  return corruptions.strength_of(fields.kind, fields.sigma, fields.severity)


def is_synthetic(config: ConfigDict) -> bool:
  """Whether the data is a world of data.synthetic, and no image set."""
  return config.data.name in synthetic.WORLDS


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

  def one_of(path: str, names) -> None:
    value = _get(config, path)
    _check(value in names, path, value, "one of " + ", ".join(sorted(names)))

  def within(path: str, ok: bool, allowed: str) -> None:
    _check(ok, path, _get(config, path), allowed)

  def positive(path: str) -> None:
    within(path, _get(config, path) >= 1, "at least 1")

  data, diffusion, model = config.data, config.diffusion, config.model
  corruption, sampling = config.data.corruption, config.sampling
  optimizer = config.optimizer

  within("seed", 0 <= config.seed < 2**32, "in [0, 2**32)")
  one_of("data.loading", ("memory", "device", "stream"))
  one_of("data.corruption.kind", corruptions.CORRUPTIONS)
  p = corruption.fraction
  within("data.corruption.fraction", 0 <= p <= 1, "in [0, 1]")
  _validate_strength(config, within)
  is_folder = data.name == folder.NAME
  within(
    "data.path",
    bool(data.path) == is_folder,
    f"the folder of {folder.NAME}"
    if is_folder
    else f'"" where data.name is {data.name!r}: it is for {folder.NAME}',
  )
  within("data.crop_size", data.crop_size >= 0, "at least 0")
  elements = data.image_size**2 * data.num_channels
  within(
    "data.linear_rank",
    0 <= data.linear_rank <= elements,
    f"in 0 .. {elements}, the elements of an image",
  )
  within("data.num_channels", data.num_channels in (1, 3), "1 or 3")
  within("data.max_unreadable", data.max_unreadable >= 0, "at least 0")
  for path in ("data.num_examples", "data.image_size", "data.num_threads"):
    positive(path)
  within(
    "data.linear_rank",
    data.linear_rank == 0 or data.loading != "stream",
    '0 where data.loading is "stream": the projection needs the whole set',
  )

  _validate_diffusion(config, one_of, within)

  one_of("model.name", ("mlp", "unet"))
  one_of("model.dtype", ("float32", "bfloat16", "float16"))
  for path in (
    "model.mlp.width",
    "model.mlp.depth",
    "model.unet.channels",
    "model.unet.num_res_blocks",
  ):
    positive(path)
  dropout = model.unet.dropout
  within("model.unet.dropout", 0 <= dropout < 1, "in [0, 1)")
  if model.name == "unet":
    within(
      "model.name",
      not is_synthetic(config),
      f"mlp for {data.name}, whose examples are points",
    )
    channels = model.unet.channels
    within(
      "model.unet.channels",
      channels >= 4 and channels % 2 == 0,
      "even and at least 4",
    )
    multipliers = model.unet.channel_multipliers
    within(
      "model.unet.channel_multipliers",
      all(isinstance(m, int) and m >= 1 for m in multipliers),
      "whole numbers from 1",
    )
    levels = len(multipliers)
    factor = 2 ** max(levels - 1, 0)
    within(
      "model.unet.channel_multipliers",
      levels >= 1 and data.image_size % factor == 0,
      f"of a length that lets data.image_size {data.image_size} be halved"
      " once a level after the first",
    )
    sides = {data.image_size // 2**level for level in range(levels)}
    within(
      "model.unet.attention_resolutions",
      sides.issuperset(model.unet.attention_resolutions),
      f"among the sides of the feature maps, {sorted(sides)}",
    )
    one_of("model.unet.conventions", ("ddpm", "improved"))
    groups, heads = model.unet.num_groups, model.unet.num_heads
    within(
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
    within(
      "model.unet.num_heads",
      heads >= 1 and all(width % heads == 0 for width in attended),
      f"a divisor of the channels where attention is, {attended}",
    )
    within("model.unet.time_scale", model.unet.time_scale > 0, "above 0")

  _validate_method(config, one_of, within, positive)

  within(
    "optimizer.learning_rate",
    0 < optimizer.learning_rate < math.inf,
    "above 0 and finite",
  )
  within("optimizer.warmup_steps", optimizer.warmup_steps >= 0, "at least 0")
  one_of("optimizer.decay", ("constant", "cosine", "linear"))
  within("optimizer.b1", 0 <= optimizer.b1 < 1, "in [0, 1)")
  within("optimizer.b2", 0 <= optimizer.b2 < 1, "in [0, 1)")
  within("optimizer.max_grad_norm", optimizer.max_grad_norm >= 0, "at least 0")
  within("optimizer.ema_decay", 0 <= optimizer.ema_decay < 1, "in [0, 1)")

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
    positive(path)
  within(
    "evaluation.num_samples",
    config.evaluation.num_samples >= 2,
    "at least 2: a covariance is taken",
  )
  keep_every = config.checkpoint.keep_every_steps
  within(
    "checkpoint.keep_every_steps",
    keep_every >= 0 and keep_every % config.checkpoint.every_steps == 0,
    "0 or a multiple of checkpoint.every_steps",
  )
  batch_size = "train.batch_size" if training else "sampling.batch_size"
  within(
    batch_size,
    _get(config, batch_size) % num_devices == 0,
    f"a multiple of the number of devices, {num_devices}",
  )
  one_of("train.init_weights", ("", "ema", "raw"))
  if training:
    _validate_training(config, num_devices, within)
  one_of("sampling.sampler", SAMPLERS)
  within("sampling.stop_sigma", sampling.stop_sigma >= 0, "at least 0")
  one_of("sampling.variance", ("small", "large"))
  one_of("sweep.match", ("steps", "passes", "seconds"))
  within("sampling.eta", 0 <= sampling.eta <= 1, "in [0, 1]")
  within("sampling.clip_x_0", sampling.clip_x_0 >= 0, "at least 0")
  for path in ("sampling.num_steps", "diagnose.num_levels"):
    positive(path)
    within(
      path,
      diffusion.process != "ddpm"
      or _get(config, path) <= diffusion.num_timesteps,
      f"1 to diffusion.num_timesteps, {diffusion.num_timesteps}",
    )
  _validate_evaluation(config, one_of, within, positive)


def _validate_training(config, num_devices: int, within) -> None:
  """How the batch and the state are cut, and what may go wrong."""
  train, fraction = config.train, config.regulariser.batch_fraction
  within(
    "train.fsdp",
    train.fsdp >= 1 and num_devices % train.fsdp == 0,
    f"a divisor of the number of devices, {num_devices}",
  )
  regularised = round(fraction * train.batch_size)
  pieces = train.micro_batches * num_devices
  within(
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
  within(
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
    within(
      "train.steps_per_dispatch",
      every % together == 0,
      f"a divisor of {path}, {every}: what is done every so many steps is done"
      " between dispatches",
    )
  within(
    "train.steps_per_dispatch",
    together == 1 or not train.debug,
    "1 with train.debug, which looks into each step",
  )
  within("train.max_skipped", train.max_skipped >= 0, "at least 0")
  within(
    "train.rollback_above",
    train.rollback_above == 0 or 1 < train.rollback_above < math.inf,
    "0, or above 1",
  )
  within("train.max_rollbacks", train.max_rollbacks >= 1, "at least 1")
  steps = train.profile_steps
  within(
    "train.profile_steps",
    len(steps) == 0 or (len(steps) == 2 and 1 <= steps[0] <= steps[1]),
    "(), or (first, last)",
  )


def _validate_strength(config, within) -> None:
  """How strong the corruption is, and whether the data can have it."""
  kind, sigma = config.data.corruption.kind, config.data.corruption.sigma
  severity = config.data.corruption.severity
  within("data.corruption.severity", severity in range(6), "0, or 1 to 5")
  within("data.corruption.sigma", 0 <= sigma < math.inf, "at least 0")
  if severity == 0:
    strongest = corruptions.STRONGEST.get(kind, math.inf)
    within(
      "data.corruption.sigma",
      sigma <= strongest,
      f"at most {strongest:g} for {kind}",
    )
    within(
      "data.corruption.sigma",
      kind != "jpeg" or sigma == round(sigma),
      "a whole number for jpeg, 100 - quality",
    )
  within(
    "data.corruption.kind",
    not (is_synthetic(config) and kind in corruptions.OF_IMAGES),
    f"another for {config.data.name}: {kind} needs images",
  )


def _validate_evaluation(config, one_of, within, positive) -> None:
  fields = config.evaluation
  for name, allowed in (("protocols", PROTOCOLS), ("samplers", SAMPLERS)):
    within(
      f"evaluation.{name}",
      set(fields[name]) <= set(allowed),
      "among " + ", ".join(allowed),
    )
  one_of("evaluation.extractor", EXTRACTORS)
  within(
    "evaluation.extractor",
    not is_synthetic(config) or fields.extractor == "pca",
    f"pca for {config.data.name}, whose examples are points",
  )
  within(
    "evaluation.held_out",
    not (fields.held_out and is_synthetic(config)),
    f"'' for {config.data.name}, which has no splits",
  )
  one_of("evaluation.attack_norm", attacks.BALLS)
  within(
    "evaluation.attack_budgets",
    len(fields.attack_budgets) > 0 and min(fields.attack_budgets) >= 0,
    "one number or more, of at least 0",
  )
  steps = fields.step_counts
  limit = config.diffusion.num_timesteps
  within(
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
    positive(f"evaluation.{name}")
  purify = config.purify
  within("purify.t_star", 0 < purify.t_star < 1, "in (0, 1)")
  one_of("purify.sampler", SAMPLERS)
  positive("purify.num_steps")
  positive("purify.num_examples")


def _validate_diffusion(config, one_of, within) -> None:
  diffusion = config.diffusion
  one_of("diffusion.process", ("ddpm", "edm", "flow"))
  one_of("diffusion.prediction", parametrisation.PREDICTIONS)
  one_of("diffusion.weighting", parametrisation.WEIGHTINGS)
  one_of("diffusion.schedule", schedules.ALPHA_BAR)
  one_of("diffusion.time", ("uniform", "logit_normal"))
  minimum = 21 if diffusion.schedule == "linear" else 1
  within(
    "diffusion.num_timesteps",
    diffusion.num_timesteps >= minimum,
    f"at least {minimum} with the {diffusion.schedule} schedule",
  )
  for name in ("sigma_min", "sigma_data", "log_std", "rho"):
    within(f"diffusion.{name}", 0 < diffusion[name] < math.inf, "above 0")
  within(
    "diffusion.sigma_max",
    diffusion.sigma_min < diffusion.sigma_max < math.inf,
    f"above diffusion.sigma_min, {diffusion.sigma_min}",
  )
  within("diffusion.log_mean", math.isfinite(diffusion.log_mean), "finite")


def _validate_method(config, one_of, within, positive) -> None:
  """The objective, its attack, and where they are on."""
  objective, attack = config.objective, config.attack
  regulariser, corruption = config.regulariser, config.data.corruption
  one_of("objective.name", objectives.OBJECTIVES)
  one_of("objective.lambda_t", radius.LAMBDAS)
  one_of("objective.radius", radius.RADII)
  one_of("objective.beta_role", ("additive", "multiplicative"))
  one_of("objective.beta_law", ("fixed", "uniform"))
  one_of("objective.radius_units", ("noise", "state"))
  within("objective.lam", 0 <= objective.lam < math.inf, "at least 0")
  within("objective.beta", 0 < objective.beta <= 1, "in (0, 1]")
  within("objective.omega", 1 <= objective.omega < math.inf, "at least 1")

  one_of("attack.name", ("", "none", "gaussian", *attacks.ATTACKS))
  one_of("attack.norm", attacks.BALLS)
  one_of("attack.goal", objectives.GOALS)
  one_of("attack.dtype", ("", "float32", "bfloat16"))
  for name in ("num_steps", "start", "momentum"):
    value = attack[name]
    within(f"attack.{name}", value == -1 or value >= 0, "at least 0, or -1")
  step_size = attack.step_size
  within(
    "attack.step_size",
    step_size == -1 or 0 < step_size <= 2,
    "in (0, 2], or -1",
  )
  within(
    "attack.monitor_every_steps", attack.monitor_every_steps >= 0, "at least 0"
  )

  chosen = objectives.OBJECTIVES[objective.name]
  name = attack.name or chosen.attack
  climbs = name in attacks.ATTACKS
  within(
    "attack.name",
    chosen.target is not None or name == "none",
    f'"" or "none": {objective.name} has nothing to perturb',
  )
  within(
    "attack.monitor_every_steps",
    climbs or attack.monitor_every_steps == 0,
    f"0 where the attack is {name}: there is nothing to compare PGD with",
  )
  positive("regulariser.every_steps")
  positive("regulariser.free_replays")
  within(
    "regulariser.warmup_steps", regulariser.warmup_steps >= 0, "at least 0"
  )
  within("regulariser.start", 0 <= regulariser.start < 1, "in [0, 1)")
  fraction = regulariser.batch_fraction
  within("regulariser.batch_fraction", 0 < fraction <= 1, "in (0, 1]")
  positive("train.batch_size")
  rows = fraction * config.train.batch_size
  within(
    "regulariser.batch_fraction",
    abs(rows - round(rows)) < 1e-6 and round(rows) >= 1,
    f"a whole number of train.batch_size's {config.train.batch_size} examples",
  )
  within(
    "regulariser.free_replays",
    regulariser.free_replays == 1 or climbs,
    f"1 where the attack is {name}: there is no w to climb",
  )
  within(
    "regulariser.free_replays",
    regulariser.free_replays == 1
    or (regulariser.every_steps == 1 and regulariser.start == 0),
    "1 where regulariser.start or .every_steps leaves steps out: all steps"
    " must make the same number of updates",
  )
  if objective.name.startswith("noise_aware"):
    within(
      "objective.name",
      corruption.kind == "gaussian" or corruption.fraction == 0,
      f"another where data.corruption.kind is {corruption.kind!r}: noise-aware"
      " training must know the sigma of Gaussian noise",
    )
  if objective.name == "noise_aware":
    sigma = corruption_strength(config)
    within(
      "sampling.stop_sigma",
      corruption.fraction < 1 or config.sampling.stop_sigma >= sigma,
      f"at least data.corruption.sigma, {sigma}, where every example"
      " is dirty: below it noise_aware has nothing to learn from",
    )


# What a checkpoint is bound to: the fields that decide which parameters it
# holds, which examples and noise it saw, and what it was trained for. How
# fast or where the data is read from, and what is watched, is not among them.
_IDENTITY = (
  "seed",
  "data",
  "diffusion",
  "model",
  "objective",
  "attack",
  "regulariser",
)
UNBOUND = (
  "data.data_dir",
  "data.loading",
  "data.num_threads",
  "data.max_unreadable",
  "attack.monitor_every_steps",
)


def conflicts(
  saved: PyTree, config: ConfigDict, training: bool = True
) -> list[str]:
  """The fields that forbid `config` to go on from a run of `saved`.

  Args:
    saved: the resolved config of the run, as a plain dict (from JSON).
    config: the config of today.
    training: whether the run shall be trained on, where the batch size
      counts, or sampled from.

  Returns:
    One "path: saved value -> today's value" for each differing field.
  """
  # A field that the saved run is too old to have had was at its default.
  old = flatten(default().to_dict()) | flatten(saved)
  new = flatten(config.to_dict())
  bound = [
    path
    for path in sorted(old.keys() | new.keys())
    if (path.split(".")[0] in _IDENTITY and path not in UNBOUND)
    or (training and path == "train.batch_size")
  ]
  return [
    f"{path}: {old.get(path, 'unset')} -> {new.get(path, 'unset')}"
    for path in bound
    if old.get(path) != new.get(path)
  ]


def flatten(tree: PyTree, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} as {"a.b": 1}; tuples become lists, as in JSON."""
  if not isinstance(tree, dict):
    value = list(tree) if isinstance(tree, tuple) else tree
    return {prefix.removesuffix("."): value}
  return {
    path: value
    for name, child in tree.items()
    for path, value in flatten(child, f"{prefix}{name}.").items()
  }


def _get(config: ConfigDict, path: str) -> Any:
  for name in path.split("."):
    config = config[name]
  return config


def _check(ok: bool, path: str, value: Any, allowed: str) -> None:
  if not ok:
    raise ConfigError(f"config.{path}={value!r}: it must be {allowed}")
