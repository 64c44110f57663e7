"""Cheap adversarial training: when the regulariser is on, and what it costs.

In forward passes over the whole batch: a pass with the weights' gradient is 3,
with the input's alone 2; DDPM's step is 3, Robust_adv's 8.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rad_jax.models.network import Network
from rad_jax.robustness.objectives import Objective
from rad_jax.training.state import State


class Timetable(NamedTuple):
  """The regulariser is on from first_step, in one step in `every`."""

  first_step: int = 0
  every: int = 1


def is_on(timetable: Timetable, step: int) -> bool:
  """Whether step number `step`, from 0, has the regulariser."""
  since = step - timetable.first_step
  return since >= 0 and since % timetable.every == 0


def steps_on(timetable: Timetable, num_steps: int) -> int:
  """How many of the steps 0 .. num_steps-1 have the regulariser."""
  return math.ceil(max(num_steps - timetable.first_step, 0) / timetable.every)


def passes(
  objective: Objective,
  attack_steps: int,
  goal: str,
  batch_fraction: float = 1.0,
  free_replays: int = 1,
) -> float:
  """Forward passes a step costs while the regulariser is on.

  A gradient step of the attack costs 2, or nothing with free replays. The goal
  "J" needs eps_hat, one more pass where there is no clean branch. A slope costs
  a pass twice.
  """
  if objective.target is None:
    return 3.0
  attacked, rest = 3 + 3 * objective.clean, 3.0
  if free_replays > 1:
    attacked, rest = free_replays * attacked, free_replays * rest
  else:
    alone = goal == "J" and attack_steps > 0 and not objective.clean
    attacked += 2 * attack_steps + alone + 3 * objective.linear
  return batch_fraction * attacked + (1 - batch_fraction) * rest


def total_passes(
  timetable: Timetable, num_steps: int, on: float, off: float = 3.0
) -> float:
  """Forward passes of the first num_steps steps."""
  active = steps_on(timetable, num_steps)
  return active * on + (num_steps - active) * off


def flops(
  network: Network,
  initial_state: Callable[[], State],
  example_shape: tuple[int, ...],
) -> float:
  """FLOPs of an example's forward pass, as XLA counts on a CPU; NaN without."""
  params = jax.eval_shape(initial_state).params
  x_t = jax.ShapeDtypeStruct((1, *example_shape), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.int32)
  try:
    cpu = jax.devices("cpu")[0]
  except RuntimeError:
    return float("nan")
  # Of a program that is only lowered, XLA for GPUs counts nothing.
  with jax.default_device(cpu):
    lowered = jax.jit(network.apply).lower(params, x_t, t)
  return (lowered.cost_analysis() or {}).get("flops", float("nan"))
