"""Many runs as one table: a grid of configs, matched in cost, run to the end.

A sweep's folder holds runs/<name>/, each a run's own folder, and sweep.jsonl,
one row for each run that is done:

run: the run's name.
objective, lam, ..., seed: its labels; null where an axis makes no difference.
config: a fingerprint of its config.
steps, passes: training steps, and forward passes of the network they are
  worth.
seconds: time spent in training steps, compilation aside.
support_rms, ...: the measures (evaluation.evaluate), or
error: why it stopped, in their place and that of seconds.

Interrupted, a sweep goes on with the runs that have no row.
"""

import contextlib
import copy
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from tqdm import tqdm

from rad_jax import config as configs
from rad_jax import validation
from rad_jax.config import ConfigDict
from rad_jax.evaluation import evaluate, sampling
from rad_jax.robustness import objectives
from rad_jax.training import (
  budget,
  build,
  health,
  hosts,
  loop,
  metrics,
  sharding,
)

_LOG = logging.getLogger("rad_jax")

AXES = {
  "objective": "objective.name",
  "lam": "objective.lam",
  "radius": "objective.radius",
  "beta": "objective.beta",
  "fraction": "data.corruption.fraction",
  "sigma": "data.corruption.sigma",
  "seed": "seed",
}
# Columns that are neither labels nor measures.
_RECORD = ("run", "config", "steps", "passes", "seconds", "error")

Row: TypeAlias = dict[str, Any]


class Run(NamedTuple):
  """One run of a sweep.

  name: its folder, unique in the sweep.
  labels: what tells it apart, by column of the table.
  config: a valid config.
  """

  name: str
  labels: dict[str, Any]
  config: ConfigDict


# ---- Which runs ----


def grid(config: ConfigDict) -> list[Run]:
  """The product of the axes of config.sweep; what would be the same run, once.

  Raises:
    ConfigError: a combination is not valid; it is named.
  """
  own = configs.flatten(config.to_dict())
  values = [config.sweep[axis] or (own[path],) for axis, path in AXES.items()]
  runs: dict[str, Run] = {}
  for point in itertools.product(*values):
    run = _run_at(config, dict(zip(AXES, point, strict=True)))
    runs.setdefault(run.name, run)
  return list(runs.values())


def ignores(objective: str) -> set[str]:
  """Axes that make no difference to an objective."""
  chosen = objectives.OBJECTIVES.get(objective)
  if chosen is None or (chosen.target and chosen.clean):
    return set()
  return {"lam"} if chosen.target else {"lam", "radius", "beta"}


def _run_at(config: ConfigDict, point: dict[str, Any]) -> Run:
  ignored = ignores(point["objective"])
  if point["fraction"] == 0:
    ignored = ignored | {"sigma"}
  point = {axis: v for axis, v in point.items() if axis not in ignored}
  swept = [axis for axis in point if config.sweep[axis] and axis != "objective"]
  name = "-".join(
    [
      str(point["objective"]),
      *(f"{axis}_{point[axis]}".removesuffix(".0") for axis in swept),
    ]
  )
  try:
    plain = "radius" in ignored
    config = build.as_ddpm(config) if plain else copy.deepcopy(config)
    config.update_from_flattened_dict(
      {AXES[axis]: value for axis, value in point.items()}
    )
    validation.validate(config)
  except (TypeError, configs.ConfigError) as error:
    raise configs.ConfigError(f"run {name}: {error}") from error
  found = configs.flatten(config.to_dict())
  labels = {
    axis: found[path] if axis in point else None for axis, path in AXES.items()
  }
  return Run(name, labels, config)


# ---- How long ----


def matched(runs: list[Run], match: str, workdir: pathlib.Path) -> list[Run]:
  """The runs with as many steps as make them equal.

  Args:
    runs: runs whose train.num_steps are those of DDPM.
    match: "steps" leaves them; with "passes" or "seconds" every run but DDPM's
      gets the steps that cost as many network passes, or as much time, as
      DDPM's would.
    workdir: the sweep's folder. Times of a step are measured here and now, or
      read from its matching.json: measure while nothing else runs.
  """
  if match == "steps":
    return runs
  step_cost = step_passes if match == "passes" else timed(workdir)
  return [_as_long_as_ddpm(run, step_cost) for run in runs]


def _as_long_as_ddpm(run: Run, step_cost: Callable[[ConfigDict], float]) -> Run:
  if run.config.objective.name == "ddpm":
    return run
  ddpm = build.as_ddpm(run.config)
  config = copy.deepcopy(run.config)
  config.train.num_steps = max(
    1,
    round(config.train.num_steps * step_cost(ddpm) / step_cost(config)),
  )
  return run._replace(config=config)


def step_passes(config: ConfigDict) -> float:
  """Forward passes of a step, on average over the training; DDPM's are 3."""
  return build.total_passes(config) / config.train.num_steps


