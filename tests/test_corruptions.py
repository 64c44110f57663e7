"""Corruptions of images: closed forms, then Pillow's JPEG and SciPy's blur."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from rad_jax import checks
from rad_jax import config as configs
from rad_jax.data import corruptions, examples, jpeg, prepare

KINDS = sorted(corruptions.CORRUPTIONS)
RANDOM = ("gaussian", "mask", "outlier", "salt_and_pepper")
# A moderate strength of each, in its own unit.
MODERATE = {
  kind: corruptions.CORRUPTIONS[kind].severities[-1] for kind in KINDS
}


def _key(seed=0):
  return jax.random.key(seed)


def _smooth(height, width, channels, seed=0):
  """A uint8 image of soft blobs that fills the range."""
  noise = np.random.default_rng(seed).standard_normal((height, width, channels))
  x = ndimage.gaussian_filter(noise, (2, 2, 0))
  return np.rint(255 * (x - x.min()) / np.ptp(x)).astype(np.uint8)


@functools.cache
def _images(n, shape=(16, 12, 3)):
  stack = np.stack([_smooth(*shape, seed=i) for i in range(n)])
  return examples.to_model_range(stack)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _applied(kind, x_0, strength):
  return corruptions.CORRUPTIONS[kind].apply(_key(), x_0, strength)


def _apply(kind, x_0, strength):
  x_0 = np.asarray(x_0, np.float32)
  return np.asarray(_applied(kind, x_0, strength))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _corrupted(index, x_0, kind, fraction, strengths):
  make = functools.partial(prepare.make_corruption, _key(), kind, fraction)
  return [make(strength)(index, x_0) for strength in strengths]


def _corrupt(x_0, kind, fraction, *strengths, index=None):
  """The training set's examples of an index, all by default, by strength."""
  index = np.arange(len(x_0)) if index is None else np.asarray(index)
  x_0 = np.asarray(x_0, np.float32)
  return jax.device_get(_corrupted(index, x_0, kind, fraction, strengths))


def _weak_and_strong(kind, x_0, index=None):
  """At the least and the greatest severity."""
  ladder = corruptions.CORRUPTIONS[kind].severities
  return _corrupt(x_0, kind, 1.0, ladder[0], ladder[-1], index=index)


# All kinds.


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"outlier"}))
def test_strength_zero_is_none(kind):
  # Outside [-1, 1] too: what a linearised set holds is not clipped.
  x_0 = 1.7 * _images(1)[0]
  np.testing.assert_array_equal(_apply(kind, x_0, 0.0), x_0)


@pytest.mark.parametrize(
  "kind, shape",
  [(kind, (16, 12, 3)) for kind in KINDS]
  + [(kind, (9, 9, 1)) for kind in ("blur", "jpeg", "mask")],
)
def test_runs_inside_jit_and_belongs_to_the_example(kind, shape):
  x_0 = _images(6, shape)
  _, whole = _weak_and_strong(kind, x_0)
  assert whole.shape == x_0.shape and whole.dtype == x_0.dtype
  assert np.all(np.isfinite(whole))
  moved = np.array([4, 1, 0, 0, 5, 2])
  _, found = _weak_and_strong(kind, x_0[moved], index=moved)
  np.testing.assert_array_equal(found, whole[moved])


@pytest.mark.parametrize("kind", RANDOM)
def test_examples_are_hit_each_in_its_own_way(kind):
  _, dirty = _weak_and_strong(kind, np.full((6, 16, 12, 3), 0.3))
  # The rectangle has 30 places: two of six may share one.
  assert len(np.unique(dirty, axis=0)) >= (5 if kind == "mask" else 6)


@pytest.mark.parametrize("kind", KINDS)
def test_severities_rise(kind):
  _, ladder, strongest, _ = corruptions.CORRUPTIONS[kind]
  assert len(ladder) == 5 and list(ladder) == sorted(set(ladder))
  assert 0 < ladder[0] and ladder[-1] <= strongest
  x_0 = _images(6)
  weak, strong = (np.mean((x - x_0) ** 2) for x in _weak_and_strong(kind, x_0))
  assert 0 < weak < strong


