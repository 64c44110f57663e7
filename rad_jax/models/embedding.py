"""Sinusoidal embedding of the time index, shared by the networks."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def sinusoidal_embedding(
  t: Real[Array, " b"], features: int
) -> Float[Array, "b features"]:
  """Embeds `t` as `[sin(t f_i), cos(t f_i)]`, all sines first.

  The frequencies are `f_i = 10000^(-i / (half - 1))` for `i` in `0 .. half - 1`
  with `half = features / 2`: the variant of Vaswani et al. 2017 (section 3.5)
  in the code of DDPM (arXiv 2006.11239), which includes both end points.

  Args:
    t: time index, 0 to T - 1.
    features: size of the embedding, even and at least 4.

  Examples:
    >>> from rad_jax.models import embedding
    >>> print(embedding.sinusoidal_embedding(jnp.array([0, 10]), 4))
    [[ 0.     0.     1.     1.   ]
     [-0.544  0.001 -0.839  1.   ]]
  """
  if features < 4 or features % 2:
    raise ValueError(
      f"features must be even and at least 4, but features={features}."
    )
  half = features // 2
  exponents = jnp.arange(half, dtype=jnp.float32) / (half - 1)
  frequencies = jnp.exp(-math.log(10_000.0) * exponents)
  angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
