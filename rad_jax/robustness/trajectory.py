"""Attacks on sampling: perturbations w of the reverse process's own states.

At an attacked level n the state is x_t + sigma_n w_n, w_n in noise units,
before the step is taken (samplers.reverse). w is [n, b, ...] for the n levels
of the sampler, and each w_n of each example has a ball of its own, of radius
budget [n, b]: it is 0 where nothing is attacked, and there w is exactly 0.
Norms and numbers are those of robustness.attacks.

  joint   all attacked levels together, by gradients through the process
  greedy  level after level, each for the clean estimate there and then
  random  no gradient, on the border of the ball: the control

An attack sees a Chain, one reverse process with all its noise, and does not
sample from it: `attacked_sample` does, also from another network than the one
attacked (transfer).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rad_jax.diffusion import process, samplers
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.diffusion.process import Level, per_example
from rad_jax.robustness import attacks
from rad_jax.robustness.attacks import Attack
from rad_jax.robustness.objectives import squared_error

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]
Keys = Key[Array, " b"]
Draws = Key[Array, "m b"]
Budget = Float[Array, "n b"]
Trajectory = Float[Array, "n b ..."]


class Chain(NamedTuple):
  """One reverse process, start and noise included: as samplers.reverse's.

  eps_fn: the noise predictor; it treats each example alone.
  levels: the levels to visit, [n].
  update: the sampler's step.
  x_t: the states at levels[0], [b, ...].
  keys: of the noise along the way, one an example, [b].
  clip_x_0: half-range of the clean estimates, data units; None does not clip.
  """

  eps_fn: EpsFn
  levels: Level
  update: samplers.Update
  x_t: Batch
  keys: Keys
  clip_x_0: float | None = None


class Queries(NamedTuple):
  """Evaluations of the network on a batch that an attack takes.

  forward: evaluations.
  backward: gradients of one by its input.
  recomputed: evaluations made a second time, to bound the memory.
  """

  forward: int
  backward: int
  recomputed: int


def budget_at(radius: Scalars, attacked: Any, num_levels: int) -> Budget:
  """The budget [n, b] that is `radius` at attacked levels and 0 elsewhere.

  Args:
    radius: of each example's ball, noise units, [b].
    attacked: which levels, from the most noise to the least: a bool mask
      [num_levels], or their indices.
    num_levels: n.

  Examples:
    >>> print(rad_jax.trajectory.budget_at(jnp.array([0.1, 0.2]), [0], 3))
    [[0.1 0.2]
     [0.  0. ]
     [0.  0. ]]
  """
  mask = np.zeros(num_levels, bool)
  mask[np.asarray(attacked)] = True
  return jnp.where(mask[:, None], radius[None], 0.0)


def attacked_sample(
  craft: Callable[[Chain, Budget], Trajectory],
  chain: Chain,
  budget: Budget,
  surrogate: EpsFn | None = None,
) -> Batch:
  """Samples under an attack.

  At a budget of 0 this is plain sampling to the bit: nothing is crafted or
  added. Programs that add zeros are compiled to other roundings, so that is
  decided by the budget's values, before any tracing.

  Args:
    craft: (chain, budget) -> w: `joint`, `greedy` or `random`, all else bound.
    chain: the process that is sampled.
    budget: radii in noise units, [n, b]; values, no tracers.
    surrogate: the network that is attacked in the place of the chain's own:
      transfer, without a query of the one that is sampled.

  Returns:
    The clean estimates at the last level, [b, ...].

  Raises:
    jax.errors.TracerArrayConversionError: budget is an argument of a jit.

  Examples:
    >>> chain = rad_jax.trajectory.Chain(
    ...   eps_fn=lambda x_t, level: jnp.tanh(x_t),
    ...   levels=rad_jax.schedules.flow(end=0.1).grid(3),
    ...   update=rad_jax.samplers.ddim(),
    ...   x_t=jnp.ones((2, 1)),
    ...   keys=jax.random.split(jax.random.key(0), 2),
    ... )
    >>> keys = jax.random.split(jax.random.key(1), 2)
    >>> budget = rad_jax.trajectory.budget_at(jnp.full(2, 0.1), [1], 3)
    >>> sample = rad_jax.trajectory.attacked_sample(
    ...   lambda chain, budget: rad_jax.trajectory.random(
    ...     "linf", chain, keys, budget
    ...   ),
    ...   chain, 0 * budget,
    ... )
    >>> print((sample == rad_jax.samplers.reverse(*chain)).all())
    True
  """
  if not np.any(np.asarray(budget)):
    return _reverse(chain)
  attacked = chain if surrogate is None else chain._replace(eps_fn=surrogate)
  return _reverse(chain, craft(attacked, budget))


def joint(
  attack: Attack,
  chain: Chain,
  keys: Keys,
  budget: Budget,
  objective: Callable[[Batch], Scalars] | None = None,
  draws: Draws | None = None,
) -> Trajectory:
  """PGD on all attacked levels at once, through the whole process. Jit-able.

  The gradient's memory is that of the states and of one level's activations
  (samplers.reverse, remat), whatever the number of draws.

  Args:
    attack: its numbers; each step has its length at each level.
    chain: the process.
    keys: of the random start, one an example, [b].
    budget: radii in noise units, [n, b], 0 or more.
    objective: of the sample, x_0_hat [b, ...] -> [b], what is raised; None is
      the mean squared distance from the unperturbed sample of the same noise.
      The gradient of that is zero at w = 0: it needs attack.start > 0.
    draws: keys of the sampler's noise to expect over (EOT, Athalye et al.
      2018, arXiv 1707.07397), [m, b], the same in all steps; the gradient is
      the mean over them. None is the chain's own keys: an attacker who knows
      all noise to come, the strongest. The start x_t is known to both.

  Returns:
    w, [n, b, ...], with no gradient to anything.

  Raises:
    KeyError: attack.norm is not in BALLS.

  Examples:
    >>> chain = rad_jax.trajectory.Chain(
    ...   eps_fn=lambda x_t, level: jnp.tanh(x_t),
    ...   levels=rad_jax.schedules.flow(end=0.1).grid(3),
    ...   update=rad_jax.samplers.ddim(),
    ...   x_t=jnp.ones((2, 1)),
    ...   keys=jax.random.split(jax.random.key(0), 2),
    ... )
    >>> keys = jax.random.split(jax.random.key(1), 2)
    >>> budget = rad_jax.trajectory.budget_at(jnp.full(2, 0.1), [1], 3)
    >>> attack = rad_jax.attacks.ATTACKS["pgd"]
    >>> w = rad_jax.trajectory.joint(attack, chain, keys, budget)
    >>> print(jnp.abs(w[:, :, 0]))
    [[0.  0. ]
     [0.1 0.1]
     [0.  0. ]]
  """
  draws = chain.keys[None] if draws is None else draws
  clean = None
  if objective is None:
    clean = jax.lax.map(lambda k: _reverse(chain._replace(keys=k)), draws)

  def value(w, draw):
    noise_keys, clean = draw
    x_0_hat = _reverse(chain._replace(keys=noise_keys), w, remat=True)
    if objective is None:
      return squared_error(x_0_hat, clean)
    return objective(x_0_hat)

  gradient = mean_gradient(value, (draws, clean))
  shape = (len(budget), *chain.x_t.shape)

  def linear(rows):
    # Of ascend's objective the gradient alone counts: here it is at hand.
    w = jax.lax.stop_gradient(rows).reshape(shape)
    slope = jax.lax.stop_gradient(gradient(w)).reshape(rows.shape)
    return jnp.sum(slope * rows, axis=tuple(range(1, rows.ndim)))

  rows = attacks.maximise(
    attack, linear, _row_keys(keys, len(budget)), budget.ravel(), shape[2:]
  )
  return rows.reshape(shape)


def greedy(
  attack: Attack, chain: Chain, keys: Keys, budget: Budget
) -> Trajectory:
  """At each attacked level in turn, what moves its clean estimate most.

  w_n raises |x_0_hat(x_t + sigma_n w_n) - x_0_hat(x_t)|^2 from the state x_t
  to which the levels before, perturbed, have led. No gradient goes through
  time. Jit-able.

  Args:
    attack: its numbers; attack.start > 0, as the gradient is zero at w = 0.
    chain: the process.
    keys: of the random starts, one an example, [b].
    budget: radii in noise units, [n, b], 0 or more.

  Returns:
    w, [n, b, ...], with no gradient to anything.

  Raises:
    KeyError: attack.norm is not in BALLS.

  Examples:
    >>> chain = rad_jax.trajectory.Chain(
    ...   eps_fn=lambda x_t, level: jnp.tanh(x_t),
    ...   levels=rad_jax.schedules.flow(end=0.1).grid(3),
    ...   update=rad_jax.samplers.ddim(),
    ...   x_t=jnp.ones((2, 1)),
    ...   keys=jax.random.split(jax.random.key(0), 2),
    ... )
    >>> keys = jax.random.split(jax.random.key(1), 2)
    >>> budget = rad_jax.trajectory.budget_at(jnp.full(2, 0.1), [1], 3)
    >>> attack = rad_jax.attacks.ATTACKS["fgsm"]
    >>> w = rad_jax.trajectory.greedy(attack, chain, keys, budget)
    >>> print(jnp.abs(w[:, :, 0]))
    [[0.  0. ]
     [0.1 0.1]
     [0.  0. ]]
  """
  b = len(chain.x_t)

  def best(x_t, n):
    level = jax.tree.map(
      lambda column: jnp.broadcast_to(column[n], (b,)), chain.levels
    )
    sigma = per_example(level.sigma, x_t.ndim)

    def find():
      x_0_hat = _clean_estimate(chain, level, x_t)
      return attacks.maximise(
        attack,
        lambda w: squared_error(
          _clean_estimate(chain, level, x_t + sigma * w), x_0_hat
        ),
        _fold_in(keys, n),
        budget[n],
        x_t.shape[1:],
      )

    attacked = jnp.any(budget[n] > 0)
    return jax.lax.cond(attacked, find, lambda: jnp.zeros_like(x_t))

  def perturbed(x_t, n):
    # The batch carries each state's w behind the states: path keeps both.
    w = best(x_t, n)
    return jnp.concatenate([x_t + chain.levels.sigma[n] * w, w])

  def update(denoise, step, rows, last_x_0, z):
    x_s, x_0_hat = chain.update(denoise, step, rows[:b], last_x_0[:b], z[:b])
    return perturbed(x_s, step.number), jnp.concatenate([x_0_hat, x_0_hat])

  states = samplers.path(
    chain.eps_fn,
    chain.levels,
    update,
    perturbed(chain.x_t, 0),
    chain.keys[jnp.arange(2 * b) % b],
    chain.clip_x_0,
  )
  return jax.lax.stop_gradient(states.x_t[:, b:])


def random(norm: str, chain: Chain, keys: Keys, budget: Budget) -> Trajectory:
  """The control: uniform on the border of the balls, with no query.

  Its norm is that of an attack at the border: a random corner for linf, a
  random direction for l2.

  Args:
    norm: a name in attacks.BALLS.
    chain: the process; its shape alone counts.
    keys: one an example, [b].
    budget: radii in noise units, [n, b], 0 or more.

  Returns:
    w, [n, b, ...].

  Raises:
    KeyError: norm is not in BALLS.

  Examples:
    >>> chain = rad_jax.trajectory.Chain(
    ...   eps_fn=lambda x_t, level: jnp.tanh(x_t),
    ...   levels=rad_jax.schedules.flow(end=0.1).grid(3),
    ...   update=rad_jax.samplers.ddim(),
    ...   x_t=jnp.ones((2, 1)),
    ...   keys=jax.random.split(jax.random.key(0), 2),
    ... )
    >>> keys = jax.random.split(jax.random.key(1), 2)
    >>> budget = rad_jax.trajectory.budget_at(jnp.full(2, 0.1), [1], 3)
    >>> w = rad_jax.trajectory.random("linf", chain, keys, budget)
    >>> print(jnp.abs(w[:, :, 0]))
    [[0.  0. ]
     [0.1 0.1]
     [0.  0. ]]
  """
  radius = budget.ravel()
  direction = attacks.gaussian(
    _row_keys(keys, len(budget)), jnp.ones_like(radius), chain.x_t.shape[1:]
  )
  rows = attacks.BALLS[norm].ascent(direction, radius)
  return rows.reshape(len(budget), *chain.x_t.shape)


def mean_gradient(
  value: Callable[[Array, Any], Scalars], draws: Any
) -> Callable[[Array], Array]:
  """The gradient of a mean over draws, one draw after the other in memory.

  Args:
    value: (w, draw) -> [b]; example i's may depend on its own part of w alone.
    draws: a pytree of arrays [m, ...], of which a draw is one row.

  Returns:
    w -> the mean over draws of d value / dw, in w's shape.

  Examples:
    >>> value = lambda w, draw: draw * w**2
    >>> draws = jnp.array([1.0, 3.0])
    >>> print(rad_jax.trajectory.mean_gradient(value, draws)(jnp.array([0.5])))
    [2.]
  """
  count = len(jax.tree.leaves(draws)[0])

  def gradient(w):
    def add(total, draw):
      return total + jax.grad(lambda w: jnp.sum(value(w, draw)))(w), None

    return jax.lax.scan(add, jnp.zeros_like(w), draws)[0] / count

  return gradient


def evaluations(num_levels: int, per_step: int = 1) -> int:
  """Evaluations of the network in one reverse process.

  Args:
    num_levels: n.
    per_step: evaluations in one step of the update: 2 for Heun's, else 1. The
      last level takes one.

  Examples:
    >>> rad_jax.trajectory.evaluations(50)
    50
    >>> rad_jax.trajectory.evaluations(50, per_step=2)
    99
  """
  return per_step * (num_levels - 1) + 1


def joint_queries(
  attack: Attack,
  num_evaluations: int,
  num_draws: int = 1,
  own_objective: bool = False,
) -> Queries:
  """What `joint` takes; the sample itself takes num_evaluations more.

  Args:
    attack: its num_steps.
    num_evaluations: of one process, from `evaluations`.
    num_draws: m.
    own_objective: whether an objective is given, which needs no unperturbed
      sample.

  Examples:
    >>> attack = rad_jax.attacks.ATTACKS["pgd"]
    >>> rad_jax.trajectory.joint_queries(attack, num_evaluations=50)
    Queries(forward=550, backward=500, recomputed=490)
  """
  passes = attack.num_steps * num_draws * num_evaluations
  clean = 0 if own_objective else num_draws * num_evaluations
  # The last level is outside of the scan.
  again = attack.num_steps * num_draws * (num_evaluations - 1)
  return Queries(clean + passes, passes, again)


def greedy_queries(
  attack: Attack, num_evaluations: int, num_attacked: int
) -> Queries:
  """What `greedy` takes; the sample itself takes num_evaluations more.

  Args:
    attack: its num_steps.
    num_evaluations: of one process, from `evaluations`.
    num_attacked: levels at which some example's budget is not 0.

  Examples:
    >>> attack = rad_jax.attacks.ATTACKS["pgd"]
    >>> rad_jax.trajectory.greedy_queries(attack, 50, num_attacked=10)
    Queries(forward=160, backward=100, recomputed=0)
  """
  passes = num_attacked * attack.num_steps
  return Queries(num_evaluations + num_attacked + passes, passes, 0)


def _reverse(
  chain: Chain, w: Trajectory | None = None, remat: bool = False
) -> Batch:
  return samplers.reverse(*chain, w=w, remat=remat)


def _clean_estimate(chain: Chain, level: Level, x_t: Batch) -> Batch:
  x_0_hat = process.eps_to_x_0(level, x_t, chain.eps_fn(x_t, level))
  if chain.clip_x_0 is None:
    return x_0_hat
  return jnp.clip(x_0_hat, -chain.clip_x_0, chain.clip_x_0)


def _fold_in(keys: Keys, n: Any) -> Keys:
  return jax.vmap(lambda key: jax.random.fold_in(key, n))(keys)


def _row_keys(keys: Keys, num_levels: int) -> Key[Array, " rows"]:
  """A key for each level and example, level by level."""
  folded = jax.vmap(lambda n: _fold_in(keys, n))(jnp.arange(num_levels))
  return folded.reshape(-1)
