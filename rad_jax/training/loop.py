"""The training run: from a Run and a folder to the trained state."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from tqdm import tqdm

from rad_jax.data import batches
from rad_jax.data.training_set import TrainingSet
from rad_jax.run import Run
from rad_jax.training import (
  checkpoints,
  chips,
  dispatch,
  hosts,
  metrics,
  passes,
  sharding,
  watch,
  workdir,
)
from rad_jax.training.state import State, num_parameters
from rad_jax.training.step import Batch, Step
from rad_jax.training.watch import Meter, Watch

_LOG = logging.getLogger("rad_jax")


class Interrupted(RuntimeError):
  """Training was asked to stop; what it had reached is saved."""


def train(run: Run, folder: pathlib.Path) -> State:
  """Trains to train.num_steps, going on from the folder's checkpoint.

  Args:
    run: what to train.
    folder: the run's, made if missing; it holds config.json, checkpoints/,
      metrics.jsonl and tensorboard/.

  Returns:
    The state after the last step, which is also the newest checkpoint.

  Raises:
    ConfigError: the folder holds a run of another model, data or objective.
    OSError: the folder cannot be written.
    CheckpointError: no checkpoint can be read, or written.
    NonFiniteLoss: the step is named; no bad checkpoint is written.
    Interrupted: by SIGTERM or Ctrl-C, after the step was saved.
  """
  folder.mkdir(parents=True, exist_ok=True)
  training_set = run.open_training_set()
  mesh = sharding.device_mesh(run.train.fsdp)
  with checkpoints.open_manager(
    folder, run.checkpoint.keep, run.checkpoint.keep_every_steps
  ) as manager:
    workdir.claim(folder, run, resuming=manager.latest_step() is not None)
    state = resume_or_start(run, manager, mesh)
    first_step = int(state.step)
    _LOG.info(
      "%s on %s: %s parameters, %d device(s) in %d process(es), step %d of %d",
      run.objective.name,
      run.data.name,
      f"{num_parameters(state):,}",
      jax.device_count(),
      jax.process_count(),
      first_step,
      run.train.num_steps,
    )
    if first_step >= run.train.num_steps:
      return state
    fed = dispatched_batches(run, training_set, first_step, mesh)
    with (
      metrics.writer(
        folder, first_step, run.train.wandb_project, run.config
      ) as write,
      hosts.stop_requests() as asked,
      debugging(run.train.debug),
    ):
      return run_steps(run, state, fed, mesh, manager, write, asked)


def training_batches(
  run: Run, training_set: TrainingSet, first_step: int, rows: slice
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches first_step .. num_steps - 1.

  They hold no examples where data.loading is "device", just their indices.
  """
  loading = run.data.loading
  threads = run.data.num_threads if loading == "stream" else 1
  return batches.batches(
    training_set.fetch if loading != "device" else None,
    run.config["seed"],
    first_step,
    run.train.num_steps,
    run.train.batch_size,
    training_set.num_examples,
    rows=rows,
    num_worker_threads=threads,
    prefetch=2 * threads,
  )


def dispatched_batches(
  run: Run, training_set: TrainingSet, first_step: int, mesh: jax.sharding.Mesh
) -> Iterator[Batch]:
  """What each dispatch of the run is fed, on the devices."""
  rows = sharding.process_rows(run.train.batch_size)
  fed = training_batches(run, training_set, first_step, rows)
  several = run.train.steps_per_dispatch > 1
  if several:
    fed = dispatch.stacked(fed, dispatches(run, first_step))
  shared = {}
  if run.data.loading == "device":
    shared[dispatch.WHOLE_SET] = sharding.place_everywhere(
      training_set.x_0, mesh
    )
  axis = int(several)  # behind that of the steps
  return (sharding.place(batch, mesh, axis) | shared for batch in fed)


def dispatches(run: Run, first_step: int) -> Iterator[dispatch.Dispatch]:
  """The run from first_step on, in dispatches."""
  return dispatch.plan(
    run.timetable,
    first_step,
    run.train.num_steps,
    run.train.steps_per_dispatch,
  )


