"""python -m rad_jax.main --config=configs/cifar10.py [--mode=...]

Flags, logging and one mode each: hands over.
"""

import contextlib
import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from rad_jax import config as configs
from rad_jax.config import ConfigDict
from rad_jax.data import builders, sources
from rad_jax.evaluation import diagnose, evaluate, hint, purify, sampling
from rad_jax.experiments import study, sweep
from rad_jax.reports import curves, figures, frontier
from rad_jax.reports import runs as reports
from rad_jax.reports import study as study_report
from rad_jax.training import checkpoints, cost, loop

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file; :smoke behind it shrinks it to seconds."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run; runs/<config> if not given. Of --mode=report: those of"
  " one or several runs, or of a sweep, parted by commas.",
)
_REPORT_DIR = flags.DEFINE_string(
  "report_dir",
  None,
  "Where --mode=report writes; report/ in the first workdir if not given.",
)
_COMPILE_CACHE = flags.DEFINE_string(
  "compile_cache",
  os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/rad_jax"),
  'Folder of compiled programs, for later runs of the same; "" keeps none.',
)
_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where an error was raised."
)

# What a user can mend, mostly: libraries raise some of these for bugs as well,
# for which there is --traceback. All others are bugs and show theirs.
_USER_ERRORS = (
  ValueError,
  OSError,
  FloatingPointError,
  checkpoints.CheckpointError,
  builders.PreparationError,
)


def _train(config: ConfigDict, workdir: pathlib.Path) -> None:
  loop.train(config, workdir)
  print(f"trained: {workdir}")


def _sample(config: ConfigDict, workdir: pathlib.Path) -> None:
  folder = sampling.sample(config, workdir)
  print(f"sampled: {figures.show_samples(folder)}")


def _evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
  result = evaluate.evaluate(config, workdir)
  for name, value in result["measures"].items():
    print(f"{name}: {value:.4g}")
  paths = [workdir / "evaluation.json"]
  if "memorisation" in config.evaluation.protocols:
    paths += filter(None, [figures.show_pairs(workdir)])
  _print_paths("evaluated", paths)


def _diagnose(config: ConfigDict, workdir: pathlib.Path) -> None:
  result = diagnose.diagnose(config, workdir)
  print(curves.diagnosis_table(result))
  _print_paths("diagnosed", curves.write_diagnosis(workdir))


def _purify(config: ConfigDict, workdir: pathlib.Path) -> None:
  folder = purify.purify(config, workdir)
  print(f"purified: {figures.show_samples(folder)}")


def _cost(config: ConfigDict, workdir: pathlib.Path) -> None:
  del workdir
  print(cost.table(cost.cost(config)))


def _hint(config: ConfigDict, workdir: pathlib.Path) -> None:
  result = hint.hint(config, workdir)
  print(curves.hint_table(result))
  _print_paths("written", curves.write_hint(workdir))


def _sweep(config: ConfigDict, workdir: pathlib.Path) -> None:
  runs = sweep.matched(sweep.grid(config), config.sweep.match, workdir)
  rows = sweep.run_all(runs, workdir, config.sweep.processes)
  paths = frontier.write(rows, workdir)
  print(paths[0].read_text())
  _print_paths("swept", paths)


def _study(config: ConfigDict, workdir: pathlib.Path) -> None:
  rows = study.run(config, workdir)
  notes = config.study.notes
  paths = study_report.write(
    rows, workdir, pathlib.Path(notes) if notes else None
  )
  _print_report(paths)


def _prepare_data(config: ConfigDict, workdir: pathlib.Path) -> None:
  del workdir
  if configs.is_synthetic(config):
    print(f"{config.data.name} is drawn on the fly: nothing to prepare")
  elif not builders.needs_preparation(config.data.name):
    print(f"{config.data.name} is read as it is: nothing to prepare")
  else:
    builders.prepare(config.data.name, config.data.data_dir or None)
    print(f"prepared: {config.data.name}")


def _report(workdirs: str) -> None:
  folder = _REPORT_DIR.value
  paths = reports.write(
    [pathlib.Path(path) for path in workdirs.split(",") if path],
    pathlib.Path(folder) if folder else None,
  )
  _print_report(paths)


