"""Times of several contenders, taken in turns on one machine."""

import time
from collections.abc import Callable

import numpy as np

# Name -> does the work once. What is still under way on a device when it
# returns is waited for by the function that it then returns.
Contenders = dict[str, Callable[[], object]]
# Name -> seconds of one piece of work in each round.
Times = dict[str, np.ndarray]


def interleaved(
  contenders: Contenders, rounds: int, min_seconds: float = 0.2
) -> Times:
  """Times the contenders in turns, so that they share the machine's moods.

  Args:
    contenders: the ways to do the work.
    rounds: turns of each, after two that are not counted.
    min_seconds: the work is repeated within a turn until this has gone by.
  """
  repeats = {
    name: _repeats(run, min_seconds) for name, run in contenders.items()
  }
  seconds = [
    [seconds_of(run, repeats[name]) for name, run in contenders.items()]
    for _ in range(rounds)
  ]
  return dict(zip(contenders, np.array(seconds).T, strict=True))


def ratio(times: Times, name: str, over: str) -> float:
  """The median over the rounds of one's time over another's."""
  return float(np.median(times[name] / times[over]))


def seconds_of(run: Callable[[], object], repeats: int = 1) -> float:
  """The mean time of some repeats, begun without waiting for each other."""
  started = time.perf_counter()
  for _ in range(repeats):
    wait = run()
  if callable(wait):
    wait()
  return (time.perf_counter() - started) / repeats


def _repeats(run: Callable[[], object], min_seconds: float) -> int:
  seconds_of(run)  # Compiles, and fills caches.
  return max(1, round(min_seconds / seconds_of(run)))
