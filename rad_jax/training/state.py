"""The training state: arrays only, so that the checkpoint is the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from rad_jax.models.network import Network


class State(NamedTuple):
  """All that training carries; step n draws from (key, n), when resumed too."""

  step: Int[Array, ""]
  params: PyTree
  ema_params: PyTree
  opt_state: optax.OptState
  key: PRNGKeyArray


def initial_state(
  network: Network,
  optimizer: optax.GradientTransformation,
  example_shape: tuple[int, ...],
  init_key: PRNGKeyArray,
  train_key: PRNGKeyArray,
) -> State:
  """The state before the first step."""
  params = network.init(
    init_key, jnp.zeros((1, *example_shape)), jnp.zeros((1,), jnp.int32)
  )
  return state_of(params, optimizer, train_key)


def state_of(
  params: PyTree, optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> State:
  """The state before the first step; it is donated, so params are copied."""
  return State(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.copy, params),
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
    key=key,
  )


def num_parameters(state: State) -> int:
  """How many numbers the network has."""
  return sum(jnp.size(x) for x in jax.tree.leaves(state.params))
