"""The forward process and the algebra between its quantities.

With a = sqrt(alpha_bar_t) and s = sigma_t = sqrt(1 - alpha_bar_t):
x_t = a x_0 + s eps, v = a eps - s x_0, score = -eps / s.
Arrays of one batch share a shape [b, ...]; t is int [b], a table index.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rad_jax.diffusion import schedules
from rad_jax.diffusion.schedules import Schedule

Batch = Float[Array, "b ..."]
Timesteps = Int[Array, " b"]


def _coefficients(schedule: Schedule, t: Timesteps, ndim: int):
  return (
    schedules.at(schedule.sqrt_alpha_bar, t, ndim),
    schedules.at(schedule.sigma, t, ndim),
  )


def diffuse(schedule: Schedule, x_0: Batch, t: Timesteps, eps: Batch) -> Batch:
  """x_t = a x_0 + s eps (Ho et al. 2020, Eq. 4)."""
  a, s = _coefficients(schedule, t, x_0.ndim)
  return a * x_0 + s * eps


def eps_to_x_0(
  schedule: Schedule, x_t: Batch, t: Timesteps, eps: Batch
) -> Batch:
  """x_0 = (x_t - s eps) / a: the clean estimate a noise estimate implies."""
  a, s = _coefficients(schedule, t, x_t.ndim)
  return (x_t - s * eps) / a


def x_0_to_eps(
  schedule: Schedule, x_t: Batch, t: Timesteps, x_0: Batch
) -> Batch:
  """eps = (x_t - a x_0) / s."""
  a, s = _coefficients(schedule, t, x_t.ndim)
  return (x_t - a * x_0) / s


def eps_to_v(schedule: Schedule, x_t: Batch, t: Timesteps, eps: Batch) -> Batch:
  """v = a eps - s x_0 = (eps - s x_t) / a (Salimans & Ho 2022, section 4)."""
  a, s = _coefficients(schedule, t, x_t.ndim)
  return (eps - s * x_t) / a


def v_to_eps(schedule: Schedule, x_t: Batch, t: Timesteps, v: Batch) -> Batch:
  """eps = a v + s x_t."""
  a, s = _coefficients(schedule, t, x_t.ndim)
  return a * v + s * x_t


def v_to_x_0(schedule: Schedule, x_t: Batch, t: Timesteps, v: Batch) -> Batch:
  """x_0 = a x_t - s v."""
  a, s = _coefficients(schedule, t, x_t.ndim)
  return a * x_t - s * v


def eps_to_score(schedule: Schedule, t: Timesteps, eps: Batch) -> Batch:
  """score = grad log p_t(x_t) = -eps / s (Song et al. 2021)."""
  return -eps / schedules.at(schedule.sigma, t, eps.ndim)


def score_to_eps(schedule: Schedule, t: Timesteps, score: Batch) -> Batch:
  """eps = -s score."""
  return -score * schedules.at(schedule.sigma, t, score.ndim)


def posterior(
  schedule: Schedule, x_0: Batch, x_t: Batch, t: Timesteps
) -> tuple[Batch, Batch]:
  """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eqs. 6, 7).

  At t = 0 the previous state is x_0 itself: mean x_0 and variance 0.

  Returns:
    The mean [b, ...] and the variance, broadcastable against it.
  """
  alpha_bar = jnp.square(schedule.sqrt_alpha_bar)
  previous = jnp.concatenate([jnp.ones((1,)), alpha_bar[:-1]])
  alpha_bar_t = schedules.at(alpha_bar, t, x_t.ndim)
  alpha_bar_s = schedules.at(previous, t, x_t.ndim)
  return transition(x_0, x_t, alpha_bar_t, alpha_bar_s)


def transition(
  x_0: Array, x_t: Array, alpha_bar_t: Array, alpha_bar_s: Array
) -> tuple[Array, Array]:
  """Mean and variance of q(x_s | x_t, x_0) for any earlier time s < t."""
  alpha = alpha_bar_t / alpha_bar_s
  var_t = 1 - alpha_bar_t
  var_s = 1 - alpha_bar_s
  mean = (
    jnp.sqrt(alpha_bar_s) * (1 - alpha) * x_0 + jnp.sqrt(alpha) * var_s * x_t
  ) / var_t
  return mean, (1 - alpha) * var_s / var_t
