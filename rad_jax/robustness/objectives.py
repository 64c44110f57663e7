"""Training objectives: what the network is asked to do around x_t.

With x_t' = x_t + sigma w, and |.|^2 a mean over elements, as in DDPM's code:

  clean |eps_hat - eps|^2 + lambda_t |eps_theta(x_t') - target|^2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rad_jax.diffusion.process import Batch, Scalars, shifted
from rad_jax.robustness import noising
from rad_jax.robustness.noising import Noised

EpsFn = Callable[[Batch], Batch]
# (eps_hat, eps, w) -> the noise to predict at x_t'.
Target = Callable[[Batch, Batch, Batch], Batch]


def squared_error(a: Batch, b: Batch) -> Scalars:
  """Mean of (a - b)^2 over all axes but the first."""
  return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def invariant(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps_hat: invariance, as classifiers' adversarial training asks for."""
  return eps_hat


def equivariant(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps_hat + w: equivariance, the paper's. x_0_hat stays where it is."""
  return eps_hat + w


# At w = 0 they are met, and their error has no slope: an attack cannot start.
AT_REST = (invariant, equivariant)


def true_noise(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps + w: the true noise of x_t' (AT_Diff, Wang et al. 2025)."""
  return eps + w


def unshifted_noise(eps_hat: Batch, eps: Batch, w: Batch) -> Batch:
  """eps: DDPM-IP's, which perturbs the input alone (Ning et al. 2023)."""
  return eps


class Objective(NamedTuple):
  """One line of OBJECTIVES."""

  noise: Callable[..., Noised]  # of robustness.noising
  clean: bool
  target: Target | None  # what to predict at x_t'; None: no such branch
  attack: str  # default: "none", "gaussian", or a name in attacks.ATTACKS
  linear: bool = False  # eps_theta(x_t') by its slope at x_t


OBJECTIVES = {
  "ddpm": Objective(noising.blind, True, None, "none"),
  "invariance": Objective(noising.blind, True, invariant, "fgsm"),
  "robust_ran": Objective(noising.blind, True, equivariant, "uniform"),
  "robust_adv": Objective(noising.blind, True, equivariant, "fgsm"),
  # |J v - v|^2 with random v, J the network's Jacobian: no step is too long.
  "jacobian": Objective(
    noising.blind, True, equivariant, "uniform", linear=True
  ),
  "true_noise": Objective(noising.blind, True, true_noise, "fgsm"),
  "true_noise_only": Objective(noising.blind, False, true_noise, "fgsm"),
  "input_perturbation": Objective(
    noising.blind, False, unshifted_noise, "gaussian"
  ),
  "noise_aware": Objective(noising.aware, True, None, "none"),
  "noise_aware_ran": Objective(noising.aware, True, equivariant, "uniform"),
  "noise_aware_adv": Objective(noising.aware, True, equivariant, "fgsm"),
}


def loss(
  objective: Objective,
  eps_fn: EpsFn,
  eps_hat: Batch,
  noised: Noised,
  w: Batch | None,
  lambda_t: Scalars,
  stop_gradient: bool = False,
  influence: float = 0.0,
) -> tuple[Scalars, dict[str, Scalars]]:
  """The objective's value for each example, in noise units, and its terms.

  w is None without a target. The paper's gradient goes through the target.

  Examples:
    The perfect denoiser of one point is equivariant: its robust loss is 0.
    Asked to be invariant, it pays for all of w:

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
    error = bounded(squared_error(eps_hat, noised.eps), influence)
    terms["dsm"] = noised.weight * error
  if objective.target is None or w is None:
    return terms["dsm"], terms
  target = objective.target(eps_hat, noised.eps, w)
  if stop_gradient:
    target = jax.lax.stop_gradient(target)
  there = moved(objective, eps_fn, eps_hat, noised, w)
  terms["regulariser"] = squared_error(there, target)
  if not objective.clean:
    return terms["regulariser"], terms
  return terms["dsm"] + lambda_t * terms["regulariser"], terms


def moved(
  objective: Objective,
  eps_fn: EpsFn,
  eps_hat: Batch,
  noised: Noised,
  w: Batch,
) -> Batch:
  """eps_theta(x_t + sigma w), to first order in w if objective.linear."""
  if not objective.linear:
    return eps_fn(shifted(noised.x_t, noised.sigma, w))
  step = shifted(jnp.zeros_like(w), noised.sigma, w)
  return eps_hat + jax.jvp(eps_fn, (noised.x_t,), (step,))[1]


def bounded(error: Scalars, influence: float) -> Scalars:
  """(1 - exp(-influence error)) / influence; the error itself at 0.

  A bounded loss: the weight exp(-influence error) of an example's gradient goes
  to 0 where its error is large. It is the shape that the Hellinger distance
  gives in Li & Dong 2026 (arXiv 2606.22521); the scale is a knob here.
  """
  if influence == 0:
    return error
  return -jnp.expm1(-influence * error) / influence


# What eps_theta(x_t') is driven away from: objective -> target. "J" is the
# paper's movement, whose gradient is zero at w = 0; "residual" the perturbed
# branch's own error, J without a target; "denoising" the true loss at x_t'.
GOALS: dict[str, Callable[[Objective], Target]] = {
  "J": lambda objective: invariant,
  "residual": lambda objective: objective.target or invariant,
  "denoising": lambda objective: true_noise,
}


def goal(
  name: str,
  objective: Objective,
  eps_fn: EpsFn,
  eps_hat: Batch,
  noised: Noised,
) -> Callable[[Batch], Scalars]:
  """The goal `name` of GOALS: w -> [b], a sum over an example's elements."""
  target = GOALS[name](objective)

  def value(w: Batch) -> Scalars:
    there = moved(objective, eps_fn, eps_hat, noised, w)
    error = there - target(eps_hat, noised.eps, w)
    return jnp.sum(jnp.square(error), axis=tuple(range(1, w.ndim)))

  return value
