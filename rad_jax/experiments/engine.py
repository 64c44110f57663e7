"""Trains, samples and evaluates the runs of an experiment, once each.

Interrupted, it goes on with the runs that have no row in the table. Runs are
trained one by one (training.loop), or those of one program side by side
(training.together), whose checkpoints lie in groups/.
"""

import copy
import logging
import math
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from rad_jax import files
from rad_jax.config import ConfigDict
from rad_jax.evaluation import evaluate, sampling, subject
from rad_jax.experiments import pool, table
from rad_jax.experiments.pool import Job
from rad_jax.experiments.table import Entry, Row
from rad_jax.training import (
  budget,
  build,
  health,
  loop,
  metrics,
  sharding,
  together,
)

_LOG = logging.getLogger("rad_jax")


def run_all(
  entries: list[Entry],
  workdir: pathlib.Path,
  processes: int = 1,
  group_size: int = 0,
) -> list[Row]:
  """Does the runs that have no row in workdir yet; returns all rows in order.

  A run that diverges gets a row with its error, and the others go on.

  Args:
    entries: the runs, under unique names.
    workdir: the experiment's folder, made if missing.
    processes: jobs at a time, as pool.work_off.
    group_size: runs of one program trained together, at most; 0 trains every
      run by itself.

  Raises:
    ConfigError: workdir holds a run of the same name and another config.
    Interrupted, HostError: as pool.work_off.
  """
  table.refuse_changed(entries, workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  done = {row["run"] for row in table.read(workdir)}
  missing = [one for one in entries if one.name not in done]
  jobs = groups(missing, group_size) if group_size else [[e] for e in missing]
  work = run_group if group_size else run_alone
  first = len(entries) - len(missing)
  with tqdm(total=len(entries), initial=first, unit="run") as bar:
    for job, job_rows in pool.work_off(jobs, work, workdir, processes):
      for one, row in zip(job, job_rows, strict=True):
        table.append(row, workdir)
        measures = row.keys() - _record(one).keys() - {"seconds"}
        found = (f"{k} {row[k]:.4g}" for k in row if k in measures)
        bar.write(f"{one.name}: {row.get('error') or ', '.join(found)}")
        bar.update()
  rows = {row["run"]: row for row in table.read(workdir)}
  return [rows[one.name] for one in entries]


def groups(entries: list[Entry], size: int) -> list[Job]:
  """The runs by program, at most `size` together."""
  by_program: dict[tuple, Job] = {}
  for one in entries:
    by_program.setdefault(together.program(one.config), []).append(one)
  return [
    group[start : start + size]
    for group in by_program.values()
    for start in range(0, len(group), size)
  ]


def run_alone(job: Job, workdir: pathlib.Path) -> list[Row]:
  """Trains, samples and evaluates the only run of a job."""
  (one,) = job
  config, folder = one.config, workdir / "runs" / one.name
  try:
    loop.train(config, folder)
  except (health.NonFiniteLoss, health.LossSpike) as error:
    return [_record(one) | {"error": str(error)}]
  seconds = {"seconds": training_seconds(folder, config.train.batch_size)}
  return [_measured(one, subject.open_subject(config, folder), seconds)]


def run_group(group: Job, workdir: pathlib.Path) -> list[Row]:
  """Trains a group, then samples and evaluates each of its runs."""
  runs = [one.config for one in group]
  prints = [table.fingerprint(run.to_dict()) for run in runs]
  identity = [[one.name, own] for one, own in zip(group, prints, strict=True)]
  sets = together.training_sets(runs)
  states = together.train(
    runs, sets, workdir / "groups" / table.digest(identity)
  )
  params = build.parameters_of(states, runs[0])
  rows = []
  for place, (one, training_set) in enumerate(zip(group, sets, strict=True)):
    config, folder = one.config, workdir / "runs" / one.name
    folder.mkdir(parents=True, exist_ok=True)
    loop.claim(folder, config, resuming=False)
    own, mesh = together.one(params, place), sharding.device_mesh()
    step, digest = config.train.num_steps, sampling.digest(own)
    model = sampling.Model(config, folder, mesh, own, step, digest)
    truth = subject.clean_truth(config, training_set)
    found = subject.Subject(model, training_set, truth)
    rows.append(_measured(one, found, {}))
  return rows


def _measured(one: Entry, trained: subject.Subject, seconds: Row) -> Row:
  """The row of a trained run, after sampling and evaluation."""
  row = _record(one)
  try:
    sampling.save_samples(trained.model)
    measures = evaluate.measure(trained)["measures"]
  except sampling.NonFiniteSamples as error:
    return row | {"error": str(error)}
  return row | seconds | measures


def _record(one: Entry) -> Row:
  """What a run's row holds before it is measured."""
  return {
    "run": one.name,
    **one.labels,
    "config": table.fingerprint(one.config.to_dict()),
    "steps": one.config.train.num_steps,
    "passes": build.total_passes(one.config),
  }


def training_seconds(folder: pathlib.Path, batch_size: int) -> float:
  """Time that a run spent in training steps, however often interrupted."""
  rows = metrics.read(folder)
  steps = np.diff([row["step"] for row in rows], prepend=0)
  speeds = np.array([row["speed/images_per_second"] for row in rows])
  return float(np.sum(steps * batch_size / speeds))


# ---- How long ----


def matched(
  entries: list[Entry], match: str, workdir: pathlib.Path
) -> list[Entry]:
  """The runs with as many steps as make them equal.

  Args:
    entries: runs whose train.num_steps are those of DDPM.
    match: "steps" leaves them; with "passes" or "seconds" every run but DDPM's
      gets the steps that cost as many network passes, or as much time, as
      DDPM's would.
    workdir: the experiment's folder, as `timed`.
  """
  if match == "steps":
    return entries
  passes = lambda config: build.total_passes(config) / config.train.num_steps
  step_cost = timed(workdir) if match == "seconds" else passes
  found = []
  for one in entries:
    config = copy.deepcopy(one.config)
    if config.objective.name != "ddpm":
      ratio = step_cost(build.as_ddpm(config)) / step_cost(config)
      config.train.num_steps = max(1, round(config.train.num_steps * ratio))
    found.append(one._replace(config=config))
  return found


def timed(workdir: pathlib.Path) -> Callable[[ConfigDict], float]:
  """step_seconds, measured once for each program, kept in step_seconds.json.

  Call it while nothing else runs.
  """
  path = workdir / "step_seconds.json"
  known = files.read_json(path)

  def seconds(config: ConfigDict) -> float:
    name = _program(config)
    if name not in known:
      _LOG.info("timing the step of %s", name)
      known[name] = step_seconds(config)
      files.write_json(path, known)
    return known[name]

  return seconds


def _program(config: ConfigDict) -> str:
  """A name for all configs whose training step takes the same time.

  It leaves out the axes, which only change numbers in it, but for the
  objective and whether there is corruption at all.
  """
  fields = table.bound(config.to_dict())
  name, corrupted = config.objective.name, config.data.corruption.fraction > 0
  for path in table.AXES.values():
    del fields[path]
  return f"{name}-{table.digest([name, corrupted, fields])}"


def step_seconds(config: ConfigDict) -> float:
  """Seconds of a step on this machine, on average over the training."""
  num_steps = config.train.num_steps
  on = budget.steps_on(build.timetable(config), num_steps) / num_steps
  return sum(
    share * _measured_seconds(config, regularised)
    for regularised, share in ((True, on), (False, 1 - on))
    if share > 0
  )


def _measured_seconds(config: ConfigDict, regularised: bool) -> float:
  """Median of five rounds, each of 20 dispatches and 0.2 s or more."""
  mesh = sharding.device_mesh()
  batch = next(
    loop.dispatched_batches(config, build.training_set(config), 0, mesh)
  )
  steps_each = len(next(loop.dispatches(config, 0)).steps)
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
  return float(np.median([seconds(dispatches) for _ in range(5)])) / steps_each
