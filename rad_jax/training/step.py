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
  """Builds the step. Jit it with the state donated.

  Args:
    method: what is minimised.
    optimizer: any optax transformation.
    ema_decay: decay of the parameters' moving average, in [0, 1).
    prepare: scales, corrupts and flips a batch; its keys are fresh each step.
    ramp: step -> factor of lambda_t, for warm-up.
    regularised: (n, m): the first n of every m examples are regularised.
    micro_batches: pieces of the batch that are differentiated one after the
      other, for less memory; they divide both parts of the batch. The step is
      the same but for the dropout masks, of which each piece has its own.
    skip_non_finite: whether a step whose loss or gradient is not finite leaves
      the parameters, their average and the optimiser as they were; the metric
      "skipped" is 1 there. (optax.apply_if_finite knows neither the loss nor
      the average.)

  Returns:
    (state, batch) -> (state, metrics); the metrics are scalars on the device.

  Examples:
    >>> optimizer = optax.sgd(0.1)
    >>> train_step = jax.jit(rad_jax.make_train_step(method, optimizer, 0.999))
    >>> state = rad_jax.state_of(jnp.array(0.5), optimizer, jax.random.key(0))
    >>> state, metrics = train_step(state, {"x_0": jnp.ones((4, 2))})
    >>> print(int(state.step), sorted(metrics))
    1 ['dsm', 'grad_norm', 'loss', 'param_norm', 'regulariser', 'w_linf']
  """
  differentiated = jax.value_and_grad(partial(mean_loss, method), has_aux=True)
  if micro_batches > 1:
    differentiated = in_pieces(differentiated, micro_batches)

  def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    draws = draw_batch(method, state, batch, prepare, ramp(state.step))
    parts = split(draws, *regularised)
    (loss, terms), gradient = differentiated(state.params, parts)
    updated = update(optimizer, ema_decay, state, gradient, state.step)
    metrics = measured(loss, terms, gradient, updated)
    if skip_non_finite:
      updated, metrics = unless_finite(state, updated, metrics)
    return updated._replace(step=state.step + 1), metrics

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
  """The one mean over the batch, and the means of its terms.

  "regulariser" is a mean over the examples that have it, "w_linf" a maximum;
  "dsm_plain" is the clean branch of the others.
  """
  regularised, rest = parts
  values, terms = methods.losses(method, params, regularised)
  total, count = jnp.sum(values), len(values)
  found = {name: _over_examples(name)(term) for name, term in terms.items()}
  if rest is not None:
    plain = methods.without_regulariser(method)
    values, terms = methods.losses(plain, params, rest)
    total, count = total + jnp.sum(values), count + len(values)
    found["dsm_plain"] = jnp.mean(terms["dsm"])
  return total / count, found


def _over_examples(name: str) -> Callable[[Array], Array]:
  return jnp.max if name == "w_linf" else jnp.mean


def in_pieces(differentiated: Callable[..., Any], count: int):
  """(params, parts) -> value and gradient, from `count` pieces in turn.

  Piece i has the examples i, i + count, ...: each device of a sharded batch
  keeps its own share. (optax.microbatch cuts as this does, but has no pieces
  of two sizes and no dropout key for each.)

  Args:
    differentiated: jax.value_and_grad of `mean_loss` by params.
    count: divides both parts.
  """

  def cut(draws: Draws) -> Draws:
    take = lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
    return _rows(draws, take, jax.random.split(draws.dropout_key, count))

  def value_and_grad(params: PyTree, parts: Parts):
    def add(total: PyTree, piece: Parts):
      (value, terms), gradient = differentiated(params, piece)
      return jax.tree.map(jnp.add, total, gradient), (value, terms)

    zeros = jax.tree.map(jnp.zeros_like, params)
    pieces = cut(parts[0]), None if parts[1] is None else cut(parts[1])
    total, (values, terms) = jax.lax.scan(add, zeros, pieces)
    terms = {name: _over_examples(name)(term) for name, term in terms.items()}
    gradient = jax.tree.map(lambda x: x / count, total)
    return (jnp.mean(values), terms), gradient

  return value_and_grad


def split(draws: Draws, n: int, m: int) -> Parts:
  """The first n of every m examples, and the others.

  Interleaved, so that each device of a sharded batch keeps its own share.
  Each part has a dropout key of its own.
  """
  if n == m:
    return draws, None

  def part(rows: slice, dropout_key: PRNGKeyArray) -> Draws:
    def take(x):
      grouped = x.reshape(x.shape[0] // m, m, *x.shape[1:])[:, rows]
      return grouped.reshape(-1, *x.shape[1:])

    return _rows(draws, take, dropout_key)

  keys = jax.random.split(draws.dropout_key)
  return part(slice(0, n), keys[0]), part(slice(n, m), keys[1])


def _rows(draws: Draws, take: Callable[[Array], Array], dropout_key) -> Draws:
  return Draws(
    level=jax.tree.map(take, draws.level),
    noised=jax.tree.map(take, draws.noised),
    radius=take(draws.radius),
    lambda_t=take(draws.lambda_t),
    # JAX's check of reuse takes a rearranged key for a used one.
    w_keys=jax.random.clone(take(jax.random.clone(draws.w_keys))),
    dropout_key=dropout_key,
  )


def update(
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  state: State,
  gradient: PyTree,
  count: Array,
) -> State:
  """Parameters, their average and the optimiser after update number `count`."""
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema_params = optax.incremental_update(
    params, state.ema_params, 1 - ema_decay_at(count, ema_decay)
  )
  return state._replace(
    params=params, ema_params=ema_params, opt_state=opt_state
  )


def ema_decay_at(update: Array, decay: float) -> Array:
  """min(decay, (1 + n) / (10 + n)): a young average forgets its start."""
  return jnp.minimum(decay, (1 + update) / (10 + update))


def measured(
  loss: Array, terms: Metrics, gradient: PyTree, updated: State
) -> Metrics:
  """The metrics of an update."""
  return {
    "loss": loss,
    "grad_norm": optax.global_norm(gradient),
    "param_norm": optax.global_norm(updated.params),
    **terms,
  }


def unless_finite(
  before: State, after: State, metrics: Metrics
) -> tuple[State, Metrics]:
  """`after`, or `before` where loss or gradient is not finite; "skipped"."""
  good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
  kept = after._replace(
    **{
      name: jax.tree.map(
        partial(jnp.where, good), getattr(after, name), getattr(before, name)
      )
      for name in ("params", "ema_params", "opt_state")
    }
  )
  return kept, metrics | {"skipped": 1.0 - good}


def make_monitor(
  method: Method,
  prepare: Prepare,
  strong: attacks.Attack = attacks.ATTACKS["pgd"],
) -> Callable[[State, Batch], Metrics]:
  """Builds (state, batch) -> methods.compare_attacks, before the step."""

  def monitor(state: State, batch: Batch) -> Metrics:
    draws = draw_batch(method, state, batch, prepare)
    return methods.compare_attacks(method, state.params, draws, strong)

  return monitor
