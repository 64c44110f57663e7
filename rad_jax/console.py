"""What the command line says: help, one line for each error, exit codes."""

import contextlib
import difflib
import errno
import itertools
import logging
import os
import pathlib
import re
import shlex
import signal
import socket
import sys
import textwrap
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging

from rad_jax import config as configs
from rad_jax import memory
from rad_jax.data import builders
from rad_jax.training import checkpoints, hosts, loop, workdir

# The exit code of a run that was asked to stop and can go on: EX_TEMPFAIL.
INTERRUPTED = 75
# That of Ctrl-C where nothing was saved.
_BY_HAND = 130
_GOES_ON = "run the same command again to go on"

_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  tuple: 'values in brackets, such as "(1, 2)" or "(\'a\',)"',
}

# Errors that a user can usually correct; all others are bugs and show their
# traceback. Libraries raise some of these for bugs too: --traceback.
_USER_ERRORS = (
  ValueError,
  OSError,
  FloatingPointError,
  checkpoints.CheckpointError,
  hosts.HostError,
  memory.TooLarge,
  workdir.InUse,
  builders.PreparationError,
)


def help_text(version: str, modes: Mapping[str, tuple[str, str, Any]]) -> str:
  """What --help prints; `modes`: what each does, an example, what runs it."""
  rows = ((name, says, given) for name, (says, given, _) in modes.items())
  lines = "\n".join("  {:13} {:22} {}".format(*row) for row in rows)
  names = ", ".join(packaged_configs())
  known = textwrap.indent(textwrap.fill(names, 76), "  ")
  return f"""rad_jax {version}: robust diffusion training

  python -m rad_jax --config=configs/digits.py --mode=train

--mode=         does                   for example
{lines}

--config=FILE[:smoke]    yours, or one of these; :smoke takes seconds:
{known}
                         or a run's folder, as --workdir is where none is given
--config.FIELD=VALUE     any field; --mode=show_config lists them all
--workdir=DIR            the run's folder; runs/<config> if not given
--traceback              where an error was raised
--helpfull               all flags, also those for several processes"""


def packaged_configs() -> dict[str, pathlib.Path]:
  """The config files that come with the package, by name."""
  package = pathlib.Path(__file__).parent
  # Installed they lie inside the package; in a checkout, beside it.
  for folder in (package / "configs", package.parent / "configs"):
    if folder.is_dir():
      return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
  return {}


def find_config(given: str) -> str:
  """The path of a config file, with its ":variant", or FileNotFoundError.

  "digits" and "configs/digits.py" name the package's where there is no other; a
  run's folder its own.
  """
  name, colon, variant = given.partition(":")
  path, known = pathlib.Path(name), packaged_configs()
  if (pathlib.Path(given) / "config.json").is_file():
    return f"{pathlib.Path(__file__).with_name('saved.py')}:{given}"
  if path.is_file():
    if path.suffix != ".py":
      raise ValueError(f"--config={given} is no config file: they end in .py")
    return given
  hint = f"the package has {', '.join(known)}"
  if str(path.parent) in (".", "configs"):
    if path.stem in known:
      return f"{known[path.stem]}{colon}{variant}"
    if close := difflib.get_close_matches(path.stem, known, 1):
      hint = f"did you mean configs/{close[0]}.py?"
  raise FileNotFoundError(f"no config file {name!r}; {hint}")


def parse_flags(
  argv: list[str], modes: Collection[str], help: Callable[[], str]
) -> None:
  """absl's parsing, with every error as one line and exit code 1.

  Without --config, the config of the run in --workdir serves; with it, it comes
  to stand first in argv.
  """
  if {"--help", "-help", "-h"} & set(argv):
    print(help())
    sys.exit(0)
  given = _given(argv)
  try:
    if argv[1:] and not argv[1].startswith("-"):
      raise flags.Error(_meant(argv[1], modes))
    _refuse_misspelt(given, modes)
    config = _config_of(given)
    if "config" in given:  # ml_collections wants it before its fields
      argv[1:] = [f"--config={given['config']}", *_without_config(argv)]
    rest = flags.FLAGS([argv[0], *config, *_without_config(argv)])[1:]
    if rest:
      raise flags.Error(_meant(rest[0], modes))
    return
  except flags.UnrecognizedFlagError as error:
    close = difflib.get_close_matches(error.flagname, flags.FLAGS, 1, 0.8)
    meant = f"; did you mean --{close[0]}?" if close else ""
    message = f"no flag --{error.flagname}"
    message += meant or _close_fields(error.flagname)
  except flags.IllegalFlagValueError as error:
    message = _illegal(error, given)
  except (flags.Error, AttributeError, KeyError, *_USER_ERRORS) as error:
    message = one_line(error).rstrip(".")
  sys.exit(f"rad_jax: error: {message} (--help shows examples)")


