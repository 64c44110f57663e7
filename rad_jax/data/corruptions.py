"""Corruption of the training set: which examples are dirty, and how.

Both depend on (key, i) only, not on devices. A kind is a pure function (key,
x_0, strength) of one example. The strength has the kind's unit; 0 leaves x_0
alone (but for outlier). Only jpeg clips to [-1, 1].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from scipy import ndimage

from rad_jax.data import jpeg as jpegs

Example = Float[Array, "..."]
Image = Float[Array, "h w c"]


def gaussian(key: PRNGKeyArray, x_0: Example, sigma: float) -> Example:
  """x_0 plus Gaussian noise of standard deviation sigma."""
  return x_0 + sigma * jax.random.normal(key, x_0.shape)


def outlier(key: PRNGKeyArray, x_0: Example, sigma: float) -> Example:
  """A point uniform in [-sigma, sigma] per element, in the place of x_0."""
  return jax.random.uniform(key, x_0.shape, minval=-sigma, maxval=sigma)


def salt_and_pepper(key: PRNGKeyArray, x_0: Example, share: float) -> Example:
  """A share of the elements, channel by channel, at -1 or 1 with equal odds."""
  u = jax.random.uniform(key, x_0.shape)
  return jnp.where(u < share, jnp.where(u < share / 2, -1.0, 1.0), x_0)


def mask(key: PRNGKeyArray, x_0: Image, share: float) -> Image:
  """A rectangle of 0, mid-grey, on a share of the area, a pixel at least."""
  inside = jnp.ones((1, 1), bool)
  for axis, axis_key in enumerate(jax.random.split(key)):
    side = x_0.shape[axis]
    length = max(round(math.sqrt(share) * side), math.ceil(share))
    first = jax.random.randint(axis_key, (), 0, side - length + 1)
    place = jnp.arange(side) - first
    inside &= jnp.expand_dims((place >= 0) & (place < length), 1 - axis)
  return jnp.where(inside[..., None], 0.0, x_0)


def jpeg(key: PRNGKeyArray, x_0: Image, lost: float) -> Image:
  """x_0, grey or RGB, through JPEG of quality 100 - lost, a whole number."""
  del key
  return jpegs.round_trip(x_0, 100 - round(lost)) if lost else x_0


def blur(key: PRNGKeyArray, x_0: Image, std: float) -> Image:
  """x_0 under a Gaussian of std pixels, mirrored at the edges."""
  del key
  if not std:
    return x_0
  rows, columns = (
    ndimage.gaussian_filter1d(np.eye(side), std, axis=0).astype(np.float32)
    for side in x_0.shape[:2]
  )
  return jnp.einsum("ih,jw,hwc->ijc", rows, columns, x_0, precision="highest")


class Corruption(NamedTuple):
  """A kind of corruption."""

  apply: Callable[[PRNGKeyArray, Array, float], Array]
  severities: tuple[float, ...]  # strengths of severities 1 to 5
  strongest: float = math.inf
  of_images: bool = False  # it has no meaning for points


# Severities of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019): their Gaussian
# noise (doubled, as their images lie in [0, 1]), impulse noise, JPEG and
# Gaussian blur. Those of outlier and mask are ours.
CORRUPTIONS = {
  "gaussian": Corruption(gaussian, (0.08, 0.12, 0.16, 0.18, 0.2)),
  "outlier": Corruption(outlier, (0.2, 0.4, 0.6, 0.8, 1.0)),
  "salt_and_pepper": Corruption(
    salt_and_pepper, (0.01, 0.02, 0.03, 0.05, 0.07), 1.0
  ),
  "mask": Corruption(mask, (0.05, 0.1, 0.2, 0.3, 0.5), 1.0, of_images=True),
  "jpeg": Corruption(
    jpeg, (20.0, 35.0, 42.0, 50.0, 60.0), 99.0, of_images=True
  ),
  "blur": Corruption(blur, (0.4, 0.6, 0.7, 0.8, 1.0), of_images=True),
}


def strength_of(kind: str, sigma: float, severity: int) -> float:
  """The strength of a kind: of severity 1 to 5, or sigma itself if it is 0."""
  return CORRUPTIONS[kind].severities[severity - 1] if severity else sigma


def is_dirty(
  key: PRNGKeyArray, index: Int[Array, " b"], fraction: float
) -> Bool[Array, " b"]:
  """Which examples of the training set are dirty: a share `fraction` of it."""
  return jax.vmap(jax.random.uniform)(_keys(key, index)[:, 0]) < fraction


def corrupt(
  key: PRNGKeyArray,
  index: Int[Array, " b"],
  x_0: Float[Array, "b ..."],
  kind: str,
  fraction: float,
  sigma: float,
) -> Float[Array, "b ..."]:
  """x_0, a `fraction` at strength sigma; clean examples equal to the bit."""
  apply = lambda k, x: CORRUPTIONS[kind].apply(k, x, sigma)
  dirty = jax.vmap(apply)(_keys(key, index)[:, 1], x_0)
  flags = is_dirty(key, index, fraction)
  return jnp.where(flags.reshape(-1, *[1] * (x_0.ndim - 1)), dirty, x_0)


def _keys(key, index):
  """The keys of each example's flag and of its noise, both [b]."""
  return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
