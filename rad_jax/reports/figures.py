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


def scatter(points: np.ndarray) -> Figure:
  """Points [n, 2] or [n, 3], by `draw_points`."""
  figure = Figure(figsize=(4, 4), layout="constrained")
  draw_points(figure.subplots(), points, "black")
  return figure


def draw_points(axis: Axes, points: np.ndarray, colour: str) -> None:
  """Points [n, 2] as they are; points [n, 3] along the oblique plane's edge.

  Raises:
    ValueError: points of another dimension.
  """
  if points.shape[1] == 2:
    x, y = points.T
    labels = ("x", "y")
  elif points.shape[1] == 3:
    x = points @ synthetic.PLANE_BASIS[0]
    y = points @ synthetic.PLANE_NORMAL
    labels = ("along the plane", "off the plane")
  else:
    raise ValueError(f"no picture of points in {points.shape[1]} dimensions")
  axis.scatter(x, y, s=3, linewidths=0, color=colour)
  axis.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
