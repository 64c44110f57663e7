"""Training objectives: what the network is asked to do around x_t.

An objective is one line of OBJECTIVES: how examples are noised, whether the
network is fitted to their noise (the clean branch), what it shall predict at
the perturbed state (the target), and which attack finds that state:

  clean |eps_hat - eps|^2 + lambda_t |eps_theta(x_t') - target|^2.

All of it is in noise units, whatever the network predicts (see
diffusion.parametrisation). To add an objective, write its target and its line.

|.|^2 is the mean over an example's elements, as DDPM's code has it: against
the sum it scales loss and gradient alike, and lambda keeps its meaning.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rad_jax.diffusion.process import per_example
from rad_jax.robustness import noising
from rad_jax.robustness.noising import Noised

Batch = Float[Array, " b *shape"]
Scalars = Float[Array, " b"]
EpsFn = Callable[[Batch], Batch]
# (eps_hat, eps, w) -> the noise to predict at x_t'.
Target = Callable[[Batch, Batch, Batch], Batch]


def perturbed(noised: Noised, w: Batch) -> Batch:
  """x_t' = x_t + sigma w: the state whose noise is eps + w.

  w is in noise units and delta = sigma w in state units. Adding w itself to
  x_t is another method, and a harmful one. The state is not clipped: x_t has
  no range.

  Examples:
    The state moves by sigma w, and its noise is eps + w:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)  # sigma 0.9, 0.5, 0.1
    >>> x_0, eps, w = jnp.zeros((3, 1)), jnp.ones((3, 1)), jnp.full((3, 1), 0.2)
    >>> noised = rad_jax.noising.blind(x_0, jnp.zeros(3), level, eps)
    >>> x_t = rad_jax.objectives.perturbed(noised, w)
    >>> eps = rad_jax.process.x_0_to_eps(level, x_t, x_0)
    >>> print(x_t[:, 0], eps[:, 0])
    [1.08 0.6  0.12] [1.2 1.2 1.2]
  """
  return noised.x_t + per_example(noised.sigma, w.ndim) * w


def squared_error(a: Batch, b: Batch) -> Scalars:
  """Mean of (a - b)^2 over all axes but the first.

  Examples:
    >>> a, b = jnp.zeros((2, 2, 2, 3)), jnp.full((2, 2, 2, 3), 0.5)
    >>> print(rad_jax.objectives.squared_error(a, b))
    [0.25 0.25]
  """
  return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def unmoved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps_hat: invariance, as classifiers' adversarial training asks for.

  Examples:
    >>> eps_hat, eps, w = (jnp.full((1, 2), value) for value in (1.0, 0.0, 0.5))
    >>> print(rad_jax.objectives.unmoved(eps_hat, eps, w))
    [[1. 1.]]
  """
  del eps, w
  return eps_hat


def moved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps_hat + w: equivariance, the paper's. x_0_hat stays where it is.

  Examples:
    >>> eps_hat, eps, w = (jnp.full((1, 2), value) for value in (1.0, 0.0, 0.5))
    >>> print(rad_jax.objectives.moved(eps_hat, eps, w))
    [[1.5 1.5]]
  """
  del eps
  return eps_hat + w


def true_moved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps + w: the true noise of x_t' (AT_Diff, Wang et al. 2025).

  Examples:
    >>> eps_hat, eps, w = (jnp.full((1, 2), value) for value in (1.0, 0.0, 0.5))
    >>> print(rad_jax.objectives.true_moved(eps_hat, eps, w))
    [[0.5 0.5]]
  """
  del eps_hat
  return eps + w


