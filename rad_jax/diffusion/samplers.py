"""Samplers over a noise predictor eps_fn(x_t, level): updates x_t -> x_s.

The Euler step of dx = d(alpha) x_0_hat + d(sigma) eps_hat, to alpha_s x_0_hat +
sigma_s eps_hat, is DDIM's, EDM's and flow matching's. Example i draws its noise
from its own key alone, whatever its batch and the number of devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from rad_jax.diffusion import process
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.diffusion.process import Batch, Level

Keys = Key[Array, " b"]


class Step(NamedTuple):
  """One step, from level t to the lower level s; levels have scalar fields."""

  number: Array  # 1, 2, ...
  before: Level  # of the step before; t itself in the first one
  t: Level
  s: Level


class Path(NamedTuple):
  """The states of a reverse process, and their clean estimates."""

  x_t: Float[Array, "n b ..."]
  x_0_hat: Float[Array, "n b ..."]


# (x_t, level with scalar fields) -> (x_0_hat, eps_hat)
Denoise = Callable[[Array, Level], tuple[Array, Array]]
# (denoise, step, x_t, the last x_0_hat, unit noise) -> (x_s, x_0_hat at t)
Update = Callable[[Denoise, Step, Array, Array, Array], tuple[Array, Array]]


def ddpm(variance: str = "small") -> Update:
  """Ancestral sampling (Ho et al. 2020, Algorithm 2, section 3.2), any spacing.

  The variance is "small", of q(x_s | x_t, x_0), or "large", of q(x_t | x_s).
  """

  def update(denoise, step, x_t, last_x_0, z):
    x_0_hat, _ = denoise(x_t, step.t)
    mean, small, large = process.transition(step.t, step.s, x_0_hat, x_t)
    std = jnp.sqrt({"small": small, "large": large}[variance])
    return mean + std * z, x_0_hat

  return update


def ddim(eta: float = 0.0) -> Update:
  """DDIM (Song et al. 2020, Eqs. 12, 16); at eta = 1 it is `ddpm("small")`."""

  def update(denoise, step, x_t, last_x_0, z):
    x_0_hat, eps_hat = denoise(x_t, step.t)
    _, posterior, _ = process.transition(step.t, step.s, x_0_hat, x_t)
    var = jnp.square(eta) * posterior
    kept = jnp.sqrt(jnp.maximum(jnp.square(step.s.sigma) - var, 0))
    x_s = step.s.alpha * x_0_hat + kept * eps_hat + jnp.sqrt(var) * z
    return x_s, x_0_hat

  return update


def heun() -> Update:
  """EDM's second-order step (Karras et al. 2022, Algorithm 1), any process."""

  def update(denoise, step, x_t, last_x_0, z):
    t, s = step.t, step.s
    x_0_t, eps_t = denoise(x_t, t)
    x_0_s, eps_s = denoise(s.alpha * x_0_t + s.sigma * eps_t, s)
    x_s = x_t + (s.alpha - t.alpha) * (x_0_t + x_0_s) / 2
    return x_s + (s.sigma - t.sigma) * (eps_t + eps_s) / 2, x_0_t

  return update


def dpm_solver() -> Update:
  """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2)."""

  def update(denoise, step, x_t, last_x_0, z):
    x_0_hat, _ = denoise(x_t, step.t)
    before, t, s = (jnp.log(level.alpha / level.sigma) for level in step[1:])
    h, h_before = s - t, t - before
    first = step.number == 1  # DDIM's step
    ahead = jnp.where(first, 0.0, h / (2 * jnp.where(first, 1.0, h_before)))
    carried = x_0_hat + ahead * (x_0_hat - last_x_0)
    ratio = step.s.sigma / step.t.sigma
    x_s = ratio * x_t + step.s.alpha * -jnp.expm1(-h) * carried
    return x_s, x_0_hat

  return update


def tempered(update: Update, temperature: float) -> Update:
  """The update with `temperature` times its noise; 1 is the model's own law.

  Below 1, samples keep to the middle of each mode (Dhariwal & Nichol 2021,
  appendix G). The noise that sampling starts from is not changed.
  """
  return lambda denoise, step, x_t, last_x_0, z: update(
    denoise, step, x_t, last_x_0, temperature * z
  )


# (variance of ddpm, eta of ddim) -> the update.
SAMPLERS: dict[str, Callable[[str, float], Update]] = {
  "ddpm": lambda variance, eta: ddpm(variance),
  "ddim": lambda variance, eta: ddim(eta),
  "euler": lambda variance, eta: ddim(0.0),
  "heun": lambda variance, eta: heun(),
  "dpm_solver": lambda variance, eta: dpm_solver(),
}


def evaluations(name: str, num_levels: int) -> int:
  """Evaluations of the network for one sample; the last level takes one."""
  per_step = 2 if name == "heun" else 1
  return per_step * (num_levels - 1) + 1