def run_steps(
  run: Run,
  state: State,
  fed: Iterator[Batch],
  mesh: jax.sharding.Mesh,
  manager,
  write: metrics.Writer,
  asked: Callable[[], bool],
) -> State:
  """The loop. Metrics are fetched while the next dispatch runs.

  Args:
    run: the run.
    state: to go on from; it is donated.
    fed: the batches of each dispatch, by `dispatched_batches`.
    mesh: their devices.
    manager: of the run's checkpoints.
    write: of its metrics.
    asked: whether to save now and stop.
  """
  fields, meter = run.train, Meter()
  programs = Programs(run, mesh, meter)
  first_step, last_step = int(state.step), fields.num_steps
  bar = _progress(run, first_step)
  watched = Watch(
    first_step,
    fields.max_skipped,
    fields.rollback_above,
    _reporter(run, meter, write, bar),
  )
  rollbacks = 0
  with bar, profiling(fields.profile_steps, manager) as profile:
    for part in dispatches(run, first_step):
      with meter.timing("data"):
        batch = next(fed)
      profile(part.steps)
      step, done = programs.step(part, state, batch), part.steps[-1]
      monitored = programs.monitored(done, state, batch)
      state, measured = step(state, batch)
      bar.update(len(part.steps))
      # Waits for the dispatch before, while this one runs.
      before = watched.wait()
      if before and before % fields.log_every_steps == 0:
        if not watched.is_well(
          _kept(manager.latest_step(), manager), report=True
        ):
          rollbacks += 1
          state = roll_back(run, state, mesh, manager, watched, rollbacks)
          continue
      watched.add(part, measured, monitored)
      ending = asked() or done == last_step
      if ending or done % run.checkpoint.every_steps == 0:
        if not watched.is_well(
          _kept(manager.latest_step(), manager), report=ending
        ):
          rollbacks += 1
          state = roll_back(run, state, mesh, manager, watched, rollbacks)
        with meter.timing("checkpoint"):
          checkpoints.save(manager, done, state)
      if ending and done < last_step:
        checkpoints.finish(manager)
        raise Interrupted(
          f"asked to stop: step {done} of {last_step} is saved in"
          f" {manager.directory}; the same command goes on from there"
        )
  checkpoints.finish(manager)
  return state


class Programs:
  """The compiled steps of a run, with and without the regulariser."""

  def __init__(self, run: Run, mesh: jax.sharding.Mesh, meter: Meter) -> None:
    self._run, self._mesh, self._meter = run, mesh, meter
    self._steps: dict[tuple[bool, int], Step] = {}
    self._monitor = compile_monitor(run)
    self._monitor_every = run.config["attack"]["monitor_every_steps"]

  def step(self, part: dispatch.Dispatch, state: State, batch: Batch) -> Step:
    """The program of a dispatch, compiled the first time."""
    program = part.regularised, len(part.steps)
    if program not in self._steps:
      with self._meter.timing("compile"):
        self._steps[program] = compile_step(
          self._run, state, batch, self._mesh, part.regularised
        )
    return self._steps[program]

  def monitored(self, done: int, state: State, batch: Batch):
    """What the monitor measures before step `done`, where it is due."""
    if self._monitor_every and done % self._monitor_every == 0:
      return self._monitor(state, batch)
    return {}


def _progress(run: Run, first_step: int) -> tqdm:
  return tqdm(
    total=run.train.num_steps,
    initial=first_step,
    desc=f"train {run.objective.name}",
    unit="step",
    mininterval=0.5,
    disable=not hosts.is_first(),
  )


def _reporter(
  run: Run, meter: Meter, write: metrics.Writer, bar: tqdm
) -> Callable[[list[int], int, dict[str, float]], None]:
  """Writes a window's row, with its speed and what the run has cost so far."""
  flops = passes.flops(run.network, run.initial_state, run.example_shape)
  spent_at = lambda step: passes.total_passes(
    run.timetable, step, run.step_passes
  )

  def report(steps: list[int], before: int, values: dict[str, float]) -> None:
    step, batch_size = steps[-1], run.train.batch_size
    spent = spent_at(step)
    needed = (spent - spent_at(before)) * flops * batch_size
    speed = meter.read(len(steps), batch_size, needed)
    values = values | {
      "learning_rate": float(run.learning_rate(step - 1)),
      "passes": spent,
    }
    write(
      step,
      {f"train/{name}": value for name, value in values.items()}
      | {f"speed/{name}": value for name, value in speed.items()},
    )
    loss, rate = values.get("loss", float("nan")), speed["images_per_second"]
    bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} examples/s")

  return report


