"""From a stored batch to what the network trains on: pure, jit-able parts."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray

from rad_jax.data import corruptions, examples
from rad_jax.data.batches import Batch

Corruption = Callable[[Array, Array], Array]
Prepare = Callable[[Batch, Key[Array, " b"]], tuple[Array, Array]]


def make_corruption(
  key: PRNGKeyArray, kind: str, fraction: float, sigma: float
) -> Corruption:
  """(index [b], x_0 [b, ...]) -> x_0 by `corruptions.corrupt`."""
  if fraction == 0:
    return lambda index, x_0: x_0
  return partial(
    corruptions.corrupt, key, kind=kind, fraction=fraction, sigma=sigma
  )


def make_known_noise(
  key: PRNGKeyArray, kind: str, fraction: float, sigma: float
) -> Callable[[Array], Array]:
  """index [b] -> sigma_c [b] of the examples' Gaussian noise, 0 where clean."""
  if fraction == 0 or kind != "gaussian":
    return lambda index: jnp.zeros(index.shape)
  return lambda index: sigma * corruptions.is_dirty(key, index, fraction)


def make_prepare(
  corrupt: Corruption, noise_of: Callable[[Array], Array], flip: bool
) -> Prepare:
  """(batch, keys [b]) -> x_0 [b, ...], flipped with its noise; sigma_c [b]."""

  def prepare(batch, flip_keys):
    x_0 = corrupt(batch["index"], examples.to_model_range(batch["x_0"]))
    if flip:
      x_0 = examples.random_flip(flip_keys, x_0)
    return x_0, noise_of(batch["index"])

  return prepare
