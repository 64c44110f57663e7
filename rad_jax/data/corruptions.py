"""Corruption of the training set: which examples are dirty, and how.

Whether example i is dirty, and its noise, are functions of (key, i): they
are fixed for the whole run and never redrawn, on any number of devices.

Each kind is a pure function (key, x_0, strength) of one example, which jit
and vmap take; the strength is a Python number, 0 leaves x_0 alone (but for
outlier), and its unit is the kind's own. Nothing but jpeg clips: noised or
projected images may leave [-1, 1] and stay as they are.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from scipy import ndimage

from rad_jax.data import jpeg as jpegs

Batch = Float[Array, "b ..."]


def is_dirty(
  key: PRNGKeyArray, index: Int[Array, " b"], fraction: float
) -> Bool[Array, " b"]:
  """Which examples of the training set are dirty: a share `fraction` of it.

  Examples:
    It depends on the key and the index alone:

    >>> key, is_dirty = jax.random.key(0), rad_jax.corruptions.is_dirty
    >>> dirty = is_dirty(key, jnp.arange(1000), fraction=0.9)
    >>> print(f"{dirty.mean():.2f}")
    0.91
    >>> print(dirty[7] == is_dirty(key, jnp.array([7]), fraction=0.9)[0])
    True
  """
  flag, _ = _keys(key, index)
  return jax.vmap(jax.random.uniform)(flag) < fraction


def gaussian(
  key: PRNGKeyArray, x_0: Float[Array, "..."], sigma: float
) -> Float[Array, "..."]:
  """x_0 plus Gaussian noise of standard deviation sigma; not clipped.

  Examples:
    >>> x_0 = jnp.ones(1000)
    >>> x = rad_jax.corruptions.gaussian(jax.random.key(0), x_0, sigma=0.2)
    >>> print(f"{(x - x_0).std():.2f}")
    0.20
  """
  return x_0 + sigma * jax.random.normal(key, x_0.shape)


def outlier(
  key: PRNGKeyArray, x_0: Float[Array, "..."], sigma: float
) -> Float[Array, "..."]:
  """A point uniform in [-sigma, sigma] per element, in the place of x_0.

  Examples:
    >>> x = rad_jax.corruptions.outlier(jax.random.key(0), jnp.ones(1000), 0.5)
    >>> print(f"{x.min():.2f} to {x.max():.2f}")
    -0.50 to 0.50
  """
  return jax.random.uniform(key, x_0.shape, minval=-sigma, maxval=sigma)


def salt_and_pepper(
  key: PRNGKeyArray, x_0: Float[Array, "..."], share: float
) -> Float[Array, "..."]:
  """A share of the elements at -1 or 1, with equal odds.

  An element is one channel of one pixel, as in Hendrycks & Dietterich's
  impulse noise, so that colour images get coloured specks.

  Examples:
    >>> key, x_0 = jax.random.key(0), jnp.zeros((100, 100, 1))
    >>> x = rad_jax.corruptions.salt_and_pepper(key, x_0, share=0.1)
    >>> print(f"{jnp.abs(x).mean():.2f} of", jnp.unique(x))
    0.11 of [-1.  0.  1.]
  """
  u = jax.random.uniform(key, x_0.shape)
  return jnp.where(u < share, jnp.where(u < share / 2, -1.0, 1.0), x_0)


def mask(
  key: PRNGKeyArray, x_0: Float[Array, "h w c"], share: float
) -> Float[Array, "h w c"]:
  """A rectangle of 0, mid-grey, somewhere inside the image.

  Each of its sides is sqrt(share) of the image's, rounded to pixels, and one
  pixel at least if there is a share at all. All places are equally likely.

  Examples:
    >>> x_0 = jnp.ones((8, 8, 1))
    >>> x = rad_jax.corruptions.mask(jax.random.key(0), x_0, share=0.25)
    >>> int((x == 0).sum())  # 4 x 4 pixels
    16
  """
  row_key, column_key = jax.random.split(key)
  inside = jnp.ones((1, 1), bool)
  for axis, axis_key in enumerate((row_key, column_key)):
    side = x_0.shape[axis]
    length = max(round(math.sqrt(share) * side), math.ceil(share))
    first = jax.random.randint(axis_key, (), 0, side - length + 1)
    place = jnp.arange(side) - first
    inside &= jnp.expand_dims((place >= 0) & (place < length), 1 - axis)
  return jnp.where(inside[..., None], 0.0, x_0)


def jpeg(
  key: PRNGKeyArray, x_0: Float[Array, "h w c"], lost: float
) -> Float[Array, "h w c"]:
  """x_0 through JPEG of quality 100 - lost; clipped to [-1, 1].

  Args:
    key: not used: JPEG is not random.
    x_0: grey or RGB.
    lost: whole, 0 to 99. 0 leaves x_0 as it is, where quality 100 would
      still round.

  Examples:
    A flat image survives, a chessboard of pixels loses a little:

    >>> board = jnp.indices((8, 8)).sum(0) % 2 - 0.5
    >>> for x_0 in (jnp.zeros((8, 8, 1)), board[..., None]):
    ...   x = rad_jax.corruptions.jpeg(jax.random.key(0), x_0, lost=50.0)
    ...   print(f"{jnp.abs(x - x_0).max():.2f}")
    0.00
    0.22
  """
  del key
  return jpegs.round_trip(x_0, 100 - round(lost)) if lost else x_0


def blur(
  key: PRNGKeyArray, x_0: Float[Array, "h w c"], std: float
) -> Float[Array, "h w c"]:
  """x_0 under a Gaussian of standard deviation std in pixels.

  Cut off at 4 std; the image is mirrored at its edges, which keeps its mean.
  `key` is not used: blur is not random.

  Examples:
    >>> x_0 = jnp.zeros((9, 9, 1)).at[4, 4].set(1.0)
    >>> x = rad_jax.corruptions.blur(jax.random.key(0), x_0, std=1.0)
    >>> print(f"{x.sum():.3f}", x[4, 3:6, 0])
    1.000 [0.097 0.159 0.097]
  """
  del key
  if not std:
    return x_0
  rows, columns = (
    ndimage.gaussian_filter1d(np.eye(side), std, axis=0).astype(np.float32)
    for side in x_0.shape[:2]
  )
  return jnp.einsum("ih,jw,hwc->ijc", rows, columns, x_0, precision="highest")


CORRUPTIONS: dict[str, Callable] = {
  "gaussian": gaussian,
  "outlier": outlier,
  "salt_and_pepper": salt_and_pepper,
  "mask": mask,
  "jpeg": jpeg,
  "blur": blur,
}
# Kinds that have no meaning for points.
OF_IMAGES = ("mask", "jpeg", "blur")
# The strongest of each kind, where there is one.
STRONGEST = {"salt_and_pepper": 1.0, "mask": 1.0, "jpeg": 99.0}
# Strengths of the severities 1 to 5. After Hendrycks & Dietterich, Benchmarking
# neural network robustness to common corruptions (ICLR 2019), as they made
# CIFAR-10-C for images of 32 pixels: their Gaussian noise (doubled, as their
# images lie in [0, 1], and not clipped here), impulse noise, JPEG and Gaussian
# blur. Those of outlier and mask are ours.
SEVERITIES = {
  "gaussian": (0.08, 0.12, 0.16, 0.18, 0.2),
  "outlier": (0.2, 0.4, 0.6, 0.8, 1.0),
  "salt_and_pepper": (0.01, 0.02, 0.03, 0.05, 0.07),
  "mask": (0.05, 0.1, 0.2, 0.3, 0.5),
  "jpeg": (20.0, 35.0, 42.0, 50.0, 60.0),
  "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
}


def strength_of(kind: str, sigma: float, severity: int) -> float:
  """The strength that two config fields stand for.

  Args:
    kind: a name in CORRUPTIONS.
    sigma: the strength itself, in the kind's unit, if severity is 0.
    severity: 0, or a place 1 to 5 on the kind's ladder SEVERITIES.

  Examples:
    >>> rad_jax.corruptions.strength_of("gaussian", sigma=0.3, severity=0)
    0.3
    >>> rad_jax.corruptions.strength_of("gaussian", sigma=0.3, severity=5)
    0.2
  """
  return SEVERITIES[kind][severity - 1] if severity else sigma


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
    sigma: the strength: standard deviation of gaussian and half-range of
      outlier in the units of x_0, share of the elements of salt_and_pepper
      and of the area of mask, 100 - quality of jpeg, standard deviation of
      blur in pixels.

  Returns:
    [b, ...]; clean examples are unchanged to the bit.

  Examples:
    >>> x_0 = jnp.zeros((5, 1))
    >>> x = rad_jax.corruptions.corrupt(
    ...   jax.random.key(0), jnp.arange(5), x_0,
    ...   "gaussian", fraction=0.5, sigma=0.2,
    ... )
    >>> print(x[:, 0])
    [-0.251  0.     0.132  0.     0.   ]
  """
  _, noise = _keys(key, index)
  dirty = jax.vmap(lambda k, x: CORRUPTIONS[kind](k, x, sigma))(noise, x_0)
  flags = is_dirty(key, index, fraction).reshape((-1,) + (1,) * (x_0.ndim - 1))
  return jnp.where(flags, dirty, x_0)


def _keys(key, index):
  """The keys of each example's flag and of its noise, both [b]."""
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
  return keys[:, 0], keys[:, 1]
