"""What an attack on sampling raises: a measure of protocol `truth`, by example.

Both measures are squared distances from a target that moves with the samples:
the nearest point of the support, and where optimal transport takes the samples'
Gaussian to the truth's. Their gradients are those from a target that stands
still (the envelope theorem), so that NumPy may compute it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rad_jax.evaluation import measures
from rad_jax.evaluation.reference import Reference


class Aim(NamedTuple):
  """A measure as the mean of |features - target|^2."""

  features: Callable[[Any], Any]  # of flat examples [n, d], linear; traced
  target: Callable[[np.ndarray], np.ndarray]  # of the features [n, k]


def _error(clean: Reference) -> Aim:
  return Aim(lambda x: x, clean.project)


def _frechet(clean: Reference) -> Aim:
  transported = partial(
    measures.transported, mean=clean.mean, covariance=clean.covariance
  )
  return Aim(clean.features, transported)


AIMS: dict[str, Callable[[Reference], Aim]] = {
  "error": _error,
  "frechet": _frechet,
}


def goal(name: str, clean: Reference) -> Callable[[Array], Float[Array, " n"]]:
  """Samples x_0 [n, ...] -> the aim's squared distances, to be raised."""
  aim = AIMS[name](clean)

  def value(x_0):
    features = aim.features(x_0.reshape(len(x_0), -1))
    target = jax.pure_callback(
      lambda x: aim.target(np.asarray(x, np.float64)).astype(np.float32),
      jax.ShapeDtypeStruct(features.shape, jnp.float32),
      jax.lax.stop_gradient(features),
    )
    return jnp.sum(jnp.square(features - target), axis=1)

  return value
