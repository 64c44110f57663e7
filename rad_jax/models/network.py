"""The one interface between networks and the rest: two pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Real


class Network(NamedTuple):
  """Two pure functions; safe under jit, grad and vmap.

  init: `(key, x_t, t) -> params`, by the shapes and dtypes of `x_t` and `t`.
  apply: `(params, x_t, t, dropout_key=None) -> eps_hat`, float32 like `x_t`,
    [b, ...], channels last; `t`, [b], is in 0 .. T - 1. No key, no dropout.
  """

  init: Callable[..., PyTree]
  apply: Callable[..., Array]


def from_module(module: nn.Module) -> Network:
  """A linen module of (x_t, t, train); ValueError if it has other state."""

  def init(
    key: PRNGKeyArray, x_t: Float[Array, " b *features"], t: Real[Array, " b"]
  ) -> PyTree:
    variables = module.init({"params": key}, x_t, t, train=False)
    if set(variables) != {"params"}:
      raise ValueError(
        "A network's only collection is 'params'; "
        f"{type(module).__name__} has {sorted(variables)}."
      )
    return variables["params"]

  def apply(
    params: PyTree,
    x_t: Float[Array, " b *features"],
    t: Real[Array, " b"],
    dropout_key: PRNGKeyArray | None = None,
  ) -> Float[Array, " b *features"]:
    train = dropout_key is not None
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    eps_hat = module.apply({"params": params}, x_t, t, train=train, rngs=rngs)
    return jnp.asarray(eps_hat, jnp.float32)

  return Network(init, apply)
