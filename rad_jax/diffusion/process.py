"""Noise levels, and the algebra between a state, its data and its noise.

At a level (alpha, sigma) the state is x_t = alpha x_0 + sigma eps. DDPM has
alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t), EDM alpha = 1,
flow matching alpha = 1 - t and sigma = t; nothing here depends on which.
Arrays of one batch share a shape [b, ...], and the fields of its level are
[b].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Batch = Float[Array, " b *shape"]
Scalars = Float[Array, " b"]


class Level(NamedTuple):
  """Noise levels, one for each example (or each step of a sampler).

  alpha, sigma: the coefficients of x_t = alpha x_0 + sigma eps.
  time: what the network is told, 0 (least noise) to about 1000.
  input_scale: what the network's input is multiplied by.
  """

  alpha: Array
  sigma: Array
  time: Array
  input_scale: Array


def per_example(values: Scalars, ndim: int) -> jax.Array:
  """values [b] with trailing ones, to broadcast against a rank-ndim batch.

  Examples:
    >>> rad_jax.process.per_example(jnp.ones(8), ndim=4).shape
    (8, 1, 1, 1)
  """
  return values.reshape(values.shape + (1,) * (ndim - 1))


def unit_sigma(level: Level) -> Array:
  """sigma / sqrt(alpha^2 + sigma^2), in (0, 1): DDPM's sigma_t of this level.

  Two processes have the same value where their signal-to-noise ratio is the
  same.

  Examples:
    >>> flow, edm = rad_jax.schedules.flow(), rad_jax.schedules.edm()
    >>> for process in (flow, edm):
    ...   print(rad_jax.process.unit_sigma(process.grid(3)))
    [1.    0.707 0.001]
    [1.    0.929 0.002]
  """
  return level.sigma / jnp.hypot(level.alpha, level.sigma)


def _coefficients(level: Level, ndim: int) -> tuple[Array, Array]:
  return per_example(level.alpha, ndim), per_example(level.sigma, ndim)


def diffuse(level: Level, x_0: Batch, eps: Batch) -> Batch:
  """x_t = alpha x_0 + sigma eps (Ho et al. 2020, Eq. 4).

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> x_0, eps = jnp.full((3, 1), 2.0), jnp.ones((3, 1))
    >>> print(rad_jax.process.diffuse(level, x_0, eps)[:, 0])
    [1.1 1.5 1.9]
  """
  a, s = _coefficients(level, x_0.ndim)
  return a * x_0 + s * eps


def eps_to_x_0(level: Level, x_t: Batch, eps: Batch) -> Batch:
  """x_0 = (x_t - sigma eps) / alpha: the clean estimate eps implies.

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> x_0, eps = jnp.full((3, 1), 2.0), jnp.ones((3, 1))
    >>> x_t = rad_jax.process.diffuse(level, x_0, eps)
    >>> print(rad_jax.process.eps_to_x_0(level, x_t, eps)[:, 0])
    [2. 2. 2.]
  """
  a, s = _coefficients(level, x_t.ndim)
  return (x_t - s * eps) / a


def x_0_to_eps(level: Level, x_t: Batch, x_0: Batch) -> Batch:
  """eps = (x_t - alpha x_0) / sigma.

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> x_0, eps = jnp.full((3, 1), 2.0), jnp.ones((3, 1))
    >>> x_t = rad_jax.process.diffuse(level, x_0, eps)
    >>> print(rad_jax.process.x_0_to_eps(level, x_t, x_0)[:, 0])
    [1. 1. 1.]
  """
  a, s = _coefficients(level, x_t.ndim)
  return (x_t - a * x_0) / s


def transition(
  later: Level, earlier: Level, x_0: Array, x_t: Array
) -> tuple[Array, Array, Array]:
  """q(x_s | x_t, x_0) and q(x_t | x_s) for an earlier level s of a step.

  The levels' fields broadcast against x_t. sigma^2_{t|s} = sigma_t^2 -
  (alpha_t / alpha_s)^2 sigma_s^2 is the noise added on the way (Kingma et al.
  2021, arXiv 2107.00630, appendix A; for DDPM, Ho et al. 2020, Eqs. 6, 7).

  Returns:
    The mean and the variance of q(x_s | x_t, x_0), and sigma^2_{t|s}, which is
    beta_t between neighbouring levels of DDPM.

  Examples:
    From flow matching's t = 0.5 to 0.1:

    >>> levels = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> t, s = (jax.tree.map(lambda column: column[n], levels) for n in (1, 2))
    >>> x_0, x_t = jnp.ones(1), jnp.ones(1)
    >>> mean, variance, added = rad_jax.process.transition(t, s, x_0, x_t)
    >>> print(f"{mean[0]:.3f} {variance:.4f} {added:.4f}")
    0.911 0.0099 0.2469
  """
  ratio = later.alpha / earlier.alpha
  var_t, var_s = jnp.square(later.sigma), jnp.square(earlier.sigma)
  added = var_t - jnp.square(ratio) * var_s
  mean = (ratio * var_s * x_t + earlier.alpha * added * x_0) / var_t
  return mean, added * var_s / var_t, added
