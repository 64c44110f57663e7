"""What a run's steps measure: where time goes, and whether all is well."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

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
  """A stopwatch that is read, and starts again, once a window."""

  def __init__(self) -> None:
    self._started = time.perf_counter()
    self._seconds: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def timing(self, what: str) -> Iterator[None]:
    """Counts the time inside: of "compile", "checkpoint" or "data"."""
    started = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[what] += time.perf_counter() - started

  def read(
    self, num_steps: int, batch_size: int, flops: float
  ) -> dict[str, float]:
    """The window's metrics; the next window begins.

    Args:
      num_steps: in the window.
      batch_size: of all devices.
      flops: that the window's steps need, on all devices.

    Returns:
      "images_per_second" and "step_seconds", compilation and checkpoints
      apart; "data_wait", the share of a step spent waiting for its batch;
      "checkpoint_seconds" where there was one; "tflops_per_second"; "mfu", the
      share of the chips' bfloat16 peak, where it is known; "memory_gb", the
      peak of a device, where it counts.
    """
    now = time.perf_counter()
    seconds = self._seconds
    apart = seconds["compile"] + seconds["checkpoint"]
    step_seconds = max(now - self._started - apart, 1e-9) / num_steps
    flops_per_second = flops / num_steps / step_seconds
    device = jax.local_devices()[0]
    peak = chips.peak_flops(device)
    memory = device.memory_stats() or {}
    values = {
      "images_per_second": batch_size / step_seconds,
      "step_seconds": step_seconds,
      "data_wait": seconds["data"] / num_steps / step_seconds,
      "tflops_per_second": flops_per_second / 1e12,
    }
    if seconds["checkpoint"]:
      values["checkpoint_seconds"] = seconds["checkpoint"]
    if peak:
      values["mfu"] = flops_per_second / (peak * jax.device_count())
    if "peak_bytes_in_use" in memory:
      values["memory_gb"] = memory["peak_bytes_in_use"] / 1e9
    self._started, self._seconds = now, collections.defaultdict(float)
    return values


class Watch:
  """The metrics of the dispatches since the last report.

  They stay on the devices until they are checked, so that the host neither
  stalls the devices nor runs away from them.
  """

  def __init__(
    self,
    first_step: int,
    max_skipped: int,
    rollback_above: float,
    report: Callable[[list[int], int, dict[str, float]], None],
  ) -> None:
    """Begins after `first_step`.

    Args:
      first_step: steps that are done.
      max_skipped, rollback_above: of config.train.
      report: is called with the steps of a window, the last one that was
        reported before, and the means of its metrics.
    """
    self._max_skipped, self._rollback_above = max_skipped, rollback_above
    self._report = report
    self._window: list[
      tuple[dispatch.Dispatch, dispatch.Measured, Metrics]
    ] = []
    self._losses: list[float] = []
    self._skipped = 0
    self.logged = first_step

  def add(
    self,
    part: dispatch.Dispatch,
    measured: dispatch.Measured,
    monitored: Metrics,
  ) -> None:
    """Notes what a dispatch measured, without waiting for it."""
    self._window.append((part, measured, monitored))

  def wait(self) -> int:
    """Waits for the last dispatch; its last step, 0 if there is none."""
    if not self._window:
      return 0
    part, measured, _ = self._window[-1]
    jax.block_until_ready(measured)
    return part.steps[-1]

  def forget(self) -> None:
    """Drops the window, of steps that are taken back."""
    self._window.clear()

  def is_well(self, kept: str, report: bool) -> bool:
    """Checks the window, and reports and empties it; False: roll back.

    Args:
      kept: which checkpoint there is, for messages.
      report: whether the window ends here.

    Raises:
      NonFiniteLoss: a step was bad, and roll-backs are off.
    """
    steps, rows = self._rows()
    try:
      count = refuse_non_finite(
        steps, rows, kept, self._skipped, self._max_skipped
      )
    except NonFiniteLoss:
      if not self._rollback_above:
        raise
      return False
    if not report:
      return True
    self._window.clear()
    self._skipped, values = count, means(rows)
    self._report(steps, self.logged, values)
    loss = values.get("loss", math.nan)
    if has_spiked(loss, self._losses, self._rollback_above):
      return False
    self.logged = steps[-1]
    self._losses.append(loss)
    return True

  def _rows(self) -> tuple[list[int], list[Row]]:
    steps: list[int] = []
    rows: list[Row] = []
    for part, measured, monitored in jax.device_get(self._window):
      steps += part.steps
      rows += dispatch.rows(part, measured)
      rows[-1] = {**rows[-1], **monitored}
    return steps, rows


def means(rows: Sequence[Row]) -> dict[str, float]:
  """The metrics' means, each over the steps that have it and made an update.

  "skipped" is the number of steps that made none; it is there if any was.
  """
  kept = [row for row in rows if not row.get("skipped", 0)]
  names = dict.fromkeys(name for row in kept for name in row)
  values = {
    name: float(np.mean([row[name] for row in kept if name in row]))
    for name in names
  }
  if len(kept) < len(rows):
    values["skipped"] = float(len(rows) - len(kept))
  return values


def refuse_non_finite(
  steps: Sequence[int], rows: Sequence[Row], kept: str, skipped: int, limit: int
) -> int:
  """Raises NonFiniteLoss at the first bad step.

  Args:
    steps: the steps' numbers.
    rows: their metrics.
    kept: which checkpoint there is, for the message.
    skipped: bad steps so far that made no update.
    limit: how many of these there may be.

  Returns:
    `skipped`, with those of these rows.
  """
  for step, row in zip(steps, rows, strict=True):
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    if row.get("skipped", 0):
      skipped += 1
      if skipped <= limit:
        continue
    elif not bad:
      continue
    name = bad[0] if bad else "loss"
    after = f" after {limit} others were skipped" if limit else ""
    raise NonFiniteLoss(
      f"{name} is {row[name]} at step {step}{after}; {kept}. Lower"
      " optimizer.learning_rate or set optimizer.max_grad_norm and run"
      " again, or lower objective.lam in another --workdir"
    )
  return skipped


def has_spiked(loss: float, before: Sequence[float], factor: float) -> bool:
  """Whether a window's loss is above factor times the median of those before.

  Args:
    loss: of the window.
    before: of windows before it, oldest first; NaN where each step was
      skipped.
    factor: above 1; at 0 nothing is a spike.
  """
  recent = [value for value in before if not np.isnan(value)][-_REMEMBERED:]
  if not factor or len(recent) < _ENOUGH:
    return False
  return bool(loss > factor * np.median(recent))
