"""Charts of several panels: lines and points under one legend."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from rad_jax import files

WIDTH = 10.6  # of a full figure, inches
# Beyond this ratio of largest to smallest, a scale is logarithmic.
_WIDE = {"zero": 30.0, "linear": math.inf, "close": 4.0}
_FLOOR = 1e-6  # A logarithmic scale goes no lower, relative to its top.
# Where a text may stand, in points from its point: the near places first.
_AROUND = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_PLACES = [
  (r * x, r * y) for r in (8.0, 13.0, 19.0, 27.0, 37.0) for x, y in _AROUND
]


class Line(NamedTuple):
  """Points [n], joined as the style says; NaN is a gap.

  style: keyword arguments of Axes.plot.
  x_std, y_std: half the lengths of error bars.
  texts: what to write at each point.
  """

  x: Sequence[float] | np.ndarray
  y: Sequence[float] | np.ndarray
  style: dict[str, Any]
  x_std: Sequence[float] | None = None
  y_std: Sequence[float] | None = None
  texts: Sequence[str] = ()


class Panel(NamedTuple):
  """Axes with lines, whose scales are chosen by what is drawn.

  y_scale: "zero": from 0, or logarithmic where values are positive and wide
    apart; "linear": from 0; "close": as "zero", but linear around the points.
  x_scale: those of y, "plain", "log", or "level": noise levels in (0, 1),
    logit where they crowd at an end.
  """

  title: str
  xlabel: str
  lines: Sequence[Line]
  ylabel: str = ""
  x_scale: str = "plain"
  y_scale: str = "zero"


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
  """Writes the figure as PNG; returns the path."""
  files.write(path, lambda file: figure.savefig(file, format="png", dpi=150))
  return path


def grid(
  count: int, columns: int, width: float, height: float, **subplots: Any
) -> tuple[Figure, list[Any]]:
  """`count` axes, each of about this width and height, in inches."""
  rows = math.ceil(count / columns)
  figure = Figure(
    figsize=(width * columns, rows * height),
    layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08),
  )
  axes = figure.subplots(rows, columns, squeeze=False, **subplots).flat
  for axis in axes[count:]:
    axis.remove()
  return figure, list(axes[:count])


def line_figure(
  panels: Sequence[Panel], share_y: bool = False, legend: str | None = ""
) -> Figure:
  """The panels, with one legend below for all their lines.

  Lines of the same label share the legend's entry.

  Args:
    panels: one or more.
    share_y: whether all have the same scale.
    legend: its title; None for no legend.
  """
  columns = 2 if len(panels) == 4 else min(len(panels), 3)
  width = WIDTH / max(columns, 2)
  figure, axes = grid(len(panels), columns, width, 0.55 * width + 0.95)
  everything = [line for panel in panels for line in panel.lines]
  for axis, panel in zip(axes, panels, strict=True):
    for line in panel.lines:
      _draw(axis, line)
    axis.set_title(panel.title, fontsize="medium")
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axis.spines[["top", "right"]].set_visible(False)
    lines = everything if share_y else panel.lines
    _scale(axis, "x", panel.x_scale, [line.x for line in panel.lines])
    _scale(axis, "y", panel.y_scale, [line.y for line in lines])
  if legend is not None:
    _add_legend(figure, legend)
  if any(line.texts for line in everything):
    figure.draw_without_rendering()  # lays the figure out
    for axis in axes:
      _place_texts(axis)
  return figure


def _draw(axis: Axes, line: Line) -> None:
  (drawn,) = axis.plot(line.x, line.y, **{"markersize": 4} | line.style)
  colour: Any = drawn.get_color()
  if line.y_std is not None:
    bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1}
    axis.errorbar(line.x, line.y, line.y_std, line.x_std, **bars)
  for x, y, text in zip(line.x, line.y, line.texts, strict=False):
    arrow = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    axis.annotate(
      text,
      (x, y),
      xytext=(0, 0),
      textcoords="offset points",
      va="center",
      fontsize=8,
      color=colour,
      arrowprops=arrow | {"color": colour},
    )


def _add_legend(figure: Figure, title: str) -> None:
  found = [axis.get_legend_handles_labels() for axis in figure.axes]
  entries = {k: v for vs, ks in found for v, k in zip(vs, ks, strict=True)}
  if entries:
    points_wide = 70 + 5.5 * max(map(len, entries))
    figure.legend(
      entries.values(),
      entries.keys(),
      title=title or None,
      loc="outside lower left",
      ncols=max(1, int(72 * figure.get_figwidth() / points_wide)),
      frameon=False,
      fontsize=9,
      title_fontsize=9,
      alignment="left",
      handlelength=3.2,
    )


def _scale(axis: Axes, side: str, scale: str, of: Sequence) -> None:
  """So that all values are seen: the one rule on logarithmic scales."""
  ticks = axis.xaxis if side == "x" else axis.yaxis
  found = np.concatenate([np.asarray(v, float).ravel() for v in ([], *of)])
  found = found[np.isfinite(found)]
  if scale == "plain" or not found.size:
    return
  low, high = found.min(), found.max()
  if scale == "level":
    if low > 0 and high < 1 and np.mean(abs(found - 0.5) > 0.45) > 0.5:
      axis.set(**{f"{side}scale": "logit"})
      ticks.set_minor_formatter(ticker.NullFormatter())
  elif scale == "log" or (low > 0 and _WIDE[scale] * low < high):
    low = max(low, _FLOOR * high)
    ratio = (high / low) ** 0.08
    limits = (low / ratio, high * ratio) if low < high else None
    axis.set(**{f"{side}scale": "log", f"{side}lim": limits})
    if high < 100 * low:
      ticks.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      ticks.set_major_formatter(ticker.FormatStrFormatter("%g"))
      ticks.set_minor_formatter(ticker.NullFormatter())
  elif scale == "close":
    axis.margins(**{side: 0.12})  # type: ignore[arg-type]
  else:
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 1.0
    axis.set(**{f"{side}lim": (low - margin / 2, high + margin)})


def _place_texts(axis: Axes) -> None:
  """Moves each text to the nearest free place around its point.

  Where that is far, a thin line leads there.
  """
  bars: list[Any] = list(axis.collections)
  paths: list[Any] = [line.get_xydata() for line in axis.lines]
  paths += [segment for bar in bars for segment in bar.get_segments()]
  paths = [axis.transData.transform(path) for path in paths]
  share = np.linspace(0, 1, 50)[:, None, None]
  between = [p[:-1] + share * np.diff(p, axis=0) for p in paths]
  ink = np.concatenate([p.reshape(-1, 2) for p in (*paths, *between)])
  taken: list[Any] = []
  notes: list[Any] = list(axis.texts)
  for note in notes:
    boxes = [_box_at(note, place) for place in _PLACES]
    crowding = [
      100 * (4 - axis.bbox.count_contains(box.corners()))
      + 100 * box.count_overlaps(taken)
      + box.count_contains(ink)
      for box in boxes
    ]
    best = int(np.argmin(crowding))
    taken.append(_box_at(note, _PLACES[best]))
    note.arrow_patch.set_visible(best >= len(_AROUND))


def _box_at(note: Any, place: tuple[float, float]) -> Any:
  """Moves a text; returns its box, padded, in pixels."""
  note.set_position(place)
  sides = {1: "left", 0: "center", -1: "right"}
  note.set_horizontalalignment(sides[int(np.sign(place[0]))])
  return Text.get_window_extent(note).padded(2)
