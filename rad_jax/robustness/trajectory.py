"""Attacks on sampling: perturbations w of the reverse process's own states.

Step n starts from x_t + sigma_n w[n], each w[n] of an example in its own ball,
in noise units, of radius budget [n, b]. `samplers.reverse(*chain, w=w)` then
samples, also from another eps_fn. All can be jitted, and w has no gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rad_jax.diffusion import process, samplers
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.diffusion.process import Level
from rad_jax.robustness import attacks
from rad_jax.robustness.attacks import Attack, Batch, Keys, Scalars
from rad_jax.robustness.objectives import squared_error

Draws = Key[Array, "m b"]
Budget = Float[Array, "n b"]
Trajectory = Float[Array, "n b ..."]


class Chain(NamedTuple):
  """A reverse process, all its noise; eps_fn treats each example alone."""

  eps_fn: EpsFn
  levels: Level
  update: samplers.Update
  x_t: Batch
  keys: Keys
  clip_x_0: float | None = None


class Queries(NamedTuple):
  """Evaluations of the network on a batch that an attack takes."""

  forward: int
  backward: int  # gradients of one evaluation by its input
  recomputed: int  # evaluations made a second time, to bound the memory


def budget_at(radius: Scalars, attacked: Any, num_levels: int) -> Budget:
  """`radius` at attacked levels (bool mask [n], or indices), 0 elsewhere."""
  mask = np.zeros(num_levels, bool)
  mask[np.asarray(attacked)] = True
  return jnp.where(mask[:, None], radius[None], 0.0)


def joint(
  attack: Attack,
  chain: Chain,
  keys: Keys,
  budget: Budget,
  goal: Callable[[Batch], Scalars] | None = None,
  draws: Draws | None = None,
) -> Trajectory:
  """PGD on all attacked levels at once, through the whole process.

  The default goal is the squared distance from the unperturbed sample, flat at
  w = 0: it needs attack.start > 0. Gradients are means over draws, keys of the
  sampler's noise (EOT, Athalye et al. 2018, arXiv 1707.07397), by default the
  chain's own: the strongest attacker knows all noise to come. For any number of
  draws it takes the memory of the states and of one level.
  """
  draws = chain.keys[None] if draws is None else draws
  clean = None
  if goal is None:
    sample = lambda keys: samplers.reverse(*chain._replace(keys=keys))
    clean = jax.lax.map(sample, draws)

  def value(w, draw):
    noise_keys, clean = draw
    drawn = chain._replace(keys=noise_keys)
    x_0_hat = samplers.reverse(*drawn, w=w, remat=True)
    return squared_error(x_0_hat, clean) if goal is None else goal(x_0_hat)

  by_w = attacks.mean_gradient(value, (draws, clean))
  shape, rows = (len(budget), *chain.x_t.shape), budget.ravel()
  w_0 = attacks.start(attack, _row_keys(keys, len(budget)), rows, shape[2:])
  gradient = lambda w: by_w(w.reshape(shape)).reshape(w.shape)
  return attacks.climb(attack, gradient, w_0, rows).reshape(shape)


def greedy(
  attack: Attack, chain: Chain, keys: Keys, budget: Budget
) -> Trajectory:
  """At each attacked level in turn, what moves its clean estimate most.

  w_n raises |x_0_hat(x_t + sigma_n w_n) - x_0_hat(x_t)|^2 from the perturbed
  x_t, flat at w_n = 0: it needs attack.start > 0. No gradient goes through
  time.
  """
  b, shape = len(chain.x_t), chain.x_t.shape[1:]
  denoise = samplers.denoiser(chain.eps_fn, chain.clip_x_0)

  def best(x_t, n):
    level = jax.tree.map(lambda column: column[n], chain.levels)

    def find():
      x_0_hat, _ = denoise(x_t, level)

      def goal(w):
        moved, _ = denoise(process.shifted(x_t, level.sigma, w), level)
        return squared_error(moved, x_0_hat)

      return attacks.maximise(attack, goal, _fold_in(keys, n), budget[n], shape)

    attacked = jnp.any(budget[n] > 0)
    return jax.lax.cond(attacked, find, lambda: jnp.zeros_like(x_t))

  def perturbed(x_t, n):
    # The batch carries each state's w behind the states: path keeps both.
    w = best(x_t, n)
    return jnp.concatenate([process.shifted(x_t, chain.levels.sigma[n], w), w])

  def update(denoise, step, rows, last_x_0, z):
    x_s, x_0_hat = chain.update(denoise, step, rows[:b], last_x_0[:b], z[:b])
    return perturbed(x_s, step.number), jnp.concatenate([x_0_hat, x_0_hat])

  carried = chain._replace(
    update=update,
    x_t=perturbed(chain.x_t, 0),
    keys=chain.keys[jnp.arange(2 * b) % b],
  )
  return jax.lax.stop_gradient(samplers.path(*carried).x_t[:, b:])


def random(norm: str, chain: Chain, keys: Keys, budget: Budget) -> Trajectory:
  """The control: a random corner (linf) or direction (l2), with no query."""
  radius = budget.ravel()
  direction = attacks.gaussian(
    _row_keys(keys, len(budget)), jnp.ones_like(radius), chain.x_t.shape[1:]
  )
  rows = attacks.BALLS[norm].ascent(direction, radius)
  return rows.reshape(len(budget), *chain.x_t.shape)


def joint_queries(
  attack: Attack,
  num_evaluations: int,
  num_draws: int = 1,
  own_goal: bool = False,
) -> Queries:
  """What `joint` takes, besides the sample's own num_evaluations."""
  passes = attack.num_steps * num_draws * num_evaluations
  clean = 0 if own_goal else num_draws * num_evaluations  # the unperturbed
  # The last level is outside of the scan.
  again = attack.num_steps * num_draws * (num_evaluations - 1)
  return Queries(clean + passes, passes, again)


def greedy_queries(
  attack: Attack, num_evaluations: int, num_attacked: int
) -> Queries:
  """What `greedy` takes at num_attacked levels, besides the sample's own."""
  passes = num_attacked * attack.num_steps
  return Queries(num_evaluations + num_attacked + passes, passes, 0)


def _fold_in(keys: Keys, n: Any) -> Keys:
  return jax.vmap(lambda key: jax.random.fold_in(key, n))(keys)


def _row_keys(keys: Keys, num_levels: int) -> Key[Array, " rows"]:
  """A key for each level and example, level by level."""
  folded = jax.vmap(lambda n: _fold_in(keys, n))(jnp.arange(num_levels))
  return folded.reshape(-1)
