"""Sinusoidal embeddings of the time index, shared by the networks."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def sines_first(
  t: Real[Array, " b"], features: int
) -> Float[Array, "b features"]:
  """Embeds `t` as `[sin(t f_i), cos(t f_i)]`, `f_i = 10000^(-i / (half - 1))`.

  With `half = features / 2`: the variant of Vaswani et al. 2017 (section 3.5)
  in the code of DDPM (arXiv 2006.11239), which includes both end points.

  Raises:
    ValueError: features is odd or below 4.
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
  """Embeds `t` as `[cos(t f_i), sin(t f_i)]`, `f_i = 10000^(-i / half)`.

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
