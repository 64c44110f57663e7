"""The command line, from the first command to the last, and when it errs."""

import contextlib
import errno
import json
import os
import pathlib
import runpy
import shlex
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import logging as absl_logging
from absl.testing import flagsaver
from begun import begin
from cifar10_like import prepare_cifar10_like
from PIL import Image

import rad_jax
from rad_jax import arguments, console, main, memory
from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.evaluation import evaluate
from rad_jax.training import hosts, metrics

ROOT = pathlib.Path(__file__).parents[1]
PLANE = "--config=configs/oblique_plane.py:smoke"
CIFAR = "--config=configs/cifar10.py:smoke"
DIGITS = "--config=configs/digits.py:smoke"
# Compiled faster than those of :smoke.
SMALL_MLP = ("--config.model.mlp.width=8", "--config.model.mlp.depth=1")
SMALL_UNET = (
  "--config.model.unet.channel_multipliers=(1,)",
  "--config.model.unet.attention_resolutions=()",
)


def command(*args, **environment):
  """`python -m rad_jax.main` in a process of its own."""
  return subprocess.run(
    [sys.executable, "-m", "rad_jax.main", *map(str, args)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    capture_output=True,
    text=True,
  )


@pytest.fixture
def run(monkeypatch, capsys):
  """The same in this process, for it starts at once: (exit code, stderr)."""
  monkeypatch.chdir(ROOT)
  # absl.app sends all logging through its own handler, for good.
  monkeypatch.setattr(absl_logging, "use_absl_handler", lambda: None)
  # Neither would these filters be taken off again.
  monkeypatch.setattr(console, "say_errors_once", lambda: None)
  # The tests' own process is not to end so.
  monkeypatch.setattr(console, "end_on_signals", lambda: None)
  # JAX runs here already, too late to look for other processes.
  monkeypatch.setattr(hosts, "connect", lambda *_: None)

  def run(*args):
    argv = ["rad_jax/main.py", *map(str, args)]
    monkeypatch.setattr(sys, "argv", argv)
    capsys.readouterr()
    with flagsaver.flagsaver(), contextlib.ExitStack() as stack:
      raised = stack.enter_context(pytest.raises(SystemExit))
      main.run()
    code, stderr = raised.value.code, capsys.readouterr().err
    if isinstance(code, str):  # Python prints it and exits with 1
      code, stderr = 1, f"{stderr}{code}\n"
    return code or 0, stderr

  return run


def assert_succeeds(outcome):
  code, stderr = outcome
  assert code == 0, stderr


def assert_one_clear_line(code, stderr, *expected):
  """The last line, and no other, says what is wrong."""
  assert code not in (0, None)
  assert "Traceback" not in stderr
  lines = stderr.splitlines()
  errors = [line for line in lines if "error" in line.lower()]
  assert errors == lines[-1:], stderr
  assert errors[0].startswith("rad_jax: error: ")
  for text in expected:
    assert text in errors[0]


# ---- Whole runs ----


def test_compiled_programs_are_kept_for_later_processes(monkeypatch, tmp_path):
  """In the folder that is named, for this process and those it starts."""
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  monkeypatch.setenv("HOME", str(tmp_path))
  try:
    console.keep_compiled("~/kept")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "kept")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "kept")
    console.keep_compiled("")
    assert jax.config.jax_compilation_cache_dir is None
    assert not os.environ["JAX_COMPILATION_CACHE_DIR"]
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_world_from_training_to_evaluation(tmp_path):
  """Four commands in four processes."""
  run = tmp_path / "run"
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
  for args in (
    ["--config.train.num_steps=10"],
    ["--config.train.num_steps=15"],
    ["--mode=sample"],
    ["--mode=evaluate"],
  ):
    process = command(PLANE, f"--workdir={run}", *args, **cache)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
  assert "support_rms: " in process.stdout

  assert [row["step"] for row in metrics.read(run)] == [5, 10, 15]
  folders = {path.name for path in (run / "checkpoints").iterdir()}
  assert {"10", "15"} <= folders
  saved = json.loads((run / "config.json").read_text())
  assert saved["train"]["num_steps"] == 15
  samples = run / "samples" / "step_15"
  with np.load(samples / "samples.npz") as file:
    assert file["x_0"].shape == (16, 3)
    assert file["x_0"].dtype == np.float32
    assert np.all(np.isfinite(file["x_0"]))
  assert json.loads((samples / "sampling.json").read_text())["step"] == 15
  with Image.open(samples / "scatter.png") as picture:
    assert min(picture.size) > 300
  result = json.loads((run / "evaluation.json").read_text())
  assert (result["step"], result["objective"]) == (15, "robust_adv")
  assert result["version"] == evaluate.VERSION
  assert result["data"] == "oblique_plane"
  assert result["measures"].keys() == (
    {"support_rms", "frechet", "mean_error", "spread_ratio"}
    | {"sliced_wasserstein"}
    | {"training_spread", "training_frechet", "training_saturated"}
  )
  assert all(np.isfinite(x) for x in result["measures"].values())


