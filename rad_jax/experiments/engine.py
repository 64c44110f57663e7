"""Trains, samples and evaluates the runs of an experiment, once each."""

import collections
import copy
import logging
import math
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from rad_jax import config as configs
from rad_jax import files
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.evaluation import evaluate, sampling, subject
from rad_jax.experiments import pool, table
from rad_jax.experiments.table import Entry, Row
from rad_jax.run import Run
from rad_jax.training import loop, metrics, passes, sharding, together, watch
from rad_jax.training import workdir as folders

_LOG = logging.getLogger("rad_jax")


def run_all(
  entries: list[Entry],
  workdir: pathlib.Path,
  processes: int = 1,
  group_size: int = 0,
) -> list[Row]:
  """Does the runs that have no row in workdir yet; returns all rows in order.

  Divergence makes a row with its error. Up to group_size runs of one program
  are trained together, with 0 each alone. Raises as `table.refuse_changed`.
  """
  table.refuse_changed(entries, workdir)
  done = {row["run"] for row in table.read(workdir)}
  missing = [one for one in entries if one.name not in done]
  jobs = groups(missing, group_size) if group_size else [[e] for e in missing]
  work = run_group if group_size else run_alone
  first = len(entries) - len(missing)
  with (
    folders.held(workdir),
    tqdm(total=len(entries), initial=first, unit="run") as bar,
  ):
    for job_rows in pool.work_off(jobs, work, workdir, processes):
      for row in job_rows:
        table.append(row, workdir)
        found = (f"{k} {row[k]:.4g}" for k in row if k not in table.RECORD)
        bar.write(f"{row['run']}: {row.get('error') or ', '.join(found)}")
        bar.update()
  rows = {row["run"]: row for row in table.read(workdir)}
  return [rows[one.name] for one in entries]


def groups(entries: list[Entry], size: int) -> list[pool.Job]:
  """The runs by program, at most `size` together."""
  by_program = collections.defaultdict(list)
  for one in entries:
    by_program[together.program(one.config.to_dict())].append(one)
  return [
    group[start : start + size]
    for group in by_program.values()
    for start in range(0, len(group), size)
  ]


def run_alone(job: pool.Job, workdir: pathlib.Path) -> list[Row]:
  """Trains, samples and evaluates the only run of a job."""
  (one,) = job
  run, folder = runs.build(one.config), workdir / "runs" / one.name
  try:
    loop.train(run, folder)
  except (watch.NonFiniteLoss, watch.LossSpike) as error:
    return [_record(one, run) | {"error": str(error)}]
  seconds = training_seconds(folder, run.train.batch_size)
  return [_measured(one, subject.open_subject(run, folder), seconds=seconds)]


def run_group(group: pool.Job, workdir: pathlib.Path) -> list[Row]:
  """Trains a group in groups/, then samples and evaluates each of its runs."""
  built = [runs.build(one.config) for one in group]
  named = zip(group, built, strict=True)
  identity = files.digest(
    [(one.name, table.fingerprint(run.config)) for one, run in named]
  )
  sets = together.training_sets(built)
  states = together.train(built, sets, workdir / "groups" / identity)
  ema = built[0].sampling.ema
  params = states.ema_params if ema else states.params
  mesh, rows = sharding.device_mesh(), []
  for place, one in enumerate(group):
    run, folder = built[place], workdir / "runs" / one.name
    folders.claim(folder, run)
    own = together.one(params, place)
    digest = sampling.digest(own)
    model = sampling.Model(run, folder, mesh, own, run.train.num_steps, digest)
    reference = subject.reference_of(run, sets[place])
    found = subject.Subject(model, sets[place], reference)
    rows.append(_measured(one, found))
  return rows


def _measured(one: Entry, trained: subject.Subject, **seconds: float) -> Row:
  """The row of a trained run, after sampling and evaluation."""
  row = _record(one, trained.run)
  try:
    sampling.save_samples(trained.model)
    measures = evaluate.measure(trained)["measures"]
  except sampling.NonFiniteSamples as error:
    return row | {"error": str(error)}
  return row | seconds | measures


def _record(one: Entry, run: Run) -> Row:
  return {
    "run": one.name,
    **one.labels,
    "config": table.fingerprint(run.config),
    "steps": run.train.num_steps,
    "passes": _total_passes(run),
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
  """The runs, with as many steps as make each cost what DDPM would.

  In network passes or in seconds (`timed`); "steps" changes nothing.
  """
  if match == "steps":
    return entries
  step_cost = timed(workdir) if match == "seconds" else _step_passes
  found = []
  for one in entries:
    config = copy.deepcopy(one.config)
    if config.objective.name != "ddpm":
      ratio = step_cost(configs.as_ddpm(config)) / step_cost(config)
      config.train.num_steps = max(1, round(config.train.num_steps * ratio))
    found.append(one._replace(config=config))
  return found


def _step_passes(config: ConfigDict) -> float:
  return _total_passes(runs.build(config)) / config.train.num_steps


def _total_passes(run: Run) -> float:
  return passes.total_passes(
    run.timetable, run.train.num_steps, run.step_passes
  )


def timed(workdir: pathlib.Path) -> Callable[[ConfigDict], float]:
  """`step_seconds`, measured once for each program, kept in step_seconds.json.

  Configs of one program differ in AXES only, but not in the objective or in
  whether there is corruption. Call it while nothing else runs.
  """
  path = workdir / "step_seconds.json"
  known = files.read_json(path)

  def seconds(config: ConfigDict) -> float:
    fields = table.bound(config.to_dict())
    for axis in table.AXES.values():
      del fields[axis]
    objective = config.objective.name
    corrupted = config.data.corruption.fraction > 0
    name = f"{objective}-{files.digest([objective, corrupted, fields])}"
    if name not in known:
      _LOG.info("timing the step of %s", name)
      known[name] = step_seconds(config)
      files.write_json(path, known)
    return known[name]

  return seconds


def step_seconds(config: ConfigDict) -> float:
  """Seconds of a step on this machine, on average over the training."""
  run = runs.build(config)
  num_steps = run.train.num_steps
  on = passes.steps_on(run.timetable, num_steps) / num_steps
  return sum(
    share * _measured_seconds(run, regularised)
    for regularised, share in ((True, on), (False, 1 - on))
    if share > 0
  )


def _measured_seconds(run: Run, regularised: bool) -> float:
  """Median of five rounds, each of 20 dispatches and 0.2 s or more."""
  mesh = sharding.device_mesh()
  batch = next(loop.dispatched_batches(run, run.open_training_set(), 0, mesh))
  steps_each = len(next(loop.dispatches(run, 0)).steps)
  state = jax.jit(run.initial_state, out_shardings=sharding.replicated(mesh))()
  step = loop.compile_step(run, state, batch, mesh, regularised)

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
