"""Purification: noise an input up to t*, and let the model remove the noise.

What an adversary added drowns (DiffPure, Nie et al. 2022, arXiv 2205.07460).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from rad_jax.diffusion import samplers
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.diffusion.process import Level, unit_sigma
from rad_jax.robustness import attacks
from rad_jax.robustness.attacks import Attack, Batch, Keys, Scalars


def from_level(grid: Level, t_star: float) -> Level:
  """The grid's levels of unit_sigma <= t_star; ValueError if there are none.

  DiffPure's t* = 0.1 for CIFAR-10 (step 100 of 1000) is 0.32, 0.15 for ImageNet
  0.46. A single level denoises once (Carlini et al. 2023, arXiv 2206.10550).
  """
  keep = np.asarray(unit_sigma(grid)) <= t_star
  if not keep.any():
    raise ValueError(f"no level of the grid has unit_sigma {t_star} or less")
  return jax.tree.map(lambda column: column[keep], grid)


def purify(
  eps_fn: EpsFn,
  levels: Level,
  update: samplers.Update,
  x: Batch,
  keys: Keys,
  clip_x_0: float | None = None,
  remat: bool = False,
) -> Batch:
  """x_t = alpha x + sigma eps at levels[0], then the reverse process. Jit-able.

  levels are `from_level`'s, x in data units; DiffPure has `samplers.ddpm()`.
  """
  x_t = levels.alpha[0] * x + samplers.noise(levels, keys, x.shape[1:])
  return samplers.reverse(
    eps_fn, levels, update, x_t, keys, clip_x_0, remat=remat
  )


def eot_attack(
  loss: Callable[[Batch, Keys], Scalars],
  x: Batch,
  keys: Keys,
  radius: Scalars,
  attack: Attack,
  num_draws: int = 1,
  low: float = -1.0,
  high: float = 1.0,
) -> Batch:
  """PGD on inputs of a randomised loss, such as one that calls `purify`.

  Each step climbs the mean gradient over num_draws new draws (EOT, Athalye et
  al. 2018, arXiv 1707.07397), in the memory of one. x and radius are in data
  units. Example i's loss may depend on x_i and key i alone; measure the result
  by other keys. Jit-able, without gradient.
  """
  if attack.momentum:
    raise ValueError(f"this attack has no momentum, not {attack.momentum}")

  moved = lambda delta: jnp.clip(x + delta, low, high)

  def body(i, x_adv):
    gradient = attacks.mean_gradient(loss, _draws(keys, i, num_draws))
    return moved(attacks.step(attack, x_adv - x, gradient(x_adv), radius))

  start_keys = _draws(keys, 0, 1)[0]
  x_adv = moved(attacks.start(attack, start_keys, radius, x.shape[1:]))
  x_adv = jax.lax.fori_loop(1, attack.num_steps + 1, body, x_adv)
  return jax.lax.stop_gradient(x_adv)


def _draws(keys: Keys, i: int | Array, num_draws: int) -> Key[Array, "m b"]:
  """Keys of the draws of step i; that of the start is the one of 0."""
  one = lambda key, j: jax.random.fold_in(jax.random.fold_in(key, i), j)
  row = lambda j: jax.vmap(lambda key: one(key, j))(keys)
  return jax.vmap(row)(jnp.arange(num_draws))
