"""Tables and figures of a sweep, from the rows of its sweep.jsonl.

A row is a flat dict: `run`, labels, `steps`, `passes`, then measures, or
`error` where the run failed. Rows whose labels differ in the seed only are one
line of a table and one point of a figure: mean and standard deviation over
seeds.
"""

import math
import pathlib
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from rad_jax.reports.methods import COLOURS, LABELS

Row: TypeAlias = dict[str, Any]

# Columns that tell runs apart, besides the seed: a method and its lambda, and
# what it is trained on. A figure has a panel for each set, and in it a line
# for each method.
_METHOD = ("scheme", "objective", "radius", "beta")
_SET = ("data", "fraction", "sigma")
AXES = (
  "data",
  "scheme",
  "objective",
  "lam",
  "radius",
  "beta",
  "fraction",
  "sigma",
  "steps",
)
_RECORD = ("run", "seed", "config", "passes", "seconds", "error")
_ACROSS = {"cost": "passes of the training, relative to DDPM"}
_MARKERS = "osD^vPX*"
# Where a text may stand, in points from its point: around it, the near first.
_AROUND = (
  (1, 1),
  (-1, 1),
  (1, -1),
  (-1, -1),
  (1, 0),
  (-1, 0),
  (0, 1.2),
  (0, -1.2),
)
_PLACES = [
  (r * dx, r * dy) for r in (7.0, 12.0, 18.0, 26.0, 36.0) for dx, dy in _AROUND
]


def measures_of(rows: list[Row]) -> list[str]:
  """The names of the measures, in the order of the columns."""
  names = dict.fromkeys(name for row in rows for name in row)
  return [name for name in names if name not in (*AXES, *_RECORD)]


def relative_cost(rows: list[Row]) -> list[Row]:
  """The rows with `cost`: passes of the training over DDPM's on the same data.

  Of several trainings of DDPM, the shortest is meant.

  Raises:
    ValueError: a data set has no run of DDPM.
  """
  costed = []
  for peers in _groups(rows, ("data",)):
    ddpm = [row["passes"] for row in peers if row["objective"] == "ddpm"]
    if not ddpm:
      raise ValueError(f"no run of ddpm on {peers[0].get('data')}")
    costed += [row | {"cost": row["passes"] / min(ddpm)} for row in peers]
  return costed


def markdown_table(rows: list[Row], measures: list[str]) -> str:
  """The rows as a Markdown table, mean ± standard deviation over seeds.

  Axes that do not vary stand above it, runs that failed below.
  """
  varying = _varying(rows, AXES)
  same = {
    axis: _values(rows, axis)[0]
    for axis in AXES
    if axis not in varying and _values(rows, axis)
  }
  columns = [*varying, *measures, "seeds"]
  lines = [f"All runs: {_title(same, AXES)}.", ""] if same else []
  lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
  for group in _groups(rows, AXES):
    done = _finished(group)
    cells = [_text(axis, group[0].get(axis)) for axis in varying]
    cells += [_cell(done, name) for name in measures]
    failed = f" of {len(group)}" if len(done) < len(group) else ""
    lines.append(f"| {' | '.join(cells)} | {len(done)}{failed} |")
  errors = [f"- {row['run']}: {row['error']}" for row in rows if "error" in row]
  return "\n".join(lines + (["", "Failed:", "", *errors] if errors else []))


def frontier_figure(rows: list[Row], measure: str = "frechet") -> Figure:
  """Clean against dirty: what a method costs where the data is clean.

  Across, the measure of runs trained on clean data; up, that of the same runs
  trained on dirty data, a panel for each dirty set. One point for each lambda,
  joined in its order.
  """
  rows = _finished(rows)
  clean = [row for row in rows if row["fraction"] == 0]
  dirty = [row for row in rows if row["fraction"] > 0]
  figure, panels = _panels(dirty)
  for axis, peers in panels:
    for group in _groups(peers, _METHOD):
      points = []
      for theirs in _groups(_by_lam(group), ("lam",)):
        ours = _like(clean, theirs[0], ("data", *_METHOD, "lam"))
        x, y = _over_seeds(ours, measure), _over_seeds(theirs, measure)
        points.append(Point(x, y, _text("lam", theirs[0]["lam"])))
      _draw(axis, points, **_style(group[0], dirty))
    axis.set_xlabel(f"{measure}, trained on clean data")
    axis.set_ylabel(f"{measure}, trained on dirty data")
  _complete(figure, legend="numbers: lambda")
  return figure


