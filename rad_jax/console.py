"""What ends a command: one line for each error, exit codes, signals."""

import contextlib
import errno
import logging
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging as absl_logging

from rad_jax import arguments, memory
from rad_jax.data import builders
from rad_jax.training import checkpoints, hosts, loop, workdir

# The exit code of a run that was asked to stop and can go on: EX_TEMPFAIL.
INTERRUPTED = 75
# That of Ctrl-C where nothing was saved.
_BY_HAND = 130
_GOES_ON = "run the same command again to go on"

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
    message = arguments.one_line(error)
    if isinstance(error, OSError) and error.errno:
      message = _sentence(error, arguments.given_flags(sys.argv))
    elif isinstance(error, builders.NotPrepared):
      message += f". Prepare it with: {arguments.prepare_command(sys.argv)}"
    elif not type(error).__module__.startswith("rad_jax."):
      message += " (--traceback shows where)"
    message = f"rad_jax: error: {message}"
    connected = jax.distributed.is_initialized() and jax.process_count() > 1
    if connected or isinstance(error, checkpoints.WriteError):
      # A clean exit would wait for other processes, or for orbax's threads.
      print(message, file=sys.stderr, flush=True)
      os._exit(1)
    sys.exit(message)


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
