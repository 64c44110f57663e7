"""The configuration: one table of every field, its default, meaning and range.

Of FIELDS are made the ConfigDict that files in configs/ override, the checks
of single fields, --mode=show_config and docs/fields.md. Any field is
a flag: --config.objective.lam=1.0.
"""

import math
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import ml_collections

from rad_jax.data import corruptions, synthetic
from rad_jax.diffusion import parametrisation, samplers, schedules
from rad_jax.features import extractors
from rad_jax.robustness import attacks, objectives, radius

ConfigDict: TypeAlias = ml_collections.ConfigDict


class ConfigError(ValueError):
  """A field, or a combination of fields, that no run can have."""


class Rule(NamedTuple):
  """What a field may be: in words, after "it must be", and as a test."""

  words: str
  allows: Callable[[Any], bool]


class Field(NamedTuple):
  """One field: its default, what it means (with its unit), what it may be."""

  default: Any
  doc: str
  rule: Rule | None = None


def at_least(least: int | float) -> Rule:
  """A finite number from `least`."""
  return Rule(f"at least {least}", lambda x: least <= x < math.inf)


def above(bound: int | float) -> Rule:
  """A finite number above `bound`."""
  return Rule(f"above {bound}", lambda x: bound < x < math.inf)


def within(interval: str) -> Rule:
  """A number in an interval, written as "[0, 1)"."""
  low, high = (float(end) for end in interval[1:-1].split(","))
  closed_low, closed_high = interval[0] == "[", interval[-1] == "]"
  return Rule(
    f"in {interval}",
    lambda x: (
      (low <= x if closed_low else low < x)
      and (x <= high if closed_high else x < high)
    ),
  )


def one_of(names: Iterable[Any]) -> Rule:
  """One of the names, such as the keys of a registry."""
  allowed = list(names)
  words = ", ".join(repr(n) if n == "" else str(n) for n in sorted(allowed))
  return Rule(f"one of {words}", lambda x: x in allowed)


def some_of(names: Iterable[str]) -> Rule:
  """A tuple of such names."""
  allowed = set(names)
  words = ", ".join(sorted(allowed))
  return Rule(f"among {words}", lambda x: set(x) <= allowed)


def or_unset(rule: Rule) -> Rule:
  """-1, which leaves what another field says, or as the rule has it."""
  return Rule(f"{rule.words}, or -1", lambda x: x == -1 or rule.allows(x))


COUNT = at_least(1)
_FINITE = Rule("finite", math.isfinite)
_SWITCH = Rule("True or False", lambda x: isinstance(x, bool))