def test_world_under_edm(tmp_path, run):
  """Other levels, parametrisation and sampler, from the command line alone."""
  args = [
    PLANE,
    *SMALL_MLP,
    f"--workdir={tmp_path / 'run'}",
    "--config.diffusion.process=edm",
    "--config.diffusion.prediction=edm",
    "--config.sampling.sampler=heun",
    "--config.train.num_steps=10",
  ]
  assert_succeeds(run(*args))
  assert_succeeds(run(*args, "--mode=evaluate"))
  result = json.loads((tmp_path / "run/evaluation.json").read_text())
  assert (result["step"], result["objective"]) == (10, "robust_adv")
  measures = result["measures"]
  assert all(np.isfinite(x) for x in measures.values())
  # From sigma 80 down to the data: noise left over would be far larger.
  assert 0 < measures["support_rms"] < 2
  # A run of one process is not sampled by another.
  code, stderr = run(
    *args, "--mode=evaluate", "--config.diffusion.process=flow"
  )
  assert_one_clear_line(code, stderr, "diffusion.process: edm -> flow")


@pytest.mark.slow
def test_images_from_tfds(tmp_path, run):
  prepare_cifar10_like(tmp_path / "data")
  args = [
    CIFAR,
    f"--config.data.data_dir={tmp_path / 'data'}",
    f"--workdir={tmp_path / 'run'}",
    *SMALL_UNET,
    "--config.objective.name=ddpm",
    "--config.train.batch_size=4",
  ]
  assert_succeeds(run(*args))
  assert_succeeds(run(*args, "--config.train.num_steps=30"))
  rows = metrics.read(tmp_path / "run")
  assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
  assert_succeeds(run(*args, "--mode=sample"))
  samples = tmp_path / "run/samples/step_30"
  with np.load(samples / "samples.npz") as file:
    assert file["x_0"].shape == (16, 32, 32, 3)
    assert np.all(np.abs(file["x_0"]) <= 1)
  with Image.open(samples / "grid.png") as picture:
    assert picture.mode == "RGB"
    assert picture.size[0] == picture.size[1] >= 4 * 33


@pytest.mark.slow
def test_digits_from_preparation_to_evaluation(tmp_path, run):
  args = [
    DIGITS,
    f"--config.data.data_dir={tmp_path / 'data'}",
    f"--workdir={tmp_path / 'run'}",
    "--config.model.name=unet",
    *SMALL_UNET,
    "--config.train.num_steps=5",
    "--config.data.split=train[:1500]",
  ]
  assert_succeeds(run(*args, "--mode=prepare_data"))
  assert not (tmp_path / "run").exists()
  assert_succeeds(run(*args))
  assert_succeeds(
    run(
      *args,
      "--mode=evaluate",
      "--config.evaluation.protocols=('truth', 'memorisation')",
      "--config.evaluation.held_out=train[1500:]",
    )
  )
  with Image.open(tmp_path / "run/memorisation.png") as picture:
    assert min(picture.size) > 300
  result = json.loads((tmp_path / "run/evaluation.json").read_text())
  assert result["step"] == 5
  assert result["measures"].keys() >= {
    "support_psnr_db",
    "frechet",
    "nearest",
  }
  assert result["baselines"]["clean, held out"].keys() >= {
    "support_rms",
    "nearest",
  }


def test_report_needs_no_config(tmp_path, run):
  workdir = tmp_path / "run"
  assert_succeeds(
    run(PLANE, *SMALL_MLP, f"--workdir={workdir}", "--config.train.num_steps=5")
  )
  other = shutil.copytree(workdir, tmp_path / "other")
  both = f"--workdir={workdir},{other}"
  assert_succeeds(
    run("--mode=report", both, f"--report_dir={tmp_path / 'new'}")
  )
  assert not (workdir / "report").exists()
  text = (tmp_path / "new/report.html").read_text()
  assert "<h1>run, other</h1>" in text
  assert "robust_adv" in text
  assert_succeeds(run("--mode=report", f"--workdir={other}"))
  assert (other / "report/training.png").exists()