def sample(
  eps_fn: EpsFn,
  levels: Level,
  update: Update,
  key: PRNGKeyArray,
  index: Int[Array, " b"],
  shape: tuple[int, ...],
  clip_x_0: float | None = None,
) -> Batch:
  """Samples `index` of a root key, the same in any batch. Jit-able.

  shape is one sample's. Clean estimates stay within +-clip_x_0, in data units.
  """
  keys = sample_keys(key, index)
  x_t = noise(levels, keys, shape)
  return reverse(eps_fn, levels, update, x_t, keys, clip_x_0)


def sample_keys(key: PRNGKeyArray, index: Int[Array, " b"]) -> Keys:
  """The keys of samples `index` under a root key."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def noise(levels: Level, keys: Keys, shape: tuple[int, ...]) -> Batch:
  """Where `sample` starts: noise of the first level's sigma, [b, *shape]."""
  return levels.sigma[0] * _unit_noise(keys, jnp.asarray(0), shape)


def reverse(
  eps_fn: EpsFn,
  levels: Level,
  update: Update,
  x_t: Batch,
  keys: Keys,
  clip_x_0: float | None = None,
  w: Float[Array, "n b ..."] | None = None,
  remat: bool = False,
) -> Batch:
  """Carries x_t, states at levels[0], down to the data, in one scan. Jit-able.

  Step n starts from x_t + sigma_n w[n], w in noise units. With remat, only the
  states stay in memory: a backward pass computes the steps anew.

  Examples:
    An equivariant estimate, such as that of data at one point, undoes w:

    >>> eps_fn = lambda x_t, t: (x_t - t.alpha[:, None]) / t.sigma[:, None]
    >>> x = rad_jax.samplers.reverse(
    ...   eps_fn, level, rad_jax.samplers.ddim(), jnp.zeros((2, 1)),
    ...   jax.random.split(jax.random.key(0), 2), w=jnp.full((3, 2, 1), 0.3),
    ... )
    >>> print(x[:, 0])
    [1. 1.]
  """
  chain = eps_fn, levels, update, x_t, keys, clip_x_0
  return _scan(*chain, w, lambda x_t, x_0_hat: None, remat)[0]


def path(
  eps_fn: EpsFn,
  levels: Level,
  update: Update,
  x_t: Batch,
  keys: Keys,
  clip_x_0: float | None = None,
) -> Path:
  """The same process, with every state on its way. Jit-able."""
  return _scan(eps_fn, levels, update, x_t, keys, clip_x_0, None, Path)[1]


def denoiser(eps_fn: EpsFn, clip_x_0: float | None = None) -> Denoise:
  """Both estimates of a batch at one level; clipped ones fit the state too."""

  def denoise(x_t: Array, level: Level) -> tuple[Array, Array]:
    level = jax.tree.map(lambda v: jnp.broadcast_to(v, len(x_t)), level)
    eps_hat = eps_fn(x_t, level)
    x_0_hat = process.eps_to_x_0(level, x_t, eps_hat)
    if clip_x_0 is None:
      return x_0_hat, eps_hat
    x_0_hat = jnp.clip(x_0_hat, -clip_x_0, clip_x_0)
    return x_0_hat, process.x_0_to_eps(level, x_t, x_0_hat)

  return denoise


def _scan(eps_fn, levels, update, x_t, keys, clip_x_0, w, keep, remat=False):
  """The last x_0_hat, and keep(x_t, x_0_hat) of every level."""
  denoise = denoiser(eps_fn, clip_x_0)
  take = lambda rows: jax.tree.map(lambda column: column[rows], levels)

  def shifted(x_t, level, w_t):
    return x_t if w_t is None else process.shifted(x_t, level.sigma, w_t)

  def body(carry, given):
    (x_t, last_x_0), (step, w_t) = carry, given
    x_t = shifted(x_t, step.t, w_t)
    z = _unit_noise(keys, step.number, x_t.shape[1:])
    x_s, x_0_hat = update(denoise, step, x_t, last_x_0, z)
    return (x_s, x_0_hat), keep(x_t, x_0_hat)

  count = len(levels.sigma) - 1
  steps = Step(
    number=jnp.arange(1, count + 1),
    before=take(jnp.maximum(jnp.arange(-1, count - 1), 0)),
    t=take(slice(None, -1)),
    s=take(slice(1, None)),
  )
  (x_t, _), kept = jax.lax.scan(
    jax.checkpoint(body) if remat else body,
    (x_t, jnp.zeros_like(x_t)),
    (steps, None if w is None else w[:-1]),
  )
  last = take(-1)
  x_t = shifted(x_t, last, None if w is None else w[-1])
  x_0_hat, _ = denoise(x_t, last)
  join = lambda rows, row: jnp.concatenate([rows, row[None]])
  return x_0_hat, jax.tree.map(join, kept, keep(x_t, x_0_hat))


def _unit_noise(keys, step, shape):
  draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)
  return jax.vmap(draw)(keys)
