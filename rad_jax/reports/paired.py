"""Methods at their best, from experiments.compare's rows: tables and fronts.

Differences are paired by seed: runs of one seed share their data and noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from rad_jax.reports import looks, panels, tables
from rad_jax.reports.tables import Cell, Row, Table

MEASURES = ("support_rms", "frechet", "sliced_wasserstein", "spread_ratio")
_NAMES = ("error", "Frechet", "sliced W1", "spread")
_BASE = "DDPM"
_WAY = ("sampler", "num_steps", "stop_sigma", "temperature")


class Difference(NamedTuple):
  """A mean paired difference, its 95% t-interval, and how sure it is."""

  mean: float
  low: float
  high: float
  effect: float  # over the differences' standard deviation (Cohen's d_z)
  p: float  # of the paired t-test


def difference(values: np.ndarray, base: np.ndarray) -> Difference:
  """values - base, both [seeds] in one order; two seeds or more."""
  test = scipy.stats.ttest_rel(values, base)
  low, high = test.confidence_interval()
  found = values - base
  mean, deviation = found.mean(), found.std(ddof=1)
  return Difference(mean, low, high, mean / deviation, test.pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
  """p-values adjusted for their number (Holm 1979), in the order given."""
  values = np.asarray(p, float)
  order = np.argsort(values)
  steps = np.arange(len(values), 0, -1) * values[order]
  adjusted = np.empty(len(values))
  adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
  return adjusted


def front(points: np.ndarray) -> np.ndarray:
  """The points [m, 2] that no other of [n, 2] dominates, by the first axis."""
  kept, lowest = [], np.inf
  for x, y in sorted(points.tolist()):
    if y < lowest:
      kept.append((x, y))
      lowest = y
  return np.array(kept).reshape(-1, 2)


def hypervolume(points: np.ndarray) -> float:
  """The area of [0, 1]^2 that points [n, 2] dominate, less being better.

  1 if one is at (0, 0), 0 if none is inside.
  """
  x, y = front(points[(points < 1).all(axis=1)]).T
  return float(np.sum(np.diff(x, append=1.0) * (1 - y)))


def best_table(rows: Sequence[Row], data: str) -> Table:
  """Each method's choice, and its measures on the seeds that did not choose."""
  lines: list[list[Cell]] = []
  compared = _compared(rows, data)
  for (method,), group in tables.groups(compared, "method").items():
    one = group[0]
    cells = [_interval(tables.values(group, name)) for name in MEASURES]
    way = f"{one['stop_sigma']:g}, {one['temperature']:g}"
    lines.append([method, one["knobs"] or "-", way, *cells])
  head = ["method", "knobs", "stop sigma, temperature", *_NAMES]
  seeds = len(tables.distinct(compared, "seed"))
  caption = f"{data}: mean and 95% t-interval over {seeds} seeds."
  return Table(f"best_{data}", head, lines, caption)


def difference_table(rows: Sequence[Row], data: str) -> Table:
  """Each method less tuned DDPM, in the best way of each."""
  compared = tables.groups(_compared(rows, data), "method")
  by_method = {
    method: {row["seed"]: row for row in group}
    for (method,), group in compared.items()
  }
  base = by_method.pop(_BASE)
  found: list[tuple[str, list[Difference]]] = []
  for method, own in by_method.items():
    seeds = sorted(own.keys() & base.keys())
    of = lambda group, name, seeds=seeds: np.array(
      [group[seed][name] for seed in seeds], float
    )
    found.append(
      (method, [difference(of(own, n), of(base, n)) for n in MEASURES])
    )
  adjusted = holm([d.p for _, many in found for d in many])
  lines: list[list[Cell]] = []
  for i, (method, many) in enumerate(found):
    at = adjusted[i * len(MEASURES) :]
    lines.append(
      [method, *(_told(d, p) for d, p in zip(many, at, strict=False))]
    )
  caption = (
    f"{data}: the paired difference from DDPM at its best, its 95% interval, in"
    " standard deviations of the differences, and p of the paired t-test after"
    " Holm's correction for the whole table."
  )
  return Table(f"differences_{data}", ["method", *_NAMES], lines, caption)


def front_table(rows: Sequence[Row], data: str) -> Table:
  """How much of what plain DDPM leaves each method's front takes."""
  lines: list[list[Cell]] = [
    [method, hypervolume(points), len(front(points))]
    for method, points in _points(rows, data).items()
  ]
  head = ["method", "hypervolume", "settings on the front"]
  caption = (
    f"{data}: the fronts of error and Frechet distance, both over those of DDPM"
    " as the config samples it, over all knobs, on the tuning seeds. 1 would be"
    " the truth, 0 no better than DDPM."
  )
  return Table(f"fronts_{data}", head, lines, caption)


TABLES = (best_table, difference_table, front_table)


def front_figure(rows: Sequence[Row]) -> Figure:
  """Every setting as a point, each method's front as a line."""
  shown = []
  for data in tables.distinct(rows, "data"):
    points, lines = _points(rows, data), []
    drawn = zip(looks.cycle(list(points)), points.values(), strict=True)
    for look, own in drawn:
      style, best = look._asdict() | {"markersize": 4}, front(own)
      faint = style | {"linestyle": "none", "alpha": 0.25}
      lines.append(panels.Line(own[:, 0], own[:, 1], faint))
      lines.append(panels.Line(best[:, 0], best[:, 1], style))
    labels = "error over DDPM's", "Frechet over DDPM's"
    shown.append(panels.Panel(data, labels[0], lines, labels[1], "log", "log"))
  return panels.line_figure(shown)


def _points(rows: Sequence[Row], data: str) -> dict[str, np.ndarray]:
  """By method, (error, Frechet) of its settings, means over tuning seeds.

  Over those of DDPM without stopping and at temperature 1.
  """
  tried = [row for row in rows if row["data"] == data and row["tuning"]]
  value = lambda row, name: np.inf if row[name] is None else row[name]
  means = {
    key: [np.mean([value(row, name) for row in group]) for name in MEASURES[:2]]
    for key, group in tables.groups(tried, "method", "knobs", *_WAY).items()
  }
  plain = next(
    mean
    for (method, _, _, _, stop, temperature), mean in means.items()
    if (method, stop, temperature) == (_BASE, 0, 1)
  )
  found: dict[str, list[np.ndarray]] = {}
  for (method, *_), mean in means.items():
    found.setdefault(method, []).append(np.divide(mean, plain))
  return {method: np.array(points) for method, points in found.items()}


def _compared(rows: Sequence[Row], data: str) -> list[Row]:
  return [
    row
    for row in rows
    if row["data"] == data and row["chosen"] and not row["tuning"]
  ]


def _interval(found: np.ndarray) -> str:
  """Mean ± half the 95% t-interval."""
  if len(found) < 2:
    return f"{found.mean():.3g}"
  half = scipy.stats.t.ppf(0.975, len(found) - 1) * scipy.stats.sem(found)
  return f"{found.mean():.3g} ± {half:.2g}"


def _told(found: Difference, p: float) -> str:
  said = f"p {p:.2g}" if p >= 0.001 else "p < 0.001"
  return (
    f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}],"
    f" {found.effect:+.1f} sd, {said}"
  )