# ---- A run's own config ----


@pytest.fixture(scope="module")
def begun_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("begun") / "run"
  begin(runs.build(tiny.plane(sampling__num_samples=3)), folder)
  return folder


def test_a_run_needs_no_config(begun_run, run, tmp_path):
  """Its own serves, with overrides on top."""
  folder = shutil.copytree(begun_run, tmp_path / "run")
  args = ["--mode=sample", "--workdir", folder]
  assert_succeeds(run("--config.sampling.num_steps=2", *args))
  samples = folder / "samples/step_20"
  with np.load(samples / "samples.npz") as file:
    assert file["x_0"].shape == (3, 3)
  assert json.loads((samples / "sampling.json").read_text())["num_steps"] == 2
  code, stderr = run(*args, "--config.model.mlp.width=16")
  assert_one_clear_line(code, stderr, "model.mlp.width: 8 -> 16")


def parsed(monkeypatch, *args):
  """The config, and the workdir that is taken where none is given."""
  argv = ["rad_jax", *args]
  monkeypatch.setattr(sys, "argv", argv)
  with flagsaver.flagsaver():
    arguments.parse_flags(argv, main.MODES, main.help_text)
    return main._CONFIG.value.to_dict(), main.default_workdir()


def test_a_run_is_a_config_of_others(begun_run, monkeypatch):
  """Every field is as it was, but for those that are overridden."""
  saved = json.loads((begun_run / "config.json").read_text())
  found, folder = parsed(
    monkeypatch, "--config.seed=7", f"--config={begun_run}"
  )
  assert folder == str(begun_run)
  assert found.pop("seed") == 7
  saved.pop("seed")
  assert configs.flatten(found) == configs.flatten(saved)


@pytest.mark.parametrize(
  "text, expected",
  [
    ('{"objective": {"beta_law": 3}}', "does not have (objective.beta_law)"),
    ('{"objective": {"lam": "much"}}', "config.json is damaged"),
    ('{"objective": ', "config.json is damaged"),
  ],
)
def test_config_of_a_run_that_cannot_be_read(tmp_path, run, text, expected):
  (tmp_path / "config.json").write_text(text)
  code, stderr = run(f"--workdir={tmp_path}", "--mode=sample")
  assert_one_clear_line(code, stderr, expected)


def test_loaded_run_samples_and_predicts(begun_run, tmp_path):
  folder = shutil.copytree(begun_run, tmp_path / "run")
  model = rad_jax.load(folder)
  assert model.step == 20
  assert rad_jax.sampling.draw(model, count=5).shape == (5, 3)
  x_t = jnp.ones((2, 3))
  level = jax.tree.map(lambda x: x[:2], model.run.process.grid(4))
  found = rad_jax.sampling.eps_fn(model.run, model.params)(x_t, level)
  expected = model.run.network.apply(model.params, x_t, level.time)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_choices_are_said_and_kept(tmp_path, run, monkeypatch, caplog):
  photos = tmp_path / "photos"
  photos.mkdir()
  for i in range(5):
    Image.new("RGB", (9, 9), (i, 0, 0)).save(photos / f"{i}.png")
  seen = []
  monkeypatch.setattr(main.loop, "train", lambda run, *_: seen.append(run))
  args = ["--config=my_images", f"--config.data.path={photos}"]
  assert_succeeds(run(*args, f"--workdir={tmp_path / 'run'}"))
  assert seen[0].example_shape == (8, 8, 3)
  assert seen[0].config["objective"]["lam"] == 0.3
  assert "--config.data.image_size=8: a power of two" in caplog.text


def test_package_is_a_command(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["rad_jax", "--help"])
  monkeypatch.setattr(absl_logging, "use_absl_handler", lambda: None)
  monkeypatch.setattr(console, "end_on_signals", lambda: None)
  with pytest.raises(SystemExit) as ended:
    runpy.run_module("rad_jax", run_name="__main__")
  assert not ended.value.code
  assert "--mode=" in capsys.readouterr().out


