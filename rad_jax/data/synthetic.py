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
  """Orthonormal axes of a picture, [2, dims]; ValueError unless 2 or 3."""
  if dims not in (2, 3):
    raise ValueError(f"no picture of points in {dims} dimensions")
  return np.eye(2) if dims == 2 else np.stack([PLANE_BASIS[0], PLANE_NORMAL])


class World(NamedTuple):
  """A distribution of points in R^d whose support and moments are known."""

  sample: Callable[[np.random.Generator, int], Points]  # float32 [n, d]
  project: Callable[[Points], Points]  # to the nearest points of the support
  mean: np.ndarray  # float64 [d]
  covariance: np.ndarray  # float64 [d, d]
  # (x_t = alpha x_0 + sigma eps, alpha, sigma) -> E[x_0 | x_t], float64.
  denoise: Callable[[Points, float, float], Points]
  modes: Points | None = None  # centres [k, d] of equally likely modes
  mode_radius: float = np.inf  # it holds all but 1e-8 of a mode's mass


def oblique_plane() -> World:
  """Uniform on a square of side 2 in x + y + z = 0; the support: that plane."""

  def sample(generator, n):
    return (generator.uniform(-1, 1, (n, 2)) @ PLANE_BASIS).astype(np.float32)

  def denoise(x_t, alpha, sigma):
    import scipy.stats  # Half a second to import.

    # Along each axis of the plane, a Gaussian cut off at the square's edges.
    middle, std = x_t @ PLANE_BASIS.T / alpha, sigma / alpha
    low, high = (-1 - middle) / std, (1 - middle) / std
    return scipy.stats.truncnorm.mean(low, high, middle, std) @ PLANE_BASIS

  project = lambda x: x @ PLANE_BASIS.T @ PLANE_BASIS
  covariance = PLANE_BASIS.T @ PLANE_BASIS / 3
  return World(sample, project, np.zeros(3), covariance, denoise)


def three_gaussians() -> World:
  """Three Gaussians of std 0.05 in R^2; the support: their discs of 3 std."""
  std, angles = 0.05, np.pi / 2 + np.arange(3) * 2 * np.pi / 3
  centres = 0.8 * np.stack([np.cos(angles), np.sin(angles)], axis=1)

  def sample(generator, n):
    centre = centres[generator.integers(0, 3, n)]
    noise = std * generator.standard_normal((n, 2))
    return (centre + noise).astype(np.float32)

  def project(x):
    distance = np.linalg.norm(x[:, None] - centres, axis=-1)
    centre = centres[np.argmin(distance, axis=1)]
    offset = np.maximum(np.min(distance, axis=1, keepdims=True), 1e-12)
    return centre + (x - centre) * np.minimum(1, 3 * std / offset)

  def denoise(x_t, alpha, sigma):
    x_t = np.asarray(x_t, np.float64)
    variance = (alpha * std) ** 2 + sigma**2
    offset = x_t[:, None] - alpha * centres
    log_share = -np.sum(offset**2, axis=-1) / (2 * variance)
    share = scipy.special.softmax(log_share, axis=1)
    of_mode = centres + alpha * std**2 / variance * offset
    return np.sum(share[..., None] * of_mode, axis=1)

  covariance = centres.T @ centres / 3 + std**2 * np.eye(2)
  return World(
    sample, project, np.zeros(2), covariance, denoise, centres, 6 * std
  )


WORLDS = {"oblique_plane": oblique_plane, "three_gaussians": three_gaussians}
