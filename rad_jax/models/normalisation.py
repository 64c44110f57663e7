"""Group norm (Wu and He 2018, arXiv 1803.08494) in two passes over memory."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def default_groups(channels: int) -> int:
  """32 or the largest power of two that divides `channels`.

  Narrow networks would get groups of one channel, whose norm removes exactly
  the constant that the time adds to that channel: eps_hat would not depend on
  t. They get groups of four instead, as DDPM's 128 channels do.
  """
  groups = math.gcd(32, channels)
  return groups if groups < channels else max(channels // 4, 1)


class GroupNorm(nn.Module):
  """Group norm over the pixels of images, with scale and bias by channel.

  The same numbers as `flax.linen.GroupNorm`, and the same parameters. Its sums
  run over pixels first and over the channels of a group after: over both at
  once, XLA finds no fast loop. What is left is one multiplication and one
  addition by channel, which XLA fuses with what follows.

  num_groups: a divisor of the channels; 0: their `default_groups`.
  dtype: of the output. Statistics, scale and bias are float32.
  epsilon: added to the variance.
  """

  num_groups: int
  dtype: jnp.dtype
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises each group of each image."""
    b, _, _, c = x.shape
    groups = self.num_groups or default_groups(c)
    scale = self.param("scale", nn.initializers.ones, (c,))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    wide = x.astype(jnp.float32)
    of_group = lambda y: jnp.mean(jnp.mean(y, (1, 2)).reshape(b, groups, -1), 2)
    mean, square = of_group(wide), of_group(jnp.square(wide))
    variance = jnp.maximum(square - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + self.epsilon)
    by_channel = lambda y: jnp.repeat(y, c // groups, axis=1)
    factor = by_channel(inverse) * scale[None]
    shift = bias[None] - by_channel(mean) * factor
    y = wide * factor[:, None, None] + shift[:, None, None]
    return y.astype(self.dtype)
