"""Pictures of a study's models on one data set, from their portrait.npz."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from rad_jax.data import subspace, synthetic
from rad_jax.reports import figures, panels
from rad_jax.reports.looks import Look
from rad_jax.reports.page import Picture

Portraits: TypeAlias = dict[Look, dict[str, np.ndarray]]

_PATHS = 40  # How many are shown.


def pictures(
  pair: Portraits, everyone: Portraits, clean: np.ndarray
) -> list[Picture]:
  """Of images trajectories and rows of images, of points also the fields.

  Args:
    pair: the models that are compared.
    everyone: all models.
    clean: training examples, [n, h, w, c] or [n, 2 or 3].
  """
  parts = []
  if clean.ndim == 4:
    plane = subspace.fit(clean, 2)
    flat = lambda x: subspace.coordinates(plane, x)
    labels = ("first principal component", "second principal component")
  else:
    flat = lambda x: x @ synthetic.view(clean.shape[1]).T
    labels = figures.VIEW_LABELS[clean.shape[1]]
  if pair:
    parts.append(_trajectories(pair, flat, clean, labels))
  if pair and clean.shape[1:] == (3,):
    parts.append(_trajectories(pair, lambda x: x, clean, "xyz"))
  if pair and clean.ndim == 2:
    parts.append(_fields(pair, flat(clean)))
  if clean.ndim == 4:
    parts.append(_image_rows(everyone, clean))
  return parts


def _trajectories(
  portraits: Portraits, place: Any, clean: np.ndarray, labels: Sequence[str]
) -> Picture:
  """Paths at place(x), [n, 2 or 3], for examples x."""
  solid = len(labels) == 3
  kind = {"subplot_kw": {"projection": "3d"}} if solid else {"sharey": True}
  count = len(portraits)
  figure, axes = panels.grid(count, count, 5, 4.6, sharex=True, **kind)
  for axis, (look, portrait) in zip(axes, portraits.items(), strict=True):
    paths = np.array([place(x[:_PATHS]) for x in portrait["path"]])
    axis.scatter(*place(clean).T, s=4, color="0.75", linewidths=0)
    for path in np.swapaxes(paths, 0, 1):
      axis.plot(*path.T, color=look.colour, linewidth=0.6)
    axis.plot(*paths[-1].T, ".", color="black", markersize=4)
    sides = zip("xyz", labels, strict=False)
    axis.set(title=look.label, **{f"{side}label": text for side, text in sides})
    if solid:
      # Nearly along the plane x + y + z = 0.
      axis.view_init(elev=25, azim=-60)
      axis.set_box_aspect((1, 1, 1), zoom=1.15)
      axis.set(**dict.fromkeys(("xlim", "ylim", "zlim"), (-1.6, 1.6)))
    else:
      axis.set_aspect("equal")
      axis.label_outer()
      axis.spines[["top", "right"]].set_visible(False)
  if solid:
    caption = (
      "The same paths in space: the plane of clean data is grey, and black"
      " dots off it are the error."
    )
    return Picture("trajectories-3d", figure, caption)
  caption = (
    "The deterministic reverse flow from noise to samples (black dots), clean"
    " data in grey: Robust_adv's paths end nearer to it."
  )
  return Picture("trajectories", figure, caption)


def _fields(portraits: Portraits, clean: np.ndarray) -> Picture:
  """clean: [n, 2], as the fields see it."""
  first = next(iter(portraits.values()))
  rows = [
    (look.label, look.colour, x["field"]) for look, x in portraits.items()
  ]
  rows.append(("exact, of clean data", "black", first["field_exact"]))
  sigmas = first["field_sigma_t"]
  across, width = len(sigmas), panels.WIDTH / len(sigmas)
  share = {"sharex": True, "sharey": True}
  figure, axes = panels.grid(len(rows) * across, across, width, 3.5, **share)
  drawn = [(*row, n) for row in rows for n in range(across)]
  scale = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
  for axis, (label, colour, field, n) in zip(axes, drawn, strict=True):
    axis.scatter(*clean.T, s=5, color="0.75", linewidths=0)
    points, arrows = _thinned(first["field_points"]), _thinned(field[n])
    axis.quiver(*points.T, *arrows.T / 2, color=colour, **scale)
    axis.set_title(f"{label}, sigma_t {sigmas[n]:.2g}", fontsize="medium")
    axis.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axis.spines[["top", "right"]].set_visible(False)
  caption = (
    "From states on a grid, half the way to the clean estimate (sigma^2 times"
    " the score), clean data under it in grey: at low noise DDPM's arrows fade"
    " before they reach the data, Robust_adv's lead on, as the exact ones do."
  )
  return Picture("fields", figure, caption)


def _thinned(grid: np.ndarray) -> np.ndarray:
  """Every second row and column of a square grid [k, 2]."""
  side = round(len(grid) ** 0.5)
  return grid.reshape(side, side, 2)[::2, ::2].reshape(-1, 2)


def _image_rows(portraits: Portraits, clean: np.ndarray) -> Picture:
  figure, axes = panels.grid(len(portraits), 2, panels.WIDTH / 2, 2.5)
  flat = clean.reshape(len(clean), 1, -1)
  for axis, (look, portrait) in zip(axes, portraits.items(), strict=True):
    x = portrait["samples"]
    away = np.linalg.norm(flat - x.reshape(len(x), -1), axis=-1)
    rows = {
      "samples": x,
      "nearest training": clean[away.argmin(axis=0)],
      "samples, attacked": portrait["attacked"],
      "training, dirty": portrait["dirty"],
      "the same, purified": portrait["purified"],
    }
    figures.draw_image_rows(axis, rows, columns=len(x))
    axis.set_title(look.label, fontsize="medium")
  caption = (
    "Of each model: samples and the clean training images nearest to them;"
    " samples whose way was attacked; noised training images, and what"
    " purification by the model makes of them."
  )
  return Picture("images", figure, caption)
