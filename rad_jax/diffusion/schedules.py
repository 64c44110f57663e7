"""Noise schedules: tables of alpha_bar over the T timesteps.

A timestep t is a table index 0 .. T-1, from the least to the most noise; the
literature's t = 1 .. T is this index plus one. Tables are computed in float64
and cast last: cumulated in float32, 1 - alpha_bar_0 is off by 1.7e-4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Schedule(NamedTuple):
  """The two coefficients of x_t = sqrt_alpha_bar x_0 + sigma eps.

  Both are float32 tables of shape [T]; sqrt_alpha_bar**2 + sigma**2 = 1.
  """

  sqrt_alpha_bar: Float[Array, " T"]
  sigma: Float[Array, " T"]

  @property
  def num_timesteps(self) -> int:
    """T."""
    return self.sigma.shape[0]

  @property
  def sigma_max(self) -> Float[Array, ""]:
    """sigma of the last timestep, just under 1."""
    return self.sigma[-1]


def linear_alpha_bar(num_timesteps: int) -> np.ndarray:
  """alpha_bar of betas linear from 1e-4 to 0.02 (Ho et al. 2020, section 4).

  The end points are those of T = 1000 and scale with 1000 / T, so that any T
  reaches the same final noise (Nichol & Dhariwal 2021, code).

  Args:
    num_timesteps: T, at least 21, so that every beta stays under 1.

  Returns:
    float64 [T], decreasing in (0, 1).
  """
  scale = 1000 / num_timesteps
  beta = np.linspace(1e-4 * scale, 0.02 * scale, num_timesteps)
  if num_timesteps <= 20:
    raise ValueError(
      f"the linear schedule needs num_timesteps > 20, got {num_timesteps}"
    )
  return np.cumprod(1 - beta)


def cosine_alpha_bar(num_timesteps: int) -> np.ndarray:
  """alpha_bar of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17).

  Args:
    num_timesteps: T, at least 1.

  Returns:
    float64 [T], decreasing in (0, 1); each beta is clipped at 0.999.
  """
  offset = 0.008
  u = np.arange(num_timesteps + 1) / num_timesteps
  f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
  beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
  return np.cumprod(1 - beta)


ALPHA_BAR = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}


def from_alpha_bar(alpha_bar: np.ndarray) -> Schedule:
  """The float32 tables of a float64 alpha_bar [T]."""
  alpha_bar = np.asarray(alpha_bar, np.float64)
  return Schedule(
    sqrt_alpha_bar=jnp.asarray(np.sqrt(alpha_bar), jnp.float32),
    sigma=jnp.asarray(np.sqrt(1 - alpha_bar), jnp.float32),
  )


def make(name: str, num_timesteps: int) -> Schedule:
  """The schedule of a name in ALPHA_BAR with T timesteps."""
  return from_alpha_bar(ALPHA_BAR[name](num_timesteps))


def per_example(values: Float[Array, " b"], ndim: int) -> jax.Array:
  """values [b] with trailing ones, to broadcast against a rank-ndim batch."""
  return values.reshape(values.shape + (1,) * (ndim - 1))


def at(table: Float[Array, " T"], t: jax.Array, ndim: int) -> jax.Array:
  """table[t] with trailing ones, to broadcast against a rank-ndim batch."""
  return per_example(table[t], ndim)
