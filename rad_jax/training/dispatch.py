"""Several steps as one program, for networks that outrun their host."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rad_jax.training import passes
from rad_jax.training.state import State
from rad_jax.training.step import Batch

# A batch with this part, the training set [n, ...], has no "x_0" of its own.
WHOLE_SET = "whole_set"


class Dispatch(NamedTuple):
  """Consecutive steps of a run, counted from 1, with or without regulariser."""

  steps: range
  regularised: bool


def plan(
  timetable: passes.Timetable, done: int, num_steps: int, length: int
) -> Iterator[Dispatch]:
  """What is left of a run of num_steps after `done`, in dispatches.

  They end at multiples of `length`, and where the regulariser is switched.
  """
  while done < num_steps:
    regularised = passes.is_on(timetable, done)
    end = min(done - done % length + length, num_steps)
    last = done + 1
    while last < end and passes.is_on(timetable, last) == regularised:
      last += 1
    yield Dispatch(range(done + 1, last + 1), regularised)
    done = last


def stacked(
  batches: Iterator[dict[str, np.ndarray]], parts: Iterator[Dispatch]
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of each dispatch, [b, ...] each, as one of [steps, b, ...]."""
  for part in parts:
    some = [next(batches) for _ in part.steps]
    yield jax.tree.map(lambda *arrays: np.stack(arrays), *some)


def with_examples(of_batch: Callable[..., Any]) -> Callable[..., Any]:
  """(state, batch) -> the function of them, on batches of WHOLE_SET too."""

  def of(state: State, batch: Batch):
    if WHOLE_SET in batch:
      index = batch["index"]  # [b], or [steps, b]
      batch = {"x_0": batch[WHOLE_SET][index], "index": index}
    return of_batch(state, batch)

  return of
