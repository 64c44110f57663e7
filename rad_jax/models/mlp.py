"""A small time-conditioned MLP for low-dimensional data."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from rad_jax.models import layers, network


class _Mlp(nn.Module):
  width: int
  depth: int
  time_features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x_t: Float[Array, " b *features"], t: Real[Array, " b"], train: bool
  ) -> Float[Array, " b *features"]:
    del train
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    time = layers.sines_first(t, self.time_features)
    time = nn.silu(dense(self.time_features, name="time")(time))
    h = x_flat = x_t.reshape(x_t.shape[0], -1)
    for i in range(self.depth):
      shift = dense(self.width, use_bias=False, name=f"time_{i}")(time)
      h = nn.silu(dense(self.width, name=f"hidden_{i}")(h) + shift)
    zeros = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)
    output = zeros(x_flat.shape[-1], name="output")(h)
    gate = zeros(1, name="gate")(time)
    return (output + gate * x_flat).reshape(x_t.shape)


def mlp(
  width: int, depth: int, time_features: int = 64, dtype: str = "float32"
) -> network.Network:
  """An MLP on flattened x_t whose every hidden layer also sees the time.

  h_k = silu(W_k h_{k-1} + b_k + V_k e(t)), with e(t) one silu layer on sines.
  The last layer starts at 0; it and all parameters are float32.
  """
  return network.from_module(
    _Mlp(width, depth, time_features, jnp.dtype(dtype))
  )