def timed(workdir: pathlib.Path) -> Callable[[ConfigDict], float]:
  """step_seconds, measured once for each program, kept in matching.json."""
  path = workdir / "matching.json"
  known = json.loads(path.read_text()) if path.exists() else {}

  def seconds(config: ConfigDict) -> float:
    name = program(config)
    if name not in known:
      _LOG.info("timing the step of %s", name)
      known[name] = step_seconds(config)
      workdir.mkdir(parents=True, exist_ok=True)
      whole = path.with_suffix(".tmp")
      whole.write_text(json.dumps(known, indent=2) + "\n")
      whole.replace(path)
    return known[name]

  return seconds


def program(config: ConfigDict) -> str:
  """A name for all configs whose training step takes the same time.

  It leaves out the axes, which only change numbers in it, but for the
  objective and whether there is corruption at all.
  """
  fields = _bound(config.to_dict())
  corrupted = fields["data.corruption.fraction"] > 0
  fixed = {k: v for k, v in fields.items() if k not in AXES.values()}
  name = config.objective.name
  return f"{name}-{_digest([name, corrupted, fixed])}"


def step_seconds(config: ConfigDict) -> float:
  """Seconds of a step on this machine, on average over the training."""
  num_steps = config.train.num_steps
  on = budget.steps_on(build.timetable(config), num_steps) / num_steps
  shares = {True: on, False: 1 - on}
  return sum(
    share * _measured_seconds(config, regularised)
    for regularised, share in shares.items()
    if share > 0
  )


def _measured_seconds(config: ConfigDict, regularised: bool) -> float:
  """Median of five rounds, each of 20 dispatches and 0.2 s or more."""
  mesh = sharding.device_mesh()
  batch = next(
    loop.dispatched_batches(config, build.training_set(config), 0, mesh)
  )
  together = len(next(loop.dispatches(config, 0)).steps)
  state = jax.jit(
    lambda: build.state(config), out_shardings=sharding.replicated(mesh)
  )()
  step = loop.compile_step(config, state, batch, mesh, regularised)

  def seconds(dispatches: int) -> float:
    nonlocal state
    started = time.perf_counter()
    for _ in range(dispatches):
      state, _ = step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - started) / dispatches

  seconds(3)  # the first are slow
  dispatches = max(20, math.ceil(0.2 / seconds(20)))
  rounds = [seconds(dispatches) for _ in range(5)]
  return float(np.median(rounds)) / together


# ---- Running them ----


def one_each(runs: list[Run]) -> list[list[Run]]:
  """Every run is a job by itself."""
  return [[run] for run in runs]


def run_each(job: list[Run], workdir: pathlib.Path) -> list[Row]:
  """The rows of a job's runs, done one after another."""
  return [run_one(run, workdir) for run in job]


