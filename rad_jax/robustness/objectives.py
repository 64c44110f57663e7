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

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]
EpsFn = Callable[[Batch], Batch]
# (eps_hat, eps, w) -> the noise to predict at x_t'.
Target = Callable[[Batch, Batch, Batch], Batch]


def perturbed(noised: Noised, w: Batch) -> Batch:
  """x_t' = x_t + sigma w: the state whose noise is eps + w.

  w is in noise units and delta = sigma w in state units. Adding w itself to
  x_t is another method, and a harmful one. The state is not clipped: x_t has
  no range.
  """
  return noised.x_t + per_example(noised.sigma, w.ndim) * w


def squared_error(a: Batch, b: Batch) -> Scalars:
  """Mean of (a - b)^2 over all axes but the first."""
  return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def unmoved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps_hat: invariance, as classifiers' adversarial training asks for."""
  del eps, w
  return eps_hat


def moved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps_hat + w: equivariance, the paper's. x_0_hat stays where it is."""
  del eps
  return eps_hat + w


def true_moved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps + w: the true noise of x_t' (AT_Diff, Wang et al. 2025)."""
  del eps_hat
  return eps + w


def true_unmoved(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps: DDPM-IP's, which shakes the input alone (Ning et al. 2023)."""
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
  """What is left of an objective in steps that go without its perturbation."""
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
