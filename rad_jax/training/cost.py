"""What a config's training step costs, before any of it is run."""

import jax
import jax.numpy as jnp

from rad_jax.config import ConfigDict, is_synthetic
from rad_jax.training import budget, build


def cost(config: ConfigDict) -> dict[str, dict[str, float]]:
  """Passes, FLOPs and memory of the step, and of DDPM's on the same model.

  Nothing is run and no data is read: the steps are compiled for this machine's
  accelerator, which for a large U-Net takes minutes on a CPU.

  Returns:
    For "ddpm", "on" (a step with the regulariser) and, if the timetable has
    steps without, "off" and "mean": "passes", forward passes of the network;
    "flops", as XLA counts them; "memory", bytes of the step's arguments and
    temporaries (for "mean", the larger of both).
  """
  rows = {
    "ddpm": _measure(build.as_ddpm(config)),
    "on": _measure(config) | {"passes": build.passes(config)},
  }
  steps = config.train.num_steps
  share = budget.steps_on(build.timetable(config), steps) / steps
  if share < 1:
    on, off = rows["on"], _measure(config, regularised=False)
    rows["off"] = off
    rows["mean"] = {
      name: share * on[name] + (1 - share) * off[name]
      for name in ("passes", "flops")
    } | {"memory": max(on["memory"], off["memory"])}
  return rows


def pass_flops(config: ConfigDict) -> float:
  """FLOPs of a forward pass of one example, as XLA counts them.

  Times the passes of a step (build.passes) it is what the step needs, whatever
  the program does besides. NaN where JAX has no CPU backend to count on.
  """
  params = jax.eval_shape(lambda: build.state(config).params)
  x_t = jax.ShapeDtypeStruct((1, *build.example_shape(config)), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.int32)
  try:
    cpu = jax.devices("cpu")[0]
  except RuntimeError:
    return float("nan")
  # Of a program that is only lowered, XLA for GPUs counts nothing.
  with jax.default_device(cpu):
    lowered = jax.jit(build.network(config).apply).lower(params, x_t, t)
  return (lowered.cost_analysis() or {}).get("flops", float("nan"))


def table(rows: dict[str, dict[str, float]]) -> str:
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


def _measure(config: ConfigDict, regularised: bool = True) -> dict[str, float]:
  compiled = _compile(config, regularised)
  memory = compiled.memory_analysis()
  return {
    "passes": 3.0,
    "flops": _flops(config, regularised, compiled),
    "memory": float(memory.argument_size_in_bytes + memory.temp_size_in_bytes),
  }


def _flops(config: ConfigDict, regularised: bool, compiled) -> float:
  """FLOPs of a step. XLA counts a loop's body once, so none is counted here.

  The cost of an attack is linear in its steps, and that of free replays in
  the updates, each as dear as one with a random w.
  """
  replays = config.regulariser.free_replays
  chosen = build.attack(config)
  steps = chosen.num_steps if chosen else 0
  if not regularised or (replays == 1 and steps <= 1):
    return _counted(compiled)
  unrolled = config.copy_and_resolve_references()
  unrolled.regulariser.free_replays = 1
  unrolled.attack.num_steps = 0
  start = _counted(_compile(unrolled, regularised))
  if replays > 1:
    return replays * start
  unrolled.attack.num_steps = 1
  one = _counted(_compile(unrolled, regularised))
  return start + steps * (one - start)


def _counted(compiled) -> float:
  return (compiled.cost_analysis() or {}).get("flops", float("nan"))


def _compile(config: ConfigDict, regularised: bool):
  stored_as_floats = is_synthetic(config) or config.data.linear_rank
  shape = (config.train.batch_size, *build.example_shape(config))
  batch = {
    "x_0": jax.ShapeDtypeStruct(
      shape, jnp.float32 if stored_as_floats else jnp.uint8
    ),
    "index": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
  }
  state = jax.eval_shape(lambda: build.state(config))
  step = jax.jit(build.train_step(config, regularised), donate_argnums=0)
  return step.lower(state, batch).compile()
