"""How far to push, and how hard to pull: the radius r(t) and lambda_t.

r(t) bounds the perturbation w in noise units: |w_i| <= r(t). The state moves
by delta = sigma_t w. Sources disagree on the shape of r(t), so each reading
is a pure function of sigma_t, chosen by its name.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalars = Float[Array, " b"]


def seed(
  sigma_t: Scalars, sigma_max: Array, beta: float, omega: float
) -> Scalars:
  """r = (sigma_max - sigma_t)**omega + beta: largest at low noise.

  Args:
    sigma_t: noise level of each example, [b].
    sigma_max: the schedule's largest sigma.
    beta: floor of the radius, in (0, 1] noise units (8/255).
    omega: exponent, at least 1 (2).
  """
  # sigma_max - sigma_t is not negative but in rounding.
  return jnp.maximum(sigma_max - sigma_t, 0) ** omega + beta


def noise_scale(
  sigma_t: Scalars, sigma_max: Array, beta: float, omega: float
) -> Scalars:
  """r = sigma_t**omega + beta: grows with the noise.

  The reading of public notes on the ICLR text, in which a bias keeps r from
  vanishing at low noise.
  """
  del sigma_max
  return sigma_t**omega + beta


def constant(
  sigma_t: Scalars, sigma_max: Array, beta: float, omega: float
) -> Scalars:
  """r = beta at every noise level."""
  del sigma_max, omega
  return jnp.full_like(sigma_t, beta)


RADII = {"seed": seed, "noise_scale": noise_scale, "constant": constant}


def constant_lambda(lam: float, radius: Scalars) -> Scalars:
  """lambda_t = lam."""
  return jnp.full_like(radius, lam)


def inverse_std_lambda(lam: float, radius: Scalars) -> Scalars:
  """lambda_t = lam / std(w), where w is uniform: std(w) = r / sqrt(3).

  Read from one source, which prints lam sqrt(3) / (beta r(t)) for a
  multiplicative beta; with the additive beta here this is lam sqrt(3) / r(t).
  """
  return lam * jnp.sqrt(3.0) / radius


LAMBDAS = {"constant": constant_lambda, "inverse_std": inverse_std_lambda}
