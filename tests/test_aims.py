"""What attacks on sampling raise, against the measures that are reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax.data import synthetic
from rad_jax.evaluation import aims, measures, reference

PLANE = reference.of_world(synthetic.oblique_plane())
MODES = reference.of_world(synthetic.three_gaussians())


def _of_images():
  images = np.random.default_rng(0).normal(0, 0.4, (200, 2, 2, 1))
  return reference.of_images(images.astype(np.float32), 2, 3)


WORLDS = {"plane": PLANE, "modes": MODES, "images": _of_images()}
each_world = pytest.mark.parametrize("clean", WORLDS.values(), ids=WORLDS)


def _samples(clean, count=64):
  d = clean.examples.shape[1]
  noise = np.random.default_rng(1).normal(0, 0.3, (count, d))
  return (clean.examples[:count] + noise).astype(np.float32)


def _reported(name, clean, x):
  features = clean.features(x)
  if name == "error":
    return measures.support_rms(x, clean.project) ** 2
  moments = measures.moments(features)
  return measures.frechet_distance(*moments, clean.mean, clean.covariance)


@each_world
@pytest.mark.parametrize("name", aims.AIMS)
def test_an_aim_is_the_reported_measure_and_so_is_its_slope(name, clean):
  """Value, and central difference along a random direction, in float64."""
  x = _samples(clean)
  goal = aims.goal(name, clean)
  value = float(jnp.mean(goal(jnp.asarray(x))))
  np.testing.assert_allclose(
    value, _reported(name, clean, x.astype(np.float64)), rtol=0.03
  )
  slope = jax.grad(lambda x: jnp.mean(goal(x)))(jnp.asarray(x))
  direction = np.random.default_rng(2).normal(size=x.shape)
  along = lambda h: _reported(name, clean, x.astype(np.float64) + h * direction)
  h = 1e-5
  expected = (along(h) - along(-h)) / (2 * h)
  np.testing.assert_allclose(
    np.sum(np.asarray(slope) * direction), expected, rtol=0.03, atol=1e-4
  )


def test_transported_has_the_moments_of_the_other_gaussian():
  x = _samples(PLANE, 500).astype(np.float64)
  mean, covariance = np.ones(3), np.diag([1.0, 2.0, 3.0])
  moved = measures.transported(x, mean, covariance)
  found = measures.moments(moved)
  np.testing.assert_allclose(found[0], mean, atol=1e-9)
  np.testing.assert_allclose(found[1], covariance, atol=1e-9)
  distance = measures.frechet_distance(*measures.moments(x), mean, covariance)
  squared = np.sum((x - moved - (x - moved).mean(0)) ** 2) / (len(x) - 1)
  squared += np.sum((x - moved).mean(0) ** 2)
  np.testing.assert_allclose(squared, distance, rtol=1e-9)
