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

from rad_jax import files

WIDTH = 10.6  # of a full figure, inches
# Beyond this ratio of largest to smallest, a scale is logarithmic.
_WIDE = {"zero": 30.0, "linear": math.inf, "close": 4.0}
_FLOOR = 1e-6  # A logarithmic scale goes no lower, relative to its top.
# Where texts stand, in points from theirs, in turn. Not by adjustText: it is
# iterative, and a report must be the same each time it is written.
_OFFSETS = ((5, 4), (-5, -4), (5, -4), (-5, 4))


class Line(NamedTuple):
  """Points [n] in Axes.plot's style; None or NaN is a gap."""

  x: Sequence[float] | np.ndarray
  y: Sequence[float | None] | np.ndarray
  style: dict[str, Any]
  x_std: Sequence[float] | None = None
  y_std: Sequence[float] | None = None
  texts: Sequence[str] = ()


class Panel(NamedTuple):
  """Axes with lines, whose scales are chosen by what is drawn.

  "zero": from 0, or logarithmic where values are positive and wide apart;
  "linear": from 0; "close": as "zero", but linear around the points; "level":
  noise levels in (0, 1), logit where they crowd at an end; "plain"; "log".
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


def line_figure(panels: Sequence[Panel], legend: str | None = "") -> Figure:
  """The panels above a legend of this title, each label once; None: without."""
  columns = 2 if len(panels) == 4 else min(len(panels), 3)
  width = WIDTH / max(columns, 2)
  figure, axes = grid(len(panels), columns, width, 0.55 * width + 0.95)
  for axis, panel in zip(axes, panels, strict=True):
    for line in panel.lines:
      _draw(axis, line)
    axis.set_title(panel.title, fontsize="medium", parse_math=False)
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axis.spines[["top", "right"]].set_visible(False)
    _scale(axis, "x", panel.x_scale, [line.x for line in panel.lines])
    _scale(axis, "y", panel.y_scale, [line.y for line in panel.lines])
  found = [axis.get_legend_handles_labels() for axis in axes]
  entries = {k: v for vs, ks in found for v, k in zip(vs, ks, strict=True)}
  if entries and legend is not None:
    points_wide = 70 + 5.5 * max(map(len, entries))
    ncols = max(1, int(72 * figure.get_figwidth() / points_wide))
    style: Any = {"loc": "outside lower left", "alignment": "left"}
    style |= {"fontsize": 9, "title_fontsize": 9, "handlelength": 3.2}
    style |= {"title": legend or None, "frameon": False, "ncols": ncols}
    drawn = figure.legend(entries.values(), entries.keys(), **style)
    for text in drawn.get_texts():
      text.set_parse_math(False)
  return figure


def _draw(axis: Axes, line: Line) -> None:
  heights = np.array(line.y, float)
  (drawn,) = axis.plot(line.x, heights, **{"markersize": 4} | line.style)
  colour: Any = drawn.get_color()
  if line.y_std is not None:
    bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1}
    axis.errorbar(line.x, heights, line.y_std, line.x_std, **bars)
  for x, y, text in zip(line.x, heights, line.texts, strict=False):
    right, up = _OFFSETS[len(axis.texts) % len(_OFFSETS)]
    ha, va = "left" if right > 0 else "right", "bottom" if up > 0 else "top"
    style: Any = {"textcoords": "offset points", "fontsize": 8, "color": colour}
    axis.annotate(text, (x, y), (right, up), ha=ha, va=va, **style)


def _scale(axis: Axes, side: str, scale: str, of: Sequence) -> None:
  """So that all values are seen: the one rule on logarithmic scales."""
  ticks = axis.xaxis if side == "x" else axis.yaxis
  found = np.concatenate([np.array(v, float).ravel() for v in ([], *of)])
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
    ratio = max((high / low) ** 0.08, 1.05)
    limits = (low / ratio, high * ratio)
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