def true_unmoved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps: DDPM-IP's, which shakes the input alone (Ning et al. 2023).

  Examples:
    >>> eps_hat, eps, w = (jnp.full((1, 2), value) for value in (1.0, 0.0, 0.5))
    >>> print(rad_jax.objectives.true_unmoved(eps_hat, eps, w))
    [[0. 0.]]
  """
  del eps_hat, w
  return eps


class Objective(NamedTuple):
  """One line of OBJECTIVES.

  noise: how examples are noised (robustness.noising).
  clean: whether there is a clean branch. Without one, the value is the
    target's error alone, with no lambda.
  target: what to predict at x_t'; None for no perturbed branch.
  attack: the default one: "none", "gaussian", or a name in attacks.ATTACKS.
  """

  noise: Callable[..., Noised]
  clean: bool
  target: Target | None
  attack: str


OBJECTIVES = {
  "ddpm": Objective(noising.blind, True, None, "none"),
  "invariance": Objective(noising.blind, True, unmoved, "fgsm"),
  "robust_ran": Objective(noising.blind, True, moved, "uniform"),
  "robust_adv": Objective(noising.blind, True, moved, "fgsm"),
  "true_noise": Objective(noising.blind, True, true_moved, "fgsm"),
  "true_noise_only": Objective(noising.blind, False, true_moved, "fgsm"),
  "input_perturbation": Objective(
    noising.blind, False, true_unmoved, "gaussian"
  ),
  "noise_aware": Objective(noising.aware, True, None, "none"),
  "noise_aware_ran": Objective(noising.aware, True, moved, "uniform"),
  "noise_aware_adv": Objective(noising.aware, True, moved, "fgsm"),
}


def without_regulariser(objective: Objective) -> Objective:
  """What is left of an objective in steps that go without its perturbation.

  Examples:
    >>> OBJECTIVES = rad_jax.objectives.OBJECTIVES
    >>> plain = rad_jax.objectives.without_regulariser(OBJECTIVES["robust_adv"])
    >>> plain == OBJECTIVES["ddpm"]
    True
  """
  return Objective(objective.noise, True, None, "none")


def loss(
  objective: Objective,
  eps_fn: EpsFn,
  eps_hat: Batch,
  noised: Noised,
  w: Batch | None,
  lambda_t: Scalars,
  stop_gradient: bool = False,
) -> tuple[Scalars, dict[str, Scalars]]:
  """The objective's value for each example, in noise units.

  Args:
    objective: from OBJECTIVES.
    eps_fn: the noise predictor x_t -> eps_hat, with all else bound.
    eps_hat: eps_fn(x_t): handed in because the attack needs it too.
    noised: the batch.
    w: the perturbation, in noise units; None if the objective has no target.
    lambda_t: weight of the perturbed branch, [b].
    stop_gradient: no gradient reaches the network through the target. The
      paper prints the formula without.

  Returns:
    The value [b], and its terms, "dsm" and "regulariser", each [b].

  Examples:
    The perfect denoiser of one point is equivariant: its robust loss is 0.
    Asked to be invariant, it pays for all of w:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)  # sigma 0.9, 0.5, 0.1
    >>> x_0, eps, w = jnp.zeros((3, 1)), jnp.ones((3, 1)), jnp.full((3, 1), 0.2)
    >>> noised = rad_jax.noising.blind(x_0, jnp.zeros(3), level, eps)
    >>> eps_fn = lambda x_t: x_t / level.sigma[:, None]
    >>> for name in ("robust_adv", "invariance"):
    ...   value, _ = rad_jax.objectives.loss(
    ...     rad_jax.objectives.OBJECTIVES[name],
    ...     eps_fn, eps_fn(noised.x_t), noised, w, lambda_t=jnp.ones(3),
    ...   )
    ...   print(name, value)
    robust_adv [0. 0. 0.]
    invariance [0.04 0.04 0.04]
  """
  terms = {}
  if objective.clean:
    terms["dsm"] = noised.weight * squared_error(eps_hat, noised.eps)
  if objective.target is None or w is None:
    return terms["dsm"], terms
  target = objective.target(eps_hat, noised.eps, w)
  if stop_gradient:
    target = jax.lax.stop_gradient(target)
  terms["regulariser"] = squared_error(eps_fn(perturbed(noised, w)), target)
  if not objective.clean:
    return terms["regulariser"], terms
  return terms["dsm"] + lambda_t * terms["regulariser"], terms


GOALS = ("J", "residual", "denoising")


def goal(
  name: str,
  objective: Objective,
  eps_fn: EpsFn,
  eps_hat: Batch,
  noised: Noised,
) -> Callable[[Batch], Scalars]:
  """What an attack raises: w -> [b], a sum over an example's elements.

  Hand it parameters and eps_hat under stop-gradient, and no weight gradient
  is built.

  Args:
    name: "J" is the paper's movement |eps_theta(x_t') - eps_hat|^2, whose
      gradient is zero at w = 0; "residual" the perturbed branch's own
      |eps_theta(x_t') - target|^2; "denoising" the true loss at x_t',
      |eps_theta(x_t') - (eps + w)|^2.
    objective: from OBJECTIVES; without a target its residual is J.
    eps_fn, eps_hat, noised: as for `loss`.

  Examples:
    J is 0 where w is, so an attack on it needs a random start:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)  # sigma 0.9, 0.5, 0.1
    >>> x_0, eps, w = jnp.zeros((3, 1)), jnp.ones((3, 1)), jnp.full((3, 1), 0.2)
    >>> noised = rad_jax.noising.blind(x_0, jnp.zeros(3), level, eps)
    >>> eps_fn = lambda x_t: x_t / level.sigma[:, None]
    >>> goal = rad_jax.objectives.goal(
    ...   "J", rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   eps_fn, eps_fn(noised.x_t), noised,
    ... )
    >>> print(goal(w), jax.grad(lambda w: goal(w).sum())(0 * w)[:, 0])
    [0.04 0.04 0.04] [0. 0. 0.]
  """
  targets = {
    "J": unmoved,
    "residual": objective.target or unmoved,
    "denoising": true_moved,
  }
  target = targets[name]

  def value(w: Batch) -> Scalars:
    error = eps_fn(perturbed(noised, w)) - target(eps_hat, noised.eps, w)
    return jnp.sum(jnp.square(error), axis=tuple(range(1, w.ndim)))

  return value