def test_world_needs_no_preparation(tmp_path, run):
  workdir = tmp_path / "run"
  assert_succeeds(run(PLANE, f"--workdir={workdir}", "--mode=prepare_data"))
  assert not workdir.exists()


@pytest.mark.parametrize(
  "config, folder",
  [
    ("configs/cifar10.py", "runs/cifar10"),
    ("configs/cifar10.py:smoke", "runs/cifar10_smoke"),
    ("configs/digits.py:smoke", "runs/digits_smoke"),
  ],
)
def test_default_workdir(monkeypatch, config, folder):
  monkeypatch.chdir(ROOT)
  argv = ["main.py", f"--config={config}"]
  monkeypatch.setattr(sys, "argv", argv)
  with flagsaver.flagsaver():
    main.flags.FLAGS(argv)
    assert main.default_workdir() == folder


# ---- Errors ----


@pytest.mark.slow
def test_batch_that_the_devices_cannot_share(tmp_path):
  process = command(
    PLANE,
    "--config.train.batch_size=6",
    f"--workdir={tmp_path / 'run'}",
    XLA_FLAGS="--xla_force_host_platform_device_count=4",
  )
  assert_one_clear_line(
    process.returncode,
    process.stderr,
    "rad_jax: error: config.train.batch_size=6: it must be",
    "devices, 4",
  )
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "flag, expected",
  [
    ("--config.objective.name=robust", "config.objective.name='robust'"),
    ("--config.objective.beta=0", "config.objective.beta=0.0"),
    ("--config.objective.beta=2.0", "config.objective.beta=2.0"),
    ("--config.objective.omega=0.5", "config.objective.omega=0.5"),
    ("--config.data.corruption.fraction=1.5", "corruption.fraction=1.5"),
    ("--config.data.corruption.fraction=-0.5", "corruption.fraction=-0.5"),
    ("--config.sampling.num_steps=2000", "config.sampling.num_steps=2000"),
    ("--config.train.num_steps=ten", "=ten: it must be a whole number, in [1"),
    ("--config.train.num_steps=1.5", "=1.5: it must be a whole number"),
    ("--config.train.num_steps=2147483648", "in [1, 2147483647]"),
    ("--config.data.flip=maybe", "=maybe: it must be True or False"),
    ("--config.nothing.beta=1", "did you mean --config.objective.beta or"),
    ("--config.train.num_stps=3", "did you mean --config.train.num_steps?"),
    ("--objective.lam=3", "did you mean --config.objective.lam?"),
    ("--lam=3", "--config.objective.lam or --config.sweep.lam?"),
    ("--worksdir=1", "no flag --worksdir; did you mean --workdir?"),
    ("--num_processes=two", "--num_processes=two: it must be a whole number"),
    ("--mode=fly", "There are train, sample, evaluate, purify, diagnose"),
    ("--mode=trian", "did you mean --mode=train?"),
    ("--mode=", "--mode has no value"),
    ("train", "write --mode=train"),
    ("configs/digits.py", "write --config=configs/digits.py"),
  ],
)
def test_bad_flag(tmp_path, run, flag, expected):
  workdir = tmp_path / "run"
  assert_one_clear_line(*run(PLANE, f"--workdir={workdir}", flag), expected)
  assert not workdir.exists()


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate"])
def test_bad_config_in_every_mode(tmp_path, run, mode):
  code, stderr = run(
    PLANE,
    f"--workdir={tmp_path}",
    f"--mode={mode}",
    "--config.objective.name=robust",
  )
  assert_one_clear_line(code, stderr, "robust_adv, robust_ran")


def test_config_is_missing(tmp_path, run):
  code, stderr = run(f"--workdir={tmp_path}")
  assert_one_clear_line(
    code,
    stderr,
    f"no run in --workdir={tmp_path}, and no config: give --config",
  )


@pytest.mark.parametrize(
  "overrides, expected",
  [
    ([], "config.data.path=''"),
    (["--config.data.path=nowhere"], "nowhere"),
    (["--config.study.methods=('magic',)"], "robust_adv-lam3"),
  ],
)
def test_study_of_images_that_are_not_there(tmp_path, run, overrides, expected):
  """What is wrong is a cell's: the base config of a study is no run."""
  code, stderr = run(
    "--config=configs/study.py:smoke",
    "--mode=study",
    f"--workdir={tmp_path}",
    "--config.study.data=('colour',)",
    "--config.study.processes=1",
    *overrides,
  )
  assert_one_clear_line(code, stderr, expected)