def roll_back(
  run: Run,
  state: State,
  mesh: jax.sharding.Mesh,
  manager,
  watched: Watch,
  rollbacks: int,
) -> State:
  """The last checkpoint before the window, at today's step.

  So the run goes on past the data that threw it off.

  Raises:
    LossSpike: there is no such checkpoint, or there were too many roll-backs.
  """
  watched.forget()
  step = int(state.step)
  checkpoints.finish(manager)
  older = [saved for saved in manager.all_steps() if saved <= watched.logged]
  if not older or rollbacks > run.train.max_rollbacks:
    raise watch.LossSpike(
      f"the loss jumped before step {step}, after {rollbacks - 1} roll-backs:"
      f" {_kept(max(older, default=None), manager)}. Lower"
      " optimizer.learning_rate, or set optimizer.max_grad_norm"
    )
  checkpoints.set_aside_after(manager, max(older), "spike")
  restored = restored_state(run, manager, mesh)
  _LOG.warning(
    "the loss jumped before step %d: back to the parameters of step %d",
    step,
    int(restored.step),
  )
  return restored._replace(step=state.step)


def compile_step(
  run: Run,
  state: State,
  batch: Batch,
  mesh: jax.sharding.Mesh,
  regularised: bool = True,
) -> Step:
  """The step, compiled ahead for these shapes: it cannot recompile later.

  With train.steps_per_dispatch above 1 it is that of a batch for each of some
  steps (dispatch.several).

  With train.debug it is compiled when it is called, and its state not donated:
  JAX runs it again, an operation at a time, to find where a NaN arises.
  """
  started = time.perf_counter()
  of_state, debug = sharding.of_state(mesh, state), run.train.debug
  step = run.train_step(regularised)
  several = run.train.steps_per_dispatch > 1
  of_batch = {
    name: sharding.replicated(mesh)
    if name == dispatch.WHOLE_SET
    else sharding.by_example(mesh, axis=int(several))
    for name in batch
  }
  step = jax.jit(
    dispatch.with_examples(dispatch.several(step) if several else step),
    in_shardings=(of_state, of_batch),
    out_shardings=(of_state, sharding.replicated(mesh)),
    donate_argnums=() if debug else 0,
    compiler_options=chips.compiler_options(),
  )
  if debug:
    return step
  compiled = step.lower(state, batch).compile()
  _LOG.info("compiled the step in %.1f s", time.perf_counter() - started)
  return compiled


def compile_monitor(run: Run):
  """The monitor, jitted; of several steps it watches the first."""
  several = run.train.steps_per_dispatch > 1
  monitor = dispatch.of_first(run.monitor) if several else run.monitor
  return jax.jit(dispatch.with_examples(monitor))


@contextlib.contextmanager
def debugging(on: bool) -> Iterator[None]:
  """Inside, NaNs are raised where they arise, and reused keys are refused."""
  if not on:
    yield
    return
  with jax.debug_nans(True), jax.debug_key_reuse(True):
    yield


@contextlib.contextmanager
def profiling(
  steps: Sequence[int], manager
) -> Iterator[Callable[[range], None]]:
  """Yields profile(steps), to be called before each dispatch.

  Those with any of `steps`, first .. last, are traced into profile/ beside the
  checkpoints.
  """
  tracing = False

  def profile(part: range) -> None:
    nonlocal tracing
    if steps and not tracing and part[0] <= steps[1] and part[-1] >= steps[0]:
      jax.profiler.start_trace(str(manager.directory.parent / "profile"))
      tracing = True
    elif tracing and part[0] > steps[1]:
      jax.profiler.stop_trace()
      tracing = False

  try:
    yield profile
  finally:
    if tracing:
      jax.profiler.stop_trace()


def resume_or_start(run: Run, manager, mesh: jax.sharding.Mesh) -> State:
  """The newest whole checkpoint's state, or a new one, on the mesh."""
  if manager.latest_step() is not None:
    state = restored_state(run, manager, mesh)
    checkpoints.set_aside_after(manager, int(state.step))
    return state
  of_state = sharding.of_state(mesh, jax.eval_shape(run.initial_state))
  state = jax.jit(run.initial_state, out_shardings=of_state)()
  source = run.train.init_from
  if not source:
    return state
  return workdir.start_from(pathlib.Path(source), state, run, mesh)


def restored_state(run: Run, manager, mesh: jax.sharding.Mesh) -> State:
  """The newest checkpoint's state that can be read, on the mesh."""
  like = jax.eval_shape(run.initial_state)
  return checkpoints.restore(manager, like, sharding.of_state(mesh, like))


def _kept(step: int | None, manager) -> str:
  if step is None:
    return "no checkpoint was written yet"
  return f"the last good checkpoint is step {step} in {manager.directory}"
