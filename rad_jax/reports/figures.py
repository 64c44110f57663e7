"""Pictures of saved samples."""

import math
import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rad_jax.data import examples, synthetic


def image_grid(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
  """Images [n, h, w, c] in [-1, 1], side by side: uint8 [H, W, c].

  A white gap parts the images; missing ones in the last row are white.
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
  Image.fromarray(
    enlarged.squeeze(-1) if pixels.shape[-1] == 1 else enlarged
  ).save(path)


def show_samples(folder: pathlib.Path) -> pathlib.Path:
  """Draws folder/samples.npz: a grid.png of images, or a scatter.png."""
  with np.load(folder / "samples.npz") as saved:
    x_0 = saved["x_0"]
  if x_0.ndim == 4:
    path = folder / "grid.png"
    columns = math.ceil(math.sqrt(len(x_0)))
    save_image(image_grid(x_0, columns), path, min_side=512)
    return path
  path = folder / "scatter.png"
  figure = scatter(x_0)
  figure.savefig(path, dpi=150)
  return path


def show_pairs(workdir: pathlib.Path) -> pathlib.Path | None:
  """Draws workdir/memorisation.npz as memorisation.png; None for points."""
  with np.load(workdir / "memorisation.npz") as saved:
    pairs = {name: saved[name] for name in saved}
  if pairs["samples"].ndim != 4:
    return None
  path = workdir / "memorisation.png"
  pair_figure(**pairs).savefig(path, dpi=150)
  return path


def pair_figure(
  samples: np.ndarray,
  neighbours: np.ndarray,
  distances: np.ndarray,
  columns: int = 16,
) -> Figure:
  """Samples [n, h, w, c] over their nearest training examples.

  Above each pair stands its distance [n].
  """
  count, _, width, _ = samples.shape
  columns = min(columns, count)
  strips = math.ceil(count / columns)
  figure = Figure(
    figsize=(1 + 0.6 * columns, 0.4 + 1.55 * strips), layout="constrained"
  )
  for n, axis in enumerate(figure.subplots(strips, 1, squeeze=False).flat):
    shown = slice(n * columns, (n + 1) * columns)
    rows = [image_grid(x[shown], columns) for x in (samples, neighbours)]
    draw_image(axis, np.concatenate(rows))
    axis.set_axis_on()
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=8)
    axis.xaxis.tick_top()
    places = np.arange(len(distances[shown])) * (width + 1) + 0.5 + width / 2
    axis.set_xticks(places, [f"{d:.3g}" for d in distances[shown]])
    tall = len(rows[0])
    axis.set_yticks([0.5 * tall, 1.5 * tall], ["sample", "training"])
  return figure


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


def scatter(points: np.ndarray) -> Figure:
  """Points [n, 2] or [n, 3], by `draw_points`."""
  figure = Figure(figsize=(4, 4), layout="constrained")
  draw_points(figure.subplots(), points, "black")
  return figure


# What synthetic.view shows, by dimension.
VIEW_LABELS = {2: ("x", "y"), 3: ("along the plane", "off the plane")}


def draw_points(axis: Axes, points: np.ndarray, colour: str) -> None:
  """Points [n, 2] as they are; points [n, 3] along the oblique plane's edge.

  Raises:
    ValueError: points of another dimension.
  """
  x, y = synthetic.view(points.shape[1]) @ points.T
  labels = VIEW_LABELS[points.shape[1]]
  axis.scatter(x, y, s=3, linewidths=0, color=colour, rasterized=True)
  axis.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
