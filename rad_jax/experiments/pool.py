"""Jobs, of one run or more each, in this process or in several."""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import TypeAlias

import jax

from rad_jax.experiments.table import Entry, Row
from rad_jax.training import hosts, loop

Job: TypeAlias = list[Entry]
Work: TypeAlias = Callable[[Job, pathlib.Path], list[Row]]


def work_off(
  jobs: list[Job], work: Work, workdir: pathlib.Path, processes: int
) -> Iterator[list[Row]]:
  """Yields the rows of each job as it is done.

  With several processes each job has its own, on one CPU thread. Raises
  Interrupted on SIGTERM or Ctrl-C, with training saved.
  """
  if processes == 1:
    yield from (work(job, workdir) for job in jobs)
    return
  ahead = iter(jobs)
  running: dict[futures.Future, Job] = {}
  spawn = multiprocessing.get_context("spawn")
  with (
    hosts.stop_requests() as asked,
    futures.ProcessPoolExecutor(processes, spawn, _enter) as pool,
  ):
    while True:
      # As processes are free: none lies in a queue.
      for job in itertools.islice(ahead, processes - len(running)):
        running[pool.submit(_logged, work, job, workdir)] = job
      if not running:
        return
      done, _ = futures.wait(running, 0.5, futures.FIRST_COMPLETED)
      if asked():
        for process in multiprocessing.active_children():
          process.terminate()
        raise loop.Interrupted(
          f"asked to stop: what the runs had reached is saved in {workdir};"
          " the same command goes on from there"
        )
      for future in done:
        job = running.pop(future)
        try:
          yield future.result()
        except BrokenProcessPool as error:
          raise hosts.HostError(
            f"a process died, perhaps out of memory, while {job[0].name} was"
            f" running (see {_log(job, workdir)}): the same command goes on"
            " from there"
          ) from error


def _enter() -> None:
  """In a new process, before JAX starts: one thread, and no signals."""
  flags = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
  jax.config.update("jax_platforms", "cpu")
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_leave_with_the_parent, daemon=True).start()


def _leave_with_the_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent
  parent.join()
  os._exit(1)


def _logged(work: Work, job: Job, workdir: pathlib.Path) -> list[Row]:
  def stop(number, frame):
    raise loop.Interrupted("asked to stop")

  path = _log(job, workdir)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as log, contextlib.redirect_stderr(log):
    signal.signal(signal.SIGTERM, stop)
    try:
      return work(job, workdir)
    except loop.Interrupted as stopped:
      print(stopped, file=log)
      raise
    finally:
      signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _log(job: Job, workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "runs" / job[0].name / "log.txt"
