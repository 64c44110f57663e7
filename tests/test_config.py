"""The configuration: its files, its checks, and what binds a run."""

import json
import pathlib
import re
import runpy
import shlex

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from rad_jax import checks
from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.training import step

ROOT = pathlib.Path(__file__).parents[1]
# What is open in my_images.py, test_choices.py fills.
FILES = sorted(
  path for path in (ROOT / "configs").glob("*.py") if path.stem != "my_images"
)
UNETS = {
  *("celeba64", "cifar10", "cifar10_edm", "cifar10_finetune"),
  *("imagenet64", "lsun_bedroom"),
}
nan, inf = float("nan"), float("inf")


def load(path, *overrides):
  """A config as the command line makes it from a file and --config.x=y."""
  argv = ["test", f"--config={path}", *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  values(argv)
  return values.config


def with_field(path, value, **others):
  """The default config with fields set; "." is "__" in keywords."""
  config = configs.default()
  for name, new in {**others, path: value}.items():
    *parents, leaf = name.replace("__", ".").split(".")
    owner = config
    for parent in parents:
      owner = owner[parent]
    with owner.ignore_type():
      owner[leaf] = new
  return config


@pytest.mark.parametrize("variant", ["", ":smoke"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
class TestFiles:
  def test_is_valid_and_locked(self, path, variant):
    config = load(f"{path}{variant}")
    checks.validate(config)
    assert config.is_locked
    with pytest.raises(AttributeError, match="num_steps"):
      config.train.num_stps = 3

  def test_has_the_fields_of_the_default(self, path, variant):
    config = load(f"{path}{variant}")
    assert configs.flatten(config.to_dict()).keys() == (
      configs.flatten(configs.default().to_dict()).keys()
    )

  def test_does_not_conflict_with_its_own_json(self, path, variant):
    config = load(f"{path}{variant}")
    saved = json.loads(json.dumps(config.to_dict()))
    assert configs.conflicts(saved, config.to_dict()) == []


def shapes(run):
  """Of the first state and of a batch as stored."""
  size = run.train.batch_size
  dtype = np.float32 if run.is_synthetic else np.uint8
  batch = {
    "x_0": jax.ShapeDtypeStruct((size, *run.example_shape), dtype),
    "index": jax.ShapeDtypeStruct((size,), np.int32),
  }
  return jax.eval_shape(run.initial_state), batch


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_smoke_is_small_and_its_network_fits_its_data(path):
  run = runs.build(load(f"{path}:smoke"))
  assert run.train.num_steps <= 20
  state, batch = shapes(run)
  assert sum(x.size for x in jax.tree.leaves(state.params)) < 1e5

  def estimate(state, batch):
    draws = step.draw_batch(run.method, state, batch, run.prepare)
    return run.method.predictor(state.params, draws.noised.x_t, draws.level)

  found = jax.eval_shape(estimate, state, batch)
  assert (found.shape, found.dtype) == (batch["x_0"].shape, np.float32)


# The steps of other U-Nets take seconds to trace.
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(
      path.stem,
      marks=[pytest.mark.slow] * (path.stem in UNETS - {"lsun_bedroom"}),
    )
    for path in FILES
  ],
)
def test_smoke_s_step_keeps_the_types_of_the_state(name):
  run = runs.build(load(f"{ROOT / 'configs' / name}.py:smoke"))
  state, batch = shapes(run)
  after, metrics = jax.eval_shape(run.train_step(True), state, batch)
  assert [x.dtype for x in jax.tree.leaves(after)] == (
    [x.dtype for x in jax.tree.leaves(state)]
  )
  assert {"loss", "grad_norm"} <= metrics.keys()


def test_override_from_the_command_line():
  path = ROOT / "configs/oblique_plane.py"
  config = load(
    f"{path}:smoke", "--config.objective.lam=1.5", "--config.train.num_steps=7"
  )
  assert (config.objective.lam, config.train.num_steps) == (1.5, 7)


def test_misspelt_override_suggests_the_field():
  with pytest.raises(AttributeError, match='Did you mean "num_steps"'):
    load(ROOT / "configs/oblique_plane.py", "--config.train.num_stps=3")


def test_smoke_keeps_what_makes_the_config():
  full = load(ROOT / "configs/digits.py")
  smoke = load(f"{ROOT / 'configs/digits.py'}:smoke")
  kept = [
    name
    for name in configs.flatten(full.to_dict())
    if name.startswith(("objective.", "diffusion.", "data.corruption."))
  ]
  old, new = (configs.flatten(c.to_dict()) for c in (full, smoke))
  assert [old[name] for name in kept] == [new[name] for name in kept]
  assert (smoke.data.image_size, smoke.data.linear_rank) == (8, 16)


def test_unknown_variant():
  with pytest.raises(configs.ConfigError, match=r"'smok'.*:smoke"):
    configs.variant(configs.default(), "smok")


def test_default_is_valid():
  checks.validate(configs.default())


BAD = [
  ("data.loading", "disk"),
  ("data.corruption.kind", "salt"),
  ("data.corruption.fraction", -0.1),
  ("data.corruption.fraction", 1.1),
  ("data.corruption.fraction", nan),
  ("data.corruption.sigma", -0.1),
  ("data.crop_size", -1),
  ("data.linear_rank", -1),
  ("data.num_channels", 2),
  ("data.num_examples", 0),
  ("data.image_size", 0),
  ("data.num_threads", 0),
  ("diffusion.schedule", "quadratic"),
  ("diffusion.num_timesteps", 20),
  ("diffusion.process", "ve"),
  ("diffusion.prediction", "score"),
  ("diffusion.weighting", "snr"),
  ("diffusion.time", "beta"),
  ("diffusion.sigma_min", 0.0),
  ("diffusion.sigma_min", nan),
  ("diffusion.sigma_max", 0.002),
  ("diffusion.sigma_max", 0.001),
  ("diffusion.sigma_max", inf),
  ("diffusion.sigma_max", nan),
  ("diffusion.sigma_data", 0.0),
  ("diffusion.sigma_data", inf),
  ("diffusion.rho", 0.0),
  ("diffusion.log_std", 0.0),
  ("diffusion.log_mean", inf),
  ("diffusion.log_mean", nan),
  ("model.name", "transformer"),
  ("model.dtype", "float64"),
  ("model.mlp.width", 0),
  ("model.mlp.depth", 0),
  ("model.unet.channels", 0),
  ("model.unet.num_res_blocks", 0),
  ("model.unet.dropout", -0.1),
  ("model.unet.dropout", 1.0),
  ("model.unet.channel_multipliers", ()),
  ("objective.name", "robust"),
  ("objective.lambda_t", "linear"),
  ("objective.radius", "cosine"),
  ("objective.lam", -1.0),
  ("objective.lam", inf),
  ("objective.beta", 0.0),
  ("objective.beta", 2.0),
  ("objective.omega", 0.5),
  ("objective.omega", inf),
  ("objective.beta_role", "power"),
  ("objective.radius_units", "pixels"),
  ("attack.name", "cw"),
  ("attack.norm", "l1"),
  ("attack.goal", "loss"),
  ("attack.dtype", "float16"),
  ("model.dtype", "float16"),
  ("data.flip", 1),
  ("attack.num_steps", -2),
  ("attack.step_size", 0.0),
  ("attack.step_size", 2.5),
  ("attack.step_size", nan),
  ("attack.start", -0.5),
  ("attack.start", nan),
  ("attack.momentum", -0.5),
  ("attack.monitor_every_steps", -1),
  ("regulariser.every_steps", 0),
  ("regulariser.batch_fraction", 0.0),
  ("regulariser.batch_fraction", 1.5),
  ("regulariser.batch_fraction", nan),
  ("regulariser.start", -0.1),
  ("regulariser.start", 1.0),
  ("regulariser.warmup_steps", -1),
  ("regulariser.free_replays", 0),
  ("optimizer.learning_rate", 0.0),
  ("optimizer.learning_rate", nan),
  ("optimizer.warmup_steps", -1),
  ("optimizer.decay", "step"),
  ("optimizer.b1", 1.0),
  ("optimizer.b2", -0.1),
  ("optimizer.max_grad_norm", -1.0),
  ("optimizer.ema_decay", 1.0),
  ("optimizer.ema_decay", -0.1),
  ("train.num_steps", 0),
  ("train.batch_size", 0),
  ("train.log_every_steps", 0),
  ("checkpoint.every_steps", 0),
  ("checkpoint.keep", 0),
  ("checkpoint.keep_every_steps", -5000),
  ("checkpoint.keep_every_steps", 7000),
  ("sampling.sampler", "rk4"),
  ("sampling.stop_sigma", -0.1),
  ("sampling.stop_sigma", nan),
  ("sweep.match", "flops"),
  ("sweep.processes", 0),
  ("sampling.variance", "learned"),
  ("sampling.num_steps", 0),
  ("sampling.num_steps", 1001),
  ("sampling.eta", 1.5),
  ("sampling.eta", -0.5),
  ("sampling.clip_x_0", -1.0),
  ("sampling.num_samples", 0),
  ("sampling.batch_size", 0),
  ("evaluation.num_samples", 1),
  ("evaluation.subspace_rank", 0),
  ("evaluation.frechet_dims", 0),
  ("evaluation.samplers", ("dpm",)),
  ("evaluation.extractor", "vgg"),
  ("evaluation.attack_norm", "l1"),
  ("evaluation.attack_budgets", (-0.1,)),
  ("evaluation.attack_budgets", ()),
  ("evaluation.num_levels", 0),
  ("purify.t_star", 1.0),
  ("purify.sampler", "euler2"),
]


@pytest.mark.parametrize("path, value", BAD)
def test_bad_value_is_named(path, value):
  with pytest.raises(configs.ConfigError) as error:
    checks.validate(with_field(path, value))
  assert f"config.{path}={value!r}: it must be " in str(error.value)


def test_unet_takes_no_points():
  config = with_field("data.name", "oblique_plane")
  with pytest.raises(configs.ConfigError, match=r"model\.name='unet'.*mlp"):
    checks.validate(config)


def test_unet_must_be_able_to_halve_the_image():
  config = with_field("data.image_size", 36)
  with pytest.raises(configs.ConfigError) as error:
    checks.validate(config)
  message = str(error.value)
  assert "config.model.unet.channel_multipliers=(1, 2, 2, 2)" in message
  assert "data.image_size 36" in message
  checks.validate(with_field("data.image_size", 36, model__name="mlp"))


def test_projection_needs_the_whole_set():
  config = with_field("data.linear_rank", 16, data__loading="stream")
  with pytest.raises(configs.ConfigError, match=r"data\.linear_rank=16.*strea"):
    checks.validate(config)


@pytest.mark.parametrize("path", ["train.batch_size", "sampling.batch_size"])
def test_batches_are_split_evenly_over_the_devices(path):
  config = with_field(path, 6)
  training = path == "train.batch_size"
  checks.validate(config, 2, training)
  checks.validate(config, 4, not training)
  with pytest.raises(configs.ConfigError) as error:
    checks.validate(config, 4, training)
  assert f"config.{path}=6: it must be a multiple" in str(error.value)
  assert str(error.value).endswith("devices, 4")


def test_an_attack_may_start_at_0_where_its_goal_has_a_slope():
  config = with_field("attack.start", 0.0)
  config.attack.goal = "denoising"
  checks.validate(config)
  config.attack.goal = "J"
  config.regulariser.free_replays = 4
  checks.validate(config)


@pytest.mark.parametrize(
  "path, value",
  [
    ("data.corruption.fraction", 0.0),
    ("data.corruption.fraction", 1.0),
    ("objective.lam", 0.0),
    ("objective.beta", 1.0),
    ("objective.omega", 1.0),
    ("attack.name", "none"),
    ("attack.name", "gaussian"),
    ("attack.name", "uniform"),
    ("attack.name", "pgd"),
    ("attack.num_steps", 0),
    ("attack.step_size", 2.0),
    ("attack.start", 1e-3),
    ("attack.monitor_every_steps", 7),
    ("regulariser.every_steps", 5),
    ("regulariser.batch_fraction", 1 / 128),
    ("regulariser.start", 0.0),
    ("regulariser.free_replays", 4),
    ("sampling.sampler", "heun"),
    ("sampling.stop_sigma", 0.2),
    ("optimizer.warmup_steps", 0),
    ("optimizer.max_grad_norm", 0.0),
    ("optimizer.ema_decay", 0.0),
    ("checkpoint.keep_every_steps", 10_000),
    ("sampling.num_steps", 1),
    ("sampling.num_steps", 1000),
    ("sampling.eta", 1.0),
    ("sampling.clip_x_0", 0.0),
  ],
)
def test_ends_of_a_range_are_allowed(path, value):
  checks.validate(with_field(path, value))


NOISE_AWARE = {
  "objective__name": "noise_aware",
  "data__corruption__fraction": 1.0,
  "data__corruption__sigma": 0.2,
}


# Each: the field that the error names, its value, the other fields, and what
# else the error says.
IMPOSSIBLE = {
  "free replays in some steps only": (
    "regulariser.free_replays",
    3,
    {"regulariser__every_steps": 2},
    "1 where regulariser.start or .every_steps leaves steps out",
  ),
  "free replays from some step on": (
    "regulariser.free_replays",
    3,
    {"regulariser__start": 0.5},
    "1 where regulariser.start or .every_steps leaves steps out",
  ),
  "noise-aware training on outliers": (
    "objective.name",
    "noise_aware",
    {"data__corruption__kind": "outlier", "data__corruption__fraction": 0.5},
    "data.corruption.kind is 'outlier'",
  ),
  "the same, with a regulariser": (
    "objective.name",
    "noise_aware_adv",
    {"data__corruption__kind": "outlier", "data__corruption__fraction": 0.5},
    "data.corruption.kind is 'outlier'",
  ),
  "sampling below all that noise-aware training saw": (
    "sampling.stop_sigma",
    0.1,
    NOISE_AWARE,
    "at least data.corruption.sigma, 0.2",
  ),
  "an attack on nothing": (
    "attack.name",
    "fgsm",
    {"objective__name": "ddpm"},
    "ddpm",
  ),
  "an attack on nothing, noise-aware": (
    "attack.name",
    "fgsm",
    {"objective__name": "noise_aware"},
    "noise_aware",
  ),
  "an attack that cannot start": ("attack.start", 0.0, {}, "goal is J"),
  "an attack that cannot start, on the residual": (
    "attack.start",
    0.0,
    {"attack__goal": "residual"},
    "its gradient at w = 0 is 0",
  ),
  "a goal that free replays do not raise": (
    "attack.goal",
    "denoising",
    {"regulariser__free_replays": 4},
    "raise the loss itself",
  ),
  "monitoring Gaussian noise": (
    "attack.monitor_every_steps",
    10,
    {"attack__name": "gaussian"},
    "the attack is gaussian",
  ),
  "monitoring no attack": (
    "attack.monitor_every_steps",
    10,
    {"attack__name": "none"},
    "the attack is none",
  ),
  "monitoring ddpm": (
    "attack.monitor_every_steps",
    10,
    {"objective__name": "ddpm"},
    "the attack is none",
  ),
  "replays of input perturbation": (
    "regulariser.free_replays",
    3,
    {"objective__name": "input_perturbation"},
    "the attack is gaussian",
  ),
  "a share of no whole examples": (
    "regulariser.batch_fraction",
    0.3,
    {"train__batch_size": 128},
    "train.batch_size's 128 examples",
  ),
  "a share of less than one example": (
    "regulariser.batch_fraction",
    1e-9,
    {},
    "train.batch_size's 128 examples",
  ),
  "more sampling steps than ddpm's timesteps": (
    "sampling.num_steps",
    200,
    {"diffusion__num_timesteps": 100},
    "diffusion.num_timesteps, 100",
  ),
  "more steps of a protocol than ddpm's timesteps": (
    "evaluation.step_counts",
    (10, 200),
    {"diffusion__num_timesteps": 100, "evaluation__protocols": ("steps",)}
    | {"sampling__num_steps": 50, "diagnose__num_levels": 5},
    "diffusion.num_timesteps, 100",
  ),
  "features of images for points": (
    "evaluation.extractor",
    "random_conv",
    {"data__name": "oblique_plane", "model__name": "mlp"},
    "pca for oblique_plane",
  ),
  "a held-out split of what is drawn": (
    "evaluation.held_out",
    "test",
    {"data__name": "oblique_plane", "model__name": "mlp"},
    "'' for oblique_plane",
  ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_combination_is_named(name):
  path, value, others, expected = IMPOSSIBLE[name]
  with pytest.raises(configs.ConfigError) as error:
    checks.validate(with_field(path, value, **others))
  assert f"config.{path}={value!r}: it must be " in str(error.value)
  assert expected in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "path, value, others",
  [
    ("sampling.stop_sigma", 0.2, NOISE_AWARE),
    (
      "data.corruption.fraction",
      0.9,
      {"objective__name": "noise_aware", "data__corruption__sigma": 0.2},
    ),
    # No example is an outlier.
    ("data.corruption.kind", "outlier", {"objective__name": "noise_aware"}),
    ("attack.name", "none", {"objective__name": "ddpm"}),
    ("attack.name", "fgsm", {"objective__name": "input_perturbation"}),
    (
      "regulariser.free_replays",
      3,
      {"objective__name": "input_perturbation", "attack__name": "fgsm"},
    ),
    ("attack.monitor_every_steps", 10, {"attack__name": "uniform"}),
    ("regulariser.batch_fraction", 0.3, {"train__batch_size": 10}),
    # Continuous levels have no table to run out of.
    ("sampling.num_steps", 1001, {"diffusion__process": "edm"}),
    ("sampling.num_steps", 1001, {"diffusion__process": "flow"}),
  ],
)
def test_possible_combination(path, value, others):
  checks.validate(with_field(path, value, **others))


def test_flatten():
  tree = {"a": {"b": 1, "c": {"d": (1, 2)}}, "e": "x"}
  assert configs.flatten(tree) == {"a.b": 1, "a.c.d": [1, 2], "e": "x"}


@pytest.mark.parametrize(
  "path, value",
  [
    ("seed", 1),
    ("data.name", "celeb_a"),
    ("data.corruption.fraction", 0.9),
    ("diffusion.num_timesteps", 2000),
    ("model.unet.channel_multipliers", (1, 2)),
    ("objective.name", "ddpm"),
    ("objective.lam", 1.0),
    ("diffusion.process", "edm"),
    ("diffusion.prediction", "v"),
    ("diffusion.weighting", "min_snr"),
    ("attack.name", "pgd"),
    ("attack.step_size", 0.5),
    ("regulariser.every_steps", 2),
    ("regulariser.free_replays", 2),
    ("train.batch_size", 64),
  ],
)
def test_conflict_names_the_field_and_both_values(path, value):
  saved = configs.default().to_dict()
  old = configs.flatten(saved)[path]
  new = configs.flatten({"": value})[""]
  found = configs.conflicts(saved, with_field(path, value).to_dict())
  assert found == [f"{path}: {old} -> {new}"]


@pytest.mark.parametrize(
  "path, value",
  [
    ("train.num_steps", 900_000),
    ("train.log_every_steps", 7),
    ("optimizer.learning_rate", 1e-3),
    ("optimizer.decay", "cosine"),
    ("checkpoint.keep", 9),
    ("sampling.sampler", "ddim"),
    ("evaluation.num_samples", 9),
    ("data.data_dir", "/elsewhere"),
    ("data.cache", "/elsewhere"),
    ("data.loading", "stream"),
    ("data.num_threads", 2),
    ("data.max_unreadable", 2),
    ("attack.monitor_every_steps", 100),
    ("train.init_from", "/elsewhere"),
    ("sampling.stop_sigma", 0.2),
    ("sweep.seed", (0, 1)),
  ],
)
def test_no_conflict(path, value):
  saved = configs.default().to_dict()
  assert configs.conflicts(saved, with_field(path, value).to_dict()) == []


def test_conflict_with_a_field_of_another_version():
  """One that is gone; one that is new, and was at its default before."""
  saved = configs.default().to_dict()
  saved["objective"]["gamma"] = 2
  del saved["data"]["flip"]
  assert configs.conflicts(saved, configs.default().to_dict()) == [
    "objective.gamma: 2 -> unset"
  ]
  assert configs.conflicts(saved, with_field("data.flip", False).to_dict()) == [
    "data.flip: True -> False",
    "objective.gamma: 2 -> unset",
  ]


@pytest.mark.parametrize(
  "others, warnings",
  [
    ({}, 1),
    ({"sampling__clip_x_0": 1.0}, 0),
    ({"data__linear_rank": 8}, 0),
    ({"model__name": "mlp"}, 0),
    ({"objective__name": "ddpm"}, 0),
  ],
)
def test_large_lambda_of_an_unclipped_unet_is_warned_of_once(
  caplog, others, warnings
):
  checks._warn_of_collapse.cache_clear()
  fields = {"sampling__clip_x_0": 0.0} | others
  for _ in range(2):
    checks.validate(with_field("objective.lam", 3.0, **fields))
  assert caplog.text.count("can collapse a U-Net") == warnings


# ---- What is said of the fields ----


def shown(config, source="x.py", overridden=()):
  """Path -> (value as given on a command line, origin)."""
  found = {}
  for line in configs.show(config, source, overridden).splitlines():
    if line.startswith("--config."):
      given, _, origin = line.rpartition("  (")
      (flag,) = shlex.split(given)
      path, _, value = flag.removeprefix("--config.").partition("=")
      found[path] = value, origin.removesuffix(")")
  return found


def test_every_field_is_shown_in_order_and_explained():
  assert list(shown(configs.default())) == list(configs.FIELDS)
  values = configs.flatten(configs.default().to_dict())
  assert values.keys() == configs.FIELDS.keys()
  for path, field in configs.FIELDS.items():
    assert re.fullmatch(r"[A-Za-z0-9(\"-].*[.:;)]", field.doc), path


def test_defaults_keep_their_own_rules():
  for path, field in configs.FIELDS.items():
    if field.rule:
      assert field.rule.allows(field.default), path


def test_a_field_is_shown_with_its_range():
  said = configs.show(configs.default(), "x.py")
  assert "Share of dirty training examples. (in [0, 1])" in said
  assert "one of bfloat16, float32" in said


def test_origin_of_a_value():
  config = configs.default()
  config.train.num_steps = 7  # by the file
  config.seed = 3  # by the command line
  config.objective.lam = configs.default().objective.lam  # and that in vain
  found = shown(config, "x.py", ["seed", "objective.lam"])
  assert found["train.num_steps"] == ("7", "x.py")
  assert found["seed"] == ("3", "command line")
  assert found["objective.lam"] == ("0.3", "command line")
  assert found["train.batch_size"] == ("128", "default")
  assert found["train.init_from"] == ("", "default")
  assert found["model.unet.channel_multipliers"][0] == "(1, 2, 2, 2)"


def test_page_of_fields_is_that_of_the_table():
  page = runpy.run_path(str(ROOT / "docs" / "assets" / "fields.py"))["page"]
  assert (ROOT / "docs" / "fields.md").read_text() == page(), (
    "run: python docs/assets/fields.py"
  )


@pytest.mark.parametrize(
  "interval, inside, outside",
  [
    ("[0, 1]", (0, 0.5, 1), (-0.1, 1.1, nan)),
    ("[0, 1)", (0, 0.5), (-0.1, 1, nan)),
    ("(0, 2]", (0.1, 2), (0, 2.1)),
  ],
)
def test_interval(interval, inside, outside):
  allows = configs.within(interval).allows
  assert all(map(allows, inside))
  assert not any(map(allows, outside))
