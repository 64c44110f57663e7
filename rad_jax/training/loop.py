"""The training run: from a config and a folder to the trained state."""

import contextlib
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from jaxtyping import PyTree
from tqdm import tqdm

from rad_jax import config as configs
from rad_jax.config import ConfigDict
from rad_jax.interop import pretrained
from rad_jax.training import (
  build,
  checkpoints,
  chips,
  cost,
  dispatch,
  health,
  hosts,
  metrics,
  sharding,
)
from rad_jax.training.meter import Meter
from rad_jax.training.state import State
from rad_jax.training.step import Batch, Metrics, Step

_LOG = logging.getLogger("rad_jax")

# Dispatches whose metrics are on the devices: of each step, and the monitor's.
Pending = list[tuple[dispatch.Dispatch, dispatch.Measured, Metrics]]


class Interrupted(RuntimeError):
  """Training was asked to stop; what it had reached is saved."""


def train(config: ConfigDict, workdir: pathlib.Path) -> State:
  """Trains to config.train.num_steps, going on from workdir's checkpoint.

  Args:
    config: a valid config (validation.validate).
    workdir: the run's folder, made if missing; it holds config.json,
      checkpoints/, metrics.jsonl and tensorboard/.

  Returns:
    The state after the last step, which is also the newest checkpoint.

  Raises:
    ConfigError: workdir holds a run of another model, data or objective.
    OSError: workdir cannot be written.
    CheckpointError: no checkpoint can be read, or written.
    NonFiniteLoss: the step is named; no bad checkpoint is written.
    Interrupted: by SIGTERM or Ctrl-C, after the step was saved.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  training_set = build.training_set(config)
  mesh = sharding.device_mesh(config.train.fsdp)
  with checkpoints.open_manager(
    workdir, config.checkpoint.keep, config.checkpoint.keep_every_steps
  ) as manager:
    claim(workdir, config, resuming=manager.latest_step() is not None)
    state = resume_or_start(config, manager, mesh)
    first_step = int(state.step)
    _LOG.info(
      "%s on %s: %s parameters, %d device(s) in %d process(es), step %d of %d",
      config.objective.name,
      config.data.name,
      f"{build.num_parameters(state):,}",
      jax.device_count(),
      jax.process_count(),
      first_step,
      config.train.num_steps,
    )
    if first_step >= config.train.num_steps:
      return state
    batches = dispatched_batches(config, training_set, first_step, mesh)
    with (
      metrics.writer(
        workdir, first_step, config.train.wandb_project, config.to_dict()
      ) as write,
      hosts.stop_requests() as asked,
      debugging(config.train.debug),
    ):
      return run_steps(config, state, batches, mesh, manager, write, asked)


def dispatched_batches(
  config: ConfigDict,
  training_set: build.TrainingSet,
  first_step: int,
  mesh: jax.sharding.Mesh,
) -> Iterator[Batch]:
  """What each dispatch of the run is fed, on the devices."""
  rows = sharding.process_rows(config.train.batch_size)
  batches = build.training_batches(config, training_set, first_step, rows)
  several = config.train.steps_per_dispatch > 1
  if several:
    batches = dispatch.stacked(batches, dispatches(config, first_step))
  shared = {}
  if config.data.loading == "device":
    shared[dispatch.WHOLE_SET] = sharding.place_everywhere(
      training_set.x_0, mesh
    )
  axis = int(several)  # behind that of the steps
  return (sharding.place(batch, mesh, axis) | shared for batch in batches)


def dispatches(
  config: ConfigDict, first_step: int
) -> Iterator[dispatch.Dispatch]:
  """The run from first_step on, in dispatches."""
  return dispatch.plan(
    build.timetable(config),
    first_step,
    config.train.num_steps,
    config.train.steps_per_dispatch,
  )


def run_steps(
  config: ConfigDict,
  state: State,
  batches: Iterator[Batch],
  mesh: jax.sharding.Mesh,
  manager,
  write: metrics.Writer,
  asked: Callable[[], bool],
) -> State:
  """The loop. Metrics are fetched while the next step runs.

  Args:
    config: of the run.
    state: to go on from; it is donated.
    batches: of each dispatch, by `dispatched_batches`.
    mesh: their devices.
    manager: of the run's checkpoints.
    write: of its metrics.
    asked: whether to save now and stop.
  """
  fields, timing = config.train, Meter()
  step_fns: dict[tuple[bool, int], Step] = {}
  monitor, monitor_every = None, config.attack.monitor_every_steps
  learning_rate, flops = build.learning_rate(config), cost.pass_flops(config)
  first_step, last_step = int(state.step), fields.num_steps
  last_saved = logged = first_step
  window: Pending = []
  losses: list[float] = []
  skipped = rollbacks = 0
  bar = tqdm(
    total=last_step,
    initial=first_step,
    desc=f"train {config.objective.name}",
    unit="step",
    mininterval=0.5,
    disable=not hosts.is_first(),
  )

  def is_well(log: bool) -> bool:
    """Checks the window, and logs and empties it; False asks to roll back."""
    nonlocal skipped, logged
    steps, rows = rows_of(window)
    try:
      count = health.refuse_non_finite(
        steps, rows, _kept(last_saved, manager), skipped, fields.max_skipped
      )
    except health.NonFiniteLoss:
      if not fields.rollback_above:
        raise
      return False
    if not log:
      return True
    window.clear()
    skipped, step, values = count, steps[-1], health.means(rows)
    passes = build.total_passes(config, step)
    needed = (passes - build.total_passes(config, logged)) * flops
    spent = timing.read(
      len(rows), fields.batch_size, needed * fields.batch_size
    )
    values |= {
      "learning_rate": float(learning_rate(step - 1)),
      "passes": passes,
    }
    write(
      step,
      {f"train/{name}": value for name, value in values.items()}
      | {f"speed/{name}": value for name, value in spent.items()},
    )
    loss = values.get("loss", math.nan)
    bar.set_postfix_str(
      f"loss {loss:.4f}, {spent['images_per_second']:,.0f} examples/s"
    )
    if health.has_spiked(loss, losses, fields.rollback_above):
      return False
    logged = step
    losses.append(loss)
    return True

  def roll_back(state: State) -> State:
    """The last checkpoint before the window, at today's step.

    So the run goes on past the data that threw it off.
    """
    nonlocal rollbacks
    rollbacks += 1
    window.clear()
    step = int(state.step)
    checkpoints.finish(manager)
    older = [saved for saved in manager.all_steps() if saved <= logged]
    if not older or rollbacks > fields.max_rollbacks:
      raise health.LossSpike(
        f"the loss leapt before step {step}, after {rollbacks - 1} roll-backs:"
        f" {_kept(max(older, default=0), manager)}. Lower"
        " optimizer.learning_rate, or set optimizer.max_grad_norm"
      )
    checkpoints.set_aside_after(manager, max(older), "spike")
    restored = restored_state(config, manager, mesh)
    _LOG.warning(
      "the loss leapt before step %d: back to the parameters of step %d",
      step,
      int(restored.step),
    )
    return restored._replace(step=state.step)

  with bar, profiling(fields.profile_steps, manager) as profile:
    for part in dispatches(config, first_step):
      with timing.timing("data"):
        batch = next(batches)
      profile(part.steps)
      program = part.regularised, len(part.steps)
      if program not in step_fns:
        with timing.timing("compile"):
          step_fns[program] = compile_step(
            config, state, batch, mesh, part.regularised
          )
      done, watched = part.steps[-1], {}
      if monitor_every and done % monitor_every == 0:
        monitor = monitor or compile_monitor(config)
        watched = monitor(state, batch)
      state, measured = step_fns[program](state, batch)
      bar.update(len(part.steps))
      if window:
        # Waits for the dispatch before, while this one runs: the host neither
        # stalls the device nor runs away from it.
        before, values, _ = window[-1]
        jax.block_until_ready(values)
        if before.steps[-1] % fields.log_every_steps == 0 and not is_well(
          log=True
        ):
          state = roll_back(state)
          continue
      window.append((part, measured, watched))
      stopping, ending = asked(), done == last_step
      if stopping or ending or done % config.checkpoint.every_steps == 0:
        if not is_well(log=stopping or ending):
          state = roll_back(state)
        with timing.timing("checkpoint"):
          checkpoints.save(manager, done, state)
        last_saved = done
      if stopping and done < last_step:
        checkpoints.finish(manager)
        raise Interrupted(
          f"asked to stop: step {done} of {last_step} is saved in"
          f" {manager.directory}; the same command goes on from there"
        )
  checkpoints.finish(manager)
  return state


def compile_step(
  config: ConfigDict,
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
  of_state, debug = sharding.of_state(mesh, state), config.train.debug
  step = build.train_step(config, regularised)
  several = config.train.steps_per_dispatch > 1
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


def compile_monitor(
  config: ConfigDict,
) -> Callable[[State, Batch], Metrics]:
  """The monitor, jitted; of several steps it watches the first."""
  monitor = build.monitor(config)
  several = config.train.steps_per_dispatch > 1
  return jax.jit(
    dispatch.with_examples(dispatch.of_first(monitor) if several else monitor)
  )


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


def resume_or_start(config: ConfigDict, manager, mesh) -> State:
  """The newest whole checkpoint's state, or a new one, on the mesh."""
  if manager.latest_step() is not None:
    state = restored_state(config, manager, mesh)
    checkpoints.set_aside_after(manager, int(state.step))
    return state
  of_state = sharding.of_state(
    mesh, jax.eval_shape(lambda: build.state(config))
  )
  state = jax.jit(lambda: build.state(config), out_shardings=of_state)()
  source = config.train.init_from
  return (
    start_from(pathlib.Path(source), state, config, mesh) if source else state
  )


