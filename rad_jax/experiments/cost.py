"""What a config's training costs, before any of it is run."""

import timeit

import jax
import jax.numpy as jnp

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.training import chips, passes
from rad_jax.training.state import num_parameters

Rows = dict[str, dict[str, float]]


def cost(config: ConfigDict) -> Rows:
  """Passes, FLOPs and bytes of the step, compiled and not run, and DDPM's."""
  run = runs.build(config)
  rows = {
    "ddpm": _measure(configs.as_ddpm(config)),
    "on": _measure(config) | {"passes": run.step_passes},
  }
  steps = config.train.num_steps
  share = passes.steps_on(run.timetable, steps) / steps
  if share < 1:
    on, off = rows["on"], _measure(config, regularised=False)
    mean = {k: share * on[k] + (1 - share) * off[k] for k in on}
    mean["memory"] = max(on["memory"], off["memory"])
    rows |= {"off": off, "mean": mean}
  return rows


def table(rows: Rows) -> str:
  """`cost` as aligned text, each number beside its ratio to DDPM's."""
  units = {"passes": 1.0, "flops": 1e9, "memory": 1e6}
  lines = [f"{'':6}{'passes':>20}{'GFLOP':>20}{'memory, MB':>20}"]
  for name, row in rows.items():
    cells = [
      f"{row[key] / unit:,.4g} ({row[key] / rows['ddpm'][key]:.2f}x)"
      for key, unit in units.items()
    ]
    lines.append(f"{name:6}" + "".join(f"{cell:>20}" for cell in cells))
  return "\n".join(lines)


def memory(config: ConfigDict, known: float) -> tuple[float, float]:
  """Bytes of a step, fixed and per example; `known` is `cost`'s of "on"."""
  twice = config.copy_and_resolve_references()
  twice.train.batch_size *= 2
  batch_size = config.train.batch_size
  # What is fixed is there at least once; a small batch may hide in it.
  per_example = max(_memory(_compile(twice)) - known, 1.0) / batch_size
  return known - per_example * batch_size, per_example


def largest_batch(fixed: float, per_example: float, limit: float) -> int:
  """The largest batch whose step needs no more than `limit` bytes."""
  return max(0, int((limit - fixed) / per_example))


def product_rate(dtype: str) -> float:
  """FLOP/s of matrix products on one device, measured in under a second."""
  n = 1024 if jax.default_backend() == "cpu" else 8192
  a = jnp.ones((n, n), dtype)
  multiply = jax.jit(lambda a: a @ a).lower(a).compile()
  run = lambda: jax.block_until_ready(multiply(a))
  run()
  return 2 * n**3 / min(timeit.repeat(run, number=1, repeat=5))


def forecast(config: ConfigDict, rows: Rows) -> str:
  """What the whole run will take, from its `cost`, in a few lines of text."""
  num_steps, num_devices = config.train.num_steps, jax.device_count()
  mean = rows.get("mean", rows["on"])
  flops = num_steps * mean["flops"]
  rate = num_devices * product_rate(config.model.dtype)
  state = jax.eval_shape(runs.build(config).initial_state)
  fixed, per_example = memory(config, rows["on"]["memory"])
  fits = ", ".join(
    f"{largest_batch(fixed, per_example, gb * 1e9):,} in {gb} GB"
    for gb in (16, 40, 80)
  )
  return (
    f"parameters: {num_parameters(state):,}\n"
    f"run:        {num_steps:,} steps, {num_steps * mean['passes']:,.0f}"
    f" passes, {flops:.3g} FLOP\n"
    f"time:       {_duration(flops / rate)} at the least, at the"
    f" {rate / 1e12:.3g} TFLOP/s of matrix products in {config.model.dtype}"
    f" on {num_devices} x {jax.devices()[0].device_kind}\n"
    f"memory:     {fixed / 1e9:.3g} GB and {per_example / 1e6:.3g} MB an"
    f" example; the largest batch: {fits}"
  )


def _duration(seconds: float) -> str:
  for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds:.3g} seconds"


def _measure(config: ConfigDict, regularised: bool = True) -> dict[str, float]:
  compiled = _compile(config, regularised)
  flops = _flops(config, regularised, compiled)
  return {"passes": 3.0, "flops": flops, "memory": _memory(compiled)}


def _memory(compiled) -> float:
  found = compiled.memory_analysis()
  return float(found.argument_size_in_bytes + found.temp_size_in_bytes)


def _flops(config: ConfigDict, regularised: bool, compiled) -> float:
  """FLOPs of a step, from loopless steps: XLA counts a loop's body once."""
  replays = config.regulariser.free_replays
  chosen = runs.build(config).attack
  steps = chosen.num_steps if chosen else 0
  if not regularised or (replays == 1 and steps <= 1):
    return _counted(compiled)
  unrolled = config.copy_and_resolve_references()
  unrolled.regulariser.free_replays = 1
  unrolled.attack.num_steps = 0
  start = _counted(_compile(unrolled))
  if replays > 1:
    return replays * start
  unrolled.attack.num_steps = 1
  return start + steps * (_counted(_compile(unrolled)) - start)


def _counted(compiled) -> float:
  return (compiled.cost_analysis() or {}).get("flops", float("nan"))


def _compile(config: ConfigDict, regularised: bool = True):
  run = runs.build(config)
  shape = (run.train.batch_size, *run.example_shape)
  as_floats = run.is_synthetic or run.data.linear_rank
  batch = {
    "x_0": jax.ShapeDtypeStruct(shape, jnp.float32 if as_floats else jnp.uint8),
    "index": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
  }
  step = jax.jit(
    run.train_step(regularised),
    donate_argnums=0,
    compiler_options=chips.compiler_options(),
  )
  return step.lower(jax.eval_shape(run.initial_state), batch).compile()
