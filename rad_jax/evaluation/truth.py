"""What samples are held against: a world's closed form, or the clean set."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rad_jax.data import examples, subspace, synthetic
from rad_jax.evaluation import measures


class Truth(NamedTuple):
  """A clean distribution, in flattened examples of d elements.

  project: [n, d] -> the nearest points of the support, [n, d].
  features: [n, d] -> [n, k], in which moments are compared.
  mean, covariance: the clean moments in the features, [k] and [k, k].
  inside: the covariance, in the features, of the projected clean examples.
  """

  project: Callable[[np.ndarray], np.ndarray]
  features: Callable[[np.ndarray], np.ndarray]
  mean: np.ndarray
  covariance: np.ndarray
  inside: np.ndarray


def of_world(world: synthetic.World) -> Truth:
  """A synthetic world's own support and moments, exact."""
  return Truth(
    project=world.project,
    features=lambda x: x,
    mean=world.mean,
    covariance=world.covariance,
    inside=world.covariance,
  )


def of_images(x_0: np.ndarray, rank: int, frechet_dims: int) -> Truth:
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
  leading = subspace.truncate(components, dims)
  support = subspace.truncate(components, rank)

  def project(x):
    return subspace.project(support, x)

  def features(x):
    return subspace.coordinates(leading, x)

  mean, covariance = measures.moments(features(x_0))
  _, inside = measures.moments(features(project(x_0)))
  return Truth(project, features, mean, covariance, inside)
