"""Several steps as one program, so that the host is asked once in so many.

A step of a small network is over before the host has dispatched the next one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Shaped

from rad_jax.training import budget
from rad_jax.training.state import State
from rad_jax.training.step import Batch, Step

# The part of a batch that is the whole training set, [n, ...]; the batch then
# has no "x_0" of its own.
WHOLE_SET = "whole_set"

# Of one step each number, or of several [steps] each.
Measured = dict[str, Shaped[Array, "..."]]
Result = TypeVar("Result")


class Dispatch(NamedTuple):
  """Consecutive steps of a run, counted from 1, with or without regulariser."""

  steps: range
  regularised: bool


def plan(
  timetable: budget.Timetable, done: int, num_steps: int, length: int
) -> Iterator[Dispatch]:
  """What is left of a run, in dispatches.

  They end at the multiples of `length`, at the run's end, and wherever the
  regulariser is switched.

  Args:
    timetable: of the regulariser.
    done: steps that are behind the run.
    num_steps: of the whole run.
    length: steps of a dispatch at most.

  Examples:
    >>> from rad_jax.training import dispatch
    >>> timetable = rad_jax.budget.Timetable(first_step=6)
    >>> for part in dispatch.plan(timetable, done=1, num_steps=10, length=4):
    ...   print(list(part.steps), part.regularised)
    [2, 3, 4] False
    [5, 6] False
    [7, 8] True
    [9, 10] True
  """
  while done < num_steps:
    regularised = budget.is_on(timetable, done)
    end = min(done - done % length + length, num_steps)
    last = next(
      (
        step
        for step in range(done + 1, end)
        if budget.is_on(timetable, step) != regularised
      ),
      end,
    )
    yield Dispatch(range(done + 1, last + 1), regularised)
    done = last


def stacked(
  batches: Iterator[dict[str, np.ndarray]], parts: Iterator[Dispatch]
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of each dispatch, [b, ...] each, as one of [steps, b, ...]."""
  for part in parts:
    some = [next(batches) for _ in part.steps]
    yield jax.tree.map(lambda *arrays: np.stack(arrays), *some)


def several(step: Step) -> Step:
  """(state, batches) -> (state, metrics) of as many steps as there are batches.

  Batches and metrics have a leading axis of steps.
  """
  return lambda state, batches: jax.lax.scan(step, state, batches)


def of_first(
  of_batch: Callable[[State, Batch], Result],
) -> Callable[[State, Batch], Result]:
  """The function, of the first of some steps' batches.

  Examples:
    >>> from rad_jax.training import dispatch
    >>> total = dispatch.of_first(lambda _, batch: batch["x_0"].sum())
    >>> print(total(None, {"x_0": jnp.array([[1.0, 2.0], [5.0, 5.0]])}))
    3.0
  """
  return lambda state, batches: of_batch(
    state, jax.tree.map(lambda x: x[0], batches)
  )


def with_examples(
  of_batch: Callable[[State, Batch], Result],
) -> Callable[[State, Batch], Result]:
  """The function, on batches that bring the whole set instead of "x_0" too.

  The index may be of one step, [b], or of several, [steps, b].
  """

  def of(state: State, batch: Batch) -> Result:
    if WHOLE_SET not in batch:
      return of_batch(state, batch)
    index = batch["index"]
    return of_batch(state, {"x_0": batch[WHOLE_SET][index], "index": index})

  return of


def rows(
  part: Dispatch, metrics: dict[str, np.ndarray]
) -> list[dict[str, np.ndarray | np.floating]]:
  """The metrics of each step of a dispatch.

  Args:
    part: the dispatch.
    metrics: on the host; of its one step, or [steps] each.
  """
  values = jax.tree.map(np.atleast_1d, metrics)
  return [
    {name: value[i] for name, value in values.items()}
    for i in range(len(part.steps))
  ]
