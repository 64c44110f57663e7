"""The numbers of runs' evaluations, side by side: a table, and curves."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rad_jax.reports import methods, panels, saved
from rad_jax.reports.methods import Method
from rad_jax.reports.page import Picture, Section, Table
from rad_jax.reports.panels import Line, Panel
from rad_jax.reports.saved import Run

Columns: TypeAlias = dict[str, list]
Curves: TypeAlias = tuple[Method, Columns]

# Where a measure's best value lies; of the others none is marked.
_LOWER, _HIGHER, _ONE = "lower", "higher", "near 1"
_BETTER = {
  "support_rms": _LOWER,
  "frechet": _LOWER,
  "mean_error": _LOWER,
  "spread_ratio": _ONE,
  "sliced_wasserstein": _LOWER,
  "support_psnr_db": _HIGHER,
  "mode_error": _LOWER,
  "spurious": _LOWER,
  "fid": _LOWER,
  "feature_frechet": _LOWER,
  "fd_dinov2": _LOWER,
  "kid": _LOWER,
  "precision": _HIGHER,
  "recall": _HIGHER,
  "coverage": _HIGHER,
  "inception_score": _HIGHER,
  "reconstruction_rms": _LOWER,
  "reconstruction_psnr_db": _HIGHER,
  "reconstruction_support_rms": _LOWER,
  "score_error": _LOWER,
  "near_duplicates": _LOWER,
}


def measures(runs: list[Run]) -> saved.Found:
  """The measures of all protocols, the best run by each in bold."""
  there = lambda run: run.evaluation.get("measures")
  missing = saved.missing(
    "measures", "evaluation.json, by --mode=evaluate", runs, there
  )
  shown = [run for run in runs if there(run)]
  if not shown:
    return Section("Measures", []), missing
  found = [run.evaluation["measures"] for run in shown]
  rows = [
    [name, _BETTER.get(name), *(values.get(name) for values in found)]
    for name in dict.fromkeys(name for values in found for name in values)
  ]
  alike = comparable(shown)
  best = {
    (i, j + 2)
    for i, (_, better, *values) in enumerate(rows)
    for j in (best_of(values, better) if alike else [])
  }
  note = ""
  if len(shown) > 1:
    note = " The best value of a row is bold."
    if not alike:
      note = (
        " No value is marked as the best: the runs differ in their clean data,"
        " or in how they were evaluated."
      )
  table = Table(
    "measures",
    ["measure", "better", *(run.name for run in shown)],
    rows,
    f"The measures of the evaluation, against clean truth.{note}",
    best,
  )
  return Section("Measures", [table]), missing


def comparable(runs: list[Run]) -> bool:
  """Whether their numbers are of the same clean data, measured alike.

  A field that one of them does not have, being older, is left aside.
  """

  def ground(run: Run) -> dict[str, Any]:
    settings = dict(run.evaluation.get("evaluation", {}))
    version = run.evaluation.get("version")
    found = settings | run.config["data"] | {"version": version}
    for free in ("protocols", "corruption", "data_dir", "loading"):
      found.pop(free, None)
    return found

  first = ground(runs[0])
  return all(
    other[name] == first[name]
    for other in map(ground, runs)
    for name in other.keys() & first.keys()
  )


def best_of(values: Sequence[float | None], better: str | None) -> list[int]:
  """Places of the best of values; none where all are alike, or none is best.

  Args:
    values: None is no value.
    better: "lower", "higher", "near 1", or None.
  """
  cost = {
    _LOWER: lambda v: v,
    _HIGHER: lambda v: -v,
    _ONE: lambda v: abs(v - 1),
  }
  if better is None:
    return []
  costs = [
    cost[better](v) if v is not None and math.isfinite(v) else math.inf
    for v in values
  ]
  least = min(costs)
  if math.isinf(least) or all(c == least for c in costs):
    return []
  return [place for place, c in enumerate(costs) if c == least]


class Axes(NamedTuple):
  """How a protocol's curves are drawn, by their columns.

  x: across. series: its values part the rows into lines; none without.
  y: up; all but x where empty.
  """

  x: str
  xlabel: str
  series: str = ""
  y: tuple[str, ...] = ()
  x_scale: str = "linear"


_CURVES = {
  "steps": Axes(
    "evaluations",
    "network evaluations per sample",
    "sampler",
    ("support_rms", "frechet"),
    x_scale="log",
  ),
  "attack": Axes(
    "budget",
    "budget (noise units)",
    "attack",
    ("moved", "support_rms", "frechet"),
  ),
}
_BY_LEVEL = Axes("sigma_t", "noise level sigma_t", x_scale="logit")


def curves(runs: list[Run]) -> list[Section]:
  """A section for each protocol that has curves."""
  protocols = dict.fromkeys(
    name for run in runs for name in run.evaluation.get("protocols", {})
  )
  sections = []
  for protocol in protocols:
    axes = _CURVES.get(protocol, _BY_LEVEL)
    shown = [
      (look, found)
      for run, look in zip(runs, saved.looks(runs), strict=True)
      if axes.x in (found := _curves_of(run, protocol))
    ]
    if shown:
      sections.append(
        Section(f"Protocol {protocol}", pictures(protocol, axes, shown))
      )
  return sections


def _curves_of(run: Run, protocol: str) -> Columns:
  found = run.evaluation.get("protocols", {}).get(protocol, {})
  return found.get("curves", {})


def pictures(name: str, axes: Axes, shown: list[Curves]) -> list[Picture]:
  """The curves of one or several runs.

  Lines are runs. Where there are series, lines are the series of one run; of
  several, each series has a panel, and each column up a picture.
  """
  first = shown[0][1]
  up = axes.y or tuple(column for column in first if column != axes.x)
  if axes.series:
    series = dict.fromkeys(s for _, found in shown for s in found[axes.series])
    if len(shown) > 1:
      return [
        Picture(
          f"{name}_{y}",
          panels.line_figure(
            [
              _panel(f"{y}: {one}", axes, y, _only(shown, axes.series, one))
              for one in series
            ],
            share_y=True,
          ),
          f"{y} against {axes.xlabel}, a panel for each {axes.series}, a line"
          " for each run.",
        )
        for y in up
      ]
    shown = [
      (look, _only(shown, axes.series, look.label)[0][1])
      for look in methods.cycle(list(series))
    ]
  drawn = panels.line_figure([_panel(y, axes, y, shown) for y in up])
  return [
    Picture(
      name,
      drawn,
      f"{_and(up)} against {axes.xlabel}, a line for each"
      f" {axes.series or 'run'}.",
    )
  ]


def _only(shown: list[Curves], column: str, value: str) -> list[Curves]:
  """The rows in which the column has the value."""
  return [
    (
      look,
      {
        name: _where(values, found[column], value)
        for name, values in found.items()
      },
    )
    for look, found in shown
  ]


def _where(values: list, own: list, value: str) -> list:
  return [v for v, o in zip(values, own, strict=True) if o == value]


def _panel(title: str, axes: Axes, y: str, shown: list[Curves]) -> Panel:
  return Panel(
    title,
    axes.xlabel,
    [
      # None becomes NaN: a gap.
      Line(found[axes.x], np.array(found[y], float), methods.style(look))
      for look, found in shown
      if found.get(y)
    ],
    x_scale=axes.x_scale,
  )


def _and(names: Sequence[str]) -> str:
  *before, last = names
  return f"{', '.join(before)} and {last}" if before else last
