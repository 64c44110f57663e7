"""Samplers: free functions over a noise predictor eps_fn(x_t, level).

Each sampler is one update x_t -> x_s along a falling list of noise levels;
`sample` scans it, and ends with the last level's clean estimate. Sample i
draws its noise from (key, i) alone: it depends neither on the batch it stands
in nor on the number of devices.

Along any process the deterministic flow is dx = d(alpha) x_0_hat + d(sigma)
eps_hat. Its Euler step is alpha_s x_0_hat + sigma_s eps_hat: DDIM, EDM's Euler
and flow matching's Euler are this one formula.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rad_jax.diffusion import process
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.diffusion.process import Level

# (x_t, level with scalar fields) -> (x_0_hat, eps_hat)
Denoise = Callable[[Array, Level], tuple[Array, Array]]
# (denoise, level t, level s, x_t, unit noise) -> x_s
Update = Callable[[Denoise, Level, Level, Array, Array], Array]


def ddpm(variance: str = "small") -> Update:
  """Ancestral sampling (Ho et al. 2020, Algorithm 2), at any spacing.

  Args:
    variance: "small" is the posterior's (optimal where the data is one
      point), "large" is that of q(x_t | x_s), DDPM's beta_t (optimal there for
      unit Gaussian data): the two bounds of section 3.2.
  """

  def update(denoise, level_t, level_s, x_t, z):
    x_0_hat, _ = denoise(x_t, level_t)
    mean, small, large = process.transition(level_t, level_s, x_0_hat, x_t)
    return mean + jnp.sqrt({"small": small, "large": large}[variance]) * z

  return update


def ddim(eta: float = 0.0) -> Update:
  """DDIM (Song et al. 2020, Eqs. 12 and 16), at any spacing.

  Args:
    eta: 0 is deterministic, Euler's step; 1 equals `ddpm("small")` in
      distribution and, with the same noise, in value; at most 1.
  """

  def update(denoise, level_t, level_s, x_t, z):
    x_0_hat, eps_hat = denoise(x_t, level_t)
    _, posterior, _ = process.transition(level_t, level_s, x_0_hat, x_t)
    var = jnp.square(eta) * posterior
    return (
      level_s.alpha * x_0_hat
      + jnp.sqrt(jnp.maximum(jnp.square(level_s.sigma) - var, 0)) * eps_hat
      + jnp.sqrt(var) * z
    )

  return update


def heun() -> Update:
  """The second-order step of EDM (Karras et al. 2022, Algorithm 1).

  x_0_hat and eps_hat are averaged over both ends of the step, which for EDM
  and flow matching is Heun's step of their own velocities. It takes two
  network evaluations a step, and one in the last, to the data.
  """

  def update(denoise, level_t, level_s, x_t, z):
    del z
    x_0_t, eps_t = denoise(x_t, level_t)
    euler = level_s.alpha * x_0_t + level_s.sigma * eps_t
    x_0_s, eps_s = denoise(euler, level_s)
    return (
      x_t
      + (level_s.alpha - level_t.alpha) * (x_0_t + x_0_s) / 2
      + (level_s.sigma - level_t.sigma) * (eps_t + eps_s) / 2
    )

  return update


def sample(
  eps_fn: EpsFn,
  levels: Level,
  update: Update,
  key: PRNGKeyArray,
  index: Int[Array, " b"],
  shape: tuple[int, ...],
  clip_x_0: float | None = None,
) -> Float[Array, "b ..."]:
  """Draws samples by the whole reverse process, in one scan. Jit-able.

  Args:
    eps_fn: the noise predictor, (x_t [b, ...], level [b]) -> eps_hat [b, ...].
    levels: the levels to visit, from a process's grid, [num_steps].
    update: `ddpm(...)`, `ddim(...)` or `heun()`.
    key: the root key of all samples.
    index: which samples to draw, int [b].
    shape: the shape of one sample.
    clip_x_0: half-range to which every clean estimate is clipped, in data
      units (1 for images in [-1, 1]); None does not clip.

  Returns:
    [b, *shape] float32.
  """
  num_steps = len(levels.sigma)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

  def noise(step: Array) -> Array:
    return jax.vmap(
      lambda k: jax.random.normal(jax.random.fold_in(k, step), shape)
    )(keys)

  def denoise(x_t: Array, level: Level) -> tuple[Array, Array]:
    level = jax.tree.map(lambda v: jnp.broadcast_to(v, index.shape), level)
    eps_hat = eps_fn(x_t, level)
    x_0_hat = process.eps_to_x_0(level, x_t, eps_hat)
    if clip_x_0 is None:
      return x_0_hat, eps_hat
    x_0_hat = jnp.clip(x_0_hat, -clip_x_0, clip_x_0)
    return x_0_hat, process.x_0_to_eps(level, x_t, x_0_hat)

  def reverse(x_t: Array, step: tuple[Array, Level, Level]):
    n, level_t, level_s = step
    return update(denoise, level_t, level_s, x_t, noise(n)), None

  later = jax.tree.map(lambda column: column[:-1], levels)
  earlier = jax.tree.map(lambda column: column[1:], levels)
  x_T = levels.sigma[0] * noise(jnp.asarray(0))
  steps = (jnp.arange(1, num_steps), later, earlier)
  x_t, _ = jax.lax.scan(reverse, x_T, steps)
  x_0_hat, _ = denoise(x_t, jax.tree.map(lambda column: column[-1], levels))
  return x_0_hat