def error_figure(rows: list[Row], measure: str = "frechet") -> Figure:
  """The measure against lambda: a panel for each set, a line for each method.

  A method without lambda is a level line.
  """
  rows = _finished(rows)
  lams = sorted(_values(rows, "lam"))
  figure, panels = _panels(rows)
  for axis, peers in panels:
    for group in _groups(peers, _METHOD):
      points = [
        Point(np.array([lam]), _over_seeds(same, measure))
        for same in _groups(_by_lam(group), ("lam",))
        for lam in _values(same, "lam") or (lams[0], lams[-1])
      ]
      dashes = "-" if _values(group, "lam") else "--"
      _draw(axis, points, linestyle=dashes, **_style(group[0], rows))
    axis.set_xlabel("lambda")
    axis.set_ylabel(measure)
  _complete(figure, legend="")
  return figure


def scheme_figure(rows: list[Row], across: str, measure: str) -> Figure:
  """The measure against another one, or against "cost" (`relative_cost`).

  A panel for each set; in it one named point for each scheme.

  Raises:
    ValueError: a data set has no run of DDPM.
  """
  rows = _finished(relative_cost(rows))
  figure, panels = _panels(rows)
  for axis, peers in panels:
    for group in _groups(peers, (*_METHOD, "lam")):
      style = _style(group[0], rows)
      name = _text("scheme", group[0].get("scheme")) or style["label"]
      x, y = _over_seeds(group, across), _over_seeds(group, measure)
      _draw(axis, [Point(x, y, name)], **style | {"marker": "o"})
    axis.set_xlabel(_ACROSS.get(across, across))
    axis.set_ylabel(measure)
  _complete(figure)
  return figure


def write(
  rows: list[Row], workdir: pathlib.Path, measure: str = "frechet"
) -> list[pathlib.Path]:
  """Writes a sweep's table.md and its figure; returns the paths.

  The figure is frontier.png where there are clean and dirty training sets,
  else error.png where lambda varies, else there is none.
  """
  table = markdown_table(rows, measures_of(rows))
  done = _finished(rows)
  if {row["fraction"] > 0 for row in done} == {True, False}:
    figures = {"frontier": frontier_figure(done, measure)}
  elif _varying(done, ("lam",)):
    figures = {"error": error_figure(done, measure)}
  else:
    figures = {}
  return _save({"table": table}, figures, workdir)


def write_study(
  rows: list[Row], workdir: pathlib.Path, across: str, measure: str
) -> list[pathlib.Path]:
  """Writes study.md and study.png, a `scheme_figure`; returns the paths.

  Raises:
    ValueError: a data set has no run of DDPM.
  """
  table = markdown_table(relative_cost(rows), ["cost", *measures_of(rows)])
  figure = scheme_figure(rows, across, measure)
  return _save({"study": table}, {"study": figure}, workdir)


def _save(
  tables: dict[str, str], figures: dict[str, Figure], workdir: pathlib.Path
) -> list[pathlib.Path]:
  paths = []
  for name, text in tables.items():
    paths.append(workdir / f"{name}.md")
    paths[-1].write_text(text + "\n")
  for name, figure in figures.items():
    paths.append(workdir / f"{name}.png")
    figure.savefig(paths[-1], dpi=150)
  return paths


# ---- Rows ----


def _finished(rows: list[Row]) -> list[Row]:
  return [row for row in rows if "error" not in row]


def _groups(rows: list[Row], axes: tuple[str, ...]) -> list[list[Row]]:
  """Rows that agree on the axes, together, in order of appearance."""
  found: dict[tuple, list[Row]] = {}
  for row in rows:
    found.setdefault(tuple(row.get(axis) for axis in axes), []).append(row)
  return list(found.values())


