"""Noising of examples y = x_0 + sigma_c n, of known sigma_c, 0 if clean."""

from typing import NamedTuple

import jax.numpy as jnp

from rad_jax.diffusion import process
from rad_jax.diffusion.process import Batch, Level, Scalars, per_example


class Noised(NamedTuple):
  """A noised batch."""

  x_t: Batch
  eps: Batch  # what eps_hat is regressed on
  weight: Scalars  # of that regression
  sigma: Scalars  # noise of the state; w moves it by sigma w


def blind(y: Batch, sigma_c: Scalars, level: Level, z: Batch) -> Noised:
  """x_t = alpha y + sigma z, eps = z: DDPM, whatever is in y."""
  x_t = process.diffuse(level, y, z)
  return Noised(x_t, z, jnp.ones_like(sigma_c), level.sigma)


def aware(y: Batch, sigma_c: Scalars, level: Level, z: Batch) -> Noised:
  """Noises y up to the level, and corrects the target for what was there.

  Of the level's variance, kappa = 1 - (alpha sigma_c / sigma)^2 is new:

      x_t = alpha y + sigma sqrt(kappa) z,  eps = z / sqrt(kappa).

  As E[z / sqrt(kappa) | x_t] = E[eps | x_t], eps all noise on x_0, the optimum
  is the clean data's. With weight kappa^2 this is the loss |kappa x_0_hat +
  (1 - kappa) x_t / alpha - y|^2 of Daras et al. 2024 (arXiv 2404.10177, Theorem
  4.1) in noise units. Below its own noise, kappa <= 0, an example has weight 0.

  Examples:
    Examples with noise of 0.2 teach less at sigma 0.5, and nothing at 0.1:

    >>> y, z, sigma_c = jnp.ones((3, 1)), jnp.ones((3, 1)), jnp.full(3, 0.2)
    >>> print(rad_jax.noising.aware(y, sigma_c, level, z).weight)
    [0.999 0.922 0.   ]
  """
  kappa = 1 - jnp.square(level.alpha * sigma_c / level.sigma)
  usable = kappa > 1e-3
  root = per_example(jnp.sqrt(jnp.where(usable, kappa, 1.0)), y.ndim)
  return Noised(
    x_t=process.diffuse(level, y, root * z),
    eps=z / root,
    weight=jnp.where(usable, jnp.square(kappa), 0.0),
    sigma=level.sigma,
  )