def test_strength_is_sigma_or_a_severity():
  assert corruptions.strength_of("blur", 3.0, 0) == 3.0
  assert corruptions.strength_of("blur", 3.0, 1) == 0.4
  assert corruptions.strength_of("jpeg", 3.0, 5) == 60.0


# Salt and pepper.


def test_salt_and_pepper_hits_its_share_half_and_half():
  x_0 = np.full((200, 200, 3), 0.3)
  dirty = _apply("salt_and_pepper", x_0, 0.2)
  assert set(np.unique(dirty)) == {-1.0, np.float32(0.3), 1.0}
  # 120,000 elements: four standard errors are 0.0035 at most.
  assert np.mean(dirty == 1) == pytest.approx(0.1, abs=0.0035)
  assert np.mean(dirty == -1) == pytest.approx(0.1, abs=0.0035)


def test_salt_and_pepper_hits_channels_one_by_one():
  hit = _apply("salt_and_pepper", np.zeros((200, 200, 2)), 0.5) != 0
  # Independent: both with probability 1/4; four standard errors are 0.009.
  assert np.mean(hit.all(axis=2)) == pytest.approx(0.25, abs=0.009)


# Mask.


@pytest.mark.parametrize(
  "share, sides", [(0.25, (6, 10)), (1.0, (12, 20)), (1e-9, (1, 1))]
)
def test_mask_is_a_rectangle_of_zeros(share, sides):
  x_0 = np.full((12, 20, 3), 0.3, np.float32)
  dirty = _apply("mask", x_0, share)
  rows, columns, _ = np.nonzero(dirty == 0)
  top, left = rows.min(), columns.min()
  assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == sides
  expected = np.array(x_0)
  expected[top : top + sides[0], left : left + sides[1]] = 0
  np.testing.assert_array_equal(dirty, expected)


def test_mask_lies_anywhere_inside():
  (dirty,) = _corrupt(np.ones((400, 4, 6, 1)), "mask", 1.0, 1 / 4)
  corners = np.array([np.argwhere(x == 0)[0, :2] for x in dirty])
  places, counts = np.unique(corners, axis=0, return_counts=True)
  # 2 x 3 pixels have 3 x 4 places in 4 x 6, 33 each: 11 within four errors.
  assert len(places) == 12
  assert np.all(np.abs(counts - 400 / 12) < 4 * np.sqrt(400 / 12))


# JPEG.


def _pillow(image, quality):
  """uint8 [h, w, c] through Pillow's JPEG; and the tables that it used."""
  file = io.BytesIO()
  grey = image.shape[2] == 1
  Image.fromarray(image[..., 0] if grey else image).save(
    file, "JPEG", quality=quality
  )
  with Image.open(file) as picture:
    return np.array(picture).reshape(image.shape), picture.quantization


_round_trip = jax.jit(jpeg.round_trip, static_argnums=1)


def _ours(image, quality):
  x = examples.to_model_range(image)
  return examples.to_uint8(np.asarray(_round_trip(x, quality)))


@pytest.mark.parametrize("quality", [1, 10, 33, 49, 50, 51, 75, 90, 100])
def test_quantisation_tables_are_libjpegs(quality):
  _, tables = _pillow(_smooth(16, 16, 3), quality)
  for place, ours in enumerate(jpeg.quantisation_tables(quality)):
    np.testing.assert_array_equal(ours.ravel(), tables[place])


@pytest.mark.parametrize(
  "sides, channels, quality",
  [
    ((32, 32), 3, 85),
    ((31, 45), 3, 25),
    ((9, 17), 3, 85),
    ((9, 17), 1, 25),
    ((32, 32), 1, 85),
  ],
)
def test_jpeg_is_pillows(sides, channels, quality):
  image = _smooth(*sides, channels)
  theirs = _pillow(image, quality)[0].astype(float)
  lost = np.abs(theirs - image).mean()
  # Both round; here and there a coefficient falls on the other side.
  difference = np.abs(_ours(image, quality) - theirs).mean()
  assert difference < 0.6 + 0.04 * lost
  assert lost > 0.6


