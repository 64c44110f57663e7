"""The perturbation's radius r(t), and the regulariser's weight lambda_t.

|w_i| <= r(t), in noise units; docs/radius.md compares the sources' shapes. For
every process sigma_t is DDPM's, sigma / sqrt(alpha^2 + sigma^2), in (0, 1).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = float | Float[Array, ""]
Scalars = Float[Array, " b"]


def falling(sigma_t: Scalars, sigma_max: Scalar, omega: float) -> Scalars:
  """(sigma_max - sigma_t)**omega: falls with the noise."""
  # A negative base, by rounding or EDM's open end, would give NaN.
  return jnp.maximum(sigma_max - sigma_t, 0) ** omega


def rising(sigma_t: Scalars, sigma_max: Scalar, omega: float) -> Scalars:
  """sigma_t**omega: rises with the noise (public notes of the ICLR text)."""
  return sigma_t**omega


SHAPES = {"falling": falling, "rising": rising}
RADII = (*SHAPES, "constant")


def radius(
  sigma_t: Scalars,
  sigma_max: Scalar = 1.0,
  shape: str = "falling",
  omega: float = 2.0,
  beta: float = 8 / 255,
  multiplicative: bool = False,
  in_state_units: bool = False,
) -> Scalars:
  """r = shape(t) + beta; multiplicative, beta shape(t); "constant", beta.

  sigma_max is the process's largest sigma_t, and omega at least 1.
  in_state_units bounds |sigma_t w| by r, not |w|.

  Examples:
    >>> sigma_t = jnp.array([0.1, 0.5, 0.9])
    >>> print(rad_jax.radius.radius(sigma_t))
    [0.841 0.281 0.041]
    >>> print(rad_jax.radius.radius(sigma_t, shape="rising"))
    [0.041 0.281 0.841]
  """
  if shape == "constant":
    r = jnp.full_like(sigma_t, beta)
  else:
    r = SHAPES[shape](sigma_t, sigma_max, omega)
    r = beta * r if multiplicative else r + beta
  return r / sigma_t if in_state_units else r


def constant_lambda(lam: Scalar, radius: Scalars) -> Scalars:
  """lambda_t = lam."""
  return jnp.full_like(radius, lam)


def inverse_std_lambda(lam: Scalar, radius: Scalars) -> Scalars:
  """lambda_t = lam / std(w), where w is uniform: std(w) = r / sqrt(3).

  One source alone has it, as lam sqrt(3) / (beta r(t)); r here includes beta.
  """
  return lam * jnp.sqrt(3.0) / jnp.maximum(radius, 1e-6)


LAMBDAS = {"constant": constant_lambda, "inverse_std": inverse_std_lambda}


def ramp(
  step: int | jax.Array, first_step: int, warmup_steps: int
) -> jax.Array | float:
  """Factor of lambda_t: rises to 1 over warmup_steps from first_step on."""
  if warmup_steps == 0:
    return 1.0
  return jnp.clip((step - first_step + 1) / warmup_steps, 0.0, 1.0)
