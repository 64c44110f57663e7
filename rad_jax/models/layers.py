"""Layers that the networks share: the time's embedding, and group norm."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real


def sines_first(
  t: Real[Array, " b"], features: int
) -> Float[Array, "b features"]:
  """Embeds t as [sin(t f_i), cos(t f_i)], f_i = 10000^(-2i / (features - 2)).

  As DDPM's code does (arXiv 2006.11239).
  """
  if features < 4 or features % 2:
    raise ValueError(
      f"features must be even and at least 4, but features={features}."
    )
  angles = _angles(t, features // 2, features // 2 - 1)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def cosines_first(
  t: Real[Array, " b"], features: int
) -> Float[Array, "b features"]:
  """Embeds t as [cos(t f_i), sin(t f_i)], f_i = 10000^(-2i / features).

  The variant of Nichol & Dhariwal 2021 (arXiv 2102.09672).
  """
  angles = _angles(t, features // 2, features // 2)
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _angles(
  t: Real[Array, " b"], half: int, last: int
) -> Float[Array, "b half"]:
  exponents = jnp.arange(half, dtype=jnp.float32) / last
  frequencies = jnp.exp(-math.log(10_000.0) * exponents)
  return t.astype(jnp.float32)[:, None] * frequencies[None, :]


def default_groups(channels: int) -> int:
  """The largest power of two, up to 32, that divides `channels`.

  A fourth of them where that is all: norms of single channels would remove
  exactly what the time adds, and eps_hat would not depend on t.
  """
  groups = math.gcd(32, channels)
  return groups if groups < channels else max(channels // 4, 1)


class GroupNorm(nn.Module):
  """flax.linen.GroupNorm (arXiv 1803.08494), float32 inside, in two passes.

  First over pixels, then channels: XLA finds no fast loop over both at once.
  """

  num_groups: int  # a divisor of the channels; 0: their `default_groups`
  dtype: jnp.dtype  # of the output
  epsilon: float = 1e-6  # added to the variance

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
