"""Where a run's time goes, one window of the log after another."""

import collections
import contextlib
import time
from collections.abc import Iterator

import jax

from rad_jax.training import chips


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
