"""python -m rad_jax --config=configs/cifar10.py [--mode=...]

Each mode's function imports what it alone needs: matplotlib takes seconds.
"""

import logging
import os
import pathlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import jax
import numpy as np
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

import rad_jax
from rad_jax import arguments, checks, choices, console, files, memory, saved
from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.data import builders, training_set
from rad_jax.interop import pretrained
from rad_jax.training import hosts, loop

_LOG = logging.getLogger("rad_jax")

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file: yours, or one that comes with the package. With :smoke behind"
  " its name it is tiny, to run in seconds. Or the folder of a run; without it,"
  " that of --workdir serves.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run; runs/<config> if not given. For --mode=report, folders of"
  " runs or experiments, separated by commas.",
)
_REPORT_DIR = flags.DEFINE_string(
  "report_dir",
  None,
  "Where --mode=report writes; if not given, report/ in the first workdir.",
)
_COMPILE_CACHE = flags.DEFINE_string(
  "compile_cache",
  os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/rad_jax"),
  'Folder of compiled programs, which later runs of the same config load; "":'
  " none.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "host:port of process 0, if no launcher gives it; needs --num_processes and"
  " --process_id.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  0,
  "Processes of the run; 0: as the launcher says.",
  lower_bound=0,
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id",
  -1,
  "Number of this process, from 0; -1: as the launcher says.",
  lower_bound=-1,
)
_TIMEOUT_S = flags.DEFINE_integer(
  "connect_timeout_s",
  300,
  "Seconds to wait for the other processes.",
  lower_bound=1,
)
_HEARTBEAT_S = flags.DEFINE_integer(
  "heartbeat_s",
  60,
  "Seconds of silence after which a process is lost, and the others stop.",
  lower_bound=1,
)
_HUB = flags.DEFINE_string("hub", "", "owner/name, of --mode=push.")
_LICENSE = flags.DEFINE_string(
  "license", "unknown", "Of the model that --mode=push uploads, as apache-2.0."
)
_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where an error was raised."
)


