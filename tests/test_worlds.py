"""Synthetic sets, corruptions, subspaces, and measures against a truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from rad_jax.data import (
  corruptions,
  examples,
  prepare,
  subspace,
  synthetic,
  training_set,
)
from rad_jax.evaluation import measures, reference
from rad_jax.evaluation.protocols import truth as truth_protocol

WORLDS = {name: make() for name, make in synthetic.WORLDS.items()}


def _generator(seed=0):
  return np.random.default_rng(seed)


# Synthetic sets.


@pytest.mark.parametrize("name", WORLDS)
def test_samples_have_the_stated_moments(name):
  # Entries are at most 0.8 in size: 0.015 is above four standard errors.
  world = WORLDS[name]
  x = world.sample(_generator(), 60_000)
  assert x.dtype == np.float32
  mean, covariance = measures.moments(x)
  np.testing.assert_allclose(mean, world.mean, atol=0.015)
  np.testing.assert_allclose(covariance, world.covariance, atol=0.015)


@pytest.mark.parametrize("name", WORLDS)
def test_samples_come_from_the_generator_alone(name):
  sample = WORLDS[name].sample
  np.testing.assert_array_equal(
    sample(_generator(1), 10), sample(_generator(1), 10)
  )
  assert not np.any(sample(_generator(1), 10) == sample(_generator(2), 10))


@pytest.mark.parametrize("name", WORLDS)
def test_projection_is_idempotent_and_nearest(name):
  world = WORLDS[name]
  x = 2 * _generator().standard_normal((500, len(world.mean)))
  nearest = world.project(x)
  np.testing.assert_allclose(world.project(nearest), nearest, atol=1e-12)
  # No point of the support, drawn near or far, is closer.
  distance = np.linalg.norm(x - nearest, axis=1)
  support = world.project(x + 0.1 * _generator(1).standard_normal(x.shape))
  for other in (support, np.roll(nearest, 1, axis=0)):
    assert np.all(np.linalg.norm(x - other, axis=1) >= distance - 1e-12)
  assert np.mean(distance) > 0.5


def test_plane_holds_its_samples_and_points_move_along_its_normal():
  world = WORLDS["oblique_plane"]
  x = world.sample(_generator(), 500)
  np.testing.assert_allclose(x.sum(axis=1), 0, atol=1e-6)
  np.testing.assert_allclose(world.project(x), x, atol=1e-6)
  assert np.abs(x).max() <= np.sqrt(2 / 3) + np.sqrt(1 / 2)
  np.testing.assert_allclose(world.project(x + 0.7), x, atol=1e-6)


def test_discs_hold_their_points_and_draw_the_others_to_their_edge():
  project = WORLDS["three_gaussians"].project
  top = np.array([0.0, 0.8])
  # On the centre, inside, and at 0.2: the disc ends at 3 x 0.05.
  x = top + np.array([[0, 0], [0.1, -0.1], [0.2, 0], [0, 0.2]])
  expected = top + np.array([[0, 0], [0.1, -0.1], [0.15, 0], [0, 0.15]])
  np.testing.assert_allclose(project(x), expected, atol=1e-12)
  x = WORLDS["three_gaussians"].sample(_generator(), 20_000)
  unmoved = np.all(np.isclose(project(x), x, atol=1e-6), axis=1)
  # 1 - exp(-9/2) of the mass lies within three standard deviations.
  assert np.mean(unmoved) == pytest.approx(1 - np.exp(-4.5), abs=0.003)


# Corruptions.

N = 4000
INDEX = jnp.arange(N)


def _key(seed=0):
  return jax.random.key(seed)


def _clean(n, shape=(3,)):
  return jnp.asarray(_generator(5).uniform(-1, 1, (n, *shape)), jnp.float32)


CLEAN = _clean(N)


@pytest.mark.parametrize("kind", ["gaussian", "outlier"])
def test_corruption_belongs_to_the_example_not_to_its_batch(kind):
  whole = corruptions.corrupt(_key(), INDEX, CLEAN, kind, 0.5, 0.2)
  for part in ([17], [999, 2, 3]):
    part = jnp.asarray(part)
    np.testing.assert_array_equal(
      corruptions.corrupt(_key(), part, CLEAN[part], kind, 0.5, 0.2),
      whole[part],
    )
  other_run = corruptions.corrupt(_key(1), INDEX, CLEAN, kind, 0.5, 0.2)
  assert np.mean(np.any(whole != other_run, axis=1)) > 0.7


@pytest.mark.parametrize("kind", ["gaussian", "outlier"])
def test_examples_have_noise_of_their_own(kind):
  x_0 = jnp.zeros((N, 2, 2, 1))
  dirty = corruptions.corrupt(_key(), INDEX, x_0, kind, 1.0, 0.2)
  # A few pairs of 16,000 draws share a float32 by chance.
  assert len(np.unique(dirty)) > 0.99 * dirty.size
  correlation = np.corrcoef(dirty.reshape(N, 4), rowvar=False)
  np.testing.assert_allclose(correlation, np.eye(4), atol=4 / np.sqrt(N))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_share_of_dirty_examples(fraction):
  dirty = corruptions.is_dirty(_key(), INDEX, fraction)
  band = 4 * np.sqrt(fraction * (1 - fraction) / N)
  assert np.mean(dirty) == pytest.approx(fraction, abs=band)


def test_a_larger_share_keeps_the_dirty_examples():
  few = corruptions.is_dirty(_key(), INDEX, 0.3)
  many = corruptions.is_dirty(_key(), INDEX, 0.6)
  assert np.all(many[few])


@pytest.mark.parametrize("kind", ["gaussian", "outlier"])
def test_clean_examples_are_unchanged_to_the_bit(kind):
  none = corruptions.corrupt(_key(), INDEX, CLEAN, kind, 0.0, 0.2)
  np.testing.assert_array_equal(none, CLEAN)
  some = corruptions.corrupt(_key(), INDEX, CLEAN, kind, 0.5, 0.2)
  dirty = corruptions.is_dirty(_key(), INDEX, 0.5)
  np.testing.assert_array_equal(np.any(some != CLEAN, axis=1), dirty)
  every = corruptions.corrupt(_key(), INDEX, CLEAN, kind, 1.0, 0.2)
  assert np.all(np.any(every != CLEAN, axis=1))


def test_gaussian_noise_has_its_standard_deviation():
  dirty = corruptions.corrupt(_key(), INDEX, CLEAN, "gaussian", 1.0, 0.2)
  noise = np.asarray(dirty - CLEAN, np.float64)
  # 12,000 draws: four standard errors are 2.6% and 0.0073.
  assert noise.std() == pytest.approx(0.2, rel=0.026)
  assert noise.mean() == pytest.approx(0, abs=0.0073)
  assert np.abs(dirty).max() > 1  # Not clipped to the data's range.


def test_outliers_fill_their_range_and_forget_the_example():
  outliers = corruptions.corrupt(_key(), INDEX, CLEAN, "outlier", 1.0, 3.0)
  other = corruptions.corrupt(_key(), INDEX, -CLEAN, "outlier", 1.0, 3.0)
  np.testing.assert_array_equal(outliers, other)
  assert np.abs(outliers).max() <= 3
  # Uniform: 12,000 draws, four standard errors are 1.7%.
  assert np.std(outliers) == pytest.approx(3 / np.sqrt(3), rel=0.017)


# From stored examples to the network.


def test_model_range_round_trip_of_every_level():
  levels = np.arange(256, dtype=np.uint8)
  x = examples.to_model_range(levels)
  assert x.dtype == np.float32
  assert (x[0], x[255]) == (-1, 1)
  np.testing.assert_allclose(np.diff(x), 2 / 255, rtol=1e-4)
  np.testing.assert_array_equal(examples.to_uint8(x), levels)
  # Off a level by less than half of one, and out of range.
  np.testing.assert_array_equal(examples.to_uint8(x + 0.9 / 255), levels)
  np.testing.assert_array_equal(examples.to_uint8(x - 0.9 / 255), levels)
  np.testing.assert_array_equal(
    examples.to_uint8(np.array([-7.0, 7.0])), [0, 255]
  )


def test_model_range_on_the_device_and_of_float_data():
  levels = np.arange(256, dtype=np.uint8)
  on_device = examples.to_model_range(jnp.asarray(levels))
  np.testing.assert_allclose(
    on_device, examples.to_model_range(levels), atol=1e-7
  )
  assert on_device.dtype == jnp.float32
  x = np.array([0.25, 200.0], np.float32)
  np.testing.assert_array_equal(examples.to_model_range(x), x)


def test_flips_mirror_left_to_right_by_each_key():
  def keys():
    return jax.random.split(_key(3), 600)

  x = _clean(600, (2, 3, 2))
  flipped = examples.random_flip(keys(), x)
  mirrored = np.asarray(x)[:, :, ::-1, :]
  is_same = np.all(flipped == x, axis=(1, 2, 3))
  is_mirrored = np.all(flipped == mirrored, axis=(1, 2, 3))
  np.testing.assert_array_equal(is_same, ~is_mirrored)
  assert np.mean(is_mirrored) == pytest.approx(0.5, abs=2 / np.sqrt(600))
  part = jnp.array([5, 2, 77, 3])
  np.testing.assert_array_equal(
    examples.random_flip(keys()[part], x[part]), flipped[part]
  )


def test_a_batch_is_scaled_corrupted_and_then_flipped():
  pixels = _generator().integers(0, 256, (64, 2, 3, 1), np.uint8)
  batch = {"x_0": jnp.asarray(pixels), "index": jnp.arange(100, 164)}
  corrupt = prepare.make_corruption(_key(), "gaussian", 0.5, 0.2)
  noise_of = prepare.make_known_noise(_key(), "gaussian", 0.5, 0.2)
  x_0 = corrupt(batch["index"], examples.to_model_range(batch["x_0"]))
  for flip in (False, True):
    made = jax.jit(prepare.make_prepare(corrupt, noise_of, flip))
    found, sigma_c = made(batch, jax.random.split(_key(1), 64))
    keys = jax.random.split(_key(1), 64)
    expected = examples.random_flip(keys, x_0) if flip else x_0
    np.testing.assert_allclose(found, expected, atol=1e-6)
    dirty = corruptions.is_dirty(_key(), batch["index"], 0.5)
    np.testing.assert_allclose(sigma_c, 0.2 * dirty)


def test_evenly_spread_indices():
  assert training_set.evenly(11, 3).tolist() == [0, 5, 10]
  assert training_set.evenly(4, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", WORLDS)
def test_synthetic_training_set_has_a_stream_of_its_own(name):
  opened = training_set.open_training_set(
    name,
    seed=3,
    num_examples=20,
    path="",
    split="train",
    data_dir="",
    cache="",
    loading="memory",
    crop_size=0,
    image_size=32,
    num_channels=3,
    max_megapixels=150.0,
    max_unreadable=0,
    linear_rank=0,
  )
  expected = WORLDS[name].sample(np.random.default_rng([3, 0, 1]), 20)
  np.testing.assert_array_equal(opened.x_0, expected)
  np.testing.assert_array_equal(
    opened.fetch(np.array([4, 1])), expected[[4, 1]]
  )


# The subspace.


def test_subspace_is_that_of_the_singular_vectors():
  x = _generator(1).normal(size=(60, 2, 3, 1)) * np.array(
    [[[3.0], [1.0], [0.2]], [[2.0], [0.5], [0.1]]]
  )
  x = x + 5
  fitted = subspace.fit(x, 3)
  flat = x.reshape(60, 6)
  mean = flat.mean(axis=0)
  _, singular, vectors = np.linalg.svd(flat - mean, full_matrices=False)
  np.testing.assert_allclose(fitted.mean, mean, atol=1e-12)
  np.testing.assert_allclose(
    np.abs(fitted.basis @ vectors[:3].T), np.eye(3), atol=1e-8
  )
  np.testing.assert_allclose(
    np.linalg.norm(subspace.coordinates(fitted, x), axis=0),
    singular[:3],
    rtol=1e-8,
  )
  expected = (flat - mean) @ vectors[:3].T @ vectors[:3] + mean
  projected = subspace.project(fitted, x)
  assert projected.shape == x.shape
  np.testing.assert_allclose(projected.reshape(60, 6), expected, atol=1e-8)
  np.testing.assert_allclose(
    subspace.project(fitted, projected), projected, atol=1e-10
  )


def test_subspace_of_full_rank_keeps_everything_in_its_type():
  x = _generator(2).normal(size=(20, 4)).astype(np.float32)
  projected = subspace.project(subspace.fit(x.astype(np.float64), 4), x)
  assert projected.dtype == np.float32
  np.testing.assert_allclose(projected, x, atol=1e-5)


@pytest.mark.parametrize(("n", "rank"), [(20, 0), (20, 5), (3, 4)])
def test_subspace_refuses_other_ranks(n, rank):
  with pytest.raises(ValueError, match=f"{rank} principal"):
    subspace.fit(_generator().normal(size=(n, 4)), rank)


# Measures.


def _random_gaussian(seed, d=4):
  root = _generator(seed).normal(size=(d, d))
  return _generator(seed + 1).normal(size=d), root @ root.T


def test_moments_by_hand():
  mean, covariance = measures.moments(
    np.array([[0, 0], [2, 0], [1, 3]], np.float32)
  )
  np.testing.assert_allclose(mean, [1, 1], rtol=1e-12)
  np.testing.assert_allclose(covariance, [[1, 0], [0, 3]], atol=1e-12)
  mean, covariance = measures.moments(np.array([[0.0], [2.0]]))
  assert mean.dtype == covariance.dtype == np.float64
  np.testing.assert_array_equal(covariance, [[2.0]])


def test_frechet_distance_of_a_set_to_itself():
  gaussian = measures.moments(_generator().normal(size=(100, 5)))
  assert measures.frechet_distance(*gaussian, *gaussian) < 1e-12


def test_frechet_distance_of_diagonal_gaussians():
  # |m|^2 + sum of (std_1 - std_2)^2: 9 + 16 + (1 - 2)^2 + (5 - 3)^2.
  distance = measures.frechet_distance(
    np.array([3.0, 0.0]),
    np.diag([1.0, 25.0]),
    np.array([0.0, 4.0]),
    np.diag([4.0, 9.0]),
  )
  assert distance == pytest.approx(30, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_frechet_distance_against_the_root_of_the_product(seed):
  mean_1, covariance_1 = _random_gaussian(seed)
  mean_2, covariance_2 = _random_gaussian(seed + 2)
  cross = scipy.linalg.sqrtm(covariance_1 @ covariance_2)
  expected = np.sum((mean_1 - mean_2) ** 2) + np.trace(
    covariance_1 + covariance_2 - 2 * np.real(cross)
  )
  one_way = (mean_1, covariance_1, mean_2, covariance_2)
  other_way = (mean_2, covariance_2, mean_1, covariance_1)
  for gaussians in (one_way, other_way):
    assert measures.frechet_distance(*gaussians) == pytest.approx(
      expected, rel=1e-8
    )


def test_frechet_distance_bears_singular_covariances():
  # Lines at right angles in a rotated plane: 1 + 4, nothing in common.
  turn = np.array([[0.6, -0.8], [0.8, 0.6]])
  line_1 = turn @ np.diag([1.0, 0.0]) @ turn.T
  line_2 = turn @ np.diag([0.0, 4.0]) @ turn.T
  zero = np.zeros(2)
  assert measures.frechet_distance(zero, line_1, zero, line_2) == pytest.approx(
    5, abs=1e-6
  )
  assert measures.frechet_distance(
    zero, line_1, zero, 4 * line_1
  ) == pytest.approx(1, abs=1e-6)
  assert measures.frechet_distance(zero, line_1, zero, line_1) < 1e-6


def _floor(x):
  """Onto the plane where the last coordinate is zero."""
  return x * np.array([1, 1, 0], x.dtype)


def test_distance_from_the_support_by_hand():
  # Offsets 3 and 4: squares 25 over two points, over six elements.
  x = np.array([[1, 2, 3], [7, -2, -4]], np.float32)
  assert measures.support_rms(x, _floor) == pytest.approx(np.sqrt(12.5))
  assert measures.support_psnr(x, _floor) == pytest.approx(
    10 * np.log10(4 / (25 / 6))
  )
  # Two off every element: error as large as the peak.
  assert measures.support_psnr(x, lambda x: x - 2) == pytest.approx(0)
  assert measures.support_rms(_floor(x), _floor) == 0
  assert measures.support_psnr(_floor(x), _floor) == np.inf


def test_spread_ratio_by_hand():
  true = np.diag([1.0, 3.0])
  assert measures.spread_ratio(true, true) == 1
  assert measures.spread_ratio(true / 4, true) == pytest.approx(0.5)
  assert measures.spread_ratio(np.diag([9.0, 7.0]), true) == pytest.approx(2)


# The truth.


def test_truth_of_a_world_is_its_own():
  world = WORLDS["oblique_plane"]
  known = reference.of_world(world)
  x = _generator().normal(size=(50, 3))
  np.testing.assert_array_equal(known.project(x), world.project(x))
  np.testing.assert_array_equal(known.features(x), x)
  np.testing.assert_array_equal(known.mean, world.mean)
  np.testing.assert_array_equal(known.covariance, world.covariance)


def test_truth_of_images_of_a_known_rank():
  # Images 2 x 2 x 1 in a plane of R^4, with different spreads.
  generator = _generator(3)
  basis = np.linalg.qr(generator.normal(size=(4, 2)))[0].T
  coordinates = generator.normal(size=(200, 2)) * np.array([0.5, 0.2])
  x_0 = (coordinates @ basis + 0.1).reshape(200, 2, 2, 1)
  known = reference.of_images(x_0, rank=2, frechet_dims=3)
  flat = x_0.reshape(200, 4)
  np.testing.assert_allclose(known.project(flat), flat, atol=1e-8)
  normal = scipy.linalg.null_space(basis)[:, 0]
  np.testing.assert_allclose(known.project(flat + normal), flat, atol=1e-8)
  # Moments in the leading components: centred, uncorrelated, falling.
  np.testing.assert_allclose(known.mean, 0, atol=1e-12)
  assert known.covariance.shape == (3, 3)
  np.testing.assert_allclose(
    np.diag(known.covariance),
    np.append(np.linalg.eigvalsh(np.cov(coordinates.T))[::-1], 0),
    atol=1e-8,
  )
  gaussian = measures.moments(known.features(flat))
  assert (
    measures.frechet_distance(*gaussian, known.mean, known.covariance) < 1e-6
  )
  # A shift along the support is seen, in full.
  shifted = measures.moments(known.features(flat + 0.3 * basis[0]))
  assert measures.frechet_distance(
    *shifted, known.mean, known.covariance
  ) == pytest.approx(0.09, rel=1e-4)


def test_truth_of_stored_images_is_in_model_units():
  images = _generator(4).integers(0, 256, (30, 2, 2, 1)).astype(np.uint8)
  stored = reference.of_images(images, rank=2, frechet_dims=50)
  scaled = reference.of_images(examples.to_model_range(images), 2, 4)
  x = _generator().uniform(-1, 1, (10, 4)).astype(np.float32)
  np.testing.assert_allclose(stored.project(x), scaled.project(x), atol=1e-5)
  np.testing.assert_allclose(stored.covariance, scaled.covariance, atol=1e-5)
  assert stored.features(x).shape == (10, 4)
  assert np.trace(stored.covariance) < 4


def test_clean_images_have_the_spread_of_the_truth():
  """Where the subspace holds a part of the variance only, too."""
  x_0 = np.random.default_rng(0).uniform(-1, 1, (200, 4, 4, 1))
  x_0 = x_0.astype(np.float32)
  clean = reference.of_images(x_0, rank=3, frechet_dims=8)
  found = truth_protocol.compare(x_0, clean, images=True)
  np.testing.assert_allclose(found["spread_ratio"], 1, rtol=1e-5)
  np.testing.assert_allclose(found["frechet"], 0, atol=1e-6)
  shrunk = truth_protocol.compare(
    clean.project(x_0.reshape(200, 16)), clean, False
  )
  np.testing.assert_allclose(shrunk["support_rms"], 0, atol=1e-5)
