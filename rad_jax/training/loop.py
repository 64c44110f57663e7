"""The training run: from a config and a folder to the trained state."""

import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from rad_jax import config as configs
from rad_jax.config import ConfigDict
from rad_jax.training import budget, build, checkpoints, metrics, sharding
from rad_jax.training.state import State
from rad_jax.training.step import Batch, Metrics, Step

_LOG = logging.getLogger("rad_jax")

Pending = list[tuple[int, Metrics]]


class NonFiniteLoss(FloatingPointError):
  """Training met a NaN or an infinity and stopped."""


def train(config: ConfigDict, workdir: pathlib.Path) -> State:
  """Trains to config.train.num_steps, going on from workdir's checkpoint.

  Args:
    config: a valid config (config.validate).
    workdir: the run's folder, made if missing; it holds config.json,
      checkpoints/, metrics.jsonl and tensorboard/.

  Returns:
    The state after the last step, which is also the newest checkpoint.

  Raises:
    ConfigError: workdir holds a run of another model, data or objective.
    OSError: workdir cannot be written.
    CheckpointError: the newest checkpoint is damaged.
    NonFiniteLoss: the step is named; no bad checkpoint is written.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  training_set = build.training_set(config)
  mesh = sharding.data_mesh()
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
    rows = sharding.process_rows(config.train.batch_size)
    host_batches = build.training_batches(
      config, training_set, first_step, rows
    )
    on_device = (sharding.place(batch, mesh) for batch in host_batches)
    with metrics.writer(workdir, first_step) as write:
      return run_steps(config, state, on_device, mesh, manager, write)


def run_steps(
  config: ConfigDict,
  state: State,
  batches: Iterator[Batch],
  mesh: jax.sharding.Mesh,
  manager,
  write: metrics.Writer,
) -> State:
  """The loop. Metrics are fetched while the next step runs."""
  step_fns: dict[bool, Step] = {}
  timetable, monitor = build.timetable(config), None
  monitor_every = config.attack.monitor_every_steps
  window: Pending = []
  learning_rate = build.learning_rate(config)
  first_step, last_step = int(state.step), config.train.num_steps
  bar = tqdm(
    total=last_step,
    initial=first_step,
    desc=f"train {config.objective.name}",
    unit="step",
    mininterval=0.5,
    disable=jax.process_index() != 0,
  )
  started, last_saved = time.perf_counter(), first_step

  def report() -> None:
    nonlocal started
    values = mean_of(window, last_saved, manager.directory)
    now = time.perf_counter()
    step = window[-1][0]
    images_per_second = (
      len(window) * config.train.batch_size / max(now - started, 1e-9)
    )
    started = now
    write(
      step,
      {
        **{f"train/{name}": value for name, value in values.items()},
        "train/learning_rate": float(learning_rate(step - 1)),
        "train/passes": build.total_passes(config, step),
        "train/images_per_second": images_per_second,
      },
    )
    bar.set_postfix_str(
      f"loss {values['loss']:.4f}, {images_per_second:,.0f} examples/s"
    )
    window.clear()

  with bar:
    for done, batch in enumerate(batches, first_step + 1):
      regularised = budget.is_on(timetable, done - 1)
      if regularised not in step_fns:
        compiling = time.perf_counter()
        step_fns[regularised] = compile_step(
          config, state, batch, mesh, regularised
        )
        started += time.perf_counter() - compiling
      watched: Metrics = {}
      if monitor_every and done % monitor_every == 0:
        monitor = monitor or jax.jit(build.monitor(config))
        watched = monitor(state, batch)
      state, measured = step_fns[regularised](state, batch)
      measured |= watched
      if window:
        # Waits for the step before, while this one runs: the host neither
        # stalls the device nor runs away from it.
        jax.block_until_ready(window[-1][1])
        if window[-1][0] % config.train.log_every_steps == 0:
          report()
      window.append((done, measured))
      bar.update()
      if done % config.checkpoint.every_steps == 0 or done == last_step:
        check_finite(window, last_saved, manager.directory)
        checkpoints.save(manager, done, state)
        last_saved = done
    report()
  manager.wait_until_finished()
  return state


def compile_step(
  config: ConfigDict,
  state: State,
  batch: Batch,
  mesh: jax.sharding.Mesh,
  regularised: bool = True,
) -> Step:
  """The step, compiled ahead for these shapes: it cannot recompile later."""
  started = time.perf_counter()
  everywhere = sharding.replicated(mesh)
  compiled = (
    jax.jit(
      build.train_step(config, regularised),
      in_shardings=(everywhere, sharding.by_example(mesh)),
      out_shardings=everywhere,
      donate_argnums=0,
    )
    .lower(state, batch)
    .compile()
  )
  seconds = time.perf_counter() - started
  _LOG.info(
    "compiled the step in %.1f s: %.3g FLOPs a step",
    seconds,
    (compiled.cost_analysis() or {}).get("flops", math.nan),
  )
  return compiled


def resume_or_start(config: ConfigDict, manager, mesh) -> State:
  """The newest checkpoint's state, or a new one, replicated over the mesh."""
  everywhere = sharding.replicated(mesh)
  if manager.latest_step() is None:
    state = jax.jit(lambda: build.state(config), out_shardings=everywhere)()
    source = config.train.init_from
    return (
      start_from(pathlib.Path(source), state, config, mesh) if source else state
    )
  like = jax.eval_shape(lambda: build.state(config))
  return checkpoints.restore(manager, like, everywhere)


def start_from(
  source: pathlib.Path,
  state: State,
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
) -> State:
  """`state` with the newest parameters of another run, for fine-tuning.

  Step, optimiser and randomness stay those of `state`. A single set of
  parameters starts both the raw ones and their moving average.

  Raises: as `parameters_of_run`.
  """
  params, step = parameters_of_run(source, config, mesh, "train.init_from")
  _LOG.info("starting from step %d of %s", step, source)
  return state._replace(
    params=params, ema_params=jax.tree.map(jax.numpy.copy, params)
  )


def parameters_of_run(
  source: pathlib.Path, config: ConfigDict, mesh: jax.sharding.Mesh, field: str
) -> tuple[PyTree, int]:
  """Another run's newest parameters, for config's network; and their step.

  The other run's sampling.ema says whether they are its moving average.

  Args:
    source: the other run's folder, from config's field `field`.
    config: today's config.
    mesh: over which they are replicated.
    field: named in errors.

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


def mean_of(
  window: Pending, last_saved: int, directory: os.PathLike[str]
) -> dict[str, float]:
  """The metrics' means over a window, each over the steps that have it."""
  rows = check_finite(window, last_saved, directory)
  names = dict.fromkeys(name for row in rows for name in row)
  return {
    name: float(np.mean([row[name] for row in rows if name in row]))
    for name in names
  }


def check_finite(
  window: Pending, last_saved: int, directory: os.PathLike[str]
) -> list[dict[str, np.ndarray]]:
  """Fetches a window's metrics; raises NonFiniteLoss at its first bad step."""
  rows = jax.device_get([row for _, row in window])
  for (step, _), row in zip(window, rows, strict=True):
    for name, value in row.items():
      if not np.isfinite(value):
        kept = (
          f"the last good checkpoint is step {last_saved} in {directory}"
          if last_saved
          else "no checkpoint was written yet"
        )
        raise NonFiniteLoss(
          f"{name} is {value} at step {step}; {kept}. Lower"
          " optimizer.learning_rate or set optimizer.max_grad_norm and run"
          " again, or lower objective.lam in another --workdir"
        )
  return rows
