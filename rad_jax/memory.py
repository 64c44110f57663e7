"""What memory there is, and one line where it was not enough."""

import contextlib
import re
from collections.abc import Iterator

import jax
import psutil

_ASKED = re.compile(r"allocat\w+ ([\d.]+) ?(bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class TooLarge(RuntimeError):
  """What was asked for does not fit in memory; one line."""


def available() -> float | None:
  """Free bytes of the first device, a CPU's being the machine's, if known."""
  device = jax.local_devices()[0]
  if stats := device.memory_stats():
    return float(stats["bytes_limit"] - stats["bytes_in_use"])
  if device.platform != "cpu":
    return None
  return float(psutil.virtual_memory().available)


@contextlib.contextmanager
def clear_errors(batch_size: int, pieces: int) -> Iterator[None]:
  """Raises TooLarge, which says what to change, where memory runs out.

  `pieces` is train.micro_batches; 0 where the batch is sampling's.
  """
  field = "train.batch_size" if pieces else "sampling.batch_size"
  try:
    yield
  except MemoryError as error:
    raise TooLarge(
      f"not enough memory for the data: {error}. --config.data.loading=stream"
      " reads it from the disk"
    ) from error
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    why, fits = _largest(str(error), batch_size)
    advice = f"take a smaller network{why}"
    if fits:
      advice = f"about {fits} will fit{why} (--config.{field}={fits})"
    if fits and pieces:
      # In as many as divide it.
      more = next(
        n
        for n in range(pieces, batch_size * pieces + 1, pieces)
        if batch_size % n == 0 and batch_size * pieces <= fits * n
      )
      advice += f", or take it in pieces (--config.train.micro_batches={more})"
    raise TooLarge(
      f"config.{field}={batch_size} does not fit in memory; {advice}"
    ) from error


def _largest(error: str, batch_size: int) -> tuple[str, int]:
  """The batch that will fit, 0 if none does, and why; half, if not told.

  XLA asks at once for what a program needs besides its inputs, which goes with
  the batch.
  """
  found, free = _ASKED.search(error), available()
  if not found or free is None:
    return "", batch_size // 2
  asked = float(found[1]) * _UNITS[found[2]]
  why = f", as {asked / 2**30:.1f} GiB were asked for, and {free / 2**30:.1f}"
  fits = min(int(batch_size * free / asked), batch_size // 2)
  return f"{why} are free", fits