def restored_state(config: ConfigDict, manager, mesh) -> State:
  """The newest checkpoint's state that can be read, on the mesh."""
  like = jax.eval_shape(lambda: build.state(config))
  return checkpoints.restore(manager, like, sharding.of_state(mesh, like))


def start_from(
  source: pathlib.Path,
  state: State,
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
) -> State:
  """`state` with the parameters of another network, for fine-tuning.

  Step, optimiser and randomness stay those of `state`. A single set of
  parameters starts both the raw ones and their moving average.

  Args:
    source: another run's folder, whose newest parameters are taken, or what
      `pretrained.load` reads.
    state: a new run's.
    config: today's config; train.init_weights chooses the parameters.
    mesh: over which another run's are replicated.

  Raises: as `parameters_of_run` and `pretrained.load`.
  """
  if pretrained.is_foreign(source):
    params = jax.tree.map(
      lambda array, like: jax.device_put(array, like.sharding),
      pretrained.load(source, state.params, configs.flatten(config.to_dict())),
      state.params,
    )
  else:
    params, step = parameters_of_run(
      source, config, mesh, "train.init_from", config.train.init_weights
    )
    _LOG.info("starting from step %d of %s", step, source)
  return state._replace(
    params=params, ema_params=jax.tree.map(jax.numpy.copy, params)
  )


