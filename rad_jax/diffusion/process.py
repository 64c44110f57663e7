"""Noise levels, and the algebra of x_t = alpha x_0 + sigma eps, any process's.

Batches are [b, ...], and the fields of their level [b].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Batch = Float[Array, " b *shape"]
Scalar = Float[Array, ""]
Scalars = Float[Array, " b"]


class Level(NamedTuple):
  """Noise levels, one for each example (or each step of a sampler)."""

  alpha: Array
  sigma: Array
  time: Array  # what the network is told, 0 (least noise) to about 1000
  input_scale: Array  # what the network's input is multiplied by


def per_example(values: Scalars, ndim: int) -> jax.Array:
  """values [b] with trailing ones, to broadcast against a rank-ndim batch."""
  return values.reshape(values.shape + (1,) * (ndim - 1))


def unit_sigma(level: Level) -> Array:
  """sigma / sqrt(alpha^2 + sigma^2), in (0, 1): DDPM's sigma_t at this SNR."""
  return level.sigma / jnp.hypot(level.alpha, level.sigma)


def _coefficients(level: Level, ndim: int) -> tuple[Array, Array]:
  return per_example(level.alpha, ndim), per_example(level.sigma, ndim)


def diffuse(level: Level, x_0: Batch, eps: Batch) -> Batch:
  """x_t = alpha x_0 + sigma eps (Ho et al. 2020, Eq. 4)."""
  a, s = _coefficients(level, x_0.ndim)
  return a * x_0 + s * eps


def shifted(x_t: Batch, sigma: Scalars | Scalar, w: Batch) -> Batch:
  """x_t + sigma w: the state whose noise is eps + w, with x_0 unchanged.

  To add w itself is another method, and harmful. x_t has no range to clip to.
  """
  return x_t + (per_example(sigma, w.ndim) if sigma.ndim else sigma) * w


def eps_to_x_0(level: Level, x_t: Batch, eps: Batch) -> Batch:
  """x_0 = (x_t - sigma eps) / alpha: the clean estimate eps implies."""
  a, s = _coefficients(level, x_t.ndim)
  return (x_t - s * eps) / a


def x_0_to_eps(level: Level, x_t: Batch, x_0: Batch) -> Batch:
  """eps = (x_t - alpha x_0) / sigma."""
  a, s = _coefficients(level, x_t.ndim)
  return (x_t - a * x_0) / s


def transition(
  later: Level, earlier: Level, x_0: Array, x_t: Array
) -> tuple[Array, Array, Array]:
  """Mean and variance of q(x_s | x_t, x_0), and the variance of q(x_t | x_s).

  The last is DDPM's beta_t between neighbours (Kingma et al. 2021, arXiv
  2107.00630, appendix A; Ho et al. 2020, Eqs. 6, 7). Levels broadcast to x_t.
  """
  ratio = later.alpha / earlier.alpha
  var_t, var_s = jnp.square(later.sigma), jnp.square(earlier.sigma)
  added = var_t - jnp.square(ratio) * var_s
  mean = (ratio * var_s * x_t + earlier.alpha * added * x_0) / var_t
  return mean, added * var_s / var_t, added
