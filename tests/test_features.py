"""Feature extractors, and how they are run over a set of images."""

import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from rad_jax.data import subspace
from rad_jax.features import extractors, inception
from rad_jax.interop import weights

ROOT = pathlib.Path(__file__).parents[1]


def _images(count=10, shape=(8, 8, 1), seed=0):
  return np.random.default_rng(seed).integers(
    0, 256, (count, *shape), dtype=np.uint8
  )


def _units(images):
  return images / np.float32(127.5) - np.float32(1)


def _run(extractor, images):
  return extractors.extract_all(extractor, images).features


# Extractors.


@pytest.mark.parametrize("shape", [(3,), (8, 8, 1), (4, 4, 3)])
def test_pca_is_the_subspaces_coordinates(shape):
  clean = np.random.default_rng(0).normal(size=(30, *shape)).astype(np.float32)
  x = clean[:7] + 1
  found = _run(extractors.pca(clean, dims=3), x)
  assert found.dtype == np.float32
  expected = subspace.coordinates(subspace.fit(clean, 3), x)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (5, 7, 1)])
def test_random_conv_is_what_torch_computes(shape):
  torch = pytest.importorskip("torch")
  extractor = extractors.random_conv(shape, seed=3)
  images = _images(shape=shape)
  x = torch.from_numpy(_units(images).transpose(0, 3, 1, 2).copy())
  expected = []
  for i, kernel in enumerate(extractor.params):
    x = torch.nn.functional.avg_pool2d(x, 2) if i else x
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    x = torch.relu(torch.nn.functional.conv2d(x, weight, padding=1))
    expected.append(x.mean(dim=(2, 3)))
  found = _run(extractor, images)
  assert found.shape == (10, 224)
  assert 0.1 < found.std() < 3
  np.testing.assert_allclose(found, torch.cat(expected, dim=1), atol=1e-5)


def test_random_conv_is_its_seeds():
  images = _images()
  make = lambda seed: extractors.random_conv((8, 8, 1), seed)
  np.testing.assert_array_equal(_run(make(1), images), _run(make(1), images))
  assert not np.allclose(_run(make(1), images), _run(make(2), images))
  # A golden value: features of one version can be compared across machines.
  # Where the network is changed on purpose, change its version too.
  gradient = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
  found = _run(extractors.random_conv((8, 8, 1)), gradient)
  np.testing.assert_allclose(
    found[0, [0, 50, 200]], [0.0341769, 0.1011494, 0.0911579], rtol=1e-4
  )


@pytest.mark.parametrize("shape", [(3,), (3, 8, 1), (8, 8)])
def test_random_conv_refuses_what_is_no_image(shape):
  with pytest.raises(ValueError, match="4x4 or more"):
    extractors.random_conv(shape)


@pytest.mark.parametrize(
  "extractor",
  [extractors.pca(_images(), 4), extractors.random_conv((8, 8, 1))],
  ids=lambda extractor: extractor.name,
)
def test_stored_images_have_the_features_of_their_units(extractor):
  images = _images(seed=1)
  np.testing.assert_allclose(
    _run(extractor, images), _run(extractor, _units(images)), atol=1e-5
  )


def test_versions_tell_apart_what_cannot_be_compared():
  versions = [
    extractors.pca(_images(), 4).version,
    extractors.pca(_images(), 5).version,
    extractors.pca(_images(seed=1), 4).version,
    extractors.random_conv((8, 8, 1)).version,
    extractors.random_conv((8, 8, 3)).version,
    extractors.random_conv((8, 8, 1), seed=1).version,
  ]
  assert len(set(versions)) == len(versions)
  assert extractors.pca(_images(), 4).version == versions[0]


@pytest.fixture
def shown_inception(monkeypatch):
  """The Inception extractor, its network replaced: pool is the image."""
  bias = np.arange(1.0, 4.0, dtype=np.float32)
  monkeypatch.setattr(
    inception, "load_weights", lambda path: {"fc": {"bias": bias}}
  )

  def apply(params, images):
    assert images.dtype == np.uint8
    pool = images.reshape(len(images), -1).astype(np.float32)
    return types.SimpleNamespace(
      pool=pool, logits=pool[:, :3] + params["fc"]["bias"][None]
    )

  monkeypatch.setattr(inception, "apply", apply)
  return lambda path: extractors.inception(path)


