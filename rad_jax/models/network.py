"""The one interface between networks and the rest: two pure functions.

A network predicts the noise, eps_hat = eps_theta(x_t, t), of the state x_t =
sqrt(alpha_bar_t) x_0 + sigma_t eps (DDPM, arXiv 2006.11239, Eq. 11). Training,
sampling and attacks see only a `Network`, so any two functions with these
signatures will do:

  network = Network(
    init=lambda key, x_t, t: {"scale": jnp.ones(())},
    apply=lambda params, x_t, t, dropout_key=None: params["scale"] * x_t,
  )
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Real


class Network(NamedTuple):
  """A pair of pure functions; safe under jit, grad and vmap.

  init: `(key, x_t, t) -> params`, a pytree of arrays. Only the shapes and
    dtypes of `x_t` and `t` matter. Worth a `jax.jit` for a large network.
  apply: `(params, x_t, t, dropout_key=None) -> eps_hat`, with `x_t` of shape
    `[b, ...]` (channels last), `t` of shape `[b]` (index into the noise
    schedule, 0 to T - 1) and `eps_hat` in float32 of the shape of `x_t`.
    Without a `dropout_key` it is deterministic.
  """

  init: Callable[..., PyTree]
  apply: Callable[..., Array]


def from_module(module: nn.Module) -> Network:
  """Wraps a linen module with `__call__(x_t, t, train: bool)`.

  It may hold parameters and draw from the "dropout" stream; other collections
  (such as batch statistics) would couple examples and raise a ValueError.
  """

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
