"""Samplers: free functions over a noise predictor eps_fn(x_t, level).

Each sampler is one update x_t -> x_s along a falling list of noise levels;
`reverse` scans it from any state, and ends with the last level's clean
estimate; `sample` starts it from noise, and `path` keeps every state on the
way. Example i draws its noise from its own key alone: it depends neither on
the batch it stands in nor on the number of devices.

Along any process the deterministic flow is dx = d(alpha) x_0_hat + d(sigma)
eps_hat. Its Euler step is alpha_s x_0_hat + sigma_s eps_hat: DDIM, EDM's Euler
and flow matching's Euler are this one formula.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from rad_jax.diffusion import process
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.diffusion.process import Level


class Step(NamedTuple):
  """One step, from level t to the lower level s.

  number: 1, 2, ...
  before: the level of the step before; t itself in the first step.
  t, s: levels with scalar fields.
  """

  number: Array
  before: Level
  t: Level
  s: Level


class Path(NamedTuple):
  """A reverse process: its states and their clean estimates, level by level.

  x_t, x_0_hat: [num_levels, b, ...]; the last x_0_hat is the sample.
  """

  x_t: Float[Array, "n b ..."]
  x_0_hat: Float[Array, "n b ..."]


# (x_t, level with scalar fields) -> (x_0_hat, eps_hat)
Denoise = Callable[[Array, Level], tuple[Array, Array]]
# (denoise, step, x_t, x_0_hat of the step before, unit noise) ->
# (x_s, x_0_hat at t)
Update = Callable[[Denoise, Step, Array, Array, Array], tuple[Array, Array]]


def ddpm(variance: str = "small") -> Update:
  """Ancestral sampling (Ho et al. 2020, Algorithm 2), at any spacing.

  Args:
    variance: "small" is the posterior's (optimal where the data is one
      point), "large" is that of q(x_t | x_s), DDPM's beta_t (optimal there for
      unit Gaussian data): the two bounds of section 3.2.

  Examples:
    Where all data is one point, any number of steps finds it:

    >>> def eps_fn(x_t, level):
    ...   return (x_t - level.alpha[:, None]) / level.sigma[:, None]
    >>> levels = rad_jax.schedules.flow().grid(3)
    >>> x = rad_jax.samplers.sample(
    ...   eps_fn, levels, rad_jax.samplers.ddpm(), jax.random.key(0),
    ...   index=jnp.arange(4), shape=(1,),
    ... )
    >>> print(x[:, 0])
    [1. 1. 1. 1.]
  """

  def update(denoise, step, x_t, last_x_0, z):
    del last_x_0
    x_0_hat, _ = denoise(x_t, step.t)
    mean, small, large = process.transition(step.t, step.s, x_0_hat, x_t)
    std = jnp.sqrt({"small": small, "large": large}[variance])
    return mean + std * z, x_0_hat

  return update


def ddim(eta: float = 0.0) -> Update:
  """DDIM (Song et al. 2020, Eqs. 12 and 16), at any spacing.

  Args:
    eta: 0 is deterministic, Euler's step; 1 equals `ddpm("small")` in
      distribution and, with the same noise, in value; at most 1.

  Examples:
    Of data with standard deviation 0.5, ten Euler steps lose a little:

    >>> def eps_fn(x_t, level):  # exact for data of standard deviation 1/2
    ...   total = (level.alpha / 2) ** 2 + level.sigma**2
    ...   return (level.sigma / total)[:, None] * x_t
    >>> levels = rad_jax.schedules.flow().grid(10)
    >>> x = rad_jax.samplers.sample(
    ...   eps_fn, levels, rad_jax.samplers.ddim(), jax.random.key(0),
    ...   index=jnp.arange(2000), shape=(1,),
    ... )
    >>> print(f"{x.std():.2f}")
    0.41
  """

  def update(denoise, step, x_t, last_x_0, z):
    del last_x_0
    x_0_hat, eps_hat = denoise(x_t, step.t)
    _, posterior, _ = process.transition(step.t, step.s, x_0_hat, x_t)
    var = jnp.square(eta) * posterior
    x_s = (
      step.s.alpha * x_0_hat
      + jnp.sqrt(jnp.maximum(jnp.square(step.s.sigma) - var, 0)) * eps_hat
      + jnp.sqrt(var) * z
    )
    return x_s, x_0_hat

  return update


def heun() -> Update:
  """The second-order step of EDM (Karras et al. 2022, Algorithm 1).

  x_0_hat and eps_hat are averaged over both ends of the step, which for EDM
  and flow matching is Heun's step of their own velocities. It takes two
  network evaluations a step, and one in the last, to the data.

  Examples:
    Of data with standard deviation 0.5, ten steps of second order lose less:

    >>> def eps_fn(x_t, level):  # exact for data of standard deviation 1/2
    ...   total = (level.alpha / 2) ** 2 + level.sigma**2
    ...   return (level.sigma / total)[:, None] * x_t
    >>> levels = rad_jax.schedules.flow().grid(10)
    >>> x = rad_jax.samplers.sample(
    ...   eps_fn, levels, rad_jax.samplers.heun(), jax.random.key(0),
    ...   index=jnp.arange(2000), shape=(1,),
    ... )
    >>> print(f"{x.std():.2f}")
    0.48
  """

  def update(denoise, step, x_t, last_x_0, z):
    del last_x_0, z
    t, s = step.t, step.s
    x_0_t, eps_t = denoise(x_t, t)
    x_0_s, eps_s = denoise(s.alpha * x_0_t + s.sigma * eps_t, s)
    x_s = (
      x_t
      + (s.alpha - t.alpha) * (x_0_t + x_0_s) / 2
      + (s.sigma - t.sigma) * (eps_t + eps_s) / 2
    )
    return x_s, x_0_t

  return update


def dpm_solver() -> Update:
  """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2).

  With lambda = ln(alpha / sigma) and h = lambda_s - lambda_t, the clean
  estimate is carried on along the line through the last two of them: second
  order from one network evaluation a step. The first step is DDIM's.

  Examples:
    Of data with standard deviation 0.5, with one evaluation a step:

    >>> def eps_fn(x_t, level):  # exact for data of standard deviation 1/2
    ...   total = (level.alpha / 2) ** 2 + level.sigma**2
    ...   return (level.sigma / total)[:, None] * x_t
    >>> levels = rad_jax.schedules.edm().grid(20)
    >>> x = rad_jax.samplers.sample(
    ...   eps_fn, levels, rad_jax.samplers.dpm_solver(), jax.random.key(0),
    ...   index=jnp.arange(2000), shape=(1,),
    ... )
    >>> print(f"{x.std():.2f}")
    0.50
  """

  def update(denoise, step, x_t, last_x_0, z):
    del z
    x_0_hat, _ = denoise(x_t, step.t)
    h = _log_snr(step.s) - _log_snr(step.t)
    h_before = _log_snr(step.t) - _log_snr(step.before)
    first = step.number == 1
    ahead = jnp.where(first, 0.0, h / (2 * jnp.where(first, 1.0, h_before)))
    carried = x_0_hat + ahead * (x_0_hat - last_x_0)
    ratio = step.s.sigma / step.t.sigma
    x_s = ratio * x_t + step.s.alpha * -jnp.expm1(-h) * carried
    return x_s, x_0_hat

  return update


def _log_snr(level: Level) -> Array:
  return jnp.log(level.alpha / level.sigma)


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
    levels: the levels to visit, from a process's grid, [num_levels].
    update: `ddpm(...)`, `ddim(...)`, `heun()` or `dpm_solver()`.
    key: the root key of all samples.
    index: which samples to draw, int [b].
    shape: the shape of one sample.
    clip_x_0: half-range to which every clean estimate is clipped, in data
      units (1 for images in [-1, 1]); None does not clip.

  Returns:
    [b, *shape] float32.

  Examples:
    Sample i is the same in any batch:

    >>> def draw(index):
    ...   return rad_jax.samplers.sample(
    ...     lambda x_t, level: level.sigma[:, None] * x_t,
    ...     rad_jax.schedules.flow().grid(5), rad_jax.samplers.ddpm(),
    ...     jax.random.key(0), jnp.array(index), shape=(2,),
    ...   )
    >>> print(jnp.abs(draw([0, 7])[1] - draw([7, 3])[0]).max() < 1e-6)
    True
  """
  keys = sample_keys(key, index)
  x_t = noise(levels, keys, shape)
  return reverse(eps_fn, levels, update, x_t, keys, clip_x_0)