def _given(argv: Sequence[str]) -> dict[str, str]:
  """The flags, --name=value or --name value, by name."""
  found = {}
  for argument, following in itertools.pairwise([*argv[1:], ""]):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-"):
      found[name] = value if equals else following
  return found


def _without_config(argv: Sequence[str]) -> list[str]:
  """The arguments but --config and its value."""
  return [
    argument
    for last, argument in itertools.pairwise(["", *argv[1:]])
    if last not in ("--config", "-config")
    and not re.match(r"--?config(=|$)", argument)
  ]


def _config_of(given: Mapping[str, str]) -> list[str]:
  """--config with the path of its file; none where no mode needs it."""
  chosen, workdir_ = given.get("config"), given.get("workdir", "")
  if chosen is not None:
    return [f"--config={find_config(chosen)}"]
  if given.get("mode") == "report" or any(n.startswith("help") for n in given):
    return []
  if (pathlib.Path(workdir_) / "config.json").is_file():
    return [f"--config={find_config(workdir_)}"]
  where = f"no run in --workdir={workdir_}, and " if workdir_ else ""
  raise flags.Error(
    f"{where}no config: give --config=digits (one of the package's),"
    " --config=FILE.py (yours) or --workdir=RUN (the folder of a run)"
  )


def _refuse_misspelt(given: Mapping[str, str], modes: Collection[str]) -> None:
  """Raises flags.Error for what absl and ml_collections do not say clearly."""
  for name, value in given.items():
    field = name.removeprefix("config.")
    if field != name and field not in configs.FIELDS:
      raise flags.Error(f"no field --{name}{_close_fields(field)}")
    if name in ("config", "workdir", "mode") and value[:1] in ("", "-", "="):
      raise flags.Error(
        f"--{name} has no value: write --{name}=VALUE, without spaces"
      )
    if name == "mode" and value not in modes:
      close = difflib.get_close_matches(value, modes, 1)
      hint = f"; did you mean --mode={close[0]}?" if close else "."
      known = ", ".join(modes)
      raise flags.Error(f"no mode {value!r}{hint} There are {known}")
  if given.get("mode") == "report" and "workdir" not in given:
    raise flags.Error(
      "--mode=report takes --workdir=RUN, or several: --workdir=RUN,RUN"
    )


def _close_fields(name: str) -> str:
  """A question for the fields that a misspelt name may have meant, or ""."""
  last = name.rpartition(".")[2]
  close = (
    difflib.get_close_matches(name, configs.FIELDS, 1, 0.8)
    or [path for path in configs.FIELDS if path.rpartition(".")[2] == last]
    or difflib.get_close_matches(name, configs.FIELDS, 1)
  )
  meant = " or ".join(f"--config.{path}" for path in close)
  return f"; did you mean {meant}?" if close else ""


def _meant(argument: str, modes: Collection[str]) -> str:
  """Of an argument that is no flag: what to write for it."""
  if argument in modes:
    return f"{argument!r} is no flag: write --mode={argument}"
  if (pathlib.Path(argument) / "config.json").is_file():
    return f"{argument!r} is no flag: write --workdir={argument}"
  if pathlib.Path(argument).suffix == ".py" or argument in packaged_configs():
    return f"{argument!r} is no flag: write --config={argument}"
  return f"{argument!r} is no flag: write --NAME=VALUE, without spaces"


def _illegal(error: Exception, given: Mapping[str, str]) -> str:
  """absl's message on a value, in words where it names no type."""
  found = re.match(r"flag --([^=]+)=", str(error))
  name = found[1] if found else ""
  field = configs.FIELDS.get(name.removeprefix("config."))
  if not field and name in flags.FLAGS:
    field = configs.Field(flags.FLAGS[name].default, "")
  if not field or type(field.default) not in _KINDS:
    return one_line(error).rstrip(".")
  allowed = _KINDS[type(field.default)]
  if field.rule and field.rule is not configs.SWITCH:
    allowed += f", {field.rule.words}"
  return f"--{name}={given[name]}: it must be {allowed}"


def end_on_signals() -> None:
  """Until training listens itself, SIGTERM ends with code INTERRUPTED at once.

  While XLA compiles, so do SIGTERM and Ctrl-C, though Python's handlers wait
  for it. Nothing is lost but steps since the last checkpoint: files are
  replaced whole, and samples kept by batches.
  """
  signal.signal(signal.SIGTERM, _end)
  heard, told = socket.socketpair()
  told.setblocking(False)
  signal.set_wakeup_fd(told.detach())
  threading.Thread(target=_listen, args=(heard,), daemon=True).start()


