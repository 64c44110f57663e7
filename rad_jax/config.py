"""The configuration: one table of every field, its default, meaning and range.

FIELDS makes the ConfigDict, the checks of single fields, --mode=show_config
and docs/fields.md. Any field is a flag: --config.objective.lam=1.0.
"""

import functools
import math
import operator
import os
import shlex
from collections.abc import Callable, Collection, Iterable
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
  low, high = map(float, interval[1:-1].split(","))
  from_low = operator.le if interval[0] == "[" else operator.lt
  to_high = operator.le if interval[-1] == "]" else operator.lt
  return Rule(f"in {interval}", lambda x: from_low(low, x) and to_high(x, high))


def one_of(*names: Any) -> Rule:
  """One of the names, such as the keys of a registry."""
  words = ", ".join(repr(n) if n == "" else str(n) for n in sorted(names))
  return Rule(f"one of {words}", lambda x: x in names)


def or_unset(rule: Rule) -> Rule:
  """-1, which leaves what another field says, or as the rule has it."""
  return Rule(f"{rule.words}, or -1", lambda x: x == -1 or rule.allows(x))


COUNT = at_least(1)
NATURAL = at_least(0)
POSITIVE = above(0)
SHARE = within("[0, 1]")
DECAY = within("[0, 1)")
SWITCH = Rule("True or False", lambda x: isinstance(x, bool))
FINITE = Rule("finite", math.isfinite)
_DTYPES = ("float32", "bfloat16")

