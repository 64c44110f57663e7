"""The training step: one pure function of (state, batch), compiled once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from rad_jax.data.batches import Batch
from rad_jax.data.prepare import Prepare
from rad_jax.robustness import attacks
from rad_jax.robustness import method as methods
from rad_jax.robustness.method import Draws, Method
from rad_jax.training.state import State

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[State, Batch], tuple[State, Metrics]]
# Regularised examples, and the others, if there are any.
Parts = tuple[Draws, Draws | None]


def as_it_is(batch: Batch, keys: Key[Array, " b"]) -> tuple[Array, Array]:
  """The examples as the batch has them, without known noise."""
  del keys
  return batch["x_0"], jnp.zeros(len(batch["x_0"]))


def make_train_step(
  method: Method,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  prepare: Prepare = as_it_is,
  ramp: Callable[[Array], Array | float] = lambda step: 1.0,
  regularised: tuple[int, int] = (1, 1),
  micro_batches: int = 1,
  skip_non_finite: bool = False,
) -> Step:
  """Builds (state, batch) -> (state, metrics). Jit it with the state donated.

  Args:
    method, optimizer: what is minimised, and by any optax transformation.
    ema_decay: of the parameters' moving average, in [0, 1).
    prepare: scales, corrupts and flips a batch; its keys are fresh each step.
    ramp: step -> factor of lambda_t, for warm-up.
    regularised: (n, m): the first n of every m examples are regularised.
    micro_batches: pieces in turn, for less memory, each with its dropout mask.
    skip_non_finite: a step whose loss or gradient is not finite changes nothing
      and has "skipped" 1. (optax.apply_if_finite forgets loss and average.)
  """
  differentiated = jax.value_and_grad(partial(mean_loss, method), has_aux=True)
  if micro_batches > 1:
    differentiated = in_pieces(differentiated, micro_batches)

  def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    draws = draw_batch(method, state, batch, prepare, ramp(state.step))
    value, gradient = differentiated(state.params, split(draws, *regularised))
    state, metrics = update(
      optimizer, ema_decay, skip_non_finite, state, state.step, value, gradient
    )
    return state._replace(step=state.step + 1), metrics

  return train_step


def draw_batch(
  method: Method,
  state: State,
  batch: Batch,
  prepare: Prepare,
  ramp: Array | float = 1.0,
) -> Draws:
  """The batch, prepared and noised with the randomness of the state's step."""
  prepare_key, loss_key = jax.random.split(
    jax.random.fold_in(state.key, state.step)
  )
  keys = methods.example_keys(prepare_key, len(batch["x_0"]))
  return methods.draw(method, *prepare(batch, keys), loss_key, ramp)


def mean_loss(
  method: Method, params: PyTree, parts: Parts
) -> tuple[Array, Metrics]:
  """The one mean over the batch, and its terms' means; "w_linf" is a maximum.

  "dsm_plain" is the clean branch of the examples without regulariser.
  """
  regularised, rest = parts
  values, terms = methods.losses(method, params, regularised)
  total, count = jnp.sum(values), len(values)
  found = _over_examples(terms)
  if rest is not None:
    plain = methods.without_regulariser(method)
    values, terms = methods.losses(plain, params, rest)
    total, count = total + jnp.sum(values), count + len(values)
    found["dsm_plain"] = jnp.mean(terms["dsm"])
  return total / count, found


def _over_examples(terms: dict[str, Array]) -> Metrics:
  over = {"w_linf": jnp.max}
  return {name: over.get(name, jnp.mean)(x) for name, x in terms.items()}


def in_pieces(differentiated: Callable[..., Any], count: int):
  """(params, parts) -> value and gradient, from `count` pieces in turn.

  Piece i has the examples i, i + count, ...: each device keeps its own share.
  (optax.microbatch has no pieces of two sizes and no dropout keys.)
  """

  def cut(draws: Draws) -> Draws:
    take = lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
    return _rows(draws, take, jax.random.split(draws.dropout_key, count))

  def value_and_grad(params: PyTree, parts: Parts):
    def add(total: PyTree, piece: Parts):
      value, gradient = differentiated(params, piece)
      return jax.tree.map(jnp.add, total, gradient), value

    zeros = jax.tree.map(jnp.zeros_like, params)
    pieces = cut(parts[0]), None if parts[1] is None else cut(parts[1])
    total, (values, terms) = jax.lax.scan(add, zeros, pieces)
    gradient = jax.tree.map(lambda x: x / count, total)
    return (jnp.mean(values), _over_examples(terms)), gradient

  return value_and_grad


def split(draws: Draws, n: int, m: int) -> Parts:
  """The first n of every m examples, and the rest: devices keep their own."""
  if n == m:
    return draws, None

  def part(rows: slice, dropout_key: PRNGKeyArray) -> Draws:
    def take(x):
      grouped = x.reshape(-1, m, *x.shape[1:])[:, rows]
      return grouped.reshape(-1, *x.shape[1:])

    return _rows(draws, take, dropout_key)

  keys = jax.random.split(draws.dropout_key)
  return part(slice(0, n), keys[0]), part(slice(n, m), keys[1])


def _rows(draws: Draws, take: Callable[[Array], Array], dropout_key) -> Draws:
  # JAX's check of reuse takes a rearranged key for a used one.
  w_keys = jax.random.clone(take(jax.random.clone(draws.w_keys)))
  level, noised, radius, lambda_t = jax.tree.map(take, draws[:4])
  return Draws(level, noised, radius, lambda_t, w_keys, dropout_key)


def update(
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  skip_non_finite: bool,
  state: State,
  count: Array,
  value: tuple[Array, Metrics],
  gradient: PyTree,
) -> tuple[State, Metrics]:
  """The state after update number `count` (its step stays), and the metrics."""
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema_params = optax.incremental_update(
    params, state.ema_params, 1 - ema_decay_at(count, ema_decay)
  )
  loss, terms = value
  metrics = {
    "loss": loss,
    "grad_norm": optax.global_norm(gradient),
    "param_norm": optax.global_norm(params),
    **terms,
  }
  new = params, ema_params, opt_state
  if skip_non_finite:
    good = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
    old = state.params, state.ema_params, state.opt_state
    new = jax.tree.map(partial(jnp.where, good), new, old)
    metrics["skipped"] = 1.0 - good
  return State(state.step, *new, state.key), metrics


def ema_decay_at(update: Array, decay: float) -> Array:
  """min(decay, (1 + n) / (10 + n)): a young average forgets its start."""
  return jnp.minimum(decay, (1 + update) / (10 + update))


def make_monitor(
  method: Method,
  prepare: Prepare,
  strong: attacks.Attack = attacks.ATTACKS["pgd"],
) -> Callable[[State, Batch], Metrics]:
  """Builds (state, batch) -> methods.compare_attacks, before the step."""
  return lambda state, batch: methods.compare_attacks(
    method, state.params, draw_batch(method, state, batch, prepare), strong
  )
