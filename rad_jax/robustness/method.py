"""The paper's algorithm on a batch: draw, attack, the loss of each example.

The paper is "Why Adversarially Train Diffusion Models?" (Briglia et al., arXiv
2505.21742); its objective is one line of objectives.OBJECTIVES.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from rad_jax.diffusion import parametrisation
from rad_jax.diffusion import process as processes
from rad_jax.diffusion.process import Level, Scalars
from rad_jax.diffusion.schedules import Process
from rad_jax.models.network import Network
from rad_jax.robustness import attacks, objectives
from rad_jax.robustness import radius as radii
from rad_jax.robustness.noising import Noised
from rad_jax.robustness.objectives import Objective

# (params, x_t, level, dropout_key=None) -> eps_hat
Predictor = Callable[..., Array]


def as_predictor(
  network: Network | Callable[..., Array],
  prediction: parametrisation.Prediction = parametrisation.eps,
) -> Predictor:
  """A Network, or any (params, x_t, t [b]) -> `prediction`, predicting noise.

  Examples:
    Any function will do, here one that estimates x_0 by 0:

    >>> predictor = rad_jax.as_predictor(
    ...   lambda params, x_t, t: jnp.zeros_like(x_t),
    ...   rad_jax.parametrisation.x_0,
    ... )
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> print(predictor(None, jnp.ones((3, 1)), level)[:, 0])
    [ 1.111  2.    10.   ]
  """

  def predict(params, x_t, level, dropout_key=None):
    def output_fn(x, t):
      if isinstance(network, Network):
        return network.apply(params, x, t, dropout_key)
      return network(params, x, t)

    return parametrisation.eps_fn(output_fn, prediction)(x_t, level)

  return predict


class Method(NamedTuple):
  """What is minimised; beyond three fields, the paper's method by default."""

  objective: Objective  # a line of objectives.OBJECTIVES
  predictor: Predictor  # by `as_predictor`
  process: Process
  # sigma_t [b] -> r [b], noise units.
  radius: Callable[[Array], Array] = radii.radius
  # r [b] -> lambda_t [b].
  lambda_t: Callable[[Array], Array] = partial(radii.constant_lambda, 0.3)
  # Of the whole loss.
  weight: Callable[[Level], Array] = parametrisation.eps_weight
  # (goal, keys [b], r [b], shape) -> w; None: the objective's own attack.
  perturb: Callable[..., Array] | None = None
  goal: str = "J"  # what the attack raises, a name in objectives.GOALS
  attacked: Predictor | None = None  # if not the predictor
  stop_gradient: bool = False  # of the regulariser's target
  influence: float = 0.0  # of `objectives.bounded`


class Draws(NamedTuple):
  """A batch after all that is random in it."""

  level: Level
  noised: Noised
  radius: Array
  lambda_t: Array
  w_keys: Array
  dropout_key: PRNGKeyArray


def without_regulariser(method: Method) -> Method:
  """The method in steps, or for examples, that go without its perturbation."""
  plain = method.objective._replace(
    clean=True, target=None, attack="none", linear=False
  )
  return method._replace(objective=plain)


def example_keys(key: PRNGKeyArray, batch_size: int) -> Key[Array, " b"]:
  """One key for each place in the global batch, [b], whatever its size."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))


def draw(
  method: Method,
  x_0: Float[Array, "b ..."],
  sigma_c: Scalars,
  key: PRNGKeyArray,
  ramp: Array | float = 1.0,
) -> Draws:
  """Level, noise and keys of each example, from (key, its place) alone.

  sigma_c is the known noise of x_0, in its units; ramp is a factor of lambda_t.
  """
  b, shape = x_0.shape[0], x_0.shape[1:]
  # The fourth is no longer used; with five, all draws stay what they were.
  t_key, eps_key, w_key, _, dropout_key = jax.random.split(key, 5)
  level = method.process.draw(example_keys(t_key, b))
  z = jax.vmap(lambda k: jax.random.normal(k, shape))(example_keys(eps_key, b))
  radius = method.radius(processes.unit_sigma(level))
  noised = method.objective.noise(x_0, sigma_c, level, z)
  lambda_t, w_keys = ramp * method.lambda_t(radius), example_keys(w_key, b)
  return Draws(level, noised, radius, lambda_t, w_keys, dropout_key)


def find_w(
  method: Method,
  params: PyTree,
  eps_hat: Float[Array, " b *shape"],
  draws: Draws,
) -> Float[Array, " b *shape"]:
  """The perturbation w of a batch, against the network as it stands."""
  params, eps_hat = jax.lax.stop_gradient((params, eps_hat))
  predictor = method.attacked or method.predictor
  goal = objectives.goal(
    method.goal,
    method.objective,
    lambda x_t: predictor(params, x_t, draws.level, draws.dropout_key),
    eps_hat,
    draws.noised,
  )
  perturb = method.perturb or attacks.by_name(method.objective.attack)
  return perturb(goal, draws.w_keys, draws.radius, eps_hat.shape[1:])


def losses(
  method: Method, params: PyTree, draws: Draws
) -> tuple[Scalars, dict[str, Scalars]]:
  """The weighted loss of each example [b], and its terms.

  All passes share a dropout mask. The attack stands inside the differentiated
  loss to share its clean pass: XLA would not merge a U-Net's two.
  """
  level, dropout_key = draws.level, draws.dropout_key
  eps_fn = lambda x_t: method.predictor(params, x_t, level, dropout_key)
  eps_hat, w = eps_fn(draws.noised.x_t), None
  if method.objective.target is not None:
    w = find_w(method, params, eps_hat, draws)
  given = method.objective, eps_fn, eps_hat, draws.noised, w, draws.lambda_t
  values, terms = objectives.loss(
    *given, method.stop_gradient, method.influence
  )
  if w is not None:
    terms["w_linf"] = jnp.max(jnp.abs(w), axis=tuple(range(1, w.ndim)))
  return method.weight(draws.level) * values, terms


def compare_attacks(
  method: Method, params: PyTree, draws: Draws, strong: attacks.Attack
) -> dict[str, Float[Array, ""]]:
  """How much more a strong attack finds than the method's own, from one start.

  "pgd_gain", a ratio of mean goals, grows if the network evades its own attack,
  before samples show it; "regulariser_pgd" is the residual at the strong w.
  """
  level, dropout_key = draws.level, draws.dropout_key
  eps_fn = lambda x_t: method.predictor(params, x_t, level, dropout_key)
  eps_hat = eps_fn(draws.noised.x_t)
  perturb = partial(attacks.maximise, strong)
  strongest = method._replace(attacked=None, perturb=perturb)
  goal, residual = (
    objectives.goal(name, method.objective, eps_fn, eps_hat, draws.noised)
    for name in (method.goal, "residual")
  )
  elements = eps_hat.size
  weak = jnp.sum(goal(find_w(method, params, eps_hat, draws)))
  same_start = draws._replace(w_keys=jax.random.clone(draws.w_keys))
  w = find_w(strongest, params, eps_hat, same_start)
  found = jnp.sum(goal(w))
  return {
    "goal_attack": weak / elements,
    "goal_pgd": found / elements,
    # A network that does not move at all, as at its start, has gain 1.
    "pgd_gain": (found + 1e-9 * elements) / (weak + 1e-9 * elements),
    "regulariser_pgd": jnp.sum(residual(w)) / elements,
  }
