"""What the metrics of a run's steps say about it: pure, on the host."""

from collections.abc import Mapping, Sequence

import numpy as np

Row = Mapping[str, np.ndarray | np.floating]

# A spike is told from the median of so many windows of the log before it.
_REMEMBERED = 20
_ENOUGH = 3


class NonFiniteLoss(FloatingPointError):
  """Training met a NaN or an infinity and stopped."""


class LossSpike(FloatingPointError):
  """The loss leapt, and there is no way back."""


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
    limit: how many of these there may be. Overflows of a loss scale above 1
      do not count.

  Returns:
    `skipped`, with those of these rows.
  """
  for step, row in zip(steps, rows, strict=True):
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    if row.get("skipped", 0):
      if row.get("loss_scale", 1) > 1 and np.isfinite(row["loss"]):
        continue  # an overflow, that a lower scale will mend
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
