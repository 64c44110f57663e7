"""Measures of a set of samples against a known truth, in float64."""

from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.stats


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean [d] and unbiased covariance [d, d] of x [n, d]."""
  x = np.asarray(x, np.float64)
  return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


def frechet_distance(
  mean_1: np.ndarray,
  covariance_1: np.ndarray,
  mean_2: np.ndarray,
  covariance_2: np.ndarray,
) -> float:
  """Squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982).

  |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2); singular C too.
  """
  root = _root(covariance_1)
  shared = np.trace(_root(root @ covariance_2 @ root))
  trace = np.trace(covariance_1) + np.trace(covariance_2) - 2 * shared
  return max(float(np.sum(np.square(mean_1 - mean_2)) + trace), 0.0)


def transported(
  x: np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
  """x [n, d] by the optimal map of its Gaussian to another, [n, d].

  The mean of |x - transported|^2 is `frechet_distance` (Peyre & Cuturi 2019,
  Remark 2.31), but for the unbiased covariance's n / (n - 1). Where x has no
  variance, the map has none to spread.
  """
  own_mean, own = moments(x)
  root = _root(covariance)
  middle = scipy.linalg.pinvh(_root(root @ own @ root))
  return mean + (x - own_mean) @ root @ middle @ root


def _root(matrix: np.ndarray) -> np.ndarray:
  """The square root of a positive semidefinite matrix, up to rounding."""
  values, vectors = scipy.linalg.eigh((matrix + matrix.T) / 2)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def support_rms(
  x: np.ndarray, project: Callable[[np.ndarray], np.ndarray]
) -> float:
  """Root mean square Euclidean distance of x [n, d] from the support."""
  offset = np.asarray(x - project(x), np.float64)
  return float(np.sqrt(np.mean(np.sum(np.square(offset), axis=1))))


def support_psnr(
  x: np.ndarray, project: Callable[[np.ndarray], np.ndarray]
) -> float:
  """PSNR in dB of x [n, d] in [-1, 1] (peak 2) against its nearest points."""
  offset = np.asarray(x - project(x), np.float64)
  with np.errstate(divide="ignore"):
    return float(10 * np.log10(4 / np.mean(np.square(offset))))


def spread_ratio(covariance: np.ndarray, true_covariance: np.ndarray) -> float:
  """sqrt(tr C / tr C_true): 1 is right, less means that samples have shrunk."""
  return float(np.sqrt(np.trace(covariance) / np.trace(true_covariance)))


def sliced_wasserstein(
  x: np.ndarray, y: np.ndarray, num_directions: int = 100, seed: int = 0
) -> float:
  """Mean W1 of x, y [n, k] along random directions (Bonneel et al. 2015)."""
  directions = np.random.default_rng(seed).normal(
    size=(num_directions, x.shape[1])
  )
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  distances = [
    scipy.stats.wasserstein_distance(x @ direction, y @ direction)
    for direction in directions
  ]
  return float(np.mean(distances))


def mode_shares(
  x: np.ndarray, centres: np.ndarray, radius: float
) -> tuple[np.ndarray, float]:
  """Shares of x [n, d] nearest to each centre, within radius; the rest's."""
  distance = np.linalg.norm(x[:, None] - centres, axis=-1)
  inside = distance.min(axis=1) <= radius
  nearest = distance.argmin(axis=1)[inside]
  shares = np.bincount(nearest, minlength=len(centres)) / len(x)
  return shares, float(1 - inside.mean())
