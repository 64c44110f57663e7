"""The training run: from a Run and a folder to the trained state."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from rad_jax import config as configs
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
from rad_jax.version import __version__

_LOG = logging.getLogger("rad_jax")

Measures = dict[str, float]
# (moving average, step) -> a picture of samples, and their measures.
Show = Callable[[PyTree, int], tuple[pathlib.Path | None, Measures]]


class Interrupted(RuntimeError):
  """Training was asked to stop; what it had reached is saved."""


def train(
  run: Run,
  folder: pathlib.Path,
  shower: Callable[[Run, TrainingSet, Mesh, pathlib.Path], Show] | None = None,
) -> State:
  """Trains to train.num_steps, going on from the folder's checkpoint.

  With train.sample_every_steps, shower(run, its set, mesh, folder) says how
  samples are shown. The folder, made if missing, holds config.json,
  checkpoints/, metrics.jsonl and tensorboard/. The state returned is also the
  newest checkpoint. Raises ConfigError if the folder is another run's, InUse if
  another process has it, CheckpointError, NonFiniteLoss or LossSpike (no bad
  checkpoint is written), and Interrupted once all is saved.
  """
  mesh = sharding.device_mesh(run.train.fsdp)
  with (
    workdir.held(folder),
    checkpoints.open_manager(
      folder, run.checkpoint.keep, run.checkpoint.keep_every_steps
    ) as manager,
  ):
    training_set = run.open_training_set()
    about = {"config": run.config, "data": training_set.identity}
    hosts.refuse_differing(_told(about))
    state = _begin(run, folder, manager, mesh, about)
    first_step = int(state.step)
    _LOG.info(
      f"{run.objective.name} on {run.data.name}: {num_parameters(state):,}"
      f" parameters, {jax.device_count()} device(s) in {jax.process_count()}"
      f" process(es), step {first_step} of {run.train.num_steps}"
    )
    if first_step >= run.train.num_steps:
      _LOG.info(
        f"complete at step {first_step}; raise train.num_steps to go on"
      )
      return state
    fed = dispatched_batches(run, training_set, first_step, mesh)
    show, to_come = None, range(first_step + 1, run.train.num_steps + 1)
    if shower and _shows_in(run, to_come):
      show = shower(run, training_set, mesh, folder)
    with (
      metrics.writer(
        folder, first_step, run.train.wandb_project, run.config
      ) as write,
      hosts.stop_requests() as asked,
      contextlib.ExitStack() as checked,
    ):
      if run.train.debug:
        checked.enter_context(jax.debug_nans(True))
        checked.enter_context(jax.debug_key_reuse(True))
      return run_steps(
        run, state, fed, mesh, manager, about, write, asked, show
      )


def _begin(
  run: Run, folder: pathlib.Path, manager, mesh: Mesh, about: dict[str, Any]
) -> State:
  """The state to go on from, its history in `about`; claims the folder."""
  resuming = manager.latest_step() is not None
  if resuming:
    workdir.refuse_conflicts(folder, run)
  state = resume_or_start(run, manager, mesh)
  if resuming:
    found = checkpoints.read_about(manager, int(state.step))
    workdir.refuse_other(folder, found, about)
    about["history"] = found["history"]
  workdir.claim(folder, run)
  return state


def _told(about: dict[str, Any]) -> dict[str, Any]:
  """What must be the same on all hosts of a run, by name."""
  fields = configs.flatten(about["config"])
  of_a_host = ("data.cache", "data.data_dir", "data.num_threads")
  same = {name: x for name, x in fields.items() if name not in of_a_host}
  return same | about["data"] | {"the version of rad_jax": __version__}


def training_batches(
  run: Run, training_set: TrainingSet, first_step: int, rows: slice
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows from first_step on; indices alone if on "device"."""
  threads = run.data.num_threads if run.data.loading == "stream" else 1
  return batches.batches(
    training_set.fetch if run.data.loading != "device" else None,
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
  run: Run, training_set: TrainingSet, first_step: int, mesh: Mesh
) -> Iterator[Batch]:
  """What each dispatch of the run is fed, on the devices."""
  rows = sharding.process_rows(run.train.batch_size)
  fed = training_batches(run, training_set, first_step, rows)
  if _is_several(run):
    fed = dispatch.stacked(fed, dispatches(run, first_step))
  shared = {}
  if run.data.loading == "device":
    everywhere = sharding.replicated(mesh)
    shared[dispatch.WHOLE_SET] = sharding.place(training_set.x_0, everywhere)
  own = sharding.by_example(mesh, axis=int(_is_several(run)))
  return (sharding.place(batch, own) | shared for batch in fed)


