"""From stored examples to what the network sees: scale, corrupt, flip."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8


def to_model_range(x: Any) -> Any:
  """uint8 [0, 255] to float32 [-1, 1]; float data is in its units already.

  Examples:
    >>> print(rad_jax.examples.to_model_range(np.uint8([0, 51, 255])))
    [-1.  -0.6  1. ]
  """
  return x / np.float32(127.5) - np.float32(1) if x.dtype == np.uint8 else x


def to_uint8(
  x: Float[np.ndarray, "..."],
) -> UInt8[np.ndarray, "..."]:
  """Images from [-1, 1], clipped, to uint8 [0, 255].

  Examples:
    >>> print(rad_jax.examples.to_uint8(np.array([-1.0, -0.6, 2.0])))
    [  0  51 255]
  """
  return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def random_flip(
  keys: Key[Array, " b"], x: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
  """Mirrors each image left to right with probability 1/2, by its own key.

  Examples:
    >>> x = jnp.arange(2.0).reshape(1, 1, 2, 1).repeat(4, axis=0)
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> print(rad_jax.examples.random_flip(keys, x)[:, 0, 0, 0])
    [0. 1. 0. 1.]
  """
  flips = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flips[:, None, None, None], x[:, :, ::-1], x)
