"""The processes of one run; the first alone writes its logs and metrics."""

import contextlib
import itertools
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rad_jax import config as configs

_LOG = logging.getLogger("rad_jax")

_COMPILING = threading.Event()
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

  Without arguments JAX looks for a launcher; where there is none, this is the
  only process. `coordinator` is process 0's host:port. JAX ends all when one is
  silent for heartbeat_s seconds. HostError: the others did not come.
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
      message = f"no connection to the other processes: {error}"
      raise HostError(message) from error


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
          " processes, and check that the address can be reached"
        ) from error
      time.sleep(0.2)


def introduce() -> None:
  """Logs this process and its devices; then only the first one logs."""
  if jax.process_count() == 1:
    return
  place = jax.process_index(), jax.process_count(), socket.gethostname()
  devices = ", ".join(map(str, jax.local_devices()))
  _LOG.info("process %d of %d on %s: %s", *place, devices)
  if not is_first():
    _LOG.setLevel(logging.WARNING)


def is_first() -> bool:
  """Whether this process writes what the run writes once."""
  return jax.process_index() == 0


def refuse_differing(mine: Mapping[str, Any]) -> None:
  """Raises HostError on all processes if one has other fields than the first.

  `mine` is a flat dict of what JSON can hold. All processes must call it.
  """
  if jax.process_count() == 1:
    return
  text = json.dumps(mine, sort_keys=True).encode()
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  own = np.frombuffer(text.ljust(size)[:size], np.uint8)
  first = json.loads(bytes(multihost_utils.broadcast_one_to_all(own)))
  found = configs.differences(first, json.loads(text))
  differing = multihost_utils.process_allgather(np.array(bool(found)))
  if not differing.any():
    return
  others = ", ".join(map(str, np.flatnonzero(differing)))
  told = f": {'; '.join(found)}" if found else ""
  raise HostError(
    f"process {others} was not started as process 0 was{told}. Give all"
    " processes the same command, code and data"
  )


@contextlib.contextmanager
def compiling() -> Iterator[None]:
  """Within its `with`, signals end the command line at once.

  Python would handle them only once XLA has compiled.
  """
  _COMPILING.set()
  try:
    yield
  finally:
    _COMPILING.clear()


def is_compiling() -> bool:
  """Whether some thread is within `compiling`."""
  return _COMPILING.is_set()


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
  """Yields asked(): whether the run shall save now, and stop.

  A single process is asked by SIGTERM or Ctrl-C, in the main thread; a second
  one ends it at once. Of several, SIGTERM on any asks all: JAX's pre-emption
  service names a call that all will come to, so all must make the same calls.
  """
  if jax.process_count() > 1:
    calls = itertools.count(1)
    yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  asked = threading.Event()
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

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
