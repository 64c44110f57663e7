"""A small time-conditioned MLP for low-dimensional data."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from rad_jax.models import embedding, network


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
    time = embedding.sines_first(t, self.time_features)
    time = nn.silu(dense(self.time_features, name="time")(time))
    x_flat = x_t.reshape(x_t.shape[0], -1)
    h = x_flat
    for i in range(self.depth):
      shift = dense(self.width, use_bias=False, name=f"time_{i}")(time)
      h = nn.silu(dense(self.width, name=f"hidden_{i}")(h) + shift)
    output = nn.Dense(
      x_flat.shape[-1], kernel_init=nn.initializers.zeros, name="output"
    )
    gate = nn.Dense(1, kernel_init=nn.initializers.zeros, name="gate")
    return (output(h) + gate(time) * x_flat).reshape(x_t.shape)


def mlp(
  width: int, depth: int, time_features: int = 64, dtype: str = "float32"
) -> network.Network:
  """Returns an MLP whose every hidden layer also sees the time.

  Layer k is `h_k = silu(W_k h_{k-1} + b_k + V_k e(t))`, with `e(t)` one silu
  layer of `time_features` units on the sinusoidal embedding. Images are
  flattened, and the output has the shape of the input. The output layer starts
  at zero.

  Args:
    width: units of each hidden layer.
    depth: number of hidden layers.
    time_features: size of the sinusoidal embedding, even and at least 4.
    dtype: of the hidden layers' arithmetic; parameters, output layer and
      output are float32.
  """
  return network.from_module(
    _Mlp(width, depth, time_features, jnp.dtype(dtype))
  )
