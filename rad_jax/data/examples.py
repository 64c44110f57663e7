"""Examples from stored to model units and back, and their random flips."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8


def to_model_range(x: Any) -> Any:
  """uint8 [0, 255] to float32 [-1, 1]; float data is in its units already."""
  return x / np.float32(127.5) - np.float32(1) if x.dtype == np.uint8 else x


def to_uint8(x: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
  """Images from [-1, 1], clipped, to uint8 [0, 255]."""
  return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def random_flip(
  keys: Key[Array, " b"], x: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
  """Mirrors each image left to right with probability 1/2, by its own key."""
  flips = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flips[:, None, None, None], x[:, :, ::-1], x)