def test_jpeg_keeps_even_grey_and_equal_channels():
  even = np.full((11, 13, 1), 77, np.uint8)
  np.testing.assert_array_equal(_ours(even, 100), even)
  grey = np.repeat(_smooth(20, 20, 1), 3, axis=2)
  ours = _ours(grey, 30)
  np.testing.assert_array_equal(ours[..., 0], ours[..., 1])
  np.testing.assert_array_equal(ours[..., 0], ours[..., 2])
  np.testing.assert_array_equal(ours[..., :1], _ours(grey[..., :1], 30))


def test_jpeg_halves_the_colours_and_not_the_luma():
  """Checkers of one luma and two hues melt; those of two lumas stay."""
  checkers = np.indices((16, 16)).sum(axis=0)[..., None] % 2
  black_and_white = np.repeat(255 * checkers, 3, axis=2).astype(np.uint8)
  assert np.ptp(_ours(black_and_white, 100)) == 255
  # Luma 0.299 x 200 = 0.587 x 102.
  hues = np.where(checkers, [200, 0, 0], [0, 102, 0]).astype(np.uint8)
  assert np.abs(np.diff(_ours(hues, 100).astype(int), axis=0)).max() <= 4


def test_jpeg_clips_and_needs_an_image():
  x_0 = 1.7 * _images(1)[0]
  dirty = _apply("jpeg", x_0, 10.0)
  assert np.abs(dirty).max() <= 1
  np.testing.assert_array_equal(
    dirty, _apply("jpeg", np.clip(x_0, -1, 1), 10.0)
  )
  with pytest.raises(ValueError, match=r"JPEG holds .*not \(8, 8, 2\)"):
    _apply("jpeg", np.zeros((8, 8, 2)), 10.0)


def test_jpeg_strength_is_the_quality_lost():
  x_0 = _images(1)[0]
  np.testing.assert_array_equal(_apply("jpeg", x_0, 30.0), _round_trip(x_0, 70))


# Blur.


@pytest.mark.parametrize("std", [0.4, 1.0, 2.5, 9.0])
def test_blur_is_scipys(std):
  x_0 = 1.7 * _images(1, (17, 12, 3))[0]
  expected = ndimage.gaussian_filter(
    np.asarray(x_0, np.float64), (std, std, 0), mode="reflect"
  )
  np.testing.assert_allclose(_apply("blur", x_0, std), expected, atol=2e-6)


def test_blur_spreads_a_point_by_its_variance_and_keeps_the_mean():
  x_0 = np.zeros((41, 41, 1))
  x_0[20, 20] = 1.0
  spot = _apply("blur", x_0, 3.0)[..., 0]
  place = np.arange(41) - 20
  for axis in (0, 1):
    # Cut off at 4 std, and sampled: 1% off.
    assert place**2 @ spot.sum(axis=axis) == pytest.approx(9.0, rel=0.01)
  assert spot.sum() == pytest.approx(1, abs=1e-5)
  image = _images(1)[0]
  np.testing.assert_allclose(
    _apply("blur", image, 2.0).mean(axis=(0, 1)),
    image.mean(axis=(0, 1)),
    atol=1e-5,
  )


# The config.


def _strength(config):
  """The arguments that data.corruption stands for."""
  fields = config.data.corruption
  sigma = corruptions.strength_of(fields.kind, fields.sigma, fields.severity)
  return fields.kind, fields.fraction, sigma


def _config(name="cifar10", objective="robust_adv", **fields):
  config = configs.default()
  config.data.name = name
  config.objective.name = objective
  config.data.corruption.update(fields)
  return config


@pytest.mark.parametrize("kind", KINDS)
def test_severity_stands_for_its_strength(kind):
  ladder = corruptions.CORRUPTIONS[kind].severities

  def strength(**fields):
    config = _config(kind=kind, fraction=0.5, **fields)
    checks.validate(config)
    assert configs.corruption_strength(config) == _strength(config)[2]
    return _strength(config)

  assert strength(severity=4) == strength(sigma=ladder[3])
  assert strength(severity=4) != strength(severity=5)
  # A sigma that is not looked at need not suit the kind.
  assert strength(severity=4) == strength(severity=4, sigma=1.5)


