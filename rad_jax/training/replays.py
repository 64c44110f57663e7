"""Free adversarial training: several updates on each batch (a baseline).

w climbs by the gradient of the update's own backward pass (Shafahi et al. 2019,
arXiv 1904.12843; AT_Diff, Wang et al. 2025).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rad_jax.data.batches import Batch
from rad_jax.data.prepare import Prepare
from rad_jax.robustness import attacks
from rad_jax.robustness.method import Method
from rad_jax.training import step as steps
from rad_jax.training.state import State
from rad_jax.training.step import Metrics, Step


def make_replay_step(
  method: Method,
  attack: attacks.Attack,
  replays: int,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  prepare: Prepare = steps.as_it_is,
  ramp: Callable[[Array], Array | float] = lambda step: 1.0,
  regularised: tuple[int, int] = (1, 1),
  skip_non_finite: bool = False,
) -> Step:
  """steps.make_train_step with `replays` updates; its metrics are their means.

  The method's own `perturb` and `goal` are not used: w starts and steps by the
  numbers of `attack`, and raises the loss. The optimiser counts updates.
  """

  def loss_at(params, w, parts):
    fixed = method._replace(perturb=lambda *_: w)
    return steps.mean_loss(fixed, params, parts)

  differentiated = jax.value_and_grad(loss_at, (0, 1), has_aux=True)

  def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    draws = steps.draw_batch(method, state, batch, prepare, ramp(state.step))
    parts = steps.split(draws, *regularised)
    radius, shape = parts[0].radius, parts[0].noised.x_t.shape[1:]

    def one(carry: tuple[State, Array], i: Array):
      state, w = carry
      value, (gradient, by_w) = differentiated(state.params, w, parts)
      count = replays * state.step + i
      updated, metrics = steps.update(
        optimizer, ema_decay, skip_non_finite, state, count, value, gradient
      )
      return (updated, attacks.step(attack, w, by_w, radius)), metrics

    w_0 = attacks.start(attack, parts[0].w_keys, radius, shape)
    (state, _), metrics = jax.lax.scan(one, (state, w_0), jnp.arange(replays))
    metrics = jax.tree.map(jnp.mean, metrics)
    return state._replace(step=state.step + 1), metrics

  return train_step
