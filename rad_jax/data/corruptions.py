"""Corruption of the training set: which examples are dirty, and how.

Whether example i is dirty, and its noise, are functions of (key, i): they
are fixed for the whole run and never redrawn, on any number of devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Batch = Float[Array, "b ..."]


def is_dirty(
  key: PRNGKeyArray, index: Int[Array, " b"], fraction: float
) -> Bool[Array, " b"]:
  """Which examples of the training set are dirty: a share `fraction` of it."""
  flag, _ = _keys(key, index)
  return jax.vmap(jax.random.uniform)(flag) < fraction


def gaussian(
  key: PRNGKeyArray, x_0: Float[Array, "..."], sigma: float
) -> Float[Array, "..."]:
  """x_0 plus Gaussian noise of standard deviation sigma; not clipped."""
  return x_0 + sigma * jax.random.normal(key, x_0.shape)


def outlier(
  key: PRNGKeyArray, x_0: Float[Array, "..."], sigma: float
) -> Float[Array, "..."]:
  """A point uniform in [-sigma, sigma] per element, in the place of x_0."""
  return jax.random.uniform(key, x_0.shape, minval=-sigma, maxval=sigma)


CORRUPTIONS: dict[str, Callable] = {"gaussian": gaussian, "outlier": outlier}


def corrupt(
  key: PRNGKeyArray,
  index: Int[Array, " b"],
  x_0: Batch,
  kind: str,
  fraction: float,
  sigma: float,
) -> Batch:
  """The training set as it is found: a share of its examples is dirty.

  Args:
    key: the run's corruption key.
    index: the examples' places in the training set, [b].
    x_0: the clean examples, [b, ...], in [-1, 1] for images.
    kind: a name in CORRUPTIONS.
    fraction: share p of dirty examples, in [0, 1].
    sigma: standard deviation of the noise, or half-range of the outliers, in
      the units of x_0.

  Returns:
    [b, ...]; clean examples are unchanged to the bit.
  """
  _, noise = _keys(key, index)
  dirty = jax.vmap(lambda k, x: CORRUPTIONS[kind](k, x, sigma))(noise, x_0)
  flags = is_dirty(key, index, fraction).reshape((-1,) + (1,) * (x_0.ndim - 1))
  return jnp.where(flags, dirty, x_0)


def _keys(key, index):
  """The keys of each example's flag and of its noise, both [b]."""
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
  return keys[:, 0], keys[:, 1]