def parameters_of_run(
  source: pathlib.Path,
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  field: str,
  which: str = "",
) -> tuple[PyTree, int]:
  """Another run's newest parameters, for config's network; and their step.

  Args:
    source: the other run's folder, from config's field `field`.
    config: today's config.
    mesh: over which they are replicated.
    field: named in errors.
    which: "ema", the moving average; "raw"; or "", as the other run's
      sampling.ema says.

  Raises:
    CheckpointError: source has no run or no whole checkpoint.
    ConfigError: its network or noise process is another.
  """
  path = source / "config.json"
  if not path.exists():
    raise checkpoints.CheckpointError(
      f"no run in config.{field}={str(source)!r}"
    )
  saved = configs.default()
  saved.update(configs.ConfigDict(json.loads(path.read_text())))
  found = [
    line
    for line in configs.conflicts(saved.to_dict(), config, training=False)
    if line.startswith(("model.", "diffusion."))
  ]
  if found:
    raise configs.ConfigError(
      f"config.{field}={str(source)!r} holds another model"
      f" ({'; '.join(found)}): restore these fields"
    )
  shapes = [build.example_shape(c) for c in (saved, config)]
  if shapes[0] != shapes[1]:
    raise configs.ConfigError(
      f"config.{field}={str(source)!r} was trained on examples of shape"
      f" {shapes[0]}, and {config.data.name}'s is {shapes[1]}"
    )
  like = jax.eval_shape(lambda: build.state(saved))
  with checkpoints.open_manager(source) as manager:
    found_state = checkpoints.restore(manager, like, sharding.replicated(mesh))
  if which:
    saved.sampling.ema = which == "ema"
  return build.parameters_of(found_state, saved), int(found_state.step)


def claim(workdir: pathlib.Path, config: ConfigDict, resuming: bool) -> None:
  """Writes config.json into workdir, unless another run's checkpoints do."""
  path = workdir / "config.json"
  if resuming and path.exists():
    refuse_conflicts(path, config)
  if jax.process_index() == 0:
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    whole.replace(path)


def refuse_conflicts(
  path: pathlib.Path, config: ConfigDict, training: bool = True
) -> None:
  """Raises ConfigError if the config.json at `path` binds another run."""
  found = configs.conflicts(json.loads(path.read_text()), config, training)
  if found:
    raise configs.ConfigError(
      f"{path.parent} holds a run with another config ({'; '.join(found)}):"
      " restore these fields, or choose another --workdir"
    )


def rows_of(window: Pending) -> tuple[list[int], list[health.Row]]:
  """The steps of a window, and what was measured in each."""
  steps: list[int] = []
  rows: list[health.Row] = []
  for part, measured, watched in jax.device_get(window):
    steps += part.steps
    rows += dispatch.rows(part, measured)
    rows[-1] = {**rows[-1], **watched}
  return steps, rows


def _kept(last_saved: int, manager) -> str:
  if not last_saved:
    return "no checkpoint was written yet"
  return f"the last good checkpoint is step {last_saved} in {manager.directory}"
