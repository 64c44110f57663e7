"""The training step: one pure function of (state, batch), compiled once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from rad_jax.diffusion import process
from rad_jax.diffusion.schedules import Schedule
from rad_jax.models.network import Network
from rad_jax.robustness import objectives
from rad_jax.training.state import State

Metrics = dict[str, Float[Array, ""]]
Batch = dict[str, Array]
Step = Callable[[State, Batch], tuple[State, Metrics]]


class Regulariser(NamedTuple):
  """How an objective is applied.

  perturbation: "none", "uniform" or "fgsm".
  radius: sigma_t [b] -> r [b], in noise units.
  lambda_t: r [b] -> lambda_t [b].
  step_size: of FGSM, in units of r.
  stop_gradient: no gradient through the regulariser's target.
  """

  perturbation: str
  radius: Callable[[Array], Array]
  lambda_t: Callable[[Array], Array]
  step_size: float = 1.0
  stop_gradient: bool = False


def example_keys(key: PRNGKeyArray, batch_size: int) -> Key[Array, " b"]:
  """One key for each place in the global batch, [b]."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))


def ema_decay_at(step: Array, decay: float) -> Array:
  """min(decay, (1 + n) / (10 + n)): a young average forgets its start."""
  return jnp.minimum(decay, (1 + step) / (10 + step))


def make_gradients(
  network: Network,
  schedule: Schedule,
  loss: Callable,
  regulariser: Regulariser,
) -> Callable[[PyTree, Array, PRNGKeyArray], tuple[PyTree, tuple]]:
  """Builds (params, x_0 [b, ...], key) -> (gradients, (loss, terms, w)).

  t, eps and w of each example come from (key, its place) alone. The dropout
  mask is the same in all passes. The clean forward pass serves attack and loss:
  8 passes' worth with FGSM, 6 with random w, 3 without either. The attack
  stands inside the differentiated loss for this: outside, XLA does not merge
  the two clean passes of a U-Net, and a step costs 9.
  """

  def gradients(params, x_0, key):
    t_key, eps_key, w_key, dropout_key = jax.random.split(key, 4)
    b, shape = x_0.shape[0], x_0.shape[1:]
    t = jax.vmap(
      lambda k: jax.random.randint(k, (), 0, schedule.num_timesteps)
    )(example_keys(t_key, b))
    eps = jax.vmap(lambda k: jax.random.normal(k, shape))(
      example_keys(eps_key, b)
    )
    noised = objectives.Noised(
      x_t=process.diffuse(schedule, x_0, t, eps),
      eps=eps,
      sigma_t=schedule.sigma[t],
    )
    radius = regulariser.radius(noised.sigma_t)

    def eps_fn_of(params):
      return lambda x_t: network.apply(params, x_t, t, dropout_key)

    def mean_loss(params):
      eps_fn = eps_fn_of(params)
      eps_hat = eps_fn(noised.x_t)
      frozen_params, frozen_eps_hat = jax.lax.stop_gradient((params, eps_hat))
      w = objectives.perturbation(
        regulariser.perturbation,
        eps_fn_of(frozen_params),
        frozen_eps_hat,
        noised,
        example_keys(w_key, b),
        radius,
        regulariser.step_size,
      )
      values, terms = loss(
        eps_fn,
        eps_hat,
        noised,
        w,
        regulariser.lambda_t(radius),
        regulariser.stop_gradient,
      )
      return jnp.mean(values), (terms, w)

    (value, (terms, w)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(
      params
    )
    return gradient, (value, terms, w)

  return gradients


def make_train_step(
  network: Network,
  schedule: Schedule,
  loss: Callable,
  regulariser: Regulariser,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  prepare: Callable[[Batch, Key[Array, " b"]], Array] = lambda batch, _: batch[
    "x_0"
  ],
) -> Step:
  """Builds the step. Jit it with the state donated.

  Args:
    network: the noise predictor.
    schedule: the noise schedule.
    loss: an objective's loss (robustness.objectives).
    regulariser: how the loss is applied.
    optimizer: any optax transformation.
    ema_decay: decay of the parameters' moving average, in [0, 1).
    prepare: (batch, keys [b]) -> x_0 [b, ...], the training examples as the
      network shall see them: scaled, corrupted, flipped. The keys are fresh
      at each step.

  Returns:
    (state, batch) -> (state, metrics); the metrics are scalars on the device.
  """
  gradients = make_gradients(network, schedule, loss, regulariser)

  def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    prepare_key, loss_key = jax.random.split(
      jax.random.fold_in(state.key, state.step)
    )
    batch_size = batch["x_0"].shape[0]
    x_0 = prepare(batch, example_keys(prepare_key, batch_size))
    gradient, (value, terms, w) = gradients(state.params, x_0, loss_key)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    ema_params = optax.incremental_update(
      params, state.ema_params, 1 - ema_decay_at(state.step, ema_decay)
    )
    metrics = {
      "loss": value,
      "grad_norm": optax.global_norm(gradient),
      "param_norm": optax.global_norm(params),
      "w_linf": jnp.max(jnp.abs(w)),
      **{name: jnp.mean(term) for name, term in terms.items()},
    }
    state = state._replace(
      step=state.step + 1,
      params=params,
      ema_params=ema_params,
      opt_state=opt_state,
    )
    return state, metrics

  return train_step
