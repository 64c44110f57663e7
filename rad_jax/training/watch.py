"""What a run's steps measure: where time goes, and whether all is well."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rad_jax.training import chips, dispatch
from rad_jax.training.step import Metrics

Row = Mapping[str, np.ndarray | np.floating]

# A spike is judged by the median of this many windows of the log before it.
_REMEMBERED = 20
_ENOUGH = 3


class NonFiniteLoss(FloatingPointError):
  """Training met a NaN or an infinity and stopped."""


class LossSpike(FloatingPointError):
  """The loss jumped, and there is no way back."""


class Meter:
  """A stopwatch that is read, and starts again, once in a window of the log."""

  def __init__(self) -> None:
    self._started = time.perf_counter()
    self._seconds: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def timing(self, what: str) -> Iterator[None]:
    """Counts the time inside, of "data" or what is no part of a step."""
    started = time.perf_counter()
    yield
    self._seconds[what] += time.perf_counter() - started

  def read(
    self, num_steps: int, batch_size: int, flops: float
  ) -> dict[str, float]:
    """The window's metrics, without compilation, checkpoints and samples."""
    now, seconds = time.perf_counter(), self._seconds
    apart = sum(seconds[what] for what in ("compile", "checkpoint", "samples"))
    step_seconds = max(now - self._started - apart, 1e-9) / num_steps
    flops_per_second = flops / num_steps / step_seconds
    device = jax.local_devices()[0]
    memory = device.memory_stats() or {}
    values = {
      "images_per_second": batch_size / step_seconds,
      "step_seconds": step_seconds,
      "data_wait": seconds["data"] / num_steps / step_seconds,
      "tflops_per_second": flops_per_second / 1e12,
    }
    if seconds["checkpoint"]:
      values["checkpoint_seconds"] = seconds["checkpoint"]
    if peak := chips.peak_flops(device):
      values["mfu"] = flops_per_second / (peak * jax.device_count())
    if "peak_bytes_in_use" in memory:
      values["memory_gb"] = memory["peak_bytes_in_use"] / 1e9
    self._started, self._seconds = now, collections.defaultdict(float)
    return values


class Watch:
  """The `window`: dispatches since the last report, and what they measured.

  It stays on the devices until it is checked, so that none waits for the host.
  """

  def __init__(
    self,
    first_step: int,
    fields: Any,
    kept: Callable[[], str],
    report: Callable[[list[int], int, dict[str, float]], None],
    history: Mapping[str, Any] | None = None,
  ) -> None:
    """`report` gets a window's steps, the last one before, and its means.

    `history` is that of the run which this one goes on with.
    """
    self._fields, self._kept, self._report = fields, kept, report
    before = history or {"losses": [], "skipped": 0, "rollbacks": 0}
    self._losses = collections.deque(before["losses"], _REMEMBERED)
    self._skipped = self._checked = before["skipped"]
    self.rollbacks = before["rollbacks"]
    self.logged = first_step
    self.window: list[tuple[dispatch.Dispatch, Any, Metrics]] = []

  @property
  def history(self) -> dict[str, Any]:
    """What a run that goes on from the steps checked last must know."""
    return {
      "losses": list(self._losses),
      "skipped": self._checked,
      "rollbacks": self.rollbacks,
    }

  def wait(self) -> int:
    """Waits for the last dispatch; its last step, 0 if there is none."""
    if not self.window:
      return 0
    part, measured, _ = self.window[-1]
    jax.block_until_ready(measured)
    return part.steps[-1]

  def is_well(self, report: bool) -> bool:
    """Checks the window; reports and empties it. False: roll back."""
    steps: list[int] = []
    rows: list[Row] = []
    for part, measured, monitored in jax.device_get(self.window):
      columns = jax.tree.map(np.atleast_1d, measured)
      for i, step in enumerate(part.steps):
        steps.append(step)
        rows.append({name: values[i] for name, values in columns.items()})
      rows[-1] = {**rows[-1], **monitored}
    try:
      self._checked = refuse_non_finite(
        steps, rows, self._kept(), self._skipped, self._fields.max_skipped
      )
    except NonFiniteLoss:
      if not self._fields.rollback_above:
        raise
      return False
    if not report:
      return True
    self.window.clear()
    self._skipped, values = self._checked, means(rows)
    self._report(steps, self.logged, values)
    loss = values.get("loss", math.nan)
    if has_spiked(loss, self._losses, self._fields.rollback_above):
      return False
    self.logged = steps[-1]
    if not math.isnan(loss):  # else all steps were skipped
      self._losses.append(loss)
    return True


def means(rows: Sequence[Row]) -> dict[str, float]:
  """Means over the steps that made an update; "skipped" counts the others."""
  kept = [row for row in rows if not row.get("skipped", 0)]
  values = {
    name: float(np.mean([row[name] for row in kept if name in row]))
    for name in dict.fromkeys(name for row in kept for name in row)
  }
  if len(kept) < len(rows):
    values["skipped"] = float(len(rows) - len(kept))
  return values


def refuse_non_finite(
  steps: Sequence[int], rows: Sequence[Row], kept: str, skipped: int, limit: int
) -> int:
  """Raises at a bad step; counts on those skipped, of which `limit` may be."""
  for step, row in zip(steps, rows, strict=True):
    others = skipped
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    if row.get("skipped", 0):
      skipped += 1
      if skipped <= limit:
        continue
    elif not bad:
      continue
    name = bad[0] if bad else "loss"
    after = f" after {others} others were skipped" if others else ""
    raise NonFiniteLoss(
      f"{name} is {row[name]} at step {step}{after}; {kept}. Lower"
      " optimizer.learning_rate or set optimizer.max_grad_norm and run"
      " again, or lower objective.lam in another --workdir"
    )
  return skipped


def has_spiked(loss: float, before: Collection[float], factor: float) -> bool:
  """Whether loss is above factor, if not 0, times the median of `before`."""
  enough = factor and len(before) >= _ENOUGH
  return bool(enough and loss > factor * np.median([*before]))
