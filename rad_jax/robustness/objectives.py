"""Training objectives: what the network is asked to do around x_t.

An objective is one pure function

  (eps_fn, eps_hat, noised, w, lambda_t, stop_gradient) -> (loss [b], terms)

and the perturbation it is given, under a name in OBJECTIVES. To add one,
write the function and add its line there. eps_hat = eps_fn(x_t) is handed in
because the attack needs it too, and it is computed once. `terms` holds the
parts of the loss, each [b], for the metrics; `stop_gradient` asks that no
gradient reach the network through the regulariser's target.

|.|^2 is the mean over an example's elements, as DDPM's code has it: against
the sum it scales loss and gradient alike, and lambda keeps its meaning.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rad_jax.diffusion.schedules import per_example
from rad_jax.robustness import perturbations

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]
EpsFn = Callable[[Batch], Batch]
Terms = dict[str, Scalars]


class Noised(NamedTuple):
  """A noised batch: x_t = sqrt(alpha_bar_t) x_0 + sigma_t eps."""

  x_t: Batch
  eps: Batch
  sigma_t: Scalars


def perturbed(noised: Noised, w: Batch) -> Batch:
  """x_t' = x_t + sigma_t w: the state whose noise is eps + w.

  w is in noise units and delta = sigma_t w in state units. Adding w itself to
  x_t is another method, and a harmful one. The state is not clipped: x_t has
  no range.
  """
  return noised.x_t + per_example(noised.sigma_t, w.ndim) * w


def squared_error(a: Batch, b: Batch) -> Scalars:
  """Mean of (a - b)^2 over all axes but the first."""
  return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def ddpm(
  eps_fn, eps_hat, noised, w, lambda_t, stop_gradient
) -> tuple[Scalars, Terms]:
  """|eps_hat - eps|^2 (Ho et al. 2020, Eq. 14)."""
  del eps_fn, w, lambda_t, stop_gradient
  dsm = squared_error(eps_hat, noised.eps)
  return dsm, {"dsm": dsm}


def _regularised(eps_fn, eps_hat, target, noised, w, lambda_t, stop_gradient):
  if stop_gradient:
    target = jax.lax.stop_gradient(target)
  dsm = squared_error(eps_hat, noised.eps)
  regulariser = squared_error(eps_fn(perturbed(noised, w)), target)
  loss = dsm + lambda_t * regulariser
  return loss, {"dsm": dsm, "regulariser": regulariser}


def invariance(
  eps_fn, eps_hat, noised, w, lambda_t, stop_gradient
) -> tuple[Scalars, Terms]:
  """ddpm + lambda_t |eps_theta(x_t') - eps_hat|^2: the one that must fail."""
  return _regularised(
    eps_fn, eps_hat, eps_hat, noised, w, lambda_t, stop_gradient
  )


def equivariance(
  eps_fn, eps_hat, noised, w, lambda_t, stop_gradient
) -> tuple[Scalars, Terms]:
  """ddpm + lambda_t |eps_theta(x_t') - (eps_hat + w)|^2: the paper's.

  The target carries gradients as the formula is printed; the paper does not
  say otherwise.
  """
  return _regularised(
    eps_fn, eps_hat, eps_hat + w, noised, w, lambda_t, stop_gradient
  )


def true_noise(
  eps_fn, eps_hat, noised, w, lambda_t, stop_gradient
) -> tuple[Scalars, Terms]:
  """ddpm + lambda_t |eps_theta(x_t') - (eps + w)|^2 (AT_Diff, ICLR 2025)."""
  return _regularised(
    eps_fn, eps_hat, noised.eps + w, noised, w, lambda_t, stop_gradient
  )


def true_noise_only(
  eps_fn, eps_hat, noised, w, lambda_t, stop_gradient
) -> tuple[Scalars, Terms]:
  """|eps_theta(x_t') - (eps + w)|^2: true_noise without its clean branch."""
  del eps_hat, lambda_t, stop_gradient
  regulariser = squared_error(eps_fn(perturbed(noised, w)), noised.eps + w)
  return regulariser, {"regulariser": regulariser}


class Objective(NamedTuple):
  """A loss and the perturbation it is given: "none", "uniform" or "fgsm"."""

  loss: Callable[..., tuple[Scalars, Terms]]
  perturbation: str


OBJECTIVES = {
  "ddpm": Objective(ddpm, "none"),
  "invariance": Objective(invariance, "fgsm"),
  "robust_ran": Objective(equivariance, "uniform"),
  "robust_adv": Objective(equivariance, "fgsm"),
  "true_noise": Objective(true_noise, "fgsm"),
  "true_noise_only": Objective(true_noise_only, "fgsm"),
}


def perturbation(
  name: str,
  eps_fn: EpsFn,
  eps_hat: Batch,
  noised: Noised,
  keys: Array,
  radius: Scalars,
  step_size: float,
) -> Batch:
  """The perturbation w of a name, against the network as it stands.

  FGSM climbs J(w) = |eps_theta(x_t + sigma_t w) - eps_hat|^2, a sum over the
  elements, and differentiates by w only. Hand it parameters and eps_hat under
  stop-gradient, and no weight gradient is built.

  Args:
    name: "none" (zeros), "uniform", or "fgsm" (from a uniform start).
    eps_fn: the noise predictor with its parameters, t and dropout key bound.
    eps_hat: eps_fn(x_t).
    noised: the batch.
    keys: one key an example, [b].
    radius: r(t) of each example in noise units, [b].
    step_size: of FGSM, in units of the radius.

  Returns:
    w, in the shape of x_t.
  """
  if name == "none":
    return jnp.zeros_like(noised.x_t)
  w_0 = perturbations.uniform(keys, radius, noised.x_t.shape[1:])
  if name == "uniform":
    return w_0

  def movement(w: Batch) -> Scalars:
    difference = eps_fn(perturbed(noised, w)) - eps_hat
    return jnp.sum(jnp.square(difference), axis=tuple(range(1, w.ndim)))

  return perturbations.fgsm(movement, w_0, radius, step_size)
