"""How far to push, and how hard to pull: the radius r(t) and lambda_t.

r(t) bounds the perturbation w in noise units: |w_i| <= r(t). The state moves
by delta = sigma w. Sources disagree on the shape of r(t), so each reading is
chosen by name, and docs/radius.md compares them. sigma_t is DDPM's
sigma / sqrt(alpha^2 + sigma^2), in (0, 1), for every process, so that a
radius follows the signal-to-noise ratio alone.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Scalar = float | Float[Array, ""]
Scalars = Float[Array, " b"]


def seed(sigma_t: Scalars, sigma_max: Array, omega: float) -> Scalars:
  """(sigma_max - sigma_t)**omega: largest at low noise.

  Args:
    sigma_t: noise level of each example, [b], in (0, 1).
    sigma_max: sigma_t at the process's noisiest level.
    omega: exponent, at least 1 (2).
  """
  # A negative base, by rounding or EDM's open end, would give NaN.
  return jnp.maximum(sigma_max - sigma_t, 0) ** omega


def noise_scale(sigma_t: Scalars, sigma_max: Array, omega: float) -> Scalars:
  """sigma_t**omega: grows with the noise (public notes of the ICLR text)."""
  del sigma_max
  return sigma_t**omega


SHAPES = {"seed": seed, "noise_scale": noise_scale}
RADII = (*SHAPES, "constant")


def draw_beta(keys: Key[Array, " b"], beta: float, law: str) -> Scalars:
  """beta of each example: "fixed", or "uniform" in [beta / 2, 3 beta / 2].

  Sources speak of a random beta and do not give its law; the mean here is
  beta and the smallest radius is not 0.
  """
  if law == "fixed":
    return jnp.full(keys.shape, beta)
  return beta * (0.5 + jax.vmap(jax.random.uniform)(keys))


def radius(
  sigma_t: Scalars,
  sigma_max: Array,
  beta: Scalars,
  shape: str,
  omega: float,
  multiplicative: bool,
) -> Scalars:
  """r = shape(t) + beta, or beta shape(t); for shape "constant", r = beta.

  Args:
    sigma_t: noise level of each example, [b], in (0, 1).
    sigma_max: sigma_t at the process's noisiest level.
    beta: floor or factor of each example's radius, [b] (8/255 as a floor).
    shape: a name in RADII.
    omega: exponent of the shape.
    multiplicative: whether beta is a factor.
  """
  if shape == "constant":
    return beta
  r = SHAPES[shape](sigma_t, sigma_max, omega)
  return beta * r if multiplicative else r + beta


def constant_lambda(lam: Scalar, radius: Scalars) -> Scalars:
  """lambda_t = lam."""
  return jnp.full_like(radius, lam)


def inverse_std_lambda(lam: Scalar, radius: Scalars) -> Scalars:
  """lambda_t = lam / std(w), where w is uniform: std(w) = r / sqrt(3).

  Read from one source, which prints lam sqrt(3) / (beta r(t)) for a
  multiplicative beta; r here is the whole radius, beta included.
  """
  return lam * jnp.sqrt(3.0) / jnp.maximum(radius, 1e-6)


LAMBDAS = {"constant": constant_lambda, "inverse_std": inverse_std_lambda}