def _like(rows: list[Row], row: Row, axes: tuple[str, ...]) -> list[Row]:
  """Those of the rows that agree with `row` on the axes."""
  return [r for r in rows if all(r.get(a) == row.get(a) for a in axes)]


def _values(rows: list[Row], axis: str) -> list[Any]:
  """The axis's values; where it makes no difference it has none."""
  found = dict.fromkeys(row.get(axis) for row in rows)
  return [value for value in found if value is not None]


def _varying(rows: list[Row], axes: tuple[str, ...]) -> tuple[str, ...]:
  return tuple(axis for axis in axes if len(_values(rows, axis)) > 1)


def _by_lam(rows: list[Row]) -> list[Row]:
  return sorted(rows, key=lambda row: row.get("lam") or 0)


def _over_seeds(rows: list[Row], measure: str) -> np.ndarray:
  return np.array([row[measure] for row in rows])


# ---- Words ----


def _text(axis: str, value: Any) -> str:
  if value is None:
    return ""
  if axis == "objective":
    return LABELS.get(value, value)
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _title(row: Row, axes: tuple[str, ...]) -> str:
  """The row's place on the axes: "digits, fraction 0.9, sigma 0.2"."""
  return ", ".join(
    _text(axis, row[axis])
    if axis in ("data", "scheme", "objective")
    else f"{axis} {_text(axis, row[axis])}"
    for axis in axes
    if row.get(axis) is not None
  )


def _cell(rows: list[Row], measure: str) -> str:
  """Empty for a measure that these rows do not have."""
  if rows and measure not in rows[0]:
    return ""
  return _mean_std(_over_seeds(rows, measure))


def _mean_std(values: np.ndarray) -> str:
  """Four digits of the mean, and the deviation to the same place.

  Equal values have no deviation; none at all is "failed".
  """
  if len(values) == 0:
    return "failed"
  mean = values.mean()
  size = math.floor(math.log10(abs(mean))) if np.isfinite(mean) and mean else 0
  digits = max(0, 3 - size)
  deviation = f" ± {values.std():.{digits}f}" if np.ptp(values) else ""
  return f"{mean:.{digits}f}{deviation}"


# ---- Drawing ----


class Point(NamedTuple):
  """A point of a figure: its values over seeds, and what to write there."""

  x: np.ndarray
  y: np.ndarray
  text: str = ""


