"""Signs of collapse, told from the training set alone."""

import numpy as np
import pytest

from rad_jax.evaluation import collapse


@pytest.fixture(scope="module")
def seen():
  return np.random.default_rng(0).normal(0, 0.3, (2000, 4, 4, 1))


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0])
def test_scaled_samples_have_closed_forms(seen, factor):
  """Of N(0, s^2) against N(0, 1): W2^2 = d (s - 1)^2, over a variance of d."""
  centred = seen - seen.mean(axis=0)
  found = collapse.against_training(factor * centred, centred)
  np.testing.assert_allclose(found["training_spread"], factor, rtol=1e-6)
  expected = (factor - 1) ** 2
  np.testing.assert_allclose(found["training_frechet"], expected, atol=1e-6)


def test_the_mean_alone_is_as_far_as_the_variance(seen):
  mean = np.broadcast_to(seen.mean(axis=0), seen.shape)
  found = collapse.against_training(mean, seen)
  np.testing.assert_allclose(found["training_frechet"], 1.0, rtol=1e-6)
  assert len(collapse.alarms(found)) >= 1


@pytest.mark.parametrize(
  ("spoil", "word"),
  [
    (lambda x: 0.1 * x, "spread"),
    (lambda x: np.sign(x), "ends of"),
    (lambda x: x + 1.0, "mean alone"),
  ],
)
def test_each_collapse_is_named_and_a_fresh_half_is_not(seen, spoil, word):
  first, second = np.split(seen, 2)
  assert not collapse.alarms(collapse.against_training(first, second))
  said = collapse.alarms(collapse.against_training(spoil(first), second))
  assert any(word in sentence for sentence in said)


def test_a_saturated_training_set_is_no_alarm():
  """Black and white drawings are at the ends, and so are their samples."""
  generator = np.random.default_rng(0)
  first, second = np.sign(generator.normal(size=(2, 500, 4, 4, 1)))
  found = collapse.against_training(first, second)
  assert found["training_saturated"] == pytest.approx(0, abs=1e-6)
  grey = collapse.against_training(0.5 * first, second)
  assert grey["training_saturated"] == pytest.approx(-1)
  assert not collapse.alarms(found)