def sample_keys(key: PRNGKeyArray, index: Int[Array, " b"]) -> Key[Array, " b"]:
  """The keys of samples `index` under a root key.

  Examples:
    Sample 7 has its key in any batch:

    >>> key, sample_keys = jax.random.key(0), rad_jax.samplers.sample_keys
    >>> together = jax.random.key_data(sample_keys(key, jnp.array([3, 7])))
    >>> alone = jax.random.key_data(sample_keys(key, jnp.array([7])))
    >>> print((together[1] == alone[0]).all())
    True
  """
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def noise(
  levels: Level, keys: Key[Array, " b"], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
  """Where `sample` starts: noise of the first level's sigma, [b, *shape].

  Examples:
    >>> levels = rad_jax.schedules.edm(sigma_max=80.0).grid(5)
    >>> keys = rad_jax.samplers.sample_keys(jax.random.key(0), jnp.arange(4000))
    >>> print(rad_jax.samplers.noise(levels, keys, shape=(2,)).std().round())
    80.0
  """
  return levels.sigma[0] * _unit_noise(keys, jnp.asarray(0), shape)


def reverse(
  eps_fn: EpsFn,
  levels: Level,
  update: Update,
  x_t: Float[Array, "b ..."],
  keys: Key[Array, " b"],
  clip_x_0: float | None = None,
  w: Float[Array, "n b ..."] | None = None,
  remat: bool = False,
) -> Float[Array, "b ..."]:
  """Carries x_t at the first level down to the data. Jit-able.

  Args:
    eps_fn, levels, update, clip_x_0: as in `sample`.
    x_t: the states at levels[0], [b, ...].
    keys: one key an example, of the noise along its way, [b].
    w: perturbations in noise units, one for each level: the state at level n
      is x_t + sigma_n w[n] before the step, for all that the step does. None
      perturbs nothing.
    remat: compute the steps anew in a backward pass, so that a gradient
      through the process needs the memory of its states, not of the network's
      activations at each.

  Returns:
    The clean estimates at the last level, [b, ...].

  Examples:
    An estimate that is equivariant, as that of one point, takes w out again:

    >>> def eps_fn(x_t, level):
    ...   return (x_t - level.alpha[:, None]) / level.sigma[:, None]
    >>> x = rad_jax.samplers.reverse(
    ...   eps_fn, rad_jax.schedules.flow().grid(5), rad_jax.samplers.ddim(),
    ...   jnp.zeros((2, 1)), jax.random.split(jax.random.key(0), 2),
    ...   w=jnp.full((5, 2, 1), 0.3),
    ... )
    >>> print(x[:, 0])
    [1. 1.]
  """
  scan = _reverse_scan(eps_fn, levels, update, keys, clip_x_0, remat)
  x_0_hat, _ = scan(x_t, w, lambda x_t, x_0_hat: None)
  return x_0_hat


def path(
  eps_fn: EpsFn,
  levels: Level,
  update: Update,
  x_t: Float[Array, "b ..."],
  keys: Key[Array, " b"],
  clip_x_0: float | None = None,
) -> Path:
  """The same process, with every state on its way. Jit-able.

  Args: as in `reverse`.

  Examples:
    Where all data is the point 1:

    >>> def eps_fn(x_t, level):
    ...   return (x_t - level.alpha[:, None]) / level.sigma[:, None]
    >>> path = rad_jax.samplers.path(
    ...   eps_fn, rad_jax.schedules.flow(end=0.1).grid(3),
    ...   rad_jax.samplers.ddim(), jnp.zeros((1, 1)),
    ...   jax.random.split(jax.random.key(0), 1),
    ... )
    >>> print(path.x_t[:, 0, 0], path.x_0_hat[:, 0, 0])
    [0.    0.444 0.889] [1. 1. 1.]
  """
  scan = _reverse_scan(eps_fn, levels, update, keys, clip_x_0, remat=False)
  _, states = scan(x_t, None, Path)
  return states


def _reverse_scan(eps_fn, levels, update, keys, clip_x_0, remat):
  """(x_t, w, keep) -> last x_0_hat; keep(x_t, x_0_hat) of every level."""

  def denoise(x_t: Array, level: Level) -> tuple[Array, Array]:
    level = jax.tree.map(lambda v: jnp.broadcast_to(v, len(x_t)), level)
    eps_hat = eps_fn(x_t, level)
    x_0_hat = process.eps_to_x_0(level, x_t, eps_hat)
    if clip_x_0 is None:
      return x_0_hat, eps_hat
    x_0_hat = jnp.clip(x_0_hat, -clip_x_0, clip_x_0)
    return x_0_hat, process.x_0_to_eps(level, x_t, x_0_hat)

  def take(rows) -> Level:
    return jax.tree.map(lambda column: column[rows], levels)

  def scan(x_t, w, keep):
    def shifted(x_t, level, w_t):
      return x_t if w_t is None else x_t + level.sigma * w_t

    def body(carry, given):
      (x_t, last_x_0), (step, w_t) = carry, given
      x_t = shifted(x_t, step.t, w_t)
      z = _unit_noise(keys, step.number, x_t.shape[1:])
      x_s, x_0_hat = update(denoise, step, x_t, last_x_0, z)
      return (x_s, x_0_hat), keep(x_t, x_0_hat)

    count = len(levels.sigma) - 1
    before = [max(n - 1, 0) for n in range(count)]
    steps = Step(
      jnp.arange(1, count + 1),
      take(jnp.array(before, int)),
      take(slice(None, -1)),
      take(slice(1, None)),
    )
    first = None if w is None else w[:-1]
    (x_t, _), kept = jax.lax.scan(
      jax.checkpoint(body) if remat else body,
      (x_t, jnp.zeros_like(x_t)),
      (steps, first),
    )
    last = take(-1)
    x_t = shifted(x_t, last, None if w is None else w[-1])
    x_0_hat, _ = denoise(x_t, last)
    kept = jax.tree.map(
      lambda rows, row: jnp.concatenate([rows, row[None]]),
      kept,
      keep(x_t, x_0_hat),
    )
    return x_0_hat, kept

  return scan


def _unit_noise(keys, step, shape):
  draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)
  return jax.vmap(draw)(keys)
