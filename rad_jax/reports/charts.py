"""Figures of an experiment, from its rows; a panel for each data set."""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rad_jax.reports import figures, looks, panels, tables
from rad_jax.reports.tables import Row

# What the runs of a panel and those of a line in it have in common.
_SET = ("data", "corruption", "fraction", "sigma")
_LINE = ("objective", "radius", "beta")
_MARKERS = "osD^vPX*"


def looks_of(
  rows: Sequence[Row], key: Sequence[str], told: Sequence[str]
) -> dict[tuple, looks.Look]:
  """The look of each group of rows that agree on `key`, by objective.

  Those of one objective differ in marker, dashes and, in words, in `told`.
  """
  order = [*looks.LOOKS, *tables.distinct(rows, "objective")]
  found: dict[tuple, looks.Look] = {}
  for name in sorted(tables.distinct(rows, "objective"), key=order.index):
    own = [row for row in rows if row["objective"] == name]
    differing = tables.varying(own, told)
    for n, (its_key, group) in enumerate(tables.groups(own, *key).items()):
      look = looks.of(name)
      if n:
        marker = _MARKERS[(_MARKERS.find(look.marker) + n) % len(_MARKERS)]
        look = look._replace(marker=marker, linestyle=(0, (2, n)))
      words = tables.title(group[0], ("objective", *differing))
      found[its_key] = look._replace(label=words.replace("lam ", "lambda "))
  return found


def _line(points: Iterable[tuple], style: dict[str, Any]) -> panels.Line:
  """Means and standard deviations of points (x [n], y [n], text)."""
  kept = [(x, y, text) for x, y, text in points if len(x) and len(y)]
  x, y, texts = zip(*kept, strict=True) if kept else ((), (), ())
  return panels.Line(
    *([v.mean() for v in x], [v.mean() for v in y]),
    {"linewidth": 1, "markersize": 5} | style,
    *([v.std() for v in x], [v.std() for v in y], texts if any(texts) else ()),
  )


def _figure(
  rows: Sequence[Row],
  key: Sequence[str],
  points_of: Callable[[list[Row]], list[tuple]],
  labels: Sequence[str],
  legend: str | None,
) -> Figure:
  """A panel for each set, in it a line for each group of rows by `key`."""
  rows = sorted(rows, key=lambda row: row.get("lam") or 0)
  found = looks_of(rows, key, _LINE)
  shown = []
  for peers in tables.groups(rows, *_SET).values():
    lines = [
      _line(points_of(group), found[k]._asdict() | {"linestyle": "-"})
      for k, group in tables.groups(peers, *key).items()
    ]
    title, (x, y) = tables.title(peers[0], _SET), labels
    shown.append(panels.Panel(title, x, lines, y, "close", "close"))
  return panels.line_figure(shown, legend)


def frontier_figure(
  clean: Sequence[Row], dirty: Sequence[Row], measure: str
) -> Figure:
  """The measure on dirty data against that on clean, a point a lambda."""
  like = ("data", *_LINE, "lam")
  ours = tables.groups(clean, *like)

  def points_of(group: list[Row]) -> list[tuple]:
    points = []
    for theirs in tables.groups(group, "lam").values():
      same = ours.get(tuple(map(theirs[0].get, like)), [])
      x, y = (tables.values(of, measure) for of in (same, theirs))
      points.append((x, y, tables.text_of(theirs[0].get("lam"))))
    return points

  words = [f"{measure}, trained on {kind} data" for kind in ("clean", "dirty")]
  return _figure(dirty, _LINE, points_of, words, "numbers: lambda")


def lambda_figure(rows: Sequence[Row], measure: str) -> Figure:
  """The measure against lambda; a method without it is a level line."""
  lams = sorted(tables.distinct(rows, "lam"))

  def points_of(group: list[Row]) -> list[tuple]:
    return [
      (np.array([lam]), tables.values(same, measure), "")
      for same in tables.groups(group, "lam").values()
      for lam in tables.distinct(same, "lam") or (lams[0], lams[-1])
    ]

  return _figure(rows, _LINE, points_of, ("lambda", measure), "")


def scheme_figure(rows: Sequence[Row], across: str, measure: str) -> Figure:
  """The measure against another column; one named point for each method."""

  def points_of(group: list[Row]) -> list[tuple]:
    name = group[0].get("method") or looks.of(group[0]["objective"]).label
    return [(tables.values(group, across), tables.values(group, measure), name)]

  cost = "passes of the training, relative to DDPM"
  labels = (cost if across == "cost" else across, measure)
  return _figure(rows, ("method", *_LINE, "lam"), points_of, labels, None)


def error_figure(rows: Sequence[Row], corruptions: Sequence[Any]) -> Figure:
  """The error of each method, named by `method`, under each corruption."""
  found = looks_of(rows, ("method",), ("lam",))
  shown = []
  for (data,), peers in tables.groups(rows, "data").items():
    cells = tables.groups(peers, "corruption", "method")
    lines = []
    for n, ((method,), look) in enumerate(found.items()):
      shift = 0.7 * ((n + 0.5) / len(found) - 0.5)
      points = [
        (np.array([place + shift]), tables.values(of, "support_rms"), "")
        for place, corruption in enumerate(corruptions)
        if (of := cells.get((corruption, method)))
      ]
      style = look._asdict() | {"linestyle": "none", "markersize": 6}
      lines.append(_line(points, style))
    shown.append(panels.Panel(data, "", lines, "error (RMS)", y_scale="linear"))
  figure = panels.line_figure(shown)
  named = {n: name for n, name in enumerate(corruptions) if name}
  for axis in figure.axes:
    axis.set_xticks([*named], [*named.values()], rotation=40, ha="right")
    for place in range(1, len(corruptions)):
      axis.axvline(place - 0.5, color="0.9", linewidth=1, zorder=0)
  return figure


def sample_figure(
  cells: dict[looks.Look, list[Row]], runs: pathlib.Path
) -> Figure:
  """Samples of each cell's first seed, under its mean error, and the truth."""
  shown = []
  for look, rows in cells.items():
    first = min(rows, key=lambda row: row["seed"])
    error = tables.values(rows, "support_rms").mean()
    titled = look._replace(label=f"{look.label}: error {error:.3g}")
    shown.append((runs / first["run"], titled))
  return figures.example_figure(figures.beside_truth(shown))
