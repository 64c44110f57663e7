"""python -m rad_jax.main --config=configs/cifar10.py [--mode=...]

Flags, logging and one mode each: hands over. A mode imports what it alone
needs, for SciPy's statistics and matplotlib take seconds.
"""

import contextlib
import difflib
import itertools
import logging
import os
import pathlib
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

import rad_jax
from rad_jax import config as configs
from rad_jax import fields, validation
from rad_jax.config import ConfigDict
from rad_jax.data import builders, sources
from rad_jax.training import checkpoints, hosts, loop

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, yours or one that comes with the package; :smoke behind it"
  " shrinks it to seconds.",
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
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "host:port of process 0, where no launcher says it; with --num_processes and"
  " --process_id.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Of the whole run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Of this one, from 0.")
_TIMEOUT_S = flags.DEFINE_integer(
  "connect_timeout_s", 300, "How long the processes wait for each other."
)
_HEARTBEAT_S = flags.DEFINE_integer(
  "heartbeat_s", 60, "A process silent for so long is lost, and ends the rest."
)
_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where an error was raised."
)

# The exit code of a run that was asked to stop and can go on: EX_TEMPFAIL.
INTERRUPTED = 75

# What a user can mend, mostly: libraries raise some of these for bugs as well,
# for which there is --traceback. All others are bugs and show theirs.
_USER_ERRORS = (
  ValueError,
  OSError,
  FloatingPointError,
  checkpoints.CheckpointError,
  hosts.HostError,
  builders.PreparationError,
)


def _train(config: ConfigDict, workdir: pathlib.Path) -> None:
  loop.train(config, workdir)
  if hosts.is_first():
    print(f"trained: {workdir}")