def run_all(
  runs: list[Run],
  workdir: pathlib.Path,
  processes: int = 1,
  jobs: Callable[[list[Run]], list[list[Run]]] = one_each,
  work: Callable[[list[Run], pathlib.Path], list[Row]] = run_each,
) -> list[Row]:
  """Does the runs that have no row in workdir's table yet.

  A run that diverges gets a row with its error, and the others go on.

  Args:
    runs: the runs, under unique names.
    workdir: the sweep's folder, made if missing.
    processes: 1 does one job after another in this process, on all its
      devices; more, so many at a time, each in a process of its own on one
      CPU thread, what it has to say in its first run's log.txt.
    jobs: parts the runs that are missing into jobs.
    work: does a job; a function of a module's, as processes find it by name.

  Returns:
    The rows, one for each run, in the order of the runs.

  Raises:
    ConfigError: workdir holds a run of the same name and another config.
    Interrupted: by SIGTERM or Ctrl-C; what was in training is saved.
    HostError: one of several processes died.
  """
  refuse_changed(runs, workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  done = {row["run"] for row in read(workdir)}
  missing = [run for run in runs if run.name not in done]
  finished = _one_by_one if processes == 1 else _in_processes
  with (
    _table(workdir) as append,
    tqdm(total=len(runs), initial=len(runs) - len(missing), unit="run") as bar,
  ):
    for job, done_rows in finished(jobs(missing), work, workdir, processes):
      for run, row in zip(job, done_rows, strict=True):
        append(row)
        bar.write(f"{run.name}: {_summary(run, row)}")
        bar.update()
  rows = {row["run"]: row for row in read(workdir)}
  return [rows[run.name] for run in runs]


def run_one(run: Run, workdir: pathlib.Path) -> Row:
  """Trains, samples and evaluates in workdir/runs/<name>; returns its row."""
  config, folder = run.config, workdir / "runs" / run.name
  row = record(run)
  try:
    loop.train(config, folder)
    sampling.sample(config, folder)
    result = evaluate.evaluate(config, folder)
  except (
    health.NonFiniteLoss,
    health.LossSpike,
    sampling.NonFiniteSamples,
  ) as error:
    return row | {"error": str(error)}
  seconds = training_seconds(folder, config.train.batch_size)
  return row | {"seconds": seconds} | result["measures"]


def record(run: Run) -> Row:
  """What a run's row holds before it is measured."""
  return {
    "run": run.name,
    **run.labels,
    "config": fingerprint(run.config.to_dict()),
    "steps": run.config.train.num_steps,
    "passes": build.total_passes(run.config),
  }


def training_seconds(folder: pathlib.Path, batch_size: int) -> float:
  """Time that a run spent in training steps, however often interrupted."""
  rows = metrics.read(folder)
  steps = np.diff([row["step"] for row in rows], prepend=0)
  speeds = np.array([row["speed/images_per_second"] for row in rows])
  return float(np.sum(steps * batch_size / speeds))


def _one_by_one(
  jobs: list[list[Run]], work: Callable, workdir: pathlib.Path, processes: int
) -> Iterator[tuple[list[Run], list[Row]]]:
  del processes
  for job in jobs:
    yield job, work(job, workdir)


def _in_processes(
  jobs: list[list[Run]], work: Callable, workdir: pathlib.Path, processes: int
) -> Iterator[tuple[list[Run], list[Row]]]:
  """Jobs are handed out as processes are free: none lies in a queue."""
  ahead = iter(jobs)
  running: dict[futures.Future, list[Run]] = {}
  spawn = multiprocessing.get_context("spawn")
  with (
    hosts.stop_requests() as asked,
    futures.ProcessPoolExecutor(processes, spawn, _enter) as pool,
  ):
    while True:
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
        yield job, _rows_of(future, job, workdir)


def _rows_of(
  future: futures.Future, job: list[Run], workdir: pathlib.Path
) -> list[Row]:
  try:
    return future.result()
  except BrokenProcessPool as error:
    log = workdir / "runs" / job[0].name / "log.txt"
    raise hosts.HostError(
      f"a process died, for want of memory perhaps, while {job[0].name} was"
      f" running (see {log}): the same command goes on from there"
    ) from error


def _enter() -> None:
  """Before JAX starts in a process: its neighbours use the other cores.

  Signals are the parent's to hand on, and without it there is nothing to do.
  """
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


def _logged(work: Callable, job: list[Run], workdir: pathlib.Path) -> list[Row]:
  def stop(number, frame):
    raise loop.Interrupted("asked to stop")

  folder = workdir / "runs" / job[0].name
  folder.mkdir(parents=True, exist_ok=True)
  with (
    (folder / "log.txt").open("a") as log,
    contextlib.redirect_stderr(log),
  ):
    signal.signal(signal.SIGTERM, stop)
    try:
      return work(job, workdir)
    except loop.Interrupted as stopped:
      print(stopped, file=log)
      raise
    finally:
      signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _summary(run: Run, row: Row) -> str:
  return row.get("error") or ", ".join(
    f"{name} {value:.4g}"
    for name, value in row.items()
    if name not in run.labels and name not in _RECORD
  )


# ---- The table ----


def read(workdir: pathlib.Path) -> list[Row]:
  """The rows of workdir/sweep.jsonl, oldest first, without a torn last line."""
  path = workdir / "sweep.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith("\n")]


@contextlib.contextmanager
def _table(workdir: pathlib.Path) -> Iterator[Callable[[Row], None]]:
  """Yields append(row), which writes a whole line at once."""
  path = workdir / "sweep.jsonl"
  if path.exists():  # what is behind the last newline was torn off
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
  with path.open("a") as file:

    def append(row: Row) -> None:
      file.write(json.dumps(row) + "\n")
      file.flush()

    yield append


def refuse_changed(runs: list[Run], workdir: pathlib.Path) -> None:
  """Raises ConfigError if workdir holds a run of a name with another config."""
  known = {row["run"]: row["config"] for row in read(workdir)}
  for run in runs:
    path = workdir / "runs" / run.name / "config.json"
    saved = json.loads(path.read_text()) if path.exists() else None
    now = run.config.to_dict()
    if saved is not None:
      known.setdefault(run.name, fingerprint(saved))
    if known.get(run.name, fingerprint(now)) != fingerprint(now):
      raise configs.ConfigError(
        f"{workdir} holds a run {run.name} of another config"
        f" ({_differences(saved or {}, now) or 'its folder is gone'}): restore"
        " it, or choose another --workdir"
      )


def fingerprint(config: dict[str, Any]) -> str:
  """Twelve characters that stand for a resolved config, as a plain dict.

  Where and how fast the data is read from, and the sections of sweep and study
  themselves, are left out.
  """
  return _digest(_bound(config))


def _differences(saved: dict[str, Any], config: dict[str, Any]) -> str:
  old, new = _bound(saved), _bound(config)
  return "; ".join(
    f"{path}: {old[path]} -> {new.get(path, 'unset')}"
    for path in old
    if old[path] != new.get(path)
  )


def _bound(config: dict[str, Any]) -> dict[str, Any]:
  return {
    path: value
    for path, value in configs.flatten(config).items()
    if path not in configs.UNBOUND and not path.startswith(("sweep.", "study."))
  }


def _digest(tree: Any) -> str:
  text = json.dumps(tree, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
