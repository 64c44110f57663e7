"""What memory there is, and one line where it was not enough."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

_ASKED = re.compile(r"allocat\w+ ([\d.]+) ?(bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class TooLarge(RuntimeError):
  """What was asked for does not fit in memory; one line."""


def available() -> float | None:
  """Free bytes of the first device, a CPU's being the machine's, if known."""
  device = jax.local_devices()[0]
  if stats := device.memory_stats():
    return float(stats["bytes_limit"] - stats["bytes_in_use"])
  meminfo = pathlib.Path("/proc/meminfo")
  if device.platform != "cpu" or not meminfo.exists():
    return None
  (kib,) = re.findall(r"MemAvailable: +(\d+)", meminfo.read_text())
  return 1024.0 * int(kib)


@contextlib.contextmanager
def clear_errors(field: str, batch_size: int) -> Iterator[None]:
  """Raises TooLarge, which says what to change, where memory runs out.

  `field` is that of the batch size. XLA asks at once for all that a program
  needs besides its inputs, which grows with the batch.
  """
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
    raise TooLarge(_advice(str(error), field, batch_size)) from error


def _advice(error: str, field: str, batch_size: int) -> str:
  asked, free = "", available()
  fits = batch_size // 2
  if found := _ASKED.search(error):
    number, unit = found.groups()
    asked = f": XLA asked for {number} {unit}"
    if free is not None:
      num_bytes = float(number) * _UNITS[unit]
      asked += f", and {free / 2**30:.1f} GiB are free"
      fits = min(fits, int(batch_size * free / num_bytes))
  advice = (
    f"about {fits} will fit (--config.{field}={fits})"
    if fits
    else "not one example fits: take a smaller network"
  )
  if field == "train.batch_size" and fits:
    pieces = 2 ** (-(-batch_size // fits) - 1).bit_length()
    advice += f", or take it in pieces (--config.train.micro_batches={pieces})"
  return f"config.{field}={batch_size} does not fit in memory{asked}; {advice}"
