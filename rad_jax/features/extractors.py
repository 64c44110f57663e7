"""Feature extractors: what sample quality is measured in.

Inception's features (FID, KID, Inception Score) and DINOv2's (FD_DINOv2) need
weights; the others need none, and are comparable with themselves only.
"""

import hashlib
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Num, PyTree, UInt8
from tqdm import tqdm

from rad_jax.data import examples, subspace

_WIDTHS = (32, 64, 128)


class Features(NamedTuple):
  """Features [n, k], and class logits [n, classes] or None."""

  features: Any
  logits: Any


class Extractor(NamedTuple):
  """A pure function from images to features, and what identifies it."""

  name: str  # a key of EXTRACTORS
  version: str  # equal where features can be compared
  params: PyTree
  # Of uint8 images, or float in model units, each alone; safe under jit.
  apply: Callable[[PyTree, Num[Array, " b *image"]], Features]
  batch_size: int  # over all devices together


def pca(clean: np.ndarray, dims: int) -> Extractor:
  """Coordinates along clean data's `dims` components; see `subspace.fit`."""
  fitted = subspace.fit(examples.to_model_range(clean), dims)
  params = subspace.Subspace(*(np.asarray(x, np.float32) for x in fitted))

  def apply(params: PyTree, x: Array) -> Features:
    flat = examples.to_model_range(x).reshape(len(x), -1)
    return Features((flat - params.mean[None]) @ params.basis.T, None)

  content = params.mean.tobytes() + params.basis.tobytes()
  digest = hashlib.sha256(content).hexdigest()[:8]
  return Extractor("pca", f"pca-{dims}-{digest}", params, apply, 1000)


def random_conv(shape: tuple[int, ...], seed: int = 0) -> Extractor:
  """An untrained convolutional network: NOT Inception, and no FID.

  Three 3x3 convolutions, normal by seed (He et al. 2015), with relu; features
  are each layer's means over pixels, [n, 224].
  """
  if len(shape) != 3 or min(shape[:2]) < 4:
    raise ValueError(f"random_conv takes images of 4x4 or more, not {shape}")
  generator = np.random.default_rng(seed)
  params = []
  for fan_in, width in zip((shape[2], *_WIDTHS), _WIDTHS, strict=False):
    kernel = generator.normal(size=(3, 3, fan_in, width))
    params.append((kernel * math.sqrt(2 / (9 * fan_in))).astype(np.float32))

  def apply(params: PyTree, images: Array) -> Features:
    x = examples.to_model_range(images).astype(jnp.float32)
    axes, window = ("NHWC", "HWIO", "NHWC"), (1, 2, 2, 1)
    found = []
    for i, kernel in enumerate(params):
      if i:
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
        x = x / 4
      x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=axes
      )
      x = jax.nn.relu(x)
      found.append(x.mean(axis=(1, 2)))
    return Features(jnp.concatenate(found, axis=1), None)

  version = f"random_conv-1-{shape[2]}x{seed}"
  return Extractor("random_conv", version, params, apply, 256)


def inception(path: str | pathlib.Path) -> Extractor:
  """The FID Inception's pool features [n, 2048] and logits [n, 1008].

  No last bias, as in the Inception Score's own code (Salimans et al. 2016).
  """
  from rad_jax.features import inception as network

  def apply(params: PyTree, images: Array) -> Features:
    found = network.apply(params, _as_saved(images))
    return Features(found.pool, found.logits - params["fc"]["bias"][None])

  params = network.load_weights(path)
  version = f"inception-2015-12-05-{_digest(path)}"
  return Extractor("inception", version, params, apply, 32)


def dinov2(path: str | pathlib.Path) -> Extractor:
  """DINOv2's class token, [n, width]: 1024 for ViT-L/14."""
  from rad_jax.features import dinov2 as network

  def apply(params: PyTree, images: Array) -> Features:
    return Features(network.apply(params, _as_saved(images)), None)

  params, version = network.load_weights(path), f"dinov2-1-{_digest(path)}"
  return Extractor("dinov2", version, params, apply, 32)


def _as_saved(images: Num[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """Clipped and rounded to 8 bits, on which published numbers stand."""
  if images.dtype == jnp.uint8:
    return images
  return jnp.rint((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _digest(path: str | pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:8]


# By name, from clean examples [n, ...], to which `pca` is fitted, the number of
# its components (at most what clean has), a seed, and the path of weights.
EXTRACTORS: dict[str, Callable[..., Extractor]] = {
  "pca": lambda x, dims, *_: pca(x, min(dims, len(x), x[0].size)),
  "random_conv": lambda x, dims, seed, path: random_conv(x.shape[1:], seed),
  "inception": lambda x, dims, seed, path: inception(path),
  "dinov2": lambda x, dims, seed, path: dinov2(path),
}


def extract_all(extractor: Extractor, images: np.ndarray) -> Features:
  """Features of all images [n, ...], as NumPy arrays, over all devices."""
  if not len(images):
    raise ValueError("no images to take features of")
  mesh = Mesh(np.array(jax.devices()), ("data",))
  wanted = min(extractor.batch_size, len(images))
  size = math.ceil(wanted / mesh.size) * mesh.size
  everywhere = NamedSharding(mesh, PartitionSpec())
  by_example = NamedSharding(mesh, PartitionSpec("data"))
  params = jax.device_put(extractor.params, everywhere)
  run = jax.jit(
    extractor.apply,
    in_shardings=(everywhere, by_example),
    out_shardings=everywhere,
  )
  parts = []
  with jax.default_matmul_precision("highest"):
    for start in tqdm(
      range(0, len(images), size), desc=extractor.name, unit="batch"
    ):
      rows = images[start : start + size]
      # The last batch is filled up with its own rows: one compilation.
      found = run(params, np.resize(rows, (size, *rows.shape[1:])))
      count = len(rows)
      parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)