def test_severity_zero_is_as_before():
  x_0, index = _images(6), np.arange(6)
  config = _config(fraction=0.5, sigma=0.3)

  @jax.jit
  @jax.vmap
  def before(index, x_0):
    flag, noise = jax.random.split(jax.random.fold_in(_key(), index))
    hit = jax.random.uniform(flag) < 0.5
    dirty = x_0 + 0.3 * jax.random.normal(noise, x_0.shape)
    return hit, jnp.where(hit, dirty, x_0)

  hit, expected = jax.device_get(before(index, x_0))
  assert 0 < hit.sum() < 6
  (found,) = _corrupt(x_0, *_strength(config))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(found[~hit], x_0[~hit])


def test_noise_aware_training_is_told_the_strength():
  config = _config(fraction=0.5, severity=2, objective="noise_aware")
  checks.validate(config)
  noise_of = prepare.make_known_noise(_key(), *_strength(config))
  noise = np.asarray(noise_of(jnp.arange(64)))
  assert set(np.unique(noise)) == {0, np.float32(0.12)}
  config.data.corruption.fraction = 1.0
  config.sampling.stop_sigma = 0.11
  with pytest.raises(configs.ConfigError, match=r"at least .*sigma, 0\.12"):
    checks.validate(config)
  config.sampling.stop_sigma = 0.12
  checks.validate(config)


@pytest.mark.parametrize("kind", KINDS)
def test_only_gaussian_noise_is_known(kind):
  noise_of = prepare.make_known_noise(_key(), kind, 1.0, 0.3)
  known = np.float32(0.3 if kind == "gaussian" else 0)
  found = jax.jit(noise_of)(np.arange(8))
  np.testing.assert_array_equal(found, np.full(8, known))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"gaussian"}))
def test_noise_aware_training_refuses_other_kinds(kind):
  config = _config(kind=kind, fraction=0.5, severity=1, objective="noise_aware")
  with pytest.raises(configs.ConfigError, match=f"kind is {kind!r}"):
    checks.validate(config)


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"kind": "salt_and_pepper", "sigma": 1.01}, "sigma=1.01: .* at most 1 "),
    ({"kind": "mask", "sigma": 1.01}, "sigma=1.01: .* at most 1 for mask"),
    ({"kind": "jpeg", "sigma": 100.0}, "sigma=100.0: .* at most 99 for jpeg"),
    ({"kind": "jpeg", "sigma": 0.2}, "sigma=0.2: .* whole number for jpeg"),
    ({"kind": "blur", "sigma": -1.0}, "sigma=-1.0: .* at least 0"),
    ({"kind": "blur", "sigma": float("inf")}, "sigma=inf: .* at least 0"),
    ({"severity": 6}, "severity=6: it must be one of 0, 1, 2, 3, 4, 5"),
    ({"severity": -1}, "severity=-1: it must be one of 0, 1, 2, 3, 4, 5"),
    (
      {"kind": "mask", "name": "oblique_plane"},
      "kind='mask': .* oblique_plane: mask needs images",
    ),
    ({"kind": "jpeg", "name": "three_gaussians", "severity": 1}, "needs im"),
    ({"kind": "blur", "name": "oblique_plane"}, "needs images"),
  ],
)
def test_impossible_strength_is_named(fields, expected):
  with pytest.raises(configs.ConfigError, match=expected):
    checks.validate(_config(**fields))


@pytest.mark.parametrize(
  "fields",
  [
    {"kind": "gaussian", "sigma": 3.0},
    {"kind": "salt_and_pepper", "sigma": 1.0},
    {"kind": "jpeg", "sigma": 99.0},
    {"kind": "jpeg", "sigma": 0.0},
    {"kind": "blur", "sigma": 7.5},
    {"severity": 5},
  ],
)
def test_ends_of_the_strengths_are_allowed(fields):
  checks.validate(_config(**fields))


def test_points_take_salt_and_pepper():
  config = configs.default()
  config.data.name, config.model.name = "oblique_plane", "mlp"
  config.data.corruption.update(kind="salt_and_pepper", fraction=1.0)
  checks.validate(config)
  (dirty,) = _corrupt(np.full((500, 3), 0.3), *_strength(config))
  assert np.mean(np.abs(dirty) == 1) == pytest.approx(0.2, abs=0.05)