# By dotted path. The defaults are the CIFAR-10 setting of DDPM.
FIELDS: dict[str, Field] = {
  "seed": Field(0, "Root of all randomness.", within("[0, 4294967296)")),
  "data.name": Field(
    "cifar10",
    'A TFDS set; "oblique_plane" or "three_gaussians", which are generated;'
    ' "image_folder"; or "huggingface:owner__name".',
  ),
  "data.path": Field(
    "",
    "Folder or zip archive of images: x.png, class/x.png, split/x.png,"
    " split/class/x.png.",
  ),
  "data.split": Field("train", "Of TFDS, or a folder in data.path."),
  "data.data_dir": Field("", 'Folder of TFDS sets; "": ~/tensorflow_datasets.'),
  "data.cache": Field(
    os.environ.get("RAD_JAX_DATA_CACHE", "~/.cache/rad_jax/data"),
    'Where decoded images of data.path are kept for later runs; "": nowhere.',
  ),
  "data.loading": Field(
    "memory",
    '"memory" decodes the set once; "device" also copies it to every device;'
    ' "stream" decodes each image when it is needed, unless data.cache has it.',
    one_of("memory", "device", "stream"),
  ),
  "data.num_threads": Field(16, 'Decoding threads of "stream".', COUNT),
  "data.max_unreadable": Field(
    0, "Unreadable images tolerated: logged, and the next one used.", NATURAL
  ),
  "data.max_megapixels": Field(
    150.0,
    "Largest picture in data.path; 4 bytes a pixel while it is decoded.",
    POSITIVE,
  ),
  "data.num_examples": Field(10_000, "Points of a synthetic set.", COUNT),
  "data.crop_size": Field(
    0, "Side of a centred square cut out first; 0: the largest.", NATURAL
  ),
  "data.image_size": Field(32, "Side after resizing, in pixels.", COUNT),
  "data.num_channels": Field(3, "3: colour; 1: grey.", one_of(1, 3)),
  "data.flip": Field(True, "Random mirroring, after corruption.", SWITCH),
  "data.linear_rank": Field(
    0, "Principal components to project the set on; 0: no projection.", NATURAL
  ),
  "data.corruption.kind": Field(
    "gaussian",
    'Of dirty examples; "outlier" puts uniform noise in their place.',
    one_of(*corruptions.CORRUPTIONS),
  ),
  "data.corruption.fraction": Field(
    0.0, "Share of dirty training examples.", SHARE
  ),
  "data.corruption.sigma": Field(
    0.2,
    "Strength. gaussian: standard deviation, outlier: half-range, both with"
    " data in [-1, 1]; salt_and_pepper: share of the elements; mask: share of"
    " the area; jpeg: 100 - quality; blur: standard deviation in pixels.",
    NATURAL,
  ),
  "data.corruption.severity": Field(
    0, "1 to 5: a standard strength; 0: sigma.", one_of(*range(6))
  ),
  "diffusion.process": Field(
    "ddpm", "The noise process.", one_of(*schedules.PROCESSES)
  ),
  "diffusion.prediction": Field(
    "eps", "What the network predicts.", one_of(*parametrisation.PREDICTIONS)
  ),
  "diffusion.weighting": Field(
    "own",
    'Of the loss, by level; "own": the plain loss on what is predicted.',
    one_of(*parametrisation.WEIGHTINGS),
  ),
  "diffusion.schedule": Field(
    "linear", "Shape of ddpm's alpha_bar.", one_of(*schedules.ALPHA_BAR)
  ),
  "diffusion.num_timesteps": Field(1000, "ddpm's noise levels.", COUNT),
  "diffusion.sigma_min": Field(0.002, "Lowest, in edm's sampling.", POSITIVE),
  "diffusion.sigma_max": Field(80.0, "Highest, in edm's sampling.", POSITIVE),
  "diffusion.rho": Field(7.0, "Spacing of edm's sampling levels.", POSITIVE),
  "diffusion.log_mean": Field(-1.2, "Mean of edm's ln sigma.", FINITE),
  "diffusion.log_std": Field(1.2, "Deviation of edm's ln sigma.", POSITIVE),
  "diffusion.sigma_data": Field(
    0.5, "Standard deviation of the data, for edm.", POSITIVE
  ),
  "diffusion.time": Field(
    "uniform", "Law of t in flow's training.", one_of("uniform", "logit_normal")
  ),
  "model.name": Field("unet", "The network.", one_of("unet", "mlp")),
  "model.dtype": Field(
    "float32", "Of the computation; parameters stay float32.", one_of(*_DTYPES)
  ),
  "model.unet.channels": Field(128, "Of the first level; even.", at_least(4)),
  "model.unet.channel_multipliers": Field(
    (1, 2, 2, 2), "For each level; each level halves the side."
  ),
  "model.unet.num_res_blocks": Field(2, "Per level, on the way down.", COUNT),
  "model.unet.attention_resolutions": Field(
    (16,), "Sides, in pixels, at which attention is used."
  ),
  "model.unet.dropout": Field(0.1, "Probability of dropout.", DECAY),
  "model.unet.remat": Field(
    False, "Recompute activations in the backward pass: less memory.", SWITCH
  ),
  "model.unet.conventions": Field(
    "ddpm",
    "Norms, paddings and embedding, for networks trained elsewhere.",
    one_of("ddpm", "improved"),
  ),
  "model.unet.num_groups": Field(
    0, "Groups of each group norm; 0: 32, or fewer in a narrow layer.", NATURAL
  ),
  "model.unet.num_heads": Field(1, "Heads of attention.", COUNT),
  "model.unet.scale_shift": Field(
    False, "The time embedding scales a norm as well as shifting it.", SWITCH
  ),
  "model.unet.time_scale": Field(
    1.0, "Factor of the time index before it is embedded.", POSITIVE
  ),
  "model.mlp.width": Field(128, "Units of each hidden layer.", COUNT),
  "model.mlp.depth": Field(3, "Number of hidden layers.", COUNT),
  "objective.name": Field(
    "robust_adv", "What is minimised.", one_of(*objectives.OBJECTIVES)
  ),
  "objective.lam": Field(0.3, "Weight of the regulariser.", NATURAL),
  "objective.lambda_t": Field(
    "constant",
    'lam, or for "inverse_std" lam over the standard deviation of w.',
    one_of(*radius.LAMBDAS),
  ),
  "objective.radius": Field(
    "falling", "How r(t) changes with the noise.", one_of(*radius.RADII)
  ),
  "objective.omega": Field(2.0, "Exponent of the radius.", COUNT),
  "objective.beta": Field(
    8 / 255, "Floor (or factor) of the radius, noise units.", within("(0, 1]")
  ),
  "objective.beta_role": Field(
    "additive",
    "Whether beta is added to the radius or multiplies it.",
    one_of("additive", "multiplicative"),
  ),
  "objective.radius_units": Field(
    "noise",
    '"noise": |w| <= r; "state": |sigma_t w| <= r, with DDPM\'s sigma_t.',
    one_of("noise", "state"),
  ),
  "objective.influence": Field(
    0.0,
    "c > 0: the loss e of an example becomes (1 - exp(-c e)) / c, so that no"
    " example counts much; 0: e itself.",
    NATURAL,
  ),
  "objective.stop_gradient": Field(
    False, "Send no gradient through the regulariser's target.", SWITCH
  ),
  "attack.name": Field(
    "",
    'What finds w; "": what the objective asks for.',
    one_of("", "none", "gaussian", *attacks.ATTACKS),
  ),
  "attack.norm": Field(
    "linf", "linf: |w_i| <= r; l2: rms(w) <= r.", one_of(*attacks.BALLS)
  ),
  "attack.goal": Field(
    "J", "What the attack raises.", one_of(*objectives.GOALS)
  ),
  "attack.num_steps": Field(
    -1, "Gradient steps; -1: the attack's own number.", or_unset(NATURAL)
  ),
  "attack.step_size": Field(
    -1.0, "In radii; -1: the attack's own.", or_unset(within("(0, 2]"))
  ),
  "attack.start": Field(
    -1.0, "Random start, in radii; -1: the attack's own.", or_unset(NATURAL)
  ),
  "attack.momentum": Field(
    -1.0, "Of mi_fgsm's gradients; -1: the attack's own.", or_unset(NATURAL)
  ),
  "attack.dtype": Field(
    "", 'Of the attack\'s passes; "": model.dtype.', one_of("", *_DTYPES)
  ),
  "attack.monitor_every_steps": Field(
    0,
    "Every N steps, log how much more PGD-10 finds (some 27 forward passes"
    " each time); 0: never.",
    NATURAL,
  ),
  "regulariser.every_steps": Field(
    1, "Use the regulariser in one step of N. lam is not scaled up.", COUNT
  ),
  "regulariser.batch_fraction": Field(
    1.0, "Share of each batch that has it.", within("(0, 1]")
  ),
  "regulariser.start": Field(0.0, "Share of the training without it.", DECAY),
  "regulariser.warmup_steps": Field(0, "Steps in which lam rises.", NATURAL),
  "regulariser.free_replays": Field(
    1, "Updates on each batch, w climbing by the last gradient.", COUNT
  ),
  "optimizer.learning_rate": Field(2e-4, "Adam's, after warm-up.", POSITIVE),
  "optimizer.warmup_steps": Field(5000, "In steps: it rises from 0.", NATURAL),
  "optimizer.decay": Field(
    "constant",
    "How the learning rate falls after the warm-up, to 0 at the last step.",
    one_of("constant", "cosine", "linear"),
  ),
  "optimizer.b1": Field(0.9, "Decay of Adam's mean gradient.", DECAY),
  "optimizer.b2": Field(0.999, "Decay of its mean square.", DECAY),
  "optimizer.max_grad_norm": Field(
    1.0, "Clip the gradient to this global norm; 0: no clipping.", NATURAL
  ),
  "optimizer.ema_decay": Field(
    0.9999, "Decay, per step, of the moving average of the parameters.", DECAY
  ),
  "train.num_steps": Field(
    800_000, "In all, however often resumed.", within("[1, 2147483647]")
  ),
  "train.batch_size": Field(128, "Examples a step, on all devices.", COUNT),
  "train.steps_per_dispatch": Field(
    1,
    "Steps that run as one program: for small networks on accelerators; 1 for"
    " a U-Net on a CPU. A run is saved, watched and stopped between programs.",
    COUNT,
  ),
  "train.log_every_steps": Field(100, "Metrics are means over them.", COUNT),
  "train.sample_every_steps": Field(
    10_000,
    "Steps between two pictures of samples from the moving average, with the"
    " same noise, in samples/progress; it warns of a collapse; 0: none.",
    NATURAL,
  ),
  "train.micro_batches": Field(
    1, "Pieces of the batch, in turn: as many times less memory.", COUNT
  ),
  "train.fsdp": Field(
    1, "Devices that share one copy of the state; 1: each has a copy.", COUNT
  ),
  "train.max_skipped": Field(
    0,
    "How many steps with a NaN or an infinity are skipped before the run"
    " stops; 0: it stops at the first.",
    NATURAL,
  ),
  "train.rollback_above": Field(
    0.0,
    "Go back to the last checkpoint, and past this data, when a logged loss"
    " is more than so many times the median of those before; 0: never.",
    Rule("0, or above 1", lambda x: x == 0 or 1 < x < math.inf),
  ),
  "train.max_rollbacks": Field(3, "Before the run stops.", COUNT),
  "train.profile_steps": Field(
    (),
    "(a, b): steps a to b are traced for TensorBoard's profiler.",
    Rule(
      "(), or (first, last)",
      lambda x: not x or (len(x) == 2 and 1 <= x[0] <= x[1]),
    ),
  ),
  "train.wandb_project": Field("", 'Of Weights & Biases; "": none.'),
  "train.debug": Field(
    False, "Slow: NaNs are raised, and reused keys refused.", SWITCH
  ),
  "train.init_from": Field(
    "",
    "Where a new run's parameters come from: a run's workdir, a diffusers"
    ' folder, hf:owner/name, a .safetensors or .pt file; "": random.',
  ),
  "train.init_weights": Field(
    "",
    'Which, where init_from has both; "": as that run\'s sampling.ema says.',
    one_of("", "ema", "raw"),
  ),
  "checkpoint.every_steps": Field(5000, "Steps; the last has one too.", COUNT),
  "checkpoint.keep": Field(3, "How many of the newest are kept.", COUNT),
  "checkpoint.keep_every_steps": Field(
    0, "Checkpoints at multiples of it are kept as well; 0: none.", NATURAL
  ),
  "sampling.sampler": Field("ddpm", "The sampler.", one_of(*samplers.SAMPLERS)),
  "sampling.num_steps": Field(1000, "Noise levels that are visited.", COUNT),
  "sampling.stop_sigma": Field(
    0.0,
    "Skip the levels with sigma / alpha below it, for models that were"
    " trained on noisy data alone; 0: skip none.",
    NATURAL,
  ),
  "sampling.variance": Field(
    "small", "Variance of the ddpm sampler's steps.", one_of("small", "large")
  ),
  "sampling.eta": Field(0.0, "Noise of ddim's steps; 0: none.", SHARE),
  "sampling.temperature": Field(
    1.0, "Factor of the noise that a sampler adds; 1: the model's.", NATURAL
  ),
  "sampling.clip_x_0": Field(
    1.0, "Half-range of clean estimates, data units; 0: no clipping.", NATURAL
  ),
  "sampling.ema": Field(True, "Use the parameters' moving average.", SWITCH),
  "sampling.num_samples": Field(64, "Samples that --mode=sample draws.", COUNT),
  "sampling.batch_size": Field(64, "On all devices, in any mode.", COUNT),
  "diagnose.num_levels": Field(10, "Noise levels, evenly spaced.", COUNT),
  "diagnose.num_examples": Field(256, "Clean examples at each level.", COUNT),
  "diagnose.power_iterations": Field(10, "Of the Lipschitz estimate.", COUNT),
  "sweep.objective": Field((), "Of objective.name; (): the config's own."),
  "sweep.lam": Field((), "Of objective.lam."),
  "sweep.radius": Field((), "Of objective.radius."),
  "sweep.beta": Field((), "Of objective.beta."),
  "sweep.fraction": Field((), "Of data.corruption.fraction."),
  "sweep.sigma": Field((), "Of data.corruption.sigma."),
  "sweep.seed": Field((), "Of seed."),
  "sweep.match": Field(
    "steps",
    'What the runs have in common: the number of "steps", of network'
    ' "passes" (as many as train.num_steps steps of ddpm), or of "seconds"'
    " (as long as those take here).",
    one_of("steps", "passes", "seconds"),
  ),
  "sweep.processes": Field(1, "Runs at the same time.", COUNT),
  "study.data": Field(
    ("oblique_plane", "three_gaussians", "digits"),
    'Named in experiments.study; "colour": a folder at data.path.',
  ),
  "study.schemes": Field("cheap", "Which table of experiments.schemes."),
  "study.corruptions": Field(
    ("clean", "p50-s0.1", "p50-s0.2", "p90-s0.1", "p90-s0.2", "outliers"),
    '"p50-s0.1": 50% of the examples with noise of sigma 0.1.',
  ),
  "study.methods": Field(
    (
      "ddpm",
      "invariance",
      "robust_ran",
      "robust_adv-lam1",
      "robust_adv-lam3",
      "noise_aware",
    ),
    'Objectives; "-lam3" sets objective.lam to 3.',
  ),
  "study.seeds": Field(3, "How many seeds: 0, 1, ...", COUNT),
  "study.tuning_seeds": Field(
    3, "How many other seeds choose the knobs of --mode=compare.", COUNT
  ),
  "study.group_size": Field(18, "Most runs that are trained together.", COUNT),
  "study.notes": Field("", 'Text file for the report; "": none.'),
  "study.processes": Field(1, "Groups at the same time.", COUNT),
  "evaluation.protocols": Field(
    ("truth", "training_set"),
    "What is measured, named in evaluation.evaluate.PROTOCOLS.",
  ),
  "evaluation.num_samples": Field(
    5000, "Samples of the model; a covariance needs 2.", at_least(2)
  ),
  "evaluation.num_reference": Field(
    5000, "Most clean images to compare with, evenly spaced in the set.", COUNT
  ),
  "evaluation.subspace_rank": Field(
    16, "Rank of the clean subspace, for a set without data.linear_rank.", COUNT
  ),
  "evaluation.frechet_dims": Field(
    32, "Principal components of the Frechet distance.", COUNT
  ),
  "evaluation.extractor": Field(
    "pca", "Of quality and memorisation.", one_of(*extractors.EXTRACTORS)
  ),
  "evaluation.extractor_dims": Field(64, "Of the extractor pca.", COUNT),
  "evaluation.inception_weights": Field(
    "", "File with the weights of FID's Inception, .safetensors or .pth."
  ),
  "evaluation.dinov2_weights": Field(
    "", "File with the weights of DINOv2, .safetensors or .pth."
  ),
  "evaluation.reference": Field(
    "", 'File of reference features that runs share; "": one in the run.'
  ),
  "evaluation.held_out": Field("", 'A split that is not trained on; "": none.'),
  "evaluation.num_levels": Field(
    8, "Noise levels of the protocols reconstruction, flow and score.", COUNT
  ),
  "evaluation.num_level_examples": Field(256, "Clean, at each level.", COUNT),
  "evaluation.samplers": Field(
    ("ddpm", "ddim", "heun", "dpm_solver"),
    'Samplers of the protocol "steps".',
    Rule(
      f"among {', '.join(sorted(samplers.SAMPLERS))}",
      lambda x: samplers.SAMPLERS.keys() >= set(x),
    ),
  ),
  "evaluation.step_counts": Field(
    (10, 30, 100, 300, 1000),
    "Numbers of steps, each tried with each sampler.",
    Rule("one number or more, from 2", lambda x: x and min(x) >= 2),
  ),
  "evaluation.stop_sigmas": Field(
    (), "Of sampling.stop_sigma, each tried with them; (): the run's own."
  ),
  "evaluation.temperatures": Field(
    (), "Of sampling.temperature, each tried with them; (): the run's own."
  ),
  "evaluation.num_step_samples": Field(1000, "Samples of each of them.", COUNT),
  "evaluation.attack_budgets": Field(
    (0.0, 0.1, 0.3),
    'Sizes of w in the protocol "attack", in noise units.',
    Rule("one number or more, of at least 0", lambda x: x and min(x) >= 0),
  ),
  "evaluation.attack_norm": Field(
    "linf", "Shape of the ball that w stays in.", one_of(*attacks.BALLS)
  ),
  "evaluation.attack_steps": Field(10, "Gradient steps of that attack.", COUNT),
  "evaluation.attack_restarts": Field(
    1, "Random starts of that attack; the worst result counts.", COUNT
  ),
  "evaluation.attack_levels": Field(20, "Of the attacked sampler.", COUNT),
  "evaluation.attack_between": Field(
    (0.0, 1.0),
    "The attacked levels' sigma_t, as DDPM's, from and to.",
    Rule(
      "(low, high) in [0, 1]",
      lambda x: len(x) == 2 and 0 <= x[0] <= x[1] <= 1,
    ),
  ),
  "evaluation.num_attack_samples": Field(256, "At each budget.", COUNT),
  "evaluation.transfer_from": Field(
    "", 'Workdir of a run whose network the attack is made on; "": none.'
  ),
  "purify.input": Field(
    "",
    "A folder or zip archive of images, or an .npz file with x_0 [n, ...] in"
    ' model units; "": training examples as the run saw them.',
  ),
  "purify.t_star": Field(
    0.32,
    "Noise level up to which an input is noised, as DDPM's sigma_t: 0.32 is"
    " t 100 of 1000.",
    within("(0, 1)"),
  ),
  "purify.num_steps": Field(
    1000, "Levels of the whole grid; those up to t_star are visited.", COUNT
  ),
  "purify.sampler": Field(
    "ddpm", "The sampler that denoises.", one_of(*samplers.SAMPLERS)
  ),
  "purify.num_examples": Field(64, "How many inputs are purified.", COUNT),
}


