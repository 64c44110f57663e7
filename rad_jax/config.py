"""The configuration: every field with its unit and range.

Files in configs/ are thin overrides of `default()`. Any field is a flag:
--config.objective.lam=1.0. Only the border (main, build, the entries of
training and evaluation) reads this object; pure functions take arguments.
"""

from typing import Any, TypeAlias

import ml_collections
from jaxtyping import PyTree

from rad_jax.data import corruptions, synthetic

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
        # r(t): "falling", "rising", "constant".
        "radius": "falling",
        # Exponent of the radius, at least 1.
        "omega": 2.0,
        # Floor (or factor) of the radius, noise units, in (0, 1].
        "beta": 8 / 255,
        "beta_role": "additive",  # or "multiplicative"
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
