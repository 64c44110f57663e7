"""What a config's training costs, before any of it is run."""

import timeit
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from rad_jax import memory
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.training import chips, passes
from rad_jax.training.state import num_parameters

_TIMES = {"years": 31_557_600, "days": 86_400, "hours": 3600, "minutes": 60}


def lines(config: ConfigDict) -> Iterator[str]:
  """The cost in words: first what is counted, then what is compiled for."""
  run = runs.build(config)
  on, num_steps = run.step_passes, config.train.num_steps
  total = passes.total_passes(run.timetable, num_steps, on)
  mean = total / num_steps
  flops = config.train.batch_size * passes.flops(
    run.network, run.initial_state, run.example_shape
  )
  state = jax.eval_shape(run.initial_state)
  yield f"parameters: {num_parameters(state):,}"
  yield (
    f"a step:     {on:g} passes of the network, {amount(on * flops, 'FLOP')};"
    f" DDPM's: 3, {amount(3 * flops, 'FLOP')}"
  )
  if mean < on:
    yield f"on average: {mean:.3g} passes: some steps have no regulariser"
  yield f"the run:    {num_steps:,} steps, {amount(total * flops, 'FLOP')}"
  devices = jax.device_count()
  rate = devices * product_rate(config.model.dtype)
  yield (
    f"time:       {duration(total * flops / rate)} at the least, at the"
    f" {amount(rate, 'FLOP')}/s of {config.model.dtype} matrix products on"
    f" {devices} x {jax.devices()[0].device_kind}"
  )
  yield "memory:     compiling two steps; minutes, for a large network"
  fixed, per_example = memory_line(config)
  found = fixed + per_example * config.train.batch_size
  yield (
    f"            {amount(found, 'B')} a step: {amount(fixed, 'B')}, and"
    f" {amount(per_example, 'B')} an example"
  )
  limits = {f"{gb} GB": gb * 1e9 for gb in (16, 40, 80)}
  if free := memory.available():
    limits = {f"the {amount(free, 'B')} free here": free} | limits
  yield "            the largest batch: " + ", ".join(
    f"{largest_batch(fixed, per_example, limit):,} in {name}"
    for name, limit in limits.items()
  )


def memory_line(config: ConfigDict) -> tuple[float, float]:
  """Bytes of a step, fixed and per example, by two batches; it compiles them.

  What is fixed is the state at least: a small batch may hide in it.
  """
  twice = config.copy_and_resolve_references()
  twice.train.batch_size *= 2
  size = config.train.batch_size
  once, state = _memory(config)
  per_example = max((_memory(twice)[0] - once) / size, 0)
  fixed = max(once - per_example * size, state)
  return fixed, max(once - fixed, 1.0) / size


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


def duration(seconds: float) -> str:
  """Seconds in the largest unit of which there are two."""
  for unit, size in _TIMES.items():
    if seconds >= 2 * size:
      return f"{seconds / size:,.3g} {unit}"
  return f"{seconds:.3g} seconds"


def amount(number: float, unit: str) -> str:
  """A number as 1.2 MB."""
  prefixes, prefix = iter("kMGTPEZY"), ""
  while number >= 999.5:
    number, prefix = number / 1000, next(prefixes)
  return f"{number:.3g} {prefix}{unit}"


def _memory(config: ConfigDict) -> tuple[float, float]:
  """Bytes of the compiled step, and those of them that are the state."""
  found = _compile(config).memory_analysis()
  state = jax.eval_shape(runs.build(config).initial_state)
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  needed = found.argument_size_in_bytes + found.temp_size_in_bytes
  return float(needed), float(held)


def _compile(config: ConfigDict):
  run = runs.build(config)
  shape = (run.train.batch_size, *run.example_shape)
  as_floats = run.is_synthetic or run.data.linear_rank
  batch = {
    "x_0": jax.ShapeDtypeStruct(shape, jnp.float32 if as_floats else jnp.uint8),
    "index": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
  }
  step = jax.jit(
    run.train_step(True),
    donate_argnums=0,
    compiler_options=chips.compiler_options(),
  )
  return step.lower(jax.eval_shape(run.initial_state), batch).compile()