def default() -> ConfigDict:
  """All fields at their defaults."""
  tree: dict[str, Any] = {}
  for path, field in FIELDS.items():
    *sections, name = path.split(".")
    owner = functools.reduce(lambda d, s: d.setdefault(s, {}), sections, tree)
    owner[name] = field.default
  return ConfigDict(tree)


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
  """All fields as flags, with their docs and where each value comes from."""
  values, lines, section = flatten(config.to_dict()), [], ""
  for path, field in FIELDS.items():
    if path.rpartition(".")[0] != section:
      section = path.rpartition(".")[0]
      lines += ["", f"# {section}"]
    flag = as_flag(path, values[path])
    origin = "default" if flag == as_flag(path, field.default) else source
    if path in overridden:
      origin = "command line"
    lines += [f"{flag}  ({origin})", f"    {meaning(field)}"]
  return "\n".join(lines)


def as_flag(path: str, value: Any) -> str:
  """A field as it is given on a command line."""
  return f"--config.{path}={shlex.quote(str(from_json(value)))}"


def from_json(value: Any) -> Any:
  """A field's value, in place of which `flatten` and JSON have a list."""
  return tuple(value) if isinstance(value, list) else value


def meaning(field: Field) -> str:
  """What is said of a field, its range included."""
  return field.doc + (f" ({field.rule.words})" if field.rule else "")


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """config itself for "", made tiny, to run in seconds, for "smoke"."""
  if name == "":
    return config
  if name != "smoke":
    raise ConfigError(f"unknown variant {name!r}: leave it out, or use :smoke")
  if not is_synthetic(config):
    config.data.image_size = min(config.data.image_size, 32)
    if not config.data.linear_rank:
      config.data.update(loading="stream", num_threads=2)
  side = config.data.image_size
  config.data.num_examples = 512
  config.model.unet.update(channels=8, channel_multipliers=(1, 2))
  config.model.unet.update(num_res_blocks=1, attention_resolutions=(side // 2,))
  config.model.mlp.update(width=16, depth=2)
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 5)
  config.train.update(num_steps=20, batch_size=16, log_every_steps=5)
  config.checkpoint.update(every_steps=10, keep_every_steps=0)
  config.sampling.update(num_steps=10, num_samples=16, batch_size=16)
  config.evaluation.update(num_samples=64, num_reference=64, num_levels=3)
  config.evaluation.update(num_level_examples=16, num_step_samples=16)
  config.evaluation.update(step_counts=(3, 6), num_attack_samples=16)
  config.evaluation.update(attack_levels=4, attack_steps=2)
  config.purify.update(num_steps=20, num_examples=16)
  config.diagnose.update(num_levels=3, num_examples=16, power_iterations=3)
  return config


def as_ddpm(config: ConfigDict) -> ConfigDict:
  """A copy as plain DDPM, the rest unchanged, to compare the cost with."""
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


# What a checkpoint is bound to: the fields that decide its parameters, examples
# and noise, and its aim; not how the data is read, or what is watched.
_IDENTITY = set(
  "seed data diffusion model objective attack regulariser".split()
)
UNBOUND = (
  "data.data_dir",
  "data.cache",
  "data.loading",
  "data.num_threads",
  "data.max_megapixels",
  "data.max_unreadable",
  "attack.monitor_every_steps",
  "train.sample_every_steps",
)


def conflicts(
  saved: dict[str, Any], today: dict[str, Any], training: bool = True
) -> list[str]:
  """The fields that forbid a run of config `saved` to go on as `today`'s.

  Both are resolved. The batch size counts only where the run is trained on.
  """
  # A field that the saved run is too old to have had was at its default.
  old = flatten(default().to_dict()) | flatten(saved)

  def binds(path: str) -> bool:
    if path == "train.batch_size":
      return training
    return path.split(".")[0] in _IDENTITY and path not in UNBOUND

  return differences(old, flatten(today), binds)


def differences(
  old: dict[str, Any],
  new: dict[str, Any],
  counts: Callable[[str], bool] = lambda path: True,
) -> list[str]:
  """Where two flat dicts differ: each "path: old value -> new value"."""
  return [
    f"{path}: {old.get(path, 'unset')} -> {new.get(path, 'unset')}"
    for path in sorted(old.keys() | new.keys())
    if old.get(path) != new.get(path) and counts(path)
  ]


def refuse_another(where: str, found: Iterable[str]) -> None:
  """Raises ConfigError: `where` was made with another config, as found."""
  raise ConfigError(
    f"{where} with another config ({'; '.join(found)}): restore these fields,"
    " or choose another --workdir"
  )
