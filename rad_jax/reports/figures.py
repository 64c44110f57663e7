"""Pictures of examples: images as grids, points as they lie."""

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rad_jax import files
from rad_jax.data import examples, synthetic
from rad_jax.reports import panels, saved

# What synthetic.view shows, by dimension.
VIEW_LABELS = {2: ("x", "y"), 3: ("along the plane", "off the plane")}


class View(NamedTuple):
  """Images [n, h, w, c] in [-1, 1], or points [n, 2 or 3]."""

  title: str
  examples: np.ndarray
  colour: str = "black"


# ---- Primitives ----


def image_grid(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
  """Images [n, h, w, c] in [-1, 1], side by side: uint8 [H, W, c].

  Gaps between them, and places left over in the last row, are white.
  """
  n, h, w, c = images.shape
  rows = math.ceil(n / columns)
  grid = np.full(
    (rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, np.uint8
  )
  for i, image in enumerate(examples.to_uint8(images)):
    top = gap + i // columns * (h + gap)
    left = gap + i % columns * (w + gap)
    grid[top : top + h, left : left + w] = image
  return grid


def save_image(pixels: np.ndarray, path: pathlib.Path, min_side: int) -> None:
  """Writes uint8 [H, W, c] as PNG, whole pixels enlarged to min_side."""
  factor = max(1, round(min_side / min(pixels.shape[:2])))
  enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
  image = Image.fromarray(
    enlarged.squeeze(-1) if pixels.shape[-1] == 1 else enlarged
  )
  files.write(path, lambda file: image.save(file, format="png"))


def draw_image(axis: Axes, pixels: np.ndarray) -> None:
  """uint8 [H, W, c] as it is, without axes."""
  axis.imshow(
    pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels,
    cmap="gray",
    vmin=0,
    vmax=255,
    interpolation="nearest",
  )
  axis.set_axis_off()


def draw_image_rows(
  axis: Axes, rows: dict[str, np.ndarray], columns: int
) -> None:
  """Rows of images [n, h, w, c], n at most `columns`, named at the left."""
  strips = [image_grid(row, columns) for row in rows.values()]
  draw_image(axis, np.concatenate(strips))
  axis.set_axis_on()
  axis.spines[:].set_visible(False)
  axis.tick_params(length=0, labelsize=8)
  axis.set_xticks([])
  axis.set_yticks(len(strips[0]) * (np.arange(len(rows)) + 0.5), list(rows))


def draw_points(axis: Axes, points: np.ndarray, colour: str) -> None:
  """Points [n, 2] as they are; points [n, 3] along the oblique plane's edge.

  Raises:
    ValueError: points of another dimension.
  """
  x, y = synthetic.view(points.shape[1]) @ points.T
  labels = VIEW_LABELS[points.shape[1]]
  axis.scatter(x, y, s=3, linewidths=0, color=colour)
  axis.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")


# ---- Figures ----


def example_figure(views: Sequence[View], images: int = 36) -> Figure:
  """The views: images as a grid; points on the same scales.

  Args:
    views: all of images, or all of points.
    images: how many of each view's images are shown.
  """
  columns = 4 if len(views) in (4, 7, 8) else min(len(views), 3)
  width = panels.WIDTH / max(columns, 3)
  figure, axes = panels.grid(len(views), columns, width, width + 0.2)
  for axis, view in zip(axes, views, strict=True):
    if view.examples.ndim == 4:
      shown = view.examples[:images]
      draw_image(axis, image_grid(shown, math.ceil(math.sqrt(len(shown)))))
    else:
      draw_points(axis, view.examples, view.colour)
    axis.set_title(view.title, fontsize="medium")
  if views[0].examples.ndim == 2:
    flatness = min(1.2, _same_limits(axes))
    rows = math.ceil(len(views) / columns)
    figure.set_figheight(rows * (flatness * (width - 0.7) + 0.8))
  return figure


def _same_limits(axes: list[Axes]) -> float:
  """Gives all the widest limits; returns their height over their width."""
  boxes = np.array([axis.viewLim.get_points() for axis in axes])
  low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
  for axis in axes:
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
  return float((high[1] - low[1]) / (high[0] - low[0]))


def beside_truth(runs: Sequence[tuple[pathlib.Path, str, str]]) -> list[View]:
  """Views of training examples, clean and as trained on, then of samples.

  Args:
    runs: of each run on the same data its folder, a title and a colour; the
      training examples are those of the first that has them.
  """
  views: list[View] = []
  for folder, _, _ in runs:
    found = saved.arrays(folder / "training_examples.npz")
    if found and not views:
      views.append(View("clean truth", found["clean"]))
      views.append(View("as trained on", found["dirty"]))
  for folder, title, colour in runs:
    if drawn := saved.samples(folder):
      views.append(View(title, drawn["x_0"], colour))
  return [
    v for v in views if v.examples.shape[1:] == views[0].examples.shape[1:]
  ]


def pair_figure(path: pathlib.Path, columns: int = 16) -> Figure | None:
  """Samples over their nearest training examples, of a memorisation.npz.

  Above each pair stands its distance. None without images.
  """
  pairs = saved.arrays(path)
  if not pairs or pairs["samples"].ndim != 4:
    return None
  count, _, width, _ = pairs["samples"].shape
  columns = min(columns, count)
  strips = math.ceil(count / columns)
  figure, axes = panels.grid(strips, 1, 1 + 0.6 * columns, 1.7)
  for n, axis in enumerate(axes):
    samples, neighbours, distances = (
      pairs[name][n * columns : (n + 1) * columns]
      for name in ("samples", "neighbours", "distances")
    )
    rows = {"sample": samples, "training": neighbours}
    draw_image_rows(axis, rows, columns)
    axis.xaxis.tick_top()
    places = np.arange(len(distances)) * (width + 1) + 0.5 + width / 2
    axis.set_xticks(places, [f"{d:.3g}" for d in distances])
  return figure


# ---- Beside the arrays that they show ----


def show_samples(folder: pathlib.Path) -> pathlib.Path:
  """Draws folder/samples.npz: a grid.png of images, or a scatter.png."""
  x_0 = saved.arrays(folder / "samples.npz")["x_0"]
  if x_0.ndim == 4:
    path = folder / "grid.png"
    columns = math.ceil(math.sqrt(len(x_0)))
    save_image(image_grid(x_0, columns), path, min_side=512)
    return path
  figure, (axis,) = panels.grid(1, 1, 4, 4)
  draw_points(axis, x_0, "black")
  return panels.save(figure, folder / "scatter.png")


def show_pairs(workdir: pathlib.Path) -> pathlib.Path | None:
  """Draws workdir/memorisation.npz as memorisation.png; None for points."""
  figure = pair_figure(workdir / "memorisation.npz")
  if figure is None:
    return None
  return panels.save(figure, workdir / "memorisation.png")
