"""What the command line says: help, one line for each error, exit codes."""

import contextlib
import difflib
import itertools
import logging
import os
import pathlib
import shlex
import signal
import socket
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging

from rad_jax.data import builders
from rad_jax.training import checkpoints, hosts, loop, workdir

# The exit code of a run that was asked to stop and can go on: EX_TEMPFAIL.
INTERRUPTED = 75
# That of Ctrl-C where nothing was saved.
_BY_HAND = 130
_GOES_ON = "the same command goes on where it can"

# Errors that a user can usually correct; all others are bugs and show their
# traceback. Libraries raise some of these for bugs too: --traceback.
_USER_ERRORS = (
  ValueError,
  OSError,
  FloatingPointError,
  checkpoints.CheckpointError,
  hosts.HostError,
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

  python -m rad_jax.main --config=configs/digits.py --mode=train

--mode=         does                   for example
{lines}

--config=FILE[:smoke]    yours, or one of these; :smoke takes seconds:
{known}
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
  """The path of a config file, with its ":variant", or FileNotFoundError.

  "digits" and "configs/digits.py" name the package's where there is no other.
  """
  name, colon, variant = given.partition(":")
  path, known = pathlib.Path(name), packaged_configs()
  if path.is_file():
    return given
  hint = f"the package has {', '.join(known)}"
  if str(path.parent) in (".", "configs"):
    if path.stem in known:
      return f"{known[path.stem]}{colon}{variant}"
    if close := difflib.get_close_matches(path.stem, known, 1):
      hint = f"did you mean configs/{close[0]}.py?"
  raise FileNotFoundError(f"no config file {name!r}; {hint}")


def parse_flags(argv: Sequence[str], help: Callable[[], str]) -> list[str]:
  """absl's parsing, with every error as one line and exit code 1."""
  if {"--help", "-help", "-h"} & set(argv):
    print(help())
    sys.exit(0)
  argv = list(argv)
  try:
    for i, (argument, following) in enumerate(itertools.pairwise([*argv, ""])):
      if argument.startswith(("--config=", "-config=")):
        argv[i] = f"--config={find_config(argument.partition('=')[2])}"
      elif argument in ("--config", "-config") and following:
        argv[i + 1] = find_config(following)
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, *_USER_ERRORS) as error:
    message = one_line(error).rstrip(".")
  sys.exit(f"rad_jax: error: {message} (--help shows examples)")


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
    if isinstance(error, builders.NotPrepared):
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


def prepare_command(argv: Sequence[str]) -> str:
  """The command that prepares the data of the command argv."""
  needed = ("config", "config.data.name", "config.data.data_dir")
  kept = []
  for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name in needed:
      kept.append(f"--{name}={value if equals else following}")
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
    hint = "mount it, as gcsfuse does a bucket"
    raise ValueError(f"--workdir={path} is no folder: {hint}")
  return pathlib.Path(path)
