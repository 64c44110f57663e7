"""Figures of several panels: lines under one legend, images, points."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from rad_jax.reports import figures

_WIDTH = 10.6  # of a figure of three or four columns, inches
_WIDE = 30  # Beyond this ratio of largest to smallest, a scale is logarithmic.


class Line(NamedTuple):
  """A line: NaN is a gap in it. style: keyword arguments of Axes.plot."""

  x: Sequence[float] | np.ndarray
  y: Sequence[float] | np.ndarray
  style: dict[str, Any]


class Panel(NamedTuple):
  """Axes with lines.

  x_scale: "linear", "log", or "logit" for noise levels in (0, 1), most of
    which a grid of timesteps has close to 1. y is logarithmic where it is wide.
  """

  title: str
  xlabel: str
  lines: Sequence[Line]
  x_scale: str = "linear"
  log_y: bool = True


class View(NamedTuple):
  """Images [n, h, w, c] in [-1, 1], or points [n, 2 or 3]."""

  title: str
  examples: np.ndarray
  colour: str = "black"


def line_figure(panels: Sequence[Panel], share_y: bool = False) -> Figure:
  """The panels, with one legend for all lines below them.

  Lines of the same label share the legend's entry.

  Args:
    panels: one or more.
    share_y: whether all have the same scale.
  """
  columns = 2 if len(panels) == 4 else min(len(panels), 3)
  figure, axes = _grid(len(panels), columns, lambda width: 0.55 * width + 0.95)
  entries: dict[str, Any] = {}
  for axis, panel in zip(axes, panels, strict=True):
    for line in panel.lines:
      axis.plot(line.x, line.y, **{"markersize": 4} | line.style)
    axis.set_title(panel.title, fontsize="medium")
    axis.set_xlabel(panel.xlabel)
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    entries |= dict(zip(labels, handles, strict=True))
  everything = [line for panel in panels for line in panel.lines]
  for axis, panel in zip(axes, panels, strict=True):
    _scale(axis, panel, everything if share_y else panel.lines)
  if entries:
    points_wide = 70 + 5.5 * max(map(len, entries))
    figure.legend(
      entries.values(),
      entries.keys(),
      loc="outside lower left",
      ncols=max(1, int(72 * figure.get_figwidth() / points_wide)),
      frameon=False,
      fontsize=9,
      handlelength=3.2,
    )
  return figure


def example_figure(views: Sequence[View], images: int = 36) -> Figure:
  """The views: images as a grid; points on the same scales.

  Args:
    views: all of images, or all of points.
    images: how many of each view's images are shown.
  """
  per_row = 4 if len(views) in (4, 7, 8) else min(len(views), 3)
  if views[0].examples.ndim == 4:
    figure, axes = _grid(len(views), per_row, lambda width: width + 0.2)
    for axis, view in zip(axes, views, strict=True):
      shown = view.examples[:images]
      columns = math.ceil(math.sqrt(len(shown)))
      figures.draw_image(axis, figures.image_grid(shown, columns))
      axis.set_title(view.title, fontsize="medium")
    return figure
  figure, axes = _grid(len(views), per_row, lambda width: width)
  for axis, view in zip(axes, views, strict=True):
    figures.draw_points(axis, view.examples, view.colour)
    axis.set_title(view.title, fontsize="medium")
  flatness = _same_limits(axes)
  inside = figure.get_figwidth() / per_row - 0.7  # without the labels
  figure.set_figheight(
    math.ceil(len(views) / per_row) * (min(1.2, flatness) * inside + 0.8)
  )
  return figure


def _grid(
  count: int, columns: int, height: Callable[[float], float]
) -> tuple[Figure, list[Axes]]:
  """`count` axes, each of a height that depends on its width, in inches."""
  rows = math.ceil(count / columns)
  width = _WIDTH / max(columns, 3)
  figure = Figure(
    figsize=(width * columns, rows * height(width)),
    layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08),
  )
  axes = figure.subplots(rows, columns, squeeze=False).flat
  for axis in axes[count:]:
    axis.remove()
  return figure, list(axes[:count])


def _same_limits(axes: list[Axes]) -> float:
  """Gives all the widest limits; returns their height over their width."""
  boxes = np.array([axis.viewLim.get_points() for axis in axes])
  low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
  for axis in axes:
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
  return float((high[1] - low[1]) / (high[0] - low[0]))


def _scale(axis: Axes, panel: Panel, lines: Sequence[Line]) -> None:
  """So that all the lines are seen: from 0, or logarithmic where wide."""
  axis.set_xscale(panel.x_scale)
  if panel.x_scale == "log":
    axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
  values = np.concatenate([np.asarray(line.y, float) for line in lines])
  values = values[np.isfinite(values)]
  if not values.size:
    return
  low, high = values.min(), values.max()
  if panel.log_y and 0 < _WIDE * low < high:
    axis.set_yscale("log")
    ratio = (high / low) ** 0.06
    axis.set_ylim(low / ratio, high * ratio)
  else:
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 1.0
    axis.set_ylim(low - margin / 2, high + margin)
