"""The loss scale of float16, found as training goes.

float16 has nothing between 0 and 6e-8, where most of a mean loss's gradients
lie. The loss is multiplied by a scale before it is differentiated and the
gradient divided by it after (Micikevicius et al. 2018, arXiv 1710.03740,
section 3.2). The scale is a power of two, so that this rounds nothing: halved
at each overflow, doubled after a time without one.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class Scaled(NamedTuple):
  """An optimiser's state with a loss scale, at least 1."""

  scale: Float[Array, ""]
  good_steps: Int[Array, ""]
  inner: optax.OptState


def with_loss_scale(
  optimizer: optax.GradientTransformation,
  initial: float = 2.0**15,
  patience: int = 2000,
) -> optax.GradientTransformation:
  """The optimiser, whose state holds a loss scale for the step to use.

  Args:
    optimizer: it sees gradients that are divided by the scale already.
    initial: a power of two.
    patience: updates until the scale is doubled.

  Examples:
    >>> from rad_jax.training import loss_scale
    >>> optimizer = loss_scale.with_loss_scale(optax.sgd(0.1), 8.0, patience=2)
    >>> state = optimizer.init(jnp.zeros(3))
    >>> for _ in range(2):
    ...   _, state = optimizer.update(jnp.ones(3), state)
    >>> print(loss_scale.of(state), loss_scale.of(loss_scale.lowered(state)))
    16.0 8.0
  """

  def init(params):
    scale, none = jnp.float32(initial), jnp.zeros((), jnp.int32)
    return Scaled(scale, none, optimizer.init(params))

  def update(updates, state, params=None):
    updates, inner = optimizer.update(updates, state.inner, params)
    good_steps = state.good_steps + 1
    grows = good_steps >= patience
    scale = jnp.where(grows, 2 * state.scale, state.scale)
    return updates, Scaled(scale, jnp.where(grows, 0, good_steps), inner)

  return optax.GradientTransformation(init, update)


def of(opt_state: optax.OptState) -> Array | float:
  """The loss scale of an optimiser's state; 1 where it has none."""
  return opt_state.scale if isinstance(opt_state, Scaled) else 1.0


def lowered(opt_state: optax.OptState) -> optax.OptState:
  """The state after an overflow: its scale, if it has one, is halved."""
  if not isinstance(opt_state, Scaled):
    return opt_state
  scale = jnp.maximum(opt_state.scale / 2, 1.0)
  return opt_state._replace(scale=scale, good_steps=jnp.int32(0))