def test_report_of_nothing(tmp_path, run):
  code, stderr = run("--mode=report")
  assert_one_clear_line(code, stderr, "--mode=report takes --workdir")
  code, stderr = run("--mode=report", f"--workdir={tmp_path}")
  assert_one_clear_line(code, stderr, f"no run in {tmp_path}")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", [[], ["--config.train.num_steps=3"]])
def test_config_file_is_missing(tmp_path, run, override):
  code, stderr = run(
    "--config=configs/nothing.py:smoke", f"--workdir={tmp_path}", *override
  )
  assert_one_clear_line(code, stderr, "configs/nothing.py")


def test_unknown_variant(tmp_path, run):
  code, stderr = run(
    "--config=configs/oblique_plane.py:smok", f"--workdir={tmp_path}"
  )
  assert_one_clear_line(code, stderr, "unknown variant 'smok'")


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate"])
def test_workdir_below_a_file(tmp_path, run, mode):
  (tmp_path / "file").write_text("")
  code, stderr = run(
    PLANE, f"--workdir={tmp_path / 'file' / 'run'}", f"--mode={mode}"
  )
  assert_one_clear_line(code, stderr, str(tmp_path / "file"))
  if mode == "train":
    assert "is a file where a folder is needed; change --workdir=" in stderr


@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_nothing_to_sample_from(tmp_path, run, mode):
  code, stderr = run(PLANE, f"--workdir={tmp_path}", f"--mode={mode}")
  assert_one_clear_line(code, stderr, str(tmp_path), "train first")
  assert list(tmp_path.iterdir()) == []


def test_set_is_not_prepared(tmp_path, run):
  data_dir = tmp_path / "data"
  code, stderr = run(
    CIFAR,
    f"--config.data.data_dir={data_dir}",
    f"--workdir={tmp_path / 'run'}",
    "--config.model.name=mlp",
    "--config.objective.lam=1.0",
  )
  prepare = (
    f"python -m rad_jax.main {CIFAR} --config.data.data_dir={data_dir}"
    " --mode=prepare_data"
  )
  assert_one_clear_line(code, stderr, str(data_dir))
  assert stderr.endswith(f": {prepare}\n")


def test_preparation_is_told_the_same_flags_however_they_are_written():
  argv = ["--config", "configs/cifar10.py", "--config.data.data_dir", "a b"]
  argv += ["--workdir", "runs/x", "-mode", "train"]
  assert arguments.prepare_command(["rad_jax/main.py", *argv]) == (
    "python -m rad_jax.main --config=configs/cifar10.py"
    " '--config.data.data_dir=a b' --mode=prepare_data"
  )


def test_unknown_set(tmp_path, run):
  code, stderr = run(
    CIFAR,
    "--config.data.name=cifar11",
    "--config.model.name=mlp",
    f"--config.data.data_dir={tmp_path}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert_one_clear_line(code, stderr, "unknown dataset 'cifar11'", "cifar10")


@pytest.mark.parametrize(
  "error, expected",
  [
    (
      jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64.00GiB."
      ),
      # A quarter of the batch of 16.
      "about 4 will fit, as 64.0 GiB were asked for, and 16.0 are free"
      " (--config.train.batch_size=4), or take it in pieces"
      " (--config.train.micro_batches=4)",
    ),
    (
      jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
      "does not fit in memory; about 8 will fit",
    ),
    (
      MemoryError("Unable to allocate 12.0 GiB"),
      "12.0 GiB. --config.data.loading=stream",
    ),
  ],
)
def test_memory_runs_out(tmp_path, run, monkeypatch, error, expected):
  def train(*_):
    raise error

  monkeypatch.setattr(memory, "available", lambda: 16.0 * 2**30)
  monkeypatch.setattr(main.loop, "train", train)
  code, stderr = run(PLANE, f"--workdir={tmp_path}")
  assert_one_clear_line(code, stderr, expected)