def _print_report(paths: list[pathlib.Path]) -> None:
  beside = f"{len(paths) - 1} files of figures and tables beside it"
  print(f"reported: {paths[0]} ({beside})")


def _print_paths(done: str, paths: Iterable[pathlib.Path]) -> None:
  for path in paths:
    print(f"{done}: {path}")


MODES = {
  "train": _train,
  "sample": _sample,
  "evaluate": _evaluate,
  "purify": _purify,
  "diagnose": _diagnose,
  "cost": _cost,
  "hint": _hint,
  "sweep": _sweep,
  "study": _study,
  "prepare_data": _prepare_data,
}
_MODE = flags.DEFINE_enum("mode", "train", [*MODES, "report"], "What to do.")


def main(argv: list[str]) -> None:
  """Runs the mode that the flags ask for."""
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  absl_logging.set_verbosity(absl_logging.WARNING)  # orbax's running comment
  keep_compiled(_COMPILE_CACHE.value)
  with clear_errors():
    if _MODE.value == "report":
      _report(_WORKDIR.value or default_workdir())
      return
    config = _CONFIG.value
    config.lock()  # The first access raises if the file could not be read.
    # A study's base need not be a run: its cells are validated.
    if _MODE.value != "study":
      configs.validate(
        config,
        jax.device_count(),
        training=_MODE.value in ("train", "sweep"),
      )
    MODES[_MODE.value](
      config, pathlib.Path(_WORKDIR.value or default_workdir())
    )


def keep_compiled(folder: str) -> None:
  """Later processes, those of sweeps too, load what this one compiles."""
  if folder:
    path = str(pathlib.Path(folder).expanduser().absolute())
    os.environ["JAX_COMPILATION_CACHE_DIR"] = path
    jax.config.update("jax_compilation_cache_dir", path)


def default_workdir() -> str:
  """runs/cifar10 for --config=configs/cifar10.py, runs/cifar10_smoke, ..."""
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  name, _, argument = path.partition(":")
  return "_".join(filter(None, [f"runs/{pathlib.Path(name).stem}", argument]))


def prepare_command(argv: list[str]) -> str:
  """The command that prepares the data of the command argv."""
  needed = ("config", "config.data.name", "config.data.data_dir")
  kept = []
  for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name in needed:
      kept.append(f"--{name}={value if equals else following}")
  return shlex.join(
    ["python", "-m", "rad_jax.main", *kept, "--mode=prepare_data"]
  )


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
  """Turns what a user can mend into one line and exit code 1."""
  try:
    yield
  except _USER_ERRORS as error:
    if _TRACEBACK.value:
      raise
    message = one_line(error)
    if isinstance(error, sources.NotPrepared):
      message += f". Prepare it with: {prepare_command(sys.argv)}"
    elif not type(error).__module__.startswith("rad_jax."):
      message += " (--traceback shows where)"
    sys.exit(f"rad_jax: error: {message}")


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parsing, with every error as one line and exit code 1."""
  try:
    return flags.FLAGS(argv)
  except (
    flags.Error,
    AttributeError,
    KeyError,
    OSError,
    ValueError,
  ) as error:
    message = one_line(error).rstrip(".")
  sys.exit(f"rad_jax: error: {message}. All flags: --helpfull")


def one_line(error: BaseException) -> str:
  """The message alone, where ml_collections packs errors or tracebacks in."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
  if "Traceback (most recent call last)" in text:
    text = text.splitlines()[-1].strip().partition(": ")[2]
  return " ".join(text.split())


def _is_told_enough(given: dict[str, Any]) -> bool:
  """A report is of workdirs; all else is of a config."""
  if given["config"] is not None:
    return True
  return given["mode"] == "report" and bool(given["workdir"])


def run() -> None:
  """The entry of the command line."""
  logging.basicConfig(format="%(message)s", level=logging.WARNING)
  logging.getLogger("rad_jax").setLevel(logging.INFO)
  flags.register_multi_flags_validator(
    ["config", "workdir", "mode"],
    _is_told_enough,
    "Flag --config must have a value; --mode=report takes --workdir as well",
  )
  app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
  run()
