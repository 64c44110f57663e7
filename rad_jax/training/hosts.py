"""The processes of one run: how they find each other, and how they part.

JAX's distributed runtime is the engine. Each process loads its own rows of
the batch (training.sharding); the first alone writes logs and metrics.
"""

import contextlib
import itertools
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_LOG = logging.getLogger("rad_jax")

# What jax.distributed.initialize says where no launcher is at work.
_NO_LAUNCHER = "coordinator_address should be defined"


class HostError(RuntimeError):
  """The processes could not find each other, or one of them is lost."""


def connect(
  coordinator: str = "",
  num_processes: int = 0,
  process_id: int = -1,
  timeout_s: int = 300,
  heartbeat_s: int = 60,
) -> None:
  """Joins the processes of a run. Call it before anything else uses JAX.

  Without arguments JAX looks for a launcher: a TPU pod or GKE, SLURM, Open
  MPI. Where there is none, this is the only process.

  Args:
    coordinator: host:port of process 0, reachable from all.
    num_processes: how many there are.
    process_id: which one this is, 0 .. num_processes - 1.
    timeout_s: how long to wait for the others, in seconds.
    heartbeat_s: a process that is silent for so long, in seconds, is lost, and
      JAX ends the others.

  Raises:
    HostError: arguments are missing or wrong, or the others did not come.
  """
  given = bool(coordinator), num_processes > 0, process_id >= 0
  if any(given) and not all(given):
    raise HostError(
      "--coordinator=HOST:PORT, --num_processes and --process_id belong"
      " together; without them a launcher is looked for (TPU pod, GKE, SLURM,"
      " Open MPI)"
    )
  if all(given) and process_id >= num_processes:
    raise HostError(
      f"--process_id={process_id} of --num_processes={num_processes}:"
      f" give 0 to {num_processes - 1}"
    )
  if process_id > 0:
    _wait_for(coordinator, timeout_s)
  try:
    jax.distributed.initialize(
      coordinator or None,
      num_processes or None,
      process_id if process_id >= 0 else None,
      initialization_timeout=timeout_s,
      heartbeat_timeout_seconds=heartbeat_s,
    )
  except ValueError as error:
    if any(given) or _NO_LAUNCHER not in str(error):
      raise HostError(
        f"no connection to the other processes: {error}"
      ) from error


def _wait_for(address: str, timeout_s: int) -> None:
  """Until the coordinator answers: JAX would abort without a word of it."""
  host, _, port = address.rpartition(":")
  end = time.monotonic() + timeout_s
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=5).close()
      return
    except (OSError, ValueError) as error:
      if time.monotonic() > end or isinstance(error, ValueError):
        raise HostError(
          f"no process 0 at --coordinator={address} in {timeout_s} s: start all"
          " processes, and see that the address can be reached"
        ) from error
      time.sleep(0.2)


def introduce() -> None:
  """Logs this process and its devices; then only the first one logs."""
  if jax.process_count() == 1:
    return
  _LOG.info(
    "process %d of %d on %s: %s",
    jax.process_index(),
    jax.process_count(),
    socket.gethostname(),
    ", ".join(map(str, jax.local_devices())),
  )
  if not is_first():
    _LOG.setLevel(logging.WARNING)


def is_first() -> bool:
  """Whether this process writes what the run writes once."""
  return jax.process_index() == 0


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
  """Yields asked(): whether the run shall save now, and stop.

  A single process is asked by SIGTERM (the notice before a pre-emption) or by
  Ctrl-C; a second one ends it at once. Of several, SIGTERM on any asks all:
  JAX's pre-emption service names a call that every process will come to, so all
  must make the same calls. Outside the main thread no signal is caught.
  """
  if jax.process_count() > 1:
    calls = itertools.count(1)
    yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  asked = threading.Event()
  before = {
    number: signal.getsignal(number)
    for number in (signal.SIGTERM, signal.SIGINT)
  }

  def note(number, frame) -> None:
    del frame
    signal.signal(number, before[number])
    asked.set()

  for number in before:
    signal.signal(number, note)
  try:
    yield asked.is_set
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
