"""Cheap adversarial training: when the regulariser is on, and what it costs.

Cost is counted in forward passes of the network over the whole batch: a
forward and backward pass with weight gradients is 3, a gradient by the input
alone 2. DDPM's step is 3, Robust_adv's 8.
"""

import math
from typing import NamedTuple

from rad_jax.robustness.objectives import Objective


class Timetable(NamedTuple):
  """The steps at which the regulariser is on.

  first_step: steps before it go without, from 0.
  every: from then on, one step in `every` has it.
  """

  first_step: int = 0
  every: int = 1


def is_on(timetable: Timetable, step: int) -> bool:
  """Whether step number `step`, from 0, has the regulariser.

  Examples:
    >>> timetable = rad_jax.budget.Timetable(first_step=4, every=2)
    >>> [step for step in range(10) if rad_jax.budget.is_on(timetable, step)]
    [4, 6, 8]
  """
  since = step - timetable.first_step
  return since >= 0 and since % timetable.every == 0


def steps_on(timetable: Timetable, num_steps: int) -> int:
  """How many of the steps 0 .. num_steps-1 have the regulariser.

  Examples:
    >>> timetable = rad_jax.budget.Timetable(first_step=4, every=2)
    >>> rad_jax.budget.steps_on(timetable, num_steps=10)
    3
  """
  return math.ceil(max(num_steps - timetable.first_step, 0) / timetable.every)


def passes(
  objective: Objective,
  attack_steps: int,
  goal: str,
  batch_fraction: float = 1.0,
  free_replays: int = 1,
) -> float:
  """Forward passes a step costs while the regulariser is on.

  Args:
    objective: from OBJECTIVES.
    attack_steps: gradient steps of the attack, 2 passes each. They cost
      nothing with free replays, which take w's gradient from the update's own
      backward pass.
    goal: "J" needs eps_hat, one more pass where there is no clean branch.
    batch_fraction: share of the batch that is regularised; the rest costs
      DDPM's 3.
    free_replays: updates on each batch.

  Examples:
    >>> for name in ("ddpm", "robust_ran", "robust_adv"):
    ...   objective = rad_jax.objectives.OBJECTIVES[name]
    ...   steps = int(objective.attack == "fgsm")
    ...   print(name, rad_jax.budget.passes(objective, steps, goal="J"))
    ddpm 3.0
    robust_ran 6.0
    robust_adv 8.0
  """
  if objective.target is None:
    return 3.0
  update = 3 + 3 * objective.clean
  if free_replays > 1:
    attacked = free_replays * update
    rest = 3.0 * free_replays
  else:
    alone = goal == "J" and attack_steps > 0 and not objective.clean
    attacked = update + 2 * attack_steps + alone
    rest = 3.0
  return batch_fraction * attacked + (1 - batch_fraction) * rest


def total_passes(
  timetable: Timetable, num_steps: int, on: float, off: float = 3.0
) -> float:
  """Forward passes of the first num_steps steps of a training run.

  Examples:
    Robust_adv's 8 passes on one step in four, over DDPM's 3 on all:

    >>> timetable = rad_jax.budget.Timetable(every=4)
    >>> rad_jax.budget.total_passes(timetable, 1000, on=8.0) / 3000
    1.4166666666666667
  """
  active = steps_on(timetable, num_steps)
  return active * on + (num_steps - active) * off