def test_inception_sees_samples_as_saved_images(shown_inception, tmp_path):
  path = tmp_path / "weights.safetensors"
  path.write_bytes(b"weights")
  extractor = shown_inception(path)
  images = _images()
  flat = images.reshape(10, -1)
  np.testing.assert_array_equal(_run(extractor, images), flat)
  for off in (-0.4, 0.4):
    x = _units(images) + np.float32(off / 127.5)
    np.testing.assert_array_equal(_run(extractor, x), flat)
  beyond = np.stack([np.full((8, 8, 1), v, np.float32) for v in (-1.5, 1.5)])
  assert _run(extractor, beyond)[:, 0].tolist() == [0, 255]
  logits = extractors.extract_all(extractor, images).logits
  np.testing.assert_array_equal(logits, flat[:, :3])


def test_inceptions_version_is_its_weights(shown_inception, tmp_path):
  path = tmp_path / "weights.pth"
  path.write_bytes(b"abc")  # Whose sha256 is in FIPS 180-4's examples.
  assert shown_inception(path).version == "inception-2015-12-05-ba7816bf"


# By name.


def _make(name, clean, dims, seed=0, weights=""):
  return extractors.EXTRACTORS[name](clean, dims, seed, weights)


def test_extractors_are_made_by_name(tmp_path):
  clean = _images()
  found = _make("pca", clean, dims=4)
  assert found.version == extractors.pca(clean, 4).version
  found = _make("random_conv", clean, dims=4, seed=2)
  assert found.version == extractors.random_conv((8, 8, 1), 2).version
  with pytest.raises(weights.WeightsError, match=r"fetch pt_inception"):
    _make("inception", clean, dims=4)
  path = tmp_path / "missing.pth"
  with pytest.raises(weights.WeightsError, match=r"missing\.pth"):
    _make("inception", clean, dims=4, weights=path)
  with pytest.raises(weights.WeightsError, match=r"missing\.pth.*dinov2_vit"):
    _make("dinov2", clean, dims=4, weights=path)


def test_pca_by_name_has_no_more_dims_than_the_data():
  assert _make("pca", _images(5), 64).params.basis.shape == (5, 64)
  points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  assert _make("pca", points, 64).params.basis.shape == (3, 3)


def test_names_of_extractors_are_cheap():
  """A config reads them."""
  code = (
    "import sys; from rad_jax.features.extractors import EXTRACTORS;"
    "print({'scipy', 'sklearn', 'torch', 'flax'} & {*sys.modules})"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "set()\n"


# Over a set.


def test_batches_do_not_change_features():
  images = _images(23)
  extractor = extractors.random_conv((8, 8, 1))
  whole = _run(extractor, images)
  assert len(whole) == 23
  for size in (1, 4, 22, 23, 100):
    found = _run(extractor._replace(batch_size=size), images)
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_one_compilation_serves_all_batches():
  shapes = []

  def apply(params, x):
    shapes.append(x.shape)
    return extractors.Features(x.reshape(len(x), -1), None)

  extractor = extractors.Extractor("shown", "1", (), apply, batch_size=4)
  np.testing.assert_array_equal(
    _run(extractor, _images(10)), _images(10).reshape(10, -1)
  )
  assert shapes == [(4, 8, 8, 1)]


def test_no_images_are_refused():
  with pytest.raises(ValueError, match="no images"):
    _run(extractors.random_conv((8, 8, 1)), _images(0))


def test_products_are_taken_at_full_precision():
  precisions = []

  def apply(params, x):
    precisions.append(jax.config.jax_default_matmul_precision)
    return extractors.Features(x, None)

  _run(extractors.Extractor("shown", "1", (), apply, 4), np.ones((4, 2)))
  assert precisions == ["highest"]


# Runs in a process of its own: JAX fixes the number of devices at first use.
SCRIPT = """
import sys

import jax

jax.config.update("jax_num_cpu_devices", 4)

import numpy as np

from rad_jax.features import extractors

extractor = extractors.random_conv((8, 8, 1))._replace(batch_size=6)
inner, shards = extractor.apply, []

def apply(params, x):
  jax.debug.inspect_array_sharding(x, callback=lambda s: shards.append(s))
  return inner(params, x)

images = np.load(sys.argv[1])
found = extractors.extract_all(extractor._replace(apply=apply), images)
assert len(shards) == 1 and shards[0].shard_shape((8, 8, 8, 1))[0] == 2, shards
np.save(sys.argv[2], found.features)
"""


def test_four_devices_share_the_batch_and_agree_with_one(tmp_path):
  images = _images(21)
  np.save(tmp_path / "images.npy", images)
  subprocess.run(
    [sys.executable, "-c", SCRIPT, "images.npy", "features.npy"],
    cwd=tmp_path,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    check=True,
  )
  np.testing.assert_allclose(
    np.load(tmp_path / "features.npy"),
    _run(extractors.random_conv((8, 8, 1)), images),
    atol=1e-6,
  )