# The defaults are the CIFAR-10 setting of DDPM.
FIELDS: dict[str, Any] = {
  "seed": Field(
    0,
    "Root of all randomness: data order, corruption, parameters, noise.",
    within("[0, 4294967296)"),
  ),
  "data": {
    "name": Field(
      "cifar10",
      "A TFDS name; oblique_plane or three_gaussians, drawn on the fly;"
      " image_folder; or huggingface:owner__name.",
    ),
    "path": Field(
      "", "The folder of image_folder: x.png, or split/label/x.png."
    ),
    "split": Field(
      "train", "TFDS's name of a split, or a folder in data.path."
    ),
    "data_dir": Field("", 'Where TFDS keeps data; "": ~/tensorflow_datasets.'),
    "loading": Field(
      "memory",
      '"memory" decodes the set once; "device" also copies it to every device;'
      ' "stream" decodes on the fly.',
      one_of(("memory", "device", "stream")),
    ),
    "num_threads": Field(16, 'Decoding threads of "stream".', COUNT),
    "max_unreadable": Field(
      0,
      "How many unreadable images are tolerated: each is logged, and the next"
      " one is used in its place.",
      at_least(0),
    ),
    "num_examples": Field(10_000, "Points of a synthetic set.", COUNT),
    "crop_size": Field(
      0,
      "Side of the centred square that is cut out first, pixels; 0: the"
      " largest.",
      at_least(0),
    ),
    "image_size": Field(32, "Side to which images are resized, pixels.", COUNT),
    "num_channels": Field(3, "3: colour; 1: grey.", one_of((1, 3))),
    "flip": Field(
      True, "Random horizontal flips, after the corruption.", _SWITCH
    ),
    "linear_rank": Field(
      0,
      "Project the set onto its leading principal components, so that its true"
      " subspace is known; 0 leaves it as it is.",
      at_least(0),
    ),
    "corruption": {
      "kind": Field(
        "gaussian",
        '"gaussian" adds noise; "outlier" is uniform noise in its place.',
        one_of(corruptions.CORRUPTIONS),
      ),
      "fraction": Field(
        0.0, "Share of dirty training examples.", within("[0, 1]")
      ),
      "sigma": Field(
        0.2,
        "Strength. gaussian: standard deviation, outlier: half-range, both in"
        " [-1, 1] units; salt_and_pepper: share of the elements; mask: share of"
        " the area; jpeg: 100 - quality; blur: standard deviation in pixels.",
        at_least(0),
      ),
      "severity": Field(
        0,
        "1 to 5 takes the strength from a ladder, in place of sigma; 0: sigma.",
        one_of(range(6)),
      ),
    },
  },
  "diffusion": {
    "process": Field("ddpm", "The noise process.", one_of(schedules.PROCESSES)),
    "prediction": Field(
      "eps",
      "What the network predicts.",
      one_of(parametrisation.PREDICTIONS),
    ),
    "weighting": Field(
      "own",
      'Of the loss, by level; "own": the plain loss on what is predicted.',
      one_of(parametrisation.WEIGHTINGS),
    ),
    "schedule": Field(
      "linear", "alpha_bar of ddpm.", one_of(schedules.ALPHA_BAR)
    ),
    "num_timesteps": Field(1000, "Noise levels of ddpm.", COUNT),
    "sigma_min": Field(0.002, "Least noise of edm's sampler.", above(0)),
    "sigma_max": Field(80.0, "Most noise of edm's sampler.", above(0)),
    "rho": Field(7.0, "Spacing of edm's sampler.", above(0)),
    "log_mean": Field(-1.2, "Mean of ln sigma in edm's training.", _FINITE),
    "log_std": Field(
      1.2, "Standard deviation of ln sigma in edm's training.", above(0)
    ),
    "sigma_data": Field(
      0.5,
      "Standard deviation of the data, for edm's process and prediction.",
      above(0),
    ),
    "time": Field(
      "uniform",
      "Distribution of t in flow's training.",
      one_of(("uniform", "logit_normal")),
    ),
  },
  "model": {
    "name": Field("unet", "The network.", one_of(("unet", "mlp"))),
    "dtype": Field(
      "float32",
      "Compute type; parameters and statistics stay float32.",
      one_of(("float32", "bfloat16")),
    ),
    "unet": {
      "channels": Field(128, "Channels of the first level, even.", at_least(4)),
      "channel_multipliers": Field(
        (1, 2, 2, 2), "One for each level; each level halves the side."
      ),
      "num_res_blocks": Field(2, "Of each level on the way down.", COUNT),
      "attention_resolutions": Field(
        (16,), "Sides, in pixels, at which attention is used."
      ),
      "dropout": Field(0.1, "Probability.", within("[0, 1)")),
      "remat": Field(
        False,
        "Recompute activations in the backward pass: less memory.",
        _SWITCH,
      ),
      "conventions": Field(
        "ddpm",
        "Norms, paddings and embedding, for networks trained elsewhere.",
        one_of(("ddpm", "improved")),
      ),
      "num_groups": Field(
        0,
        "Of every group norm; 0: 32, or fewer where a layer is too narrow.",
        at_least(0),
      ),
      "num_heads": Field(1, "Of attention.", COUNT),
      "scale_shift": Field(
        False, "The time scales a norm as well as shifting it.", _SWITCH
      ),
      "time_scale": Field(
        1.0, "Factor of the time index before it is embedded.", above(0)
      ),
    },
    "mlp": {
      "width": Field(128, "Of the hidden layers.", COUNT),
      "depth": Field(3, "Number of hidden layers.", COUNT),
    },
  },
  "objective": {
    "name": Field(
      "robust_adv", "What is minimised.", one_of(objectives.OBJECTIVES)
    ),
    "lam": Field(0.3, "Weight of the regulariser.", at_least(0)),
    "lambda_t": Field(
      "constant",
      'lambda_t: lam, or with "inverse_std" lam over the standard deviation of'
      " a uniform w.",
      one_of(radius.LAMBDAS),
    ),
    "radius": Field(
      "falling",
      'r(t): "falling" with the noise, "rising" with it, or "constant".',
      one_of(radius.RADII),
    ),
    "omega": Field(2.0, "Exponent of the radius.", at_least(1)),
    "beta": Field(
      8 / 255, "Floor (or factor) of the radius, noise units.", within("(0, 1]")
    ),
    "beta_role": Field(
      "additive",
      "Whether beta is the radius's floor or its factor.",
      one_of(("additive", "multiplicative")),
    ),
    "radius_units": Field(
      "noise",
      '"noise": |w| <= r; "state": |sigma_t w| <= r, with DDPM\'s sigma_t.',
      one_of(("noise", "state")),
    ),
    "stop_gradient": Field(
      False, "No gradient through the regulariser's target.", _SWITCH
    ),
  },
  "attack": {
    "name": Field(
      "",
      'What finds w; "": the objective\'s own.',
      one_of(("", "none", "gaussian", *attacks.ATTACKS)),
    ),
    "norm": Field(
      "linf",
      '"linf": |w_i| <= r; "l2": root mean square of w\'s elements <= r.',
      one_of(attacks.BALLS),
    ),
    "goal": Field("J", "What the attack raises.", one_of(objectives.GOALS)),
    "num_steps": Field(
      -1, "Gradient steps; -1: the attack's own number.", or_unset(at_least(0))
    ),
    "step_size": Field(
      -1.0,
      "In units of the radius; -1: the attack's own.",
      or_unset(within("(0, 2]")),
    ),
    "start": Field(
      -1.0,
      "Scale of the random start, in radii; -1: the attack's own.",
      or_unset(at_least(0)),
    ),
    "momentum": Field(
      -1.0,
      "Decay of mi_fgsm's sum of gradients; -1: the attack's own.",
      or_unset(at_least(0)),
    ),
    "dtype": Field(
      "",
      'Compute type of the attack\'s passes; "": model.dtype.',
      one_of(("", "float32", "bfloat16")),
    ),
    "monitor_every_steps": Field(
      0,
      "Log how much more PGD-10 finds, every N steps (some 27 forward passes"
      " each time); 0: never.",
      at_least(0),
    ),
  },
  "regulariser": {
    "every_steps": Field(
      1, "One step in N has the regulariser. lam is not scaled up.", COUNT
    ),
    "batch_fraction": Field(
      1.0, "Share of each batch that has it.", within("(0, 1]")
    ),
    "start": Field(
      0.0, "Share of the training before it starts.", within("[0, 1)")
    ),
    "warmup_steps": Field(
      0, "Steps over which lam then rises from 0.", at_least(0)
    ),
    "free_replays": Field(
      1,
      "Updates on each batch, w climbing by the gradient of the one before; 1:"
      " none but the first.",
      COUNT,
    ),
  },
  "optimizer": {
    "learning_rate": Field(2e-4, "Of Adam, after warm-up.", above(0)),
    "warmup_steps": Field(5000, "It rises linearly from 0.", at_least(0)),
    "decay": Field(
      "constant",
      "After warm-up; to 0 at the last step.",
      one_of(("constant", "cosine", "linear")),
    ),
    "b1": Field(
      0.9, "Decay of Adam's average of the gradient.", within("[0, 1)")
    ),
    "b2": Field(
      0.999, "Decay of Adam's average of its square.", within("[0, 1)")
    ),
    "max_grad_norm": Field(
      1.0, "Clip the gradient's global norm; 0 does not clip.", at_least(0)
    ),
    "ema_decay": Field(
      0.9999, "Of the parameters' moving average.", within("[0, 1)")
    ),
  },
  "train": {
    "num_steps": Field(
      800_000, "Of the whole run, resumptions included.", COUNT
    ),
    "batch_size": Field(128, "Over all devices and processes.", COUNT),
    "steps_per_dispatch": Field(
      1,
      "Steps that run as one program: faster where the network is small. The"
      " run is saved, watched and stopped between programs.",
      COUNT,
    ),
    "log_every_steps": Field(100, "Metrics are means over them.", COUNT),
    "micro_batches": Field(
      1,
      "Pieces of the batch, one after the other: as many times less memory.",
      COUNT,
    ),
    "fsdp": Field(
      1,
      "Devices that share one copy of parameters, average and optimiser state;"
      " 1: every device holds all.",
      COUNT,
    ),
    "max_skipped": Field(
      0,
      "How many steps with a NaN or an infinity are skipped before the run"
      " stops; 0: it stops at the first.",
      at_least(0),
    ),
    "rollback_above": Field(
      0.0,
      "A logged loss above so many times the median of those before takes the"
      " run back to its last checkpoint, past this data; 0: never.",
      Rule("0, or above 1", lambda x: x == 0 or 1 < x < math.inf),
    ),
    "max_rollbacks": Field(3, "Before the run stops.", COUNT),
    "profile_steps": Field(
      (),
      "(a, b): steps a to b are traced for TensorBoard's profiler.",
      Rule(
        "(), or (first, last)",
        lambda x: len(x) == 0 or (len(x) == 2 and 1 <= x[0] <= x[1]),
      ),
    ),
    "wandb_project": Field("", "A Weights & Biases project to log to as well."),
    "debug": Field(
      False,
      "Slow: NaNs are raised where they arise, and reused keys refused.",
      _SWITCH,
    ),
    "init_from": Field(
      "",
      "Where a new run's parameters come from: a run's workdir, a diffusers"
      ' folder, a .safetensors or .pt file; "": they are drawn.',
    ),
    "init_weights": Field(
      "",
      '"ema" or "raw", where init_from has both; "": as the other run\'s'
      " sampling.ema says.",
      one_of(("", "ema", "raw")),
    ),
  },
  "checkpoint": {
    "every_steps": Field(5000, "And after the last.", COUNT),
    "keep": Field(3, "How many of the newest are kept.", COUNT),
    "keep_every_steps": Field(
      0, "Those at its multiples are kept as well; 0: none.", at_least(0)
    ),
  },
  "sampling": {
    "sampler": Field("ddpm", "The sampler.", one_of(samplers.SAMPLERS)),
    "num_steps": Field(1000, "Noise levels visited.", COUNT),
    "stop_sigma": Field(
      0.0,
      "Levels of sigma / alpha below it are skipped, for models that were"
      " trained on noisy data alone; 0 skips none.",
      at_least(0),
    ),
    "variance": Field(
      "small", "Of the ddpm sampler.", one_of(("small", "large"))
    ),
    "eta": Field(0.0, "Of the ddim sampler.", within("[0, 1]")),
    "clip_x_0": Field(
      1.0,
      "Half-range of every clean estimate, data units; 0 does not clip.",
      at_least(0),
    ),
    "ema": Field(True, "Use the moving average of the parameters.", _SWITCH),
    "num_samples": Field(64, "Of --mode=sample.", COUNT),
    "batch_size": Field(
      64, "Over all devices, of every mode that samples.", COUNT
    ),
  },
  "diagnose": {
    "num_levels": Field(
      10, "Noise levels, evenly spaced along the sampler's grid.", COUNT
    ),
    "num_examples": Field(256, "Clean training examples at each.", COUNT),
    "power_iterations": Field(10, "Steps of the Lipschitz estimate.", COUNT),
  },
  "sweep": {
    "objective": Field((), "Values of objective.name; (): the config's own."),
    "lam": Field((), "Of objective.lam."),
    "radius": Field((), "Of objective.radius."),
    "beta": Field((), "Of objective.beta."),
    "fraction": Field((), "Of data.corruption.fraction."),
    "sigma": Field((), "Of data.corruption.sigma."),
    "seed": Field((), "Of seed."),
    "match": Field(
      "steps",
      'Runs have the same "steps", "passes" (as many network passes as'
      ' train.num_steps steps of ddpm), or "seconds" (as long as they take'
      " here).",
      one_of(("steps", "passes", "seconds")),
    ),
    "processes": Field(
      1, "Runs at the same time, each in a process of its own.", COUNT
    ),
  },
  "study": {
    "data": Field(
      ("oblique_plane", "three_gaussians", "digits"),
      "Names in experiments.study; colour is a folder of images at data.path.",
    ),
    "schemes": Field(
      "cheap", "A table in experiments.schemes, of --mode=schemes."
    ),
    "corruptions": Field(
      ("clean", "p50-s0.1", "p50-s0.2", "p90-s0.1", "p90-s0.2", "outliers"),
      "p50-s0.1: 50% with noise of sigma 0.1.",
    ),
    "methods": Field(
      (
        "ddpm",
        "invariance",
        "robust_ran",
        "robust_adv-lam1",
        "robust_adv-lam3",
        "noise_aware",
      ),
      "-lam3: objective.lam 3.",
    ),
    "seeds": Field(3, "How many: 0, 1, ...", COUNT),
    "group_size": Field(18, "Runs trained together at most.", COUNT),
    "notes": Field("", 'A text of paragraphs for the report; "": none.'),
    "processes": Field(
      1,
      "How many at the same time, each in a process of its own.",
      COUNT,
    ),
  },
  "evaluation": {
    "protocols": Field(
      ("truth",), "What is measured: names in evaluation.evaluate.PROTOCOLS."
    ),
    "num_samples": Field(
      5000, "Of the model; a covariance needs 2.", at_least(2)
    ),
    "num_reference": Field(
      5000,
      "Clean examples of an image set that samples are compared with, at most,"
      " evenly spaced.",
      COUNT,
    ),
    "subspace_rank": Field(
      16, "Rank of the clean subspace of a set that is not linearised.", COUNT
    ),
    "frechet_dims": Field(
      32, "Principal components in which the Frechet distance is taken.", COUNT
    ),
    "extractor": Field(
      "pca", "Of quality and memorisation.", one_of(extractors.EXTRACTORS)
    ),
    "extractor_dims": Field(64, "Of the extractor pca.", COUNT),
    "inception_weights": Field(
      "", "Path of the FID Inception's weights, .safetensors or .pth."
    ),
    "dinov2_weights": Field(
      "", "Path of DINOv2's weights, .safetensors or .pth."
    ),
    "reference": Field(
      "", 'File of reference features, shared among runs; "": one in the run.'
    ),
    "held_out": Field(
      "", 'Split of the data that was not trained on; "": none.'
    ),
    "num_levels": Field(
      8, "Noise levels of reconstruction, flow and score.", COUNT
    ),
    "num_level_examples": Field(256, "Clean examples at each level.", COUNT),
    "samplers": Field(
      ("ddpm", "ddim", "heun", "dpm_solver"),
      "Of the protocol steps.",
      some_of(samplers.SAMPLERS),
    ),
    "step_counts": Field(
      (10, 30, 100, 300, 1000),
      "Numbers of steps, each by each sampler.",
      Rule("one number or more, from 2", lambda x: x and min(x) >= 2),
    ),
    "num_step_samples": Field(1000, "By each of them.", COUNT),
    "attack_budgets": Field(
      (0.0, 0.1, 0.3),
      "Of the protocol attack, in noise units.",
      Rule("one number or more, of at least 0", lambda x: x and min(x) >= 0),
    ),
    "attack_norm": Field(
      "linf", "Of the attack's ball.", one_of(attacks.BALLS)
    ),
    "attack_steps": Field(5, "Gradient steps of the attack.", COUNT),
    "attack_levels": Field(20, "Levels of the attacked sampler.", COUNT),
    "attack_every": Field(
      4, "One in every N of these levels is attacked.", COUNT
    ),
    "num_attack_samples": Field(256, "At each budget.", COUNT),
    "transfer_from": Field(
      "",
      'Workdir of a run whose network the attack is made on; "": none.',
    ),
  },
  "purify": {
    "input": Field(
      "",
      'An .npz file with x_0 [n, ...] in model units; "": training examples as'
      " the run saw them.",
    ),
    "t_star": Field(
      0.32,
      "Noise level up to which an input is noised, as DDPM's sigma_t: 0.32 is"
      " t 100 of 1000.",
      within("(0, 1)"),
    ),
    "num_steps": Field(
      1000, "Levels of the whole grid; those up to t_star are visited.", COUNT
    ),
    "sampler": Field(
      "ddpm", "Of the way back, as sampling.sampler.", one_of(samplers.SAMPLERS)
    ),
    "num_examples": Field(64, "Of the input.", COUNT),
  },
}