def _is_several(run: Run) -> bool:
  """Whether batches and metrics have a leading axis of steps."""
  return run.train.steps_per_dispatch > 1


def dispatches(run: Run, first_step: int) -> Iterator[dispatch.Dispatch]:
  """The run from first_step on, in dispatches."""
  return dispatch.plan(
    run.timetable, first_step, run.train.num_steps, run.train.steps_per_dispatch
  )


def run_steps(
  run: Run,
  state: State,
  fed: Iterator[Batch],
  mesh: Mesh,
  manager,
  about: dict[str, Any],
  write: metrics.Writer,
  asked: Callable[[], bool],
  show: Show | None = None,
) -> State:
  """The loop, which donates `state`. Metrics are read a dispatch later."""
  first_step, last_step = int(state.step), run.train.num_steps
  meter = Meter()
  program, monitored = _programs(run, mesh, meter), _monitor(run)
  shown = _shown(run, show, meter, write)
  bar = _bar(f"train {run.objective.name}", first_step, last_step)
  kept = lambda: _kept(manager.latest_step(), manager)
  report = _reporter(run, meter, write, bar)
  watched = Watch(first_step, run.train, kept, report, about.get("history"))
  profile_folder = str(manager.directory.parent / "profile")
  with bar, profiling(run.train.profile_steps, profile_folder) as profile:
    for part in dispatches(run, first_step):
      with meter.timing("data"):
        batch = next(fed)
      profile(part.steps)
      step, done = program(part, state, batch), part.steps[-1]
      attacks = monitored(done, state, batch)
      state, measured = step(state, batch)
      bar.update(len(part.steps))
      # Waits for the dispatch before, while this one runs.
      before = watched.wait()
      if before and before % run.train.log_every_steps == 0:
        if not watched.is_well(report=True):
          state = roll_back(run, state, mesh, manager, watched)
          continue
      found = shown(part.steps, state)
      watched.window.append((part, measured, attacks | found))
      ending = asked() or done == last_step
      if ending or done % run.checkpoint.every_steps == 0:
        if not watched.is_well(report=ending):
          state = roll_back(run, state, mesh, manager, watched)
        with meter.timing("checkpoint"):
          checkpoints.save(
            manager, done, state, about | {"history": watched.history}
          )
      if ending and done < last_step:
        checkpoints.finish(manager)
        raise Interrupted(
          f"asked to stop: step {done} of {last_step} is saved in"
          f" {manager.directory}; the same command goes on from there"
        )
  checkpoints.finish(manager)
  return state


def _bar(what: str, first_step: int, last_step: int) -> tqdm:
  return tqdm(
    total=last_step,
    initial=first_step,
    desc=what,
    unit="step",
    mininterval=0.5,
    disable=not hosts.is_first(),
  )


def _programs(run: Run, mesh: Mesh, meter: Meter):
  """(dispatch, state, batch) -> its step, compiled the first time."""
  compiled: dict[tuple[bool, int], Step] = {}

  def program(part: dispatch.Dispatch, state: State, batch: Batch) -> Step:
    kind = part.regularised, len(part.steps)
    if kind not in compiled:
      with meter.timing("compile"):
        compiled[kind] = compile_step(run, state, batch, mesh, part.regularised)
    return compiled[kind]

  return program


def _monitor(run: Run):
  """(done, state, batch) -> run.monitor of a dispatch's first step, if due."""
  every = run.config["attack"]["monitor_every_steps"]

  def of_first(state: State, batch: Batch):
    if _is_several(run):
      batch = jax.tree.map(lambda x: x[0], batch)
    return run.monitor(state, batch)

  monitor = jax.jit(dispatch.with_examples(of_first))
  due = lambda done: every and done % every == 0
  return lambda done, *args: monitor(*args) if due(done) else {}


def _shows_in(run: Run, steps: range) -> bool:
  """Whether samples are due in some of the steps."""
  every = run.train.sample_every_steps
  return bool(every) and steps[-1] // every > (steps[0] - 1) // every


def _shown(run: Run, show: Show | None, meter: Meter, write: metrics.Writer):
  """(steps of a dispatch, state) -> measures of samples, where they are due."""

  def of(steps: range, state: State) -> Measures:
    if not (show and _shows_in(run, steps)):
      return {}
    jax.block_until_ready(state)
    with meter.timing("samples"):
      picture, found = show(state.ema_params, steps[-1])
      if picture:
        write(steps[-1], {}, picture)
    finite = {name: x for name, x in found.items() if np.isfinite(x)}
    return {f"sample/{name}": x for name, x in finite.items()}

  return of