def _train(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import progress

  loop.train(runs.build(config), workdir, partial(progress.shower, _draw))
  if hosts.is_first():
    print(f"trained: {workdir}")


def _draw(x_0: np.ndarray, path: pathlib.Path) -> pathlib.Path:
  from rad_jax.reports import figures

  return figures.draw_samples(x_0, path)


def _sample(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import sampling
  from rad_jax.reports import figures

  folder = sampling.sample(runs.build(config), workdir)
  pictures = figures.show_samples(folder), *folder.glob("images")
  _print_paths("sampled", pictures)


def _measure(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import evaluate
  from rad_jax.reports import figures

  evaluate.refuse_unknown(config.evaluation.protocols)
  result = evaluate.evaluate(runs.build(config), workdir)
  for name, value in result["measures"].items():
    beside = [
      f"{of} {found[name]:.4g}"
      for of, found in result["baselines"].items()
      if name in found
    ]
    print(f"{name}: {value:.4g}" + f" ({', '.join(beside)})" * bool(beside))
  paths = [workdir / "evaluation.json"]
  if "memorisation" in config.evaluation.protocols:
    paths += filter(None, [figures.show_pairs(workdir)])
  _print_paths("evaluated", paths)


def _diagnose(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import diagnose
  from rad_jax.reports import curves

  result = diagnose.diagnose(runs.build(config), workdir)
  print(curves.diagnosis_table(result))
  _print_paths("diagnosed", curves.write_diagnosis(workdir))


def _purify(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import purify
  from rad_jax.reports import figures

  folder = purify.purify(runs.build(config), workdir)
  for name, value in files.read_json(folder / "purification.json").items():
    print(f"{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
  pictures = figures.show_purified(folder), *folder.glob("images")
  _print_paths("purified", pictures)


def _show_config(config: ConfigDict, _: pathlib.Path) -> None:
  flag = flags.FLAGS["config"]
  path = pathlib.Path(config_flags.get_config_filename(flag))
  source = str(pathlib.Path(_own(), "config.json")) if _own() else path.name
  print(configs.show(config, source, config_flags.get_override_values(flag)))


def _cost(config: ConfigDict, _: pathlib.Path) -> None:
  from rad_jax.experiments import cost

  for line in cost.lines(config):
    print(line, flush=True)


def _hint(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import hint
  from rad_jax.reports import curves

  result = hint.hint(runs.build(config), workdir)
  print(curves.hint_table(result))
  _print_paths("written", curves.write_hint(workdir))


def _sweep(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.experiments import sweep

  _report_rows(sweep.run(config, workdir), workdir, "sweep")


def _study(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.experiments import study

  notes = pathlib.Path(config.study.notes) if config.study.notes else None
  _report_rows(study.run(config, workdir), workdir, "study", notes=notes)


def _schemes(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.experiments import schemes

  name = config.study.schemes
  rows = schemes.run(config, workdir, name)
  _report_rows(rows, workdir, "schemes", across=schemes.ACROSS[name])


def _compare(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.experiments import compare

  _report_rows(compare.run(config, workdir), workdir, "compare")


def _demo(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.experiments import schemes

  _report_rows(schemes.run(config, workdir, "demo"), workdir, "demo")


def _report_rows(
  rows: list[dict[str, Any]], workdir: pathlib.Path, view: str, **options: Any
) -> None:
  from rad_jax.reports import experiment

  paths = experiment.write(rows, workdir, view, **options)
  if paths[0].suffix == ".html":
    return _print_report(paths)
  print(paths[0].read_text())
  _print_paths("written", paths)


def _export(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import sampling

  model = sampling.newest_model(runs.build(config), workdir)
  folder = pretrained.export(
    model.params, workdir / "diffusers", configs.flatten(config.to_dict())
  )
  which = "moving average" if config.sampling.ema else "raw weights"
  print(f"exported: {folder} ({which} of step {model.step})")


def _push(config: ConfigDict, workdir: pathlib.Path) -> None:
  from rad_jax.evaluation import sampling
  from rad_jax.interop import card, hub

  model, name = sampling.newest_model(runs.build(config), workdir), _HUB.value
  fields = configs.flatten(config.to_dict())
  folder = card.write(
    workdir, model.params, model.step, fields, name, _LICENSE.value
  )
  print(f"pushed: {hub.upload(folder, name)} (from {folder})")


def _prepare(config: ConfigDict, _: pathlib.Path) -> None:
  name = config.data.name
  if configs.is_synthetic(config):
    print(f"{name} is generated: nothing to prepare")
  elif not training_set.needs_preparation(name):
    print(f"{name} is read as it is: nothing to prepare")
  else:
    builders.prepare(name, config.data.data_dir or None)
    print(f"prepared: {name}")


def _report(workdirs: str) -> None:
  from rad_jax.reports import runs as report

  folder = pathlib.Path(_REPORT_DIR.value) if _REPORT_DIR.value else None
  _print_report(report.write(report.folders(workdirs), folder))


def _print_report(paths: list[pathlib.Path]) -> None:
  beside = f"{len(paths) - 1} files of figures and tables beside it"
  print(f"reported: {paths[0]} ({beside})")


def _print_paths(done: str, paths: Iterable[pathlib.Path]) -> None:
  for path in paths:
    print(f"{done}: {path}")


Mode = Callable[[ConfigDict, pathlib.Path], None]
# Of each mode: what --help says, an example, what does it (None: no config).
MODES: dict[str, tuple[str, str, Mode | None]] = {
  "train": ("train, or go on", "--config.data.corruption.fraction=0.9", _train),
  "sample": ("draw samples", "--config.sampling.num_steps=50", _sample),
  "evaluate": ("measure them", "--config.evaluation.num_samples=500", _measure),
  "purify": ("clean images", "--config.purify.t_star=0.3", _purify),
  "diagnose": ("how equivariant it is", "--workdir=runs/digits", _diagnose),
  "cost": ("dry run", "--config.objective.name=robust_ran", _cost),
  "hint": ("choose lambda", "--config.objective.lam=1.0", _hint),
  "sweep": ("a grid of runs", '--config.sweep.lam="(0.3, 3.0)"', _sweep),
  "study": ("data x methods", "--config=configs/study.py:smoke", _study),
  "schemes": ("side by side", "--config.study.schemes=cheap", _schemes),
  "compare": ("methods, tuned", "--config=configs/compare.py", _compare),
  "demo": ("the effect", "--config=configs/demo.py", _demo),
  "report": ("runs as one page", "--workdir=runs/ddpm,runs/adv", None),
  "export": ("to diffusers", "--config=configs/cifar10.py", _export),
  "push": ("upload the model", "--hub=owner/name", _push),
  "prepare_data": ("fetch the set", "--config=configs/cifar10.py", _prepare),
  "show_config": ("all fields", "--config.train.num_steps=100", _show_config),
}
_MODE = flags.DEFINE_enum("mode", "train", [*MODES], "What to do.")
# Their config is the base of runs, each of which is validated; or is not run.
_UNCHECKED = ("study", "schemes", "compare", "demo", "show_config")


def main(argv: list[str]) -> None:
  """Runs the mode that the flags ask for."""
  del argv  # parse_flags
  absl_logging.set_verbosity(absl_logging.WARNING)  # orbax's running comment
  absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
  if not _TRACEBACK.value:
    console.say_errors_once()
  console.keep_compiled(_COMPILE_CACHE.value)
  mode, workdir = _MODE.value, _WORKDIR.value or default_workdir()
  *_, work = MODES[mode]
  with console.clear_errors(_TRACEBACK.value):
    if work is None:
      return _report(workdir)
    hosts.connect(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      _TIMEOUT_S.value,
      _HEARTBEAT_S.value,
    )
    hosts.introduce()
    if jax.process_count() > 1 and mode != "train":
      raise hosts.HostError(
        f"--mode={mode} runs in one process, on all its devices"
      )
    folder = console.local_path(workdir)
    config = _resolved(folder)
    training = mode in ("train", "sweep", *_UNCHECKED)
    if mode not in _UNCHECKED:
      checks.validate(config, jax.device_count(), training=training)
    size, pieces = config.sampling.batch_size, 0
    if training:
      size, pieces = config.train.batch_size, config.train.micro_batches
    with memory.clear_errors(size, pieces):
      work(config, folder)


def _resolved(folder: pathlib.Path) -> ConfigDict:
  """The flags' config, with what a network's source and the images decide."""
  config = _CONFIG.value  # The first access raises if it cannot be read.
  taken = pretrained.taken_over(
    configs.flatten(config.to_dict()),
    config_flags.get_override_values(flags.FLAGS["config"]),
    folder,
  )
  config.update_from_flattened_dict(taken)
  config.lock()
  for flag, reason in choices.fill(config, folder):
    _LOG.info(f"{flag}: {reason}")
  return config


def default_workdir() -> str:
  """runs/cifar10 for --config=configs/cifar10.py, runs/cifar10_smoke, ...

  A run's own folder, for the config of a run.
  """
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  name, _, argument = path.partition(":")
  named = "_".join(filter(None, [f"runs/{pathlib.Path(name).stem}", argument]))
  return _own() or named


def _own() -> str:
  """The folder of the run whose own config it is, or ""."""
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  name, _, folder = path.partition(":")
  return folder if name == saved.__file__ else ""


def help_text() -> str:
  """What --help prints."""
  return arguments.help_text(rad_jax.__version__, MODES)


def run() -> None:
  """The entry of the command line."""
  console.end_on_signals()
  logging.getLogger("rad_jax").setLevel(logging.INFO)
  app.run(main, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
  arguments.parse_flags(argv, MODES, help_text)
  return argv[:1]


if __name__ == "__main__":
  run()
