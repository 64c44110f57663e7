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
  """

  project: Callable[[np.ndarray], np.ndarray]
  features: Callable[[np.ndarray], np.ndarray]
  mean: np.ndarray
  covariance: np.ndarray


def of_world(world: synthetic.World) -> Truth:
  """A synthetic world's own support and moments, exact."""
  return Truth(world.project, lambda x: x, world.mean, world.covariance)


def of_images(x_0: np.ndarray, rank: int, frechet_dims: int) -> Truth:
  """The clean set's principal subspace, and its moments in its components.

  Args:
    x_0: the clean examples, [n, ...], uint8 or in model units.
    rank: dimension of the subspace taken as the support. Exact where the set
      was linearised to this rank.
    frechet_dims: how many leading components the moments are taken in.
  """
  x_0 = examples.to_model_range(x_0)
  support = subspace.fit(x_0, rank)
  leading = subspace.fit(x_0, min(frechet_dims, x_0[0].size, len(x_0)))

  def features(x):
    return subspace.coordinates(leading, x)

  return Truth(
    lambda x: subspace.project(support, x),
    features,
    *measures.moments(features(x_0)),
  )