def _listen(heard: socket.socket) -> None:
  """Ends the process by a signal, whose number arrives, if XLA compiles."""
  while True:
    (number,) = heard.recv(1)
    if hosts.is_compiling():
      _end(number)


def _end(number: int, frame: Any = None) -> None:
  del frame
  by_hand = number == signal.SIGINT
  what = "interrupted" if by_hand else "asked to stop"
  print(f"rad_jax: {what}; {_GOES_ON}", file=sys.stderr, flush=True)
  os._exit(_BY_HAND if by_hand else INTERRUPTED)


@contextlib.contextmanager
def clear_errors(traceback: bool) -> Iterator[None]:
  """Turns what a user can correct into one line and exit code 1.

  A run that was asked to stop, and is saved, ends with code 75, "try again";
  all else that Ctrl-C breaks off with 130. `traceback`: raise such errors.
  """
  try:
    yield
  except loop.Interrupted as stopped:
    print(f"rad_jax: {stopped}", file=sys.stderr)
    sys.exit(INTERRUPTED)
  except KeyboardInterrupt:
    print(f"rad_jax: interrupted; {_GOES_ON}", file=sys.stderr)
    sys.exit(_BY_HAND)
  except _USER_ERRORS as error:
    if traceback:
      raise
    message = one_line(error)
    if isinstance(error, OSError) and error.errno:
      message = _sentence(error, _given(sys.argv))
    elif isinstance(error, builders.NotPrepared):
      message += f". Prepare it with: {prepare_command(sys.argv)}"
    elif not type(error).__module__.startswith("rad_jax."):
      message += " (--traceback shows where)"
    message = f"rad_jax: error: {message}"
    connected = jax.distributed.is_initialized() and jax.process_count() > 1
    if connected or isinstance(error, checkpoints.WriteError):
      # A clean exit would wait for other processes, or for orbax's threads.
      print(message, file=sys.stderr, flush=True)
      os._exit(1)
    sys.exit(message)


def one_line(error: BaseException) -> str:
  """The message alone, where ml_collections packs errors or tracebacks in."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
  if "Traceback (most recent call last)" in text:
    text = text.splitlines()[-1].strip().partition(": ")[2]
  return " ".join(text.split())


def _sentence(error: OSError, given: Mapping[str, str]) -> str:
  """What the system says of a file, and which flag leads to it."""
  reason = os.strerror(error.errno or 0)
  if error.filename is None:
    return reason
  path = pathlib.Path(os.fsdecode(error.filename)).absolute()
  above = (path, *path.parents)
  if error.errno in (errno.EEXIST, errno.ENOTDIR):
    path = next((p for p in above if p.is_file()), path)
    says = f"{path} is a file where a folder is needed"
  elif error.errno in (errno.ENOSPC, errno.EDQUOT):
    says = f"the disk is full, at {path}: free space, and run this again"
  else:
    says = f"{path}: {reason.lower()}"
  of_flags = [
    f"--{name}={value}"
    for name, value in given.items()
    if value and pathlib.Path(value).absolute() in above
  ]
  return f"{says}; change {of_flags[0]}" if of_flags else says


def prepare_command(argv: Sequence[str]) -> str:
  """The command that prepares the data of the command argv."""
  given = _given(argv)
  needed = ["config", "config.data.name", "config.data.data_dir"]
  needed += [] if "config" in given else ["workdir"]
  kept = [
    f"--{name}={value}" for name, value in given.items() if name in needed
  ]
  command = ["python", "-m", "rad_jax.main", *kept, "--mode=prepare_data"]
  return shlex.join(command)


def say_errors_once() -> None:
  """Drops what orbax and asyncio log of a failed save beside its error."""
  orbax = f"{os.sep}orbax{os.sep}"
  absl_logging.get_absl_logger().addFilter(
    lambda log: log.levelno < logging.ERROR or orbax not in log.pathname
  )
  logging.getLogger("asyncio").addFilter(
    lambda record: "was never retrieved" not in record.getMessage()
  )
  tell = sys.unraisablehook

  def tell_others(unraisable: Any) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
      tell(unraisable)

  sys.unraisablehook = tell_others


def keep_compiled(folder: str) -> None:
  """Later processes, those of sweeps too, load what this one compiles."""
  path = str(pathlib.Path(folder).expanduser().absolute()) if folder else ""
  os.environ["JAX_COMPILATION_CACHE_DIR"] = path
  jax.config.update("jax_compilation_cache_dir", path or None)


def local_path(path: str) -> pathlib.Path:
  """The path; ValueError if it is an address, as gs://bucket."""
  if "://" in path:
    hint = "mount it first, for example with gcsfuse"
    raise ValueError(f"--workdir={path} is not a folder: {hint}")
  return pathlib.Path(path)