def fields(
  tree: dict[str, Any] = FIELDS, prefix: str = ""
) -> Iterator[tuple[str, Field]]:
  """Every field under its dotted path, in the order of the table."""
  for name, entry in tree.items():
    if isinstance(entry, Field):
      yield prefix + name, entry
    else:
      yield from fields(entry, f"{prefix}{name}.")


def default() -> ConfigDict:
  """All fields at their defaults."""

  def values(tree: dict[str, Any]) -> dict[str, Any]:
    return {
      name: entry.default if isinstance(entry, Field) else values(entry)
      for name, entry in tree.items()
    }

  return ConfigDict(values(FIELDS))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} as {"a.b": 1}; tuples become lists, as in JSON."""
  if not isinstance(tree, dict):
    value = list(tree) if isinstance(tree, tuple) else tree
    return {prefix.removesuffix("."): value}
  return {
    path: value
    for name, child in tree.items()
    for path, value in flatten(child, f"{prefix}{name}.").items()
  }


def show(
  config: ConfigDict, source: str, overridden: Collection[str] = ()
) -> str:
  """All fields as they would be given on the command line, with their docs.

  Args:
    config: the resolved config.
    source: name of the config file.
    overridden: paths that the command line sets.
  """
  values = flatten(config.to_dict())
  lines, section = [], ""
  for path, field in fields():
    if path.rpartition(".")[0] != section:
      section = path.rpartition(".")[0]
      lines += ["", f"# {section}"]
    origin = "default"
    if path in overridden:
      origin = "command line"
    elif values[path] != flatten({path: field.default})[path]:
      origin = source
    value = values[path]
    given = str(tuple(value) if isinstance(value, list) else value)
    lines.append(f"--config.{path}={shlex.quote(given)}  ({origin})")
    lines.append(f"    {meaning(field)}")
  return "\n".join(lines)


def meaning(field: Field) -> str:
  """What is said of a field, its range included."""
  return field.doc + (f" ({field.rule.words})" if field.rule else "")


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """config itself for "", shrunk to seconds for "smoke"."""
  if name == "":
    return config
  if name != "smoke":
    raise ConfigError(f"unknown variant {name!r}: leave it out, or use :smoke")
  if not is_synthetic(config):
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


def as_ddpm(config: ConfigDict) -> ConfigDict:
  """A copy with DDPM's objective, and all about perturbations at its default.

  What the cost of other methods is compared with: the rest is the same.
  """
  config = ConfigDict(config.to_dict())
  for section in ("objective", "attack", "regulariser"):
    config[section].update(default()[section].to_dict())
  config.objective.name = "ddpm"
  return config


def is_synthetic(config: ConfigDict) -> bool:
  """Whether the data is drawn on the fly, and no image set."""
  return config.data.name in synthetic.WORLDS


def corruption_strength(config: ConfigDict) -> float:
  """The strength of data.corruption: its sigma, or what severity names."""
  chosen = config.data.corruption
  return corruptions.strength_of(chosen.kind, chosen.sigma, chosen.severity)


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
  saved: dict[str, Any], today: dict[str, Any], training: bool = True
) -> list[str]:
  """The fields that forbid a run of `saved` to go on as `today`'s.

  Args:
    saved: the resolved config of the run, as a plain dict (from JSON).
    today: the resolved config of today, likewise.
    training: whether the run is to be trained on, where the batch size
      counts, or sampled from.

  Returns:
    One "path: saved value -> today's value" for each differing field.
  """
  # A field that the saved run is too old to have had was at its default.
  old = flatten(default().to_dict()) | flatten(saved)
  new = flatten(today)
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