def _reporter(
  run: Run, meter: Meter, write: metrics.Writer, bar: tqdm
) -> Callable[[list[int], int, dict[str, float]], None]:
  """Writes a window's row, with its speed and what the run has cost so far."""
  flops = passes.flops(run.network, run.initial_state, run.example_shape)

  def report(steps: list[int], before: int, values: dict[str, float]) -> None:
    step, batch_size = steps[-1], run.train.batch_size
    spent, spent_before = (
      passes.total_passes(run.timetable, n, run.step_passes)
      for n in (step, before)
    )
    needed = (spent - spent_before) * flops * batch_size
    speed = meter.read(len(steps), batch_size, needed)
    rates = {"learning_rate": float(run.learning_rate(step - 1))}
    values = values | rates | {"passes": spent}
    named = {"train/": values, "speed/": speed}
    write(
      step,
      {b if "/" in b else a + b: x for a in named for b, x in named[a].items()},
    )
    loss, rate = values.get("loss", float("nan")), speed["images_per_second"]
    bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} examples/s")

  return report


def roll_back(
  run: Run, state: State, mesh: Mesh, manager, watched: Watch
) -> State:
  """The last checkpoint before the window; LossSpike if there is no way."""
  step = int(state.step)
  watched.window.clear()
  watched.rollbacks += 1
  checkpoints.finish(manager)
  older = [saved for saved in manager.all_steps() if saved <= watched.logged]
  if not older or watched.rollbacks > run.train.max_rollbacks:
    raise watch.LossSpike(
      f"the loss jumped before step {step}, after {watched.rollbacks - 1}"
      f" roll-backs: {_kept(max(older, default=None), manager)}. Lower"
      " optimizer.learning_rate, or set optimizer.max_grad_norm"
    )
  checkpoints.set_aside_after(manager, max(older), "spike")
  restored = restored_state(run, manager, mesh)
  _LOG.warning(
    f"the loss jumped before step {step}: back to the parameters of step"
    f" {int(restored.step)}"
  )
  return restored._replace(step=state.step)


def compile_step(
  run: Run, state: State, batch: Batch, mesh: Mesh, regularised: bool = True
) -> Step:
  """The step, compiled ahead for these shapes: it cannot recompile later.

  Not so with train.debug, where JAX runs it again to find where a NaN arises.
  """
  started = time.perf_counter()
  of_state, debug = sharding.of_state(mesh, state), run.train.debug
  step = run.train_step(regularised)
  step = partial(jax.lax.scan, step) if _is_several(run) else step
  own = sharding.by_example(mesh, axis=int(_is_several(run)))
  of_batch = dict.fromkeys(batch, own)
  if dispatch.WHOLE_SET in batch:
    of_batch[dispatch.WHOLE_SET] = sharding.replicated(mesh)
  step = jax.jit(
    dispatch.with_examples(step),
    in_shardings=(of_state, of_batch),
    out_shardings=(of_state, sharding.replicated(mesh)),
    donate_argnums=() if debug else 0,
    compiler_options=chips.compiler_options(),
  )
  if debug:
    return step
  _LOG.info("compiling the step; a large network takes minutes, once")
  with hosts.compiling():
    compiled = step.lower(state, batch).compile()
  _LOG.info("compiled the step in %.1f s", time.perf_counter() - started)
  return compiled


@contextlib.contextmanager
def profiling(
  steps: Sequence[int], folder: str
) -> Iterator[Callable[[range], None]]:
  """Yields profile(part), which traces dispatches in `steps`, (first, last)."""
  first, last = steps or (0, 0)
  with contextlib.ExitStack() as tracing:
    waiting = True

    def profile(part: range) -> None:
      nonlocal waiting
      if part[0] > last:
        tracing.close()
      elif waiting and part[-1] >= first:
        waiting = False
        tracing.enter_context(jax.profiler.trace(folder))

    yield profile


def resume_or_start(run: Run, manager, mesh: Mesh) -> State:
  """The newest whole checkpoint's state, or a new one, on the mesh."""
  if manager.latest_step() is not None:
    state = restored_state(run, manager, mesh)
    checkpoints.set_aside_after(manager, int(state.step))
    return state
  of_state = sharding.of_state(mesh, jax.eval_shape(run.initial_state))
  with hosts.compiling():
    state = jax.jit(run.initial_state, out_shardings=of_state)()
  if not run.train.init_from:
    return state
  return workdir.start_from(pathlib.Path(run.train.init_from), state, run, mesh)


def restored_state(run: Run, manager, mesh: Mesh) -> State:
  """The newest checkpoint's state that can be read, on the mesh."""
  like = jax.eval_shape(run.initial_state)
  return checkpoints.restore(manager, like, sharding.of_state(mesh, like))


def _kept(step: int | None, manager) -> str:
  if step is None:
    return "no checkpoint was written yet"
  return f"the last good checkpoint is step {step} in {manager.directory}"