def _sample(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import sampling
  from rad_jax.reports import figures

  folder = sampling.sample(config, workdir)
  print(f"sampled: {figures.show_samples(folder)}")


def _evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import evaluate
  from rad_jax.reports import figures

  result = evaluate.evaluate(config, workdir)
  for name, value in result["measures"].items():
    print(f"{name}: {value:.4g}")
  paths = [workdir / "evaluation.json"]
  if "memorisation" in config.evaluation.protocols:
    paths += filter(None, [figures.show_pairs(workdir)])
  _print_paths("evaluated", paths)


def _diagnose(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import diagnose
  from rad_jax.reports import curves

  result = diagnose.diagnose(config, workdir)
  print(curves.diagnosis_table(result))
  _print_paths("diagnosed", curves.write_diagnosis(workdir))


def _purify(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import purify
  from rad_jax.reports import figures

  folder = purify.purify(config, workdir)
  print(f"purified: {figures.show_samples(folder)}")


def _show_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  del workdir
  flag = flags.FLAGS["config"]
  print(
    fields.show(
      config,
      pathlib.Path(config_flags.get_config_filename(flag)).name,
      config_flags.get_override_values(flag),
    )
  )


def _cost(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.training import cost

  del workdir
  rows = cost.cost(config)
  print(f"{cost.table(rows)}\n\n{cost.forecast(config, rows)}")


def _hint(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import hint
  from rad_jax.reports import curves

  result = hint.hint(config, workdir)
  print(curves.hint_table(result))
  _print_paths("written", curves.write_hint(workdir))


def _sweep(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.experiments import sweep
  from rad_jax.reports import experiment

  runs = sweep.matched(sweep.grid(config), config.sweep.match, workdir)
  rows = sweep.run_all(runs, workdir, config.sweep.processes)
  paths = experiment.write(rows, workdir, "sweep")
  print(paths[0].read_text())
  _print_paths("swept", paths)


def _study(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.experiments import study
  from rad_jax.reports import experiment

  rows = study.run(config, workdir)
  notes = config.study.notes
  told = pathlib.Path(notes) if notes else None
  _print_report(experiment.write(rows, workdir, "study", notes=told))


def _export(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import sampling
  from rad_jax.training import pretrained

  model = sampling.newest_model(config, workdir)
  folder = pretrained.export(model.params, config, workdir / "diffusers")
  which = "moving average" if config.sampling.ema else "raw weights"
  print(f"exported: {folder} ({which} of step {model.step})")


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
  from rad_jax.reports import runs

  folder = _REPORT_DIR.value
  paths = runs.write(
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


class Mode(NamedTuple):
  """What --help says of a mode, and what does it.

  says: a few words.
  example: flags, beside those of every mode.
  run: (config, workdir) -> None; None for --mode=report, which has no config.
  """

  says: str
  example: str
  run: Callable[[ConfigDict, pathlib.Path], None] | None


MODES = {
  "train": Mode(
    "train, or go on", "--config.data.corruption.fraction=0.9", _train
  ),
  "sample": Mode("draw samples", "--config.sampling.num_steps=50", _sample),
  "evaluate": Mode(
    "measure them",
    "--config.evaluation.num_samples=500",
    _evaluate,
  ),
  "purify": Mode("clean images", "--config.purify.t_star=0.3", _purify),
  "diagnose": Mode("how equivariant it is", "--workdir=runs/digits", _diagnose),
  "cost": Mode("dry run", "--config.objective.name=robust_ran", _cost),
  "hint": Mode("choose lambda", "--config.objective.lam=1.0", _hint),
  "sweep": Mode("a grid of runs", '--config.sweep.lam="(0.3, 3.0)"', _sweep),
  "study": Mode("worlds x methods", "--config=configs/study.py:smoke", _study),
  "report": Mode("runs as one page", "--workdir=runs/ddpm,runs/adv", None),
  "export": Mode("to diffusers", "--config=configs/cifar10.py", _export),
  "prepare_data": Mode(
    "fetch the set", "--config=configs/cifar10.py", _prepare_data
  ),
  "show_config": Mode(
    "all fields", "--config.train.num_steps=100", _show_config
  ),
}
_MODE = flags.DEFINE_enum("mode", "train", [*MODES], "What to do.")


def main(argv: list[str]) -> None:
  """Runs the mode that the flags ask for."""
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  absl_logging.set_verbosity(absl_logging.WARNING)  # orbax's running comment
  if not _TRACEBACK.value:
    say_errors_once()
  keep_compiled(_COMPILE_CACHE.value)
  mode = MODES[_MODE.value]
  with clear_errors():
    if mode.run is None:
      _report(_WORKDIR.value or default_workdir())
      return
    hosts.connect(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      _TIMEOUT_S.value,
      _HEARTBEAT_S.value,
    )
    hosts.introduce()
    if jax.process_count() > 1 and _MODE.value != "train":
      raise hosts.HostError(
        f"--mode={_MODE.value} runs in one process, on all its devices"
      )
    config = _CONFIG.value
    config.lock()  # The first access raises if the file could not be read.
    # A study's base need not be a run: its cells are validated.
    if _MODE.value not in ("study", "show_config"):
      validation.validate(
        config,
        jax.device_count(),
        training=_MODE.value in ("train", "sweep"),
      )
    mode.run(config, local_path(_WORKDIR.value or default_workdir()))


def help_text() -> str:
  """What --help prints."""
  modes = "\n".join(
    f"  {name:13} {mode.says:22} {mode.example}" for name, mode in MODES.items()
  )
  configs_of_package = textwrap.indent(
    textwrap.fill(", ".join(packaged_configs()), 76), "  "
  )
  return f"""rad_jax {rad_jax.__version__}: robust diffusion training

  python -m rad_jax.main --config=configs/digits.py --mode=train

--mode=         does                   for example
{modes}

--config=FILE[:smoke]    yours, or one of these; :smoke shrinks it to seconds:
{configs_of_package}
--config.FIELD=VALUE     any field; --mode=show_config lists them all
--workdir=DIR            the run's folder; runs/<config> if not given
--traceback              where an error was raised
--helpfull               all flags, those of several processes among them"""


def packaged_configs() -> dict[str, pathlib.Path]:
  """The config files that come with the package, by name."""
  package = pathlib.Path(__file__).parent
  # Installed they lie inside the package; in a checkout, beside it.
  for folder in (package / "configs", package.parent / "configs"):
    if folder.is_dir():
      return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
  return {}


def find_config(given: str) -> str:
  """The path of a config file; one of the package's where there is no other.

  Args:
    given: as on the command line: a path, perhaps with a ":variant" behind it;
      "digits" and "configs/digits.py" are found from any folder.

  Raises:
    FileNotFoundError: there is no such file.
  """
  name, colon, variant = given.partition(":")
  path, known = pathlib.Path(name), packaged_configs()
  if path.is_file():
    return given
  if str(path.parent) in (".", "configs"):
    if path.stem in known:
      return f"{known[path.stem]}{colon}{variant}"
    close = difflib.get_close_matches(path.stem, known, 1)
    if close:
      raise FileNotFoundError(
        f"no config file {name!r}; did you mean configs/{close[0]}.py?"
      )
  raise FileNotFoundError(
    f"no config file {name!r}; the package has {', '.join(known)}"
  )


def keep_compiled(folder: str) -> None:
  """Later processes, those of sweeps too, load what this one compiles."""
  path = str(pathlib.Path(folder).expanduser().absolute()) if folder else ""
  os.environ["JAX_COMPILATION_CACHE_DIR"] = path
  jax.config.update("jax_compilation_cache_dir", path or None)


def say_errors_once() -> None:
  """Drops what is logged of a failed save beside the error that it raises.

  Orbax's threads, and futures that nobody waits for, write hundreds of lines.
  """
  absl_logging.get_absl_logger().addFilter(
    lambda record: (
      record.levelno < logging.ERROR
      or f"{os.sep}orbax{os.sep}" not in record.pathname
    )
  )
  logging.getLogger("asyncio").addFilter(
    lambda record: "was never retrieved" not in record.getMessage()
  )
  tell = sys.unraisablehook

  def tell_others(unraisable: Any) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
      tell(unraisable)

  sys.unraisablehook = tell_others


def local_path(path: str) -> pathlib.Path:
  """The path, if it is of a file system.

  Raises:
    ValueError: it is an address, as gs://bucket.
  """
  if "://" in path:
    raise ValueError(
      f"--workdir={path} is no folder: mount it, as gcsfuse does a bucket"
    )
  return pathlib.Path(path)


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
  """Turns what a user can mend into one line and exit code 1.

  A run that was asked to stop, and is saved, ends with code 75, "try again";
  all else that Ctrl-C breaks off with 130.
  """
  try:
    yield
  except loop.Interrupted as stopped:
    print(f"rad_jax: {stopped}", file=sys.stderr)
    sys.exit(INTERRUPTED)
  except KeyboardInterrupt:
    print(
      "rad_jax: interrupted; the same command goes on where it can",
      file=sys.stderr,
    )
    sys.exit(130)
  except _USER_ERRORS as error:
    if _TRACEBACK.value:
      raise
    message = one_line(error)
    if isinstance(error, sources.NotPrepared):
      message += f". Prepare it with: {prepare_command(sys.argv)}"
    elif not type(error).__module__.startswith("rad_jax."):
      message += " (--traceback shows where)"
    is_one_of_many = (
      jax.distributed.is_initialized() and jax.process_count() > 1
    )
    if is_one_of_many or isinstance(error, checkpoints.WriteError):
      # Without a farewell, for which the other processes, or orbax's threads,
      # would have to be whole.
      print(f"rad_jax: error: {message}", file=sys.stderr, flush=True)
      os._exit(1)
    sys.exit(f"rad_jax: error: {message}")


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parsing, with every error as one line and exit code 1."""
  if {"--help", "-help", "-h"} & set(argv):
    print(help_text())
    sys.exit(0)
  argv = list(argv)
  try:
    for i, (argument, following) in enumerate(itertools.pairwise([*argv, ""])):
      if argument.startswith(("--config=", "-config=")):
        argv[i] = f"--config={find_config(argument.partition('=')[2])}"
      elif argument in ("--config", "-config") and following:
        argv[i + 1] = find_config(following)
    return flags.FLAGS(argv)
  except (
    flags.Error,
    AttributeError,
    KeyError,
    OSError,
    ValueError,
  ) as error:
    message = one_line(error).rstrip(".")
  sys.exit(f"rad_jax: error: {message} (--help shows examples)")


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
    "Flag --config must have a value; --mode=report takes --workdir as well;"
    " --help has examples",
  )
  app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
  run()
