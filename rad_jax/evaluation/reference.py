"""What samples are held against: a closed form, or the clean set."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.special

from rad_jax.data import examples, subspace, synthetic
from rad_jax.evaluation import measures

_CHUNK = 500
_SYNTHETIC_POINTS = 5000  # where measures need examples


class Reference(NamedTuple):
  """A clean distribution, in flattened examples of d elements."""

  # [n, d] -> the nearest points of the support, [n, d]
  project: Callable[[np.ndarray], np.ndarray]
  features: Callable[[np.ndarray], np.ndarray]  # [n, d] -> [n, k], for moments
  mean: np.ndarray  # of the features, [k]
  covariance: np.ndarray  # of the features, [k, k]
  inside: np.ndarray  # the same after projection
  examples: np.ndarray  # clean, [m, d]
  # x_t [n, d], alpha, sigma -> E[x_0 | x_t], [n, d]
  denoise: Callable[[np.ndarray, float, float], np.ndarray]
  modes: np.ndarray | None = None  # a synthetic set's centres
  mode_radius: float = np.inf


def of_world(world: synthetic.World) -> Reference:
  """A synthetic set's own support and moments, exact."""
  return Reference(
    project=world.project,
    features=lambda x: x,
    mean=world.mean,
    covariance=world.covariance,
    inside=world.covariance,
    # Apart from the training sets' streams [seed, 0, 1].
    examples=world.sample(np.random.default_rng([0, 0, 2]), _SYNTHETIC_POINTS),
    denoise=world.denoise,
    modes=world.modes,
    mode_radius=world.mode_radius,
  )


def of_images(x_0: np.ndarray, rank: int, frechet_dims: int) -> Reference:
  """A clean set's principal subspace, and moments in its first components."""
  x_0 = examples.to_model_range(x_0).reshape(len(x_0), -1)
  dims = min(frechet_dims, *x_0.shape)
  components = subspace.fit(x_0, max(rank, dims))
  features = partial(subspace.coordinates, subspace.truncate(components, dims))
  project = partial(subspace.project, subspace.truncate(components, rank))
  mean, covariance = measures.moments(features(x_0))
  _, inside = measures.moments(features(project(x_0)))
  denoise = partial(empirical_mean, x_0)
  return Reference(project, features, mean, covariance, inside, x_0, denoise)


def empirical_mean(
  x_0: np.ndarray, x_t: np.ndarray, alpha: float, sigma: float
) -> np.ndarray:
  """E[x_0 | x_t [n, d]], float64, where x_0 is any row of x_0 [m, d] alike.

  The optimum of denoising on a finite set: the mean of all its examples,
  weighted by exp(-|x_t - alpha x_0|^2 / (2 sigma^2)).

  Examples:
    Two examples, 0 and 1: little noise tells them apart, much does not.

    >>> x_0, x_t = np.array([[0.0], [1.0]]), np.array([[0.9]])
    >>> for sigma in (0.1, 1.0, 10.0):
    ...   mean = rad_jax.reference.empirical_mean(x_0, x_t, 1.0, sigma)
    ...   print(sigma, mean[0, 0].round(3))
    0.1 1.0
    1.0 0.599
    10.0 0.501
  """
  x_0, x_t = np.asarray(x_0, np.float64), np.asarray(x_t, np.float64)
  half_norms = alpha**2 * np.sum(x_0**2, axis=1) / 2
  means = []
  for start in range(0, len(x_t), _CHUNK):
    logits = alpha * x_t[start : start + _CHUNK] @ x_0.T - half_norms
    means.append(scipy.special.softmax(logits / sigma**2, axis=1) @ x_0)
  return np.concatenate(means)
