"""What samples are held against: a closed form, or the clean set."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.special

from rad_jax.data import examples, subspace, synthetic
from rad_jax.evaluation import measures

_CHUNK = 500
# Points of a synthetic set, where measures need examples.
_SYNTHETIC_POINTS = 5000


class Reference(NamedTuple):
  """A clean distribution, in flattened examples of d elements.

  project: [n, d] -> the nearest points of the support, [n, d].
  features: [n, d] -> [n, k], in which moments are compared.
  mean, covariance: the clean moments in the features, [k] and [k, k].
  inside: the covariance, in the features, of the projected clean examples.
  examples: clean examples [m, d]: of a synthetic set, drawn anew; of images,
    those that the moments are of.
  denoise: (x_t [n, d], alpha, sigma) -> E[x_0 | x_t], [n, d]; of images, for
    the distribution that puts equal mass on the examples.
  modes, mode_radius: a synthetic set's (data.synthetic.World).
  """

  project: Callable[[np.ndarray], np.ndarray]
  features: Callable[[np.ndarray], np.ndarray]
  mean: np.ndarray
  covariance: np.ndarray
  inside: np.ndarray
  examples: np.ndarray
  denoise: Callable[[np.ndarray, float, float], np.ndarray]
  modes: np.ndarray | None = None
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
  """The clean set's principal subspace, and its moments in its components.

  Args:
    x_0: the clean examples, [n, ...], uint8 or in model units.
    rank: dimension of the subspace taken as the support. Exact where the set
      was linearised to this rank.
    frechet_dims: how many leading components the moments are taken in.
  """
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
  """E[x_0 | x_t] where x_0 is one of the rows of x_0, each equally likely.

  The optimum of denoising on a finite set: the mean of all its examples,
  weighted by exp(-|x_t - alpha x_0|^2 / (2 sigma^2)).

  Args:
    x_0: [m, d]. x_t: [n, d]. alpha, sigma: of x_t.

  Returns:
    float64 [n, d].

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
