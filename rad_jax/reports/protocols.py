"""The numbers of runs' evaluations, side by side: a table, and curves."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rad_jax.reports import looks, panels, saved, tables
from rad_jax.reports.page import Picture, Section
from rad_jax.reports.panels import Line, Panel
from rad_jax.reports.saved import SavedRun
from rad_jax.reports.tables import Table

# How a run is drawn, and its columns.
Curves: TypeAlias = tuple[looks.Look, dict[str, list]]


def measures(runs: Sequence[SavedRun]) -> list[Table]:
  """The measures of all protocols, the best run by each in bold."""
  shown = [run for run in runs if run.evaluation.get("measures")]
  if not shown:
    return []
  found = [run.evaluation["measures"] for run in shown]
  names = dict.fromkeys(name for values in found for name in values)
  rows = [
    [name, tables.BETTER.get(name), *(values.get(name) for values in found)]
    for name in names
  ]
  alike = comparable(shown)
  best = {
    (i, j + 2)
    for i, (_, better, *values) in enumerate(rows)
    for j in (tables.best_of(values, better) if alike else [])
  }
  caption = "The measures of the evaluation, against clean truth."
  if not alike:
    caption += (
      " No value is marked as the best: the runs differ in their clean data,"
      " or in how they were evaluated."
    )
  elif len(shown) > 1:
    caption += " The best value of a row is bold."
  head = ["measure", "better", *(run.name for run in shown)]
  return [Table("measures", head, rows, caption, best)]


def comparable(runs: Sequence[SavedRun]) -> bool:
  """Whether their numbers are of the same clean data, measured alike.

  A field that one of them does not have, being older, is left aside.
  """

  def ground(run: SavedRun) -> dict[str, Any]:
    settings = run.evaluation.get("evaluation", {}) | run.config["data"]
    found = settings | {"version": run.evaluation.get("version")}
    free = ("protocols", "corruption", "data_dir", "loading")
    return {name: found[name] for name in found if name not in free}

  first, *others = map(ground, runs)
  return all(
    other[name] == first[name]
    for other in others
    for name in other.keys() & first.keys()
  )


class Axes(NamedTuple):
  """How a protocol's curves are drawn, by their columns.

  x: across. series: its values part the rows into lines; none without.
  y: up; all but x where empty.
  """

  x: str
  xlabel: str
  x_scale: str
  series: str = ""
  y: tuple[str, ...] = ()


BY_LEVEL = Axes("sigma_t", "noise level sigma_t", "level")
_AXES = {
  "steps": Axes(
    *("evaluations", "network evaluations per sample", "log", "sampler"),
    ("support_rms", "frechet"),
  ),
  "attack": Axes(
    *("budget", "budget (noise units)", "plain", "attack"),
    ("moved", "support_rms", "frechet"),
  ),
}


def curves(runs: Sequence[SavedRun]) -> list[Section]:
  """A section for each protocol that has curves."""
  found = [run.evaluation.get("protocols", {}) for run in runs]
  sections = []
  for protocol in dict.fromkeys(name for of_run in found for name in of_run):
    axes = _AXES.get(protocol, BY_LEVEL)
    columns = [of_run.get(protocol, {}).get("curves", {}) for of_run in found]
    shown = [
      (look, of_run)
      for look, of_run in zip(saved.looks_of(runs), columns, strict=True)
      if axes.x in of_run
    ]
    if shown:
      drawn = pictures(protocol, axes, shown)
      sections.append(Section(f"Protocol {protocol}", drawn))
  return sections


def pictures(name: str, axes: Axes, shown: Sequence[Curves]) -> list[Picture]:
  """The curves of one or several runs.

  Lines are runs. Where there are series, lines are the series of one run; of
  several, each series has a panel, and each column up a picture.
  """
  up = axes.y or tuple(column for column in shown[0][1] if column != axes.x)
  series = dict.fromkeys(
    one for _, found in shown for one in found.get(axes.series, [])
  )
  if series and len(shown) > 1:
    found = []
    for y in up:
      drawn = [
        _panel(f"{y}: {one}", axes, y, _only(shown, axes.series, one))
        for one in series
      ]
      caption = (
        f"{y} against {axes.xlabel}, a panel for each {axes.series}, a line"
        " for each run."
      )
      figure = panels.line_figure(drawn, share_y=True)
      found.append(Picture(f"{name}_{y}", figure, caption))
    return found
  if series:
    shown = [
      (look, _only(shown, axes.series, look.label)[0][1])
      for look in looks.cycle(list(series))
    ]
  what = ", ".join(up[:-1]) + " and " * (len(up) > 1) + up[-1]
  caption = f"{what} against {axes.xlabel}, a line for each"
  figure = panels.line_figure([_panel(y, axes, y, shown) for y in up])
  return [Picture(name, figure, f"{caption} {axes.series or 'run'}.")]


def _only(shown: Sequence[Curves], column: str, value: str) -> list[Curves]:
  """The rows in which the column has the value."""
  found = []
  for look, columns in shown:
    kept = [place for place, v in enumerate(columns[column]) if v == value]
    of_value = {name: [v[i] for i in kept] for name, v in columns.items()}
    found.append((look, of_value))
  return found


def _panel(title: str, axes: Axes, y: str, shown: Sequence[Curves]) -> Panel:
  lines = [
    # None becomes NaN: a gap.
    Line(found[axes.x], np.array(found[y], float), looks.style(look))
    for look, found in shown
    if found.get(y)
  ]
  return Panel(title, axes.xlabel, lines, x_scale=axes.x_scale)