def _panels(
  rows: list[Row],
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
  """A panel for each training set, at most three side by side."""
  groups = _groups(rows, _SET)
  columns = min(len(groups), 3)
  lines = math.ceil(len(groups) / columns)
  figure = Figure(figsize=(4.2 * columns, 3.6 * lines), layout="constrained")
  axes = figure.subplots(lines, columns, squeeze=False)
  for axis, group in zip(axes.flat, groups, strict=False):
    axis.set_title(_title(group[0], _SET), fontsize="medium")
    axis.spines[["top", "right"]].set_visible(False)
  for axis in axes.flat[len(groups) :]:
    axis.remove()
  return figure, list(zip(axes.flat, groups, strict=False))


def _style(row: Row, rows: list[Row]) -> dict[str, Any]:
  """How the row's method is drawn among those of all rows."""
  methods = [group[0] for group in _groups(rows, _METHOD)]
  place = methods.index(_like(methods, row, _METHOD)[0])
  others = [axis for axis in _varying(rows, _METHOD) if axis != "objective"]
  return {
    "color": COLOURS.get(row["objective"], "grey"),
    "marker": _MARKERS[place % len(_MARKERS)],
    "label": _title(row, ("objective", *others)),
  }


def _draw(axis: Axes, points: list[Point], **style: Any) -> None:
  """Points at their means, joined, with bars of a standard deviation.

  A point without values is left out. What is to be written there is written
  by `_complete`, when all points are drawn.
  """
  points = [point for point in points if len(point.x) and len(point.y)]
  if not points:
    return
  axis.errorbar(
    [point.x.mean() for point in points],
    [point.y.mean() for point in points],
    xerr=[point.x.std() for point in points],
    yerr=[point.y.std() for point in points],
    **{"linewidth": 1, "markersize": 5} | style,
  )
  for point in points:
    if point.text:
      axis.annotate(
        point.text,
        (point.x.mean(), point.y.mean()),
        xytext=(0, 0),
        textcoords="offset points",
        verticalalignment="center",
        fontsize=8,
        color=style["color"],
        arrowprops={
          "arrowstyle": "-",
          "color": style["color"],
          "linewidth": 0.5,
          "shrinkA": 0,
          "shrinkB": 3,
        },
      )


def _complete(figure: Figure, legend: str | None = None) -> None:
  """Scales, a legend below under this title, and all texts in free places."""
  entries: dict[str, Any] = {}
  for axis in figure.axes:
    axis.margins(0.12)
    _log_where_wide(axis)
    handles, labels = axis.get_legend_handles_labels()
    entries |= dict(zip(labels, handles, strict=True))
  if legend is not None:
    points_wide = 60 + 5 * max(map(len, entries))
    figure.legend(
      entries.values(),
      entries.keys(),
      title=legend,
      loc="outside lower center",
      ncols=max(1, int(72 * figure.get_figwidth() / points_wide)),
      frameon=False,
      fontsize=8,
      title_fontsize=8,
    )
  figure.draw_without_rendering()  # lays the figure out
  for axis in figure.axes:
    _place_texts(axis)


def _log_where_wide(axis: Axes) -> None:
  """Log scales where the points are positive and span a factor of four."""
  points = np.concatenate([line.get_xydata() for line in axis.lines])
  low, high = points.min(axis=0), points.max(axis=0)
  for name, side, a, b in zip(
    "xy", (axis.xaxis, axis.yaxis), low, high, strict=True
  ):
    if 0 < 4 * a < b:
      axis.set(**{f"{name}scale": "log"})
      subs = (1, 2, 5) if b < 100 * a else (1,)
      side.set_major_locator(ticker.LogLocator(subs=subs))
      side.set_major_formatter(ticker.FormatStrFormatter("%g"))
      side.set_minor_formatter(ticker.NullFormatter())


def _place_texts(axis: Axes) -> None:
  """Moves each text to the nearest place around its point that is free.

  Far from its point, it is led there by a line, which is kept off texts too.
  """
  ink = _ink(axis)
  taken: list[Any] = []
  share = np.linspace(0, 1, 50)[:, None]

  def box_at(text: Any, place: tuple[float, float]):
    dx, _ = place
    text.set_position(place)
    text.set_horizontalalignment(
      "left" if dx > 0 else "right" if dx < 0 else "center"
    )
    return Text.get_window_extent(text).padded(2)

  def crowding(text: Any, place: tuple[float, float]) -> int:
    box = box_at(text, place)
    outside = 4 - axis.bbox.count_contains(box.corners())
    point = axis.transData.transform(text.xy)
    middle = (box.min + box.max) / 2
    line = point + share * (middle - point)
    crossed = sum(other.count_contains(line) for other in taken)
    severe = outside + box.count_overlaps(taken)
    return int(100 * severe + box.count_contains(ink) + crossed)

  texts: list[Any] = list(axis.texts)
  for text in texts:
    crowded = [crowding(text, place) for place in _PLACES]
    best = crowded.index(min(crowded))
    taken.append(box_at(text, _PLACES[best]))
    text.arrow_patch.set_visible(best >= len(_AROUND))


def _ink(axis: Axes) -> np.ndarray:
  """Points along all lines and bars of the axis, [n, 2] pixels."""
  paths = [line.get_xydata() for line in axis.lines]
  bars = [c for c in axis.collections if isinstance(c, LineCollection)]
  paths += [segment for bar in bars for segment in bar.get_segments()]
  drawn = [axis.transData.transform(path) for path in paths]
  share = np.linspace(0, 1, 50)[:, None, None]
  between = [p[:-1] + share * np.diff(p, axis=0) for p in drawn]
  return np.concatenate(
    [*drawn, *(points.reshape(-1, 2) for points in between)]
  )
