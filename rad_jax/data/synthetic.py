"""Synthetic sets with a known truth: points of a support one can project to."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special

Points = np.ndarray

# Orthonormal: two directions inside the oblique plane, one off it.
PLANE_BASIS = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
PLANE_NORMAL = np.ones(3) / np.sqrt(3)


def view(dims: int) -> np.ndarray:
  """Directions to look at points along, orthonormal, [2, dims].

  The axes of R^2; in R^3, along the edge of the oblique plane and off it.
  Raises ValueError of another dimension.
  """
  if dims == 2:
    return np.eye(2)
  if dims == 3:
    return np.stack([PLANE_BASIS[0], PLANE_NORMAL])
  raise ValueError(f"no picture of points in {dims} dimensions")


class World(NamedTuple):
  """A distribution of points in R^d whose support and moments are known.

  sample: (generator, n) -> float32 [n, d].
  project: [n, d] -> the nearest points of the support, [n, d].
  mean, covariance: float64 [d] and [d, d].
  denoise: (x_t [n, d], alpha, sigma) -> E[x_0 | x_t], float64 [n, d], where
    x_t = alpha x_0 + sigma eps.
  modes: centres [k, d] of equally likely modes; None where there are none.
  mode_radius: a mode lies within it of its centre, all but 1e-8 of its mass.
  """

  sample: Callable[[np.random.Generator, int], Points]
  project: Callable[[Points], Points]
  mean: np.ndarray
  covariance: np.ndarray
  denoise: Callable[[Points, float, float], Points]
  modes: Points | None = None
  mode_radius: float = np.inf


def oblique_plane() -> World:
  """Uniform on a square of side 2 in the plane x + y + z = 0 of R^3.

  The spread along each axis of the plane is 1 / sqrt(3) = 0.577. The support
  is taken to be the whole plane.
  """

  def sample(generator, n):
    return (generator.uniform(-1, 1, (n, 2)) @ PLANE_BASIS).astype(np.float32)

  def denoise(x_t, alpha, sigma):
    import scipy.stats  # Half a second to import.

    # Along each axis of the plane, a Gaussian cut off at the square's edges.
    middle, std = x_t @ PLANE_BASIS.T / alpha, sigma / alpha
    inside = scipy.stats.truncnorm.mean(
      (-1 - middle) / std, (1 - middle) / std, middle, std
    )
    return inside @ PLANE_BASIS

  return World(
    sample=sample,
    project=lambda x: x @ PLANE_BASIS.T @ PLANE_BASIS,
    mean=np.zeros(3),
    covariance=PLANE_BASIS.T @ PLANE_BASIS / 3,
    denoise=denoise,
  )


def three_gaussians() -> World:
  """Three equal, narrow Gaussians in the plane, on a circle of radius 0.8.

  Each has standard deviation 0.05; the support is taken to be the discs of
  three standard deviations, which hold 98.9% of the mass.
  """
  std = 0.05
  angles = np.pi / 2 + np.arange(3) * 2 * np.pi / 3
  centres = 0.8 * np.stack([np.cos(angles), np.sin(angles)], axis=1)

  def sample(generator, n):
    mode = generator.integers(0, 3, n)
    noise = std * generator.standard_normal((n, 2))
    return (centres[mode] + noise).astype(np.float32)

  def project(x):
    distance = np.linalg.norm(x[:, None] - centres, axis=-1)
    centre = centres[np.argmin(distance, axis=1)]
    offset = np.min(distance, axis=1, keepdims=True)
    return centre + (x - centre) * np.minimum(
      1, 3 * std / np.maximum(offset, 1e-12)
    )

  def denoise(x_t, alpha, sigma):
    x_t = np.asarray(x_t, np.float64)
    variance = (alpha * std) ** 2 + sigma**2
    offset = x_t[:, None] - alpha * centres
    share = scipy.special.softmax(
      -np.sum(offset**2, axis=-1) / (2 * variance), axis=1
    )
    of_mode = centres + alpha * std**2 / variance * offset
    return np.sum(share[..., None] * of_mode, axis=1)

  return World(
    sample=sample,
    project=project,
    mean=np.zeros(2),
    covariance=centres.T @ centres / 3 + std**2 * np.eye(2),
    denoise=denoise,
    modes=centres,
    mode_radius=6 * std,
  )


WORLDS = {"oblique_plane": oblique_plane, "three_gaussians": three_gaussians}
