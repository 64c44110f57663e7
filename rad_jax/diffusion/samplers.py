"""Samplers: free functions over a noise predictor eps_fn(x_t, t) -> eps_hat.

Each sampler is one update x_t -> x_s along a decreasing list of timesteps;
`sample` scans it. Sample i draws its noise from (key, i) alone: it depends
neither on the batch it stands in nor on the number of devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rad_jax.diffusion import process
from rad_jax.diffusion.schedules import Schedule

EpsFn = Callable[[Array, Array], Array]


class Transition(NamedTuple):
  """One reverse transition from timestep t to the earlier s, as scalars.

  At the last transition s is the data itself: alpha_bar_s = 1.
  """

  t: Array
  alpha_bar_t: Array
  alpha_bar_s: Array


Update = Callable[[Transition, Array, Array, Array], Array]


def respaced_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
  """num_steps timesteps, evenly spaced from T-1 down to 0 (both included).

  One step alone starts from T-1. num_steps = T gives every timestep. Even
  spacing between both ends is our choice; DDIM's code keeps a fixed stride.

  Raises:
    ValueError: num_steps is not in 1 .. num_timesteps.
  """
  if not 1 <= num_steps <= num_timesteps:
    raise ValueError(
      f"sampling takes 1 to {num_timesteps} steps, got {num_steps}"
    )
  if num_steps == 1:
    return np.array([num_timesteps - 1])
  return np.rint(np.linspace(num_timesteps - 1, 0, num_steps)).astype(int)


def ddpm(variance: str = "small") -> Update:
  """Ancestral sampling (Ho et al. 2020, Algorithm 2), at any spacing.

  Args:
    variance: "small" is the posterior's (optimal where the data is one
      point), "large" is beta_t (optimal for unit Gaussian data): the two
      bounds of section 3.2 there.

  Returns:
    The update (transition, x_t, x_0_hat, z) -> x_s. The last transition adds
    no noise.
  """

  def update(transition, x_t, x_0_hat, z):
    mean, posterior_variance = process.transition(
      x_0_hat, x_t, transition.alpha_bar_t, transition.alpha_bar_s
    )
    beta = 1 - transition.alpha_bar_t / transition.alpha_bar_s
    var = {"small": posterior_variance, "large": beta}[variance]
    return mean + jnp.where(transition.alpha_bar_s < 1, jnp.sqrt(var), 0) * z

  return update


def ddim(eta: float = 0.0) -> Update:
  """DDIM (Song et al. 2020, Eqs. 12 and 16), at any spacing.

  Args:
    eta: 0 is deterministic, 1 equals `ddpm("small")` in distribution and,
      with the same noise, in value; at most 1.

  Returns:
    The update (transition, x_t, x_0_hat, z) -> x_s.
  """

  def update(transition, x_t, x_0_hat, z):
    _, alpha_bar_t, alpha_bar_s = transition
    eps_hat = (x_t - jnp.sqrt(alpha_bar_t) * x_0_hat) / jnp.sqrt(
      1 - alpha_bar_t
    )
    var = (
      jnp.square(eta)
      * (1 - alpha_bar_s)
      / (1 - alpha_bar_t)
      * (1 - alpha_bar_t / alpha_bar_s)
    )
    return (
      jnp.sqrt(alpha_bar_s) * x_0_hat
      + jnp.sqrt(jnp.maximum(1 - alpha_bar_s - var, 0)) * eps_hat
      + jnp.sqrt(var) * z
    )

  return update


def sample(
  eps_fn: EpsFn,
  schedule: Schedule,
  update: Update,
  key: PRNGKeyArray,
  index: Int[Array, " b"],
  shape: tuple[int, ...],
  num_steps: int,
  clip_x_0: float | None = None,
) -> Float[Array, "b ..."]:
  """Draws samples by the whole reverse process, in one scan. Jit-able.

  Args:
    eps_fn: the noise predictor, (x_t [b, ...], t [b]) -> eps_hat [b, ...].
    schedule: the tables the predictor was trained with.
    update: `ddpm(...)` or `ddim(...)`.
    key: the root key of all samples.
    index: which samples to draw, int [b].
    shape: the shape of one sample.
    num_steps: network evaluations, 1 .. T.
    clip_x_0: half-range to which every clean estimate is clipped, in data
      units (1 for images in [-1, 1]); None does not clip.

  Returns:
    [b, *shape] float32.
  """
  t = respaced_timesteps(schedule.num_timesteps, num_steps)
  alpha_bar = jnp.square(schedule.sqrt_alpha_bar)[t]
  transitions = Transition(
    t=jnp.asarray(t, jnp.int32),
    alpha_bar_t=alpha_bar,
    alpha_bar_s=jnp.append(alpha_bar[1:], 1.0),
  )
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

  def noise(step: Array) -> Array:
    return jax.vmap(
      lambda k: jax.random.normal(jax.random.fold_in(k, step), shape)
    )(keys)

  def reverse(x_t: Array, transition: Transition) -> tuple[Array, None]:
    t = jnp.broadcast_to(transition.t, index.shape)
    x_0_hat = process.eps_to_x_0(schedule, x_t, t, eps_fn(x_t, t))
    if clip_x_0 is not None:
      x_0_hat = jnp.clip(x_0_hat, -clip_x_0, clip_x_0)
    return update(transition, x_t, x_0_hat, noise(transition.t)), None

  x_T = noise(jnp.asarray(schedule.num_timesteps, jnp.int32))
  return jax.lax.scan(reverse, x_T, transitions)[0]