@pytest.mark.parametrize(
  "batch_size, pieces, expected",
  [
    # 5 of 20 fit; of 30 in 2 pieces of 15, 7, so that 10 pieces of 3 do.
    (20, 1, "about 5 will fit.*micro_batches=4"),
    (30, 2, "about 7 will fit.*micro_batches=10"),
    (20, 0, r"config.sampling.*about 5 will fit.*=5\)$"),
    (2, 1, "take a smaller network"),
  ],
)
def test_pieces_divide_a_batch_that_does_not_fit(
  monkeypatch, batch_size, pieces, expected
):
  monkeypatch.setattr(memory, "available", lambda: 16.0 * 2**30)
  with (
    pytest.raises(memory.TooLarge, match=expected),
    memory.clear_errors(batch_size, pieces),
  ):
    raise jax.errors.JaxRuntimeError(
      f"RESOURCE_EXHAUSTED: Out of memory allocating {2**36} bytes."
    )


def test_other_errors_of_xla_are_bugs(tmp_path, run, monkeypatch):
  def train(*_):
    raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

  monkeypatch.setattr(main.loop, "train", train)
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    run(PLANE, f"--workdir={tmp_path}")


@pytest.mark.parametrize(
  "number, expected",
  [
    (errno.ENOSPC, "the disk is full, at {}/x: free space"),
    (errno.EACCES, "{}/x: permission denied; change --workdir={}"),
    (errno.EROFS, "{}/x: read-only file system; change --workdir={}"),
  ],
)
def test_words_of_the_system_name_the_flag(
  tmp_path, run, monkeypatch, number, expected
):
  def train(*_):
    raise OSError(number, "words", str(tmp_path / "x"))

  monkeypatch.setattr(main.loop, "train", train)
  code, stderr = run(PLANE, f"--workdir={tmp_path}")
  assert_one_clear_line(code, stderr, expected.format(tmp_path, tmp_path))


def test_traceback_on_demand(tmp_path, run):
  with pytest.raises(main.configs.ConfigError, match="lam"):
    run(
      PLANE,
      f"--workdir={tmp_path}",
      "--config.objective.lam=-1.0",
      "--traceback",
    )


# ---- Help ----


def test_help_fits_a_screen_and_has_every_mode(run):
  assert run("--help")[0] == 0
  lines = main.help_text().splitlines()
  assert len(lines) <= 32
  assert max(map(len, lines)) <= 80
  for mode in main.MODES:
    assert sum(line.startswith(f"  {mode} ") for line in lines) == 1
  for path in (ROOT / "configs").glob("*.py"):
    assert path.stem in main.help_text()


@pytest.mark.parametrize("mode", main.MODES)
def test_example_of_a_mode_is_a_command(mode, monkeypatch):
  """absl and the config take its flags."""
  monkeypatch.chdir(ROOT)
  example = shlex.split(main.MODES[mode][1])
  if not any(flag.startswith("--config=") for flag in example):
    example = ["--config=configs/digits.py", *example]
  monkeypatch.setattr(sys, "argv", ["rad_jax", f"--mode={mode}", *example])
  with flagsaver.flagsaver():
    arguments.parse_flags(sys.argv, main.MODES, main.help_text)
    assert main.flags.FLAGS.mode == mode


@pytest.mark.slow
def test_shown_config_is_that_of_the_command():
  done = command(DIGITS, "--mode=show_config", "--config.seed=7")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert "--config.seed=7  (command line)" in lines
  assert "--config.data.name=digits  (digits.py:smoke)" in lines
  assert "--config.optimizer.b1=0.9  (default)" in lines


@pytest.mark.parametrize(
  "given", ["digits:smoke", "configs/digits.py:smoke", "digits.py:smoke"]
)
def test_configs_of_the_package_are_found_anywhere(
  given, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  found = f"{ROOT / 'configs' / 'digits.py'}:smoke"
  assert arguments.find_config(given) == found
  with flagsaver.flagsaver():
    argv = ["rad_jax", "--config", given]
    arguments.parse_flags(argv, main.MODES, main.help_text)
    assert main.default_workdir() == "runs/digits_smoke"
  # One's own comes first, and a path elsewhere is taken as it is.
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "digits.py").write_text("")
  assert arguments.find_config("configs/digits.py") == "configs/digits.py"
  with pytest.raises(FileNotFoundError, match="the package has butterflies"):
    arguments.find_config(str(tmp_path / "digits.py"))


def test_file_that_is_no_config(run):
  code, stderr = run("--config=README.md")
  assert_one_clear_line(code, stderr, "--config=README.md is no config file")


def test_misspelt_config_file(run):
  code, stderr = run("--config=configs/digit.py")
  assert_one_clear_line(
    code, stderr, "no config file 'configs/digit.py'; did you mean"
  )
  assert "configs/digits.py" in stderr
