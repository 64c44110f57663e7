"""The training state: arrays only, so that the checkpoint is the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from rad_jax.models.network import Network


class State(NamedTuple):
  """All that training carries from step to step.

  `key` is the root of the run's training randomness. It never changes: what
  step n draws is derived from (key, n), so a resumed run draws the same.
  """

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
  """The state before the first step, of any network's parameters.

  Args:
    params: any pytree of arrays. They are copied, so that the caller's own
      outlive a donated state.
    optimizer: any optax transformation.
    key: the root of the training's randomness.
  """
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
