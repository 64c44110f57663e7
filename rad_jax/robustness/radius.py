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


def seed(sigma_t: Scalars, sigma_max: Scalar, omega: float) -> Scalars:
  """(sigma_max - sigma_t)**omega: largest at low noise.

  Args:
    sigma_t: noise level of each example, [b], in (0, 1).
    sigma_max: sigma_t at the process's noisiest level.
    omega: exponent, at least 1 (2).

  Examples:
    >>> sigma_t = jnp.array([0.1, 0.5, 0.9])
    >>> print(rad_jax.radius.seed(sigma_t, sigma_max=1.0, omega=2.0))
    [0.81 0.25 0.01]
  """
  # A negative base, by rounding or EDM's open end, would give NaN.
  return jnp.maximum(sigma_max - sigma_t, 0) ** omega


def noise_scale(sigma_t: Scalars, sigma_max: Scalar, omega: float) -> Scalars:
  """sigma_t**omega: grows with the noise (public notes of the ICLR text).

  Examples:
    >>> sigma_t = jnp.array([0.1, 0.5, 0.9])
    >>> r = rad_jax.radius.noise_scale(sigma_t, sigma_max=1.0, omega=2.0)
    >>> print(r)
    [0.01 0.25 0.81]
  """
  del sigma_max
  return sigma_t**omega


def default(sigma_t: Scalars, keys: Key[Array, " b"]) -> Scalars:
  """r = (1 - sigma_t)^2 + 8/255: the configs' reading, sigma_max taken as 1.

  The noisiest level of every process comes within 1e-4 of it.

  Args:
    sigma_t: noise level of each example, [b], in (0, 1).
    keys: not used: beta is fixed.

  Examples:
    >>> sigma_t = jnp.array([0.1, 0.5, 0.9])
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> print(rad_jax.radius.default(sigma_t, keys))
    [0.841 0.281 0.041]
  """
  del keys
  return seed(sigma_t, 1.0, 2.0) + 8 / 255


SHAPES = {"seed": seed, "noise_scale": noise_scale}
RADII = (*SHAPES, "constant")


def draw_beta(keys: Key[Array, " b"], beta: float, law: str) -> Scalars:
  """beta of each example: "fixed", or "uniform" in [beta / 2, 3 beta / 2].

  Sources speak of a random beta and do not give its law; the mean here is
  beta and the smallest radius is not 0.

  Examples:
    >>> keys = jax.random.split(jax.random.key(0), 1000)
    >>> beta = rad_jax.radius.draw_beta(keys, beta=0.2, law="uniform")
    >>> print(f"{beta.min():.2f} to {beta.max():.2f}, mean {beta.mean():.2f}")
    0.10 to 0.30, mean 0.20
  """
  if law == "fixed":
    return jnp.full(keys.shape, beta)
  return beta * (0.5 + jax.vmap(jax.random.uniform)(keys))


def radius(
  sigma_t: Scalars,
  sigma_max: Scalar,
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

  Examples:
    >>> sigma_t = jnp.array([0.1, 0.5, 0.9])
    >>> beta = jnp.full(3, 0.03)
    >>> for multiplicative in (False, True):
    ...   r = rad_jax.radius.radius(
    ...     sigma_t, 1.0, beta, shape="seed", omega=2.0,
    ...     multiplicative=multiplicative,
    ...   )
    ...   print(r)
    [0.84 0.28 0.04]
    [0.024 0.007 0.   ]
  """
  if shape == "constant":
    return beta
  r = SHAPES[shape](sigma_t, sigma_max, omega)
  return beta * r if multiplicative else r + beta


def constant_lambda(lam: Scalar, radius: Scalars) -> Scalars:
  """lambda_t = lam.

  Examples:
    >>> print(rad_jax.radius.constant_lambda(0.5, jnp.array([0.1, 0.2])))
    [0.5 0.5]
  """
  return jnp.full_like(radius, lam)


def inverse_std_lambda(lam: Scalar, radius: Scalars) -> Scalars:
  """lambda_t = lam / std(w), where w is uniform: std(w) = r / sqrt(3).

  Read from one source, which prints lam sqrt(3) / (beta r(t)) for a
  multiplicative beta; r here is the whole radius, beta included.

  Examples:
    A radius of half the size is weighted twice as much:

    >>> r = jnp.array([0.1, 0.2])
    >>> print(rad_jax.radius.inverse_std_lambda(0.3, r))
    [5.196 2.598]
  """
  return lam * jnp.sqrt(3.0) / jnp.maximum(radius, 1e-6)


LAMBDAS = {"constant": constant_lambda, "inverse_std": inverse_std_lambda}
