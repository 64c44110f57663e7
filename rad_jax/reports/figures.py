"""Pictures of examples: images as grids, points as they lie."""

import math
import pathlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rad_jax import files
from rad_jax.data import examples, synthetic
from rad_jax.reports import looks, panels

_COLUMNS = 16  # of a strip of images
VIEW_LABELS = {2: ("x", "y"), 3: ("along the plane", "off the plane")}


# A title, images [n, h, w, c] in [-1, 1] or points [n, 2 or 3], and a colour.
View: TypeAlias = tuple[str, np.ndarray, str]


def arrays(path: pathlib.Path | None) -> dict[str, np.ndarray]:
  """An .npz file's arrays, none if there is no file."""
  if path is None or not path.exists():
    return {}
  with np.load(path) as opened:
    return dict(opened)


def newest_samples(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The newest saved samples of a run's folder."""
  found = folder.glob("samples/step_*/samples.npz")
  step = lambda path: int(path.parent.name.removeprefix("step_"))
  return arrays(max(found, key=step, default=None))


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Images [n, h, w, c] in [-1, 1], gaps white: uint8 [H, W] or [H, W, 3]."""
  n, h, w, c = images.shape
  rows = math.ceil(n / columns)
  cells = np.full((rows * columns, h + 1, w + 1, c), 255, np.uint8)
  cells[:n, 1:, 1:] = examples.to_uint8(images)
  grid = cells.reshape(rows, columns, h + 1, w + 1, c).swapaxes(1, 2)
  grid = grid.reshape(rows * (h + 1), columns * (w + 1), c)
  grid = np.pad(grid, ((0, 1), (0, 1), (0, 0)), constant_values=255)
  return grid.squeeze(-1) if c == 1 else grid


def draw_image(axis: Axes, pixels: np.ndarray) -> None:
  """uint8 [H, W] or [H, W, 3] as it is, without axes."""
  axis.imshow(pixels, "gray", vmin=0, vmax=255, interpolation="nearest")
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
  """Points [n, 2 or 3] as synthetic.view shows them, or raises ValueError."""
  x, y = synthetic.view(points.shape[1]) @ points.T
  labels = VIEW_LABELS[points.shape[1]]
  axis.scatter(x, y, s=3, linewidths=0, color=colour)
  axis.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")


def example_figure(views: Sequence[View], columns: int = 0) -> Figure:
  """The views: the first 36 images of each, or points on the same scales.

  columns: as many as suit their number if 0.
  """
  width = panels.WIDTH / (columns or 3)
  if not columns:
    columns = 4 if len(views) in (4, 7, 8) else min(len(views), 3)
    width = panels.WIDTH / max(columns, 3)
  figure, axes = panels.grid(len(views), columns, width, width + 0.2)
  for axis, (title, x, colour) in zip(axes, views, strict=True):
    if x.ndim == 4:
      draw_image(axis, image_grid(x[:36], math.ceil(len(x[:36]) ** 0.5)))
    else:
      draw_points(axis, x, colour)
    axis.set_title(title, fontsize="medium", parse_math=False)
  if views[0][1].ndim == 2:
    boxes = np.array([axis.viewLim.get_points() for axis in axes])
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    for axis in axes:
      axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    flatness = min(1.2, (high[1] - low[1]) / (high[0] - low[0]))
    rows = math.ceil(len(views) / columns)
    figure.set_figheight(rows * (flatness * (width - 0.7) + 0.8))
  return figure


def beside_truth(runs: Sequence[tuple[pathlib.Path, looks.Look]]) -> list[View]:
  """Training examples of the first run that has them, and samples of all."""
  views: list[View] = []
  for folder, _ in runs:
    found = arrays(folder / "training_examples.npz")
    if found and not views:
      clean, dirty = found["clean"], found["dirty"]
      if np.array_equal(clean, dirty):
        views.append(("training set", clean, "black"))
      else:
        views.append(("clean truth", clean, "black"))
        views.append(("as trained on", dirty, "black"))
  for folder, look in runs:
    if drawn := newest_samples(folder):
      views.append((look.label, drawn["x_0"], look.color))
  return views


def pair_figure(path: pathlib.Path) -> Figure | None:
  """Samples over the nearest training images, and distances; None of points."""
  pairs = arrays(path)
  if not pairs or pairs["samples"].ndim != 4:
    return None
  _, _, width, _ = pairs["samples"].shape
  figure, axes = strips_figure(
    {"sample": pairs["samples"], "training": pairs["neighbours"]}
  )
  for n, axis in enumerate(axes):
    axis.xaxis.tick_top()
    distances = pairs["distances"][n * _COLUMNS :][:_COLUMNS]
    texts = [f"{distance:.3g}" for distance in distances]
    places = np.arange(len(texts)) * (width + 1) + 0.5 + width / 2
    axis.set_xticks(places, texts)
  return figure


def strips_figure(rows: dict[str, np.ndarray]) -> tuple[Figure, list[Axes]]:
  """Rows of as many images [n, h, w, c], named, _COLUMNS to a strip."""
  count = len(next(iter(rows.values())))
  columns = min(_COLUMNS, count)
  strips = math.ceil(count / columns)
  figure, axes = panels.grid(strips, 1, 1 + 0.6 * columns, 1.7)
  for n, axis in enumerate(axes):
    part = {name: x[n * columns :][:columns] for name, x in rows.items()}
    draw_image_rows(axis, part, columns)
  return figure, axes


def show_samples(folder: pathlib.Path) -> pathlib.Path:
  """Draws folder/samples.npz: a grid.png of images, or a scatter.png."""
  x_0 = arrays(folder / "samples.npz")["x_0"]
  name = "scatter.png" if x_0.ndim == 2 else "grid.png"
  return draw_samples(x_0, folder / name)


def draw_samples(x_0: np.ndarray, path: pathlib.Path) -> pathlib.Path:
  """Writes images [n, h, w, c] as a grid, points [n, d] as a scatter."""
  if x_0.ndim == 2:
    figure, (axis,) = panels.grid(1, 1, 4.0, 4.0)
    draw_points(axis, x_0, "black")
    return panels.save(figure, path)
  pixels = image_grid(x_0, math.ceil(math.sqrt(len(x_0))))
  factor = max(1, round(512 / min(pixels.shape[:2])))  # Pixels stay whole.
  pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
  image = Image.fromarray(pixels)
  files.write(path, lambda file: image.save(file, format="png"))
  return path


def show_purified(folder: pathlib.Path) -> pathlib.Path:
  """Draws folder/samples.npz, whose first half became the second."""
  x_0 = arrays(folder / "samples.npz")["x_0"]
  if x_0.ndim == 2:
    return show_samples(folder)
  before, after = np.split(x_0, 2)
  figure, _ = strips_figure({"before": before, "after": after})
  return panels.save(figure, folder / "grid.png")


def show_pairs(workdir: pathlib.Path) -> pathlib.Path | None:
  """Draws workdir/memorisation.npz as memorisation.png; None for points."""
  figure = pair_figure(workdir / "memorisation.npz")
  return panels.save(figure, workdir / "memorisation.png") if figure else None
