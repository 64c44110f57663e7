"""Quality measures against closed forms and independent implementations."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.evaluation import feature_measures as measures
from rad_jax.evaluation.protocols import quality as protocol
from rad_jax.features import extractors


def _normal(n, k, seed=0, shift=0.0):
  return np.random.default_rng(seed).normal(size=(n, k)) + shift


# Moments.


@pytest.mark.parametrize("batch_size", [1, 7, 50, 99, 100, 1000])
def test_moments_by_batches_are_numpys(batch_size):
  x = _normal(100, 6) @ _normal(6, 6, seed=1)
  mean, covariance = measures.moments(x, batch_size)
  np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(covariance, np.cov(x.T), rtol=1e-10)


def test_moments_keep_their_digits_far_from_zero():
  # A sum of squares would keep nothing of variance 1 at 1e8.
  x = _normal(1000, 3)
  _, covariance = measures.moments(x + 1e8, batch_size=100)
  np.testing.assert_allclose(covariance, np.cov(x.T), atol=1e-6)


def test_moments_are_float64_of_float32_rows():
  x = (_normal(1000, 2) + 1000).astype(np.float32)
  _, covariance = measures.moments(x, batch_size=64)
  np.testing.assert_allclose(
    covariance, np.cov(x.T.astype(np.float64)), rtol=1e-10
  )


def test_one_row_has_no_covariance():
  with pytest.raises(ValueError, match="two are needed"):
    measures.moments(np.ones((1, 2)))


# FID.


def test_fid_is_the_formula_with_sqrtm():
  x, y = _normal(500, 8), _normal(400, 8, seed=1, shift=0.3) * 1.5
  c_x, c_y = np.cov(x.T), np.cov(y.T)
  root = np.real(scipy.linalg.sqrtm(c_x @ c_y))
  gap = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
  assert measures.fid(x, y) == pytest.approx(
    gap + np.trace(c_x + c_y - 2 * root), rel=1e-8
  )
  assert measures.fid(x, x) < 1e-10


# KID.


def _reference_mmd(x, y):
  k_xx, k_yy, k_xy = (
    polynomial_kernel(a, b, degree=3, gamma=1 / x.shape[1], coef0=1)
    for a, b in [(x, x), (y, y), (x, y)]
  )
  n, m = len(x), len(y)
  off_x, off_y = ~np.eye(n, dtype=bool), ~np.eye(m, dtype=bool)
  return k_xx[off_x].mean() + k_yy[off_y].mean() - 2 * k_xy.mean()


def test_mmd_is_scikit_learns_kernel_off_the_diagonal():
  x, y = _normal(60, 5), _normal(40, 5, seed=1, shift=0.5)
  assert measures.polynomial_mmd(x, y) == pytest.approx(_reference_mmd(x, y))


def test_kid_of_all_rows_is_the_mmd():
  x, y = _normal(50, 5), _normal(50, 5, seed=1, shift=0.5)
  found = measures.kid(x, y, subset_size=50, num_subsets=3)
  assert found.mean == pytest.approx(_reference_mmd(x, y))
  assert found.std == pytest.approx(0, abs=1e-12)


def test_kid_of_equal_laws_is_about_zero_where_the_biased_one_is_not():
  # The diagonals alone would add 2 E(k(x, x) - k(x, y)) / 50, about 0.3.
  found = measures.kid(
    _normal(5000, 8), _normal(5000, 8, seed=1), subset_size=50
  )
  assert abs(found.mean) < 0.02
  assert found.std > 0


def test_kid_subsets_are_seeded_and_spread_as_their_size_says():
  x, y = _normal(1000, 4), _normal(1000, 4, seed=1, shift=0.5)
  assert measures.kid(x, y, 50) == measures.kid(x, y, 50)
  assert measures.kid(x, y, 50) != measures.kid(x, y, 50, seed=1)
  # By 1 / sqrt(size) or faster.
  assert measures.kid(x, y, 20).std > 3 * measures.kid(x, y, 180).std


@pytest.mark.parametrize("size", [1, 11])
def test_kid_refuses_subsets_it_cannot_draw(size):
  with pytest.raises(ValueError, match="subsets of"):
    measures.kid(_normal(10, 2), _normal(20, 2), subset_size=size)


# Inception Score.


def test_inception_score_of_equal_predictions_is_one():
  rows = np.random.default_rng(0).dirichlet(np.ones(10))
  found = measures.inception_score(np.tile(rows, (100, 1)))
  assert found.mean == pytest.approx(1)
  assert found.std == pytest.approx(0, abs=1e-12)


def test_inception_score_of_sure_balanced_predictions_is_the_classes():
  found = measures.inception_score(np.tile(np.eye(10), (20, 1)), splits=10)
  assert found == pytest.approx((10, 0))


def test_inception_score_is_exp_of_the_mutual_information():
  p = np.random.default_rng(0).dirichlet(np.ones(7), size=40)

  def score(part):
    marginal = part.mean(axis=0)
    return np.exp(np.mean([scipy.stats.entropy(row, marginal) for row in part]))

  scores = [score(p[:20]), score(p[20:])]
  found = measures.inception_score(p, splits=2)
  assert found == pytest.approx((np.mean(scores), np.std(scores)))


def test_inception_score_refuses_more_splits_than_rows():
  with pytest.raises(ValueError, match="splits"):
    measures.inception_score(np.eye(3), splits=4)


# Precision, recall, density, coverage.


def _reference_balls(x, reference, k):
  """[n, m]: whether sample j is in ball i, by scikit-learn's trees."""
  search = NearestNeighbors(n_neighbors=k).fit(reference)
  radii = search.kneighbors()[0][:, -1]
  return np.linalg.norm(x[:, None] - reference, axis=-1) <= radii


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_measures_are_scikit_learns(k, monkeypatch):
  monkeypatch.setattr(measures, "_CHUNK", 32)
  x, y = _normal(90, 3, shift=0.7), _normal(110, 3, seed=1)
  inside, inverse = _reference_balls(x, y, k), _reference_balls(y, x, k)
  assert measures.precision_recall(x, y, k) == pytest.approx(
    (inside.any(axis=1).mean(), inverse.any(axis=1).mean())
  )
  assert measures.density_coverage(x, y, k) == pytest.approx(
    (inside.sum(axis=1).mean() / k, inside.any(axis=0).mean())
  )


def test_neighbour_measures_default_to_their_papers_k():
  x, y = _normal(90, 3, shift=0.7), _normal(110, 3, seed=1)
  assert measures.precision_recall(x, y) == measures.precision_recall(x, y, 3)
  assert measures.density_coverage(x, y) == measures.density_coverage(x, y, 5)


def test_a_set_and_itself_have_all_and_a_far_one_nothing():
  x = _normal(100, 4)
  assert measures.precision_recall(x, x) == (1, 1)
  assert measures.precision_recall(x, x + 100) == (0, 0)
  assert measures.density_coverage(x, x)[1] == 1
  assert measures.density_coverage(x, x + 100) == (0, 0)


def test_precision_and_recall_are_not_exchanged():
  # One of two modes: every sample is true, half of the truth is missed.
  both = np.concatenate([_normal(200, 2), _normal(200, 2, seed=1, shift=50)])
  precision, recall = measures.precision_recall(_normal(200, 2, seed=2), both)
  assert precision > 0.9
  assert recall < 0.6


def test_distances_bear_a_far_mean():
  # Squares of 1e8 would leave no digit of distances of 1.
  x, y = _normal(50, 3), _normal(60, 3, seed=1)
  near, far = measures.balls(x, y, 3), measures.balls(x + 1e8, y + 1e8, 3)
  assert np.mean(near.holding != far.holding) < 0.02


def test_neighbour_measures_refuse_k_without_neighbours():
  with pytest.raises(ValueError, match="4-th"):
    measures.density_coverage(_normal(9, 2), _normal(4, 2), k=4)


# Bootstrap.


def test_bootstrap_interval_is_scipys():
  x = _normal(200, 1)[:, 0]
  reference = scipy.stats.bootstrap(
    (x,), np.mean, method="percentile", n_resamples=4000, rng=0
  ).confidence_interval
  found = measures.bootstrap(np.mean, x, num_resamples=4000)
  np.testing.assert_allclose(found, reference, rtol=1e-12)


def test_bootstrap_is_seeded_and_keeps_rows_whole():
  x = np.arange(20.0).reshape(10, 2)

  def mean_of_whole(rows):
    np.testing.assert_array_equal(rows[:, 1] - rows[:, 0], np.ones(10))
    return rows.mean()

  found = measures.bootstrap(mean_of_whole, x, 50)
  assert found == measures.bootstrap(mean_of_whole, x, 50)
  assert found != measures.bootstrap(mean_of_whole, x, 50, seed=1)


# Names, in the protocol.


@pytest.mark.parametrize(
  "extractor, distance",
  [
    ("pca", "feature_frechet"),
    ("random_conv", "feature_frechet"),
    ("inception", "fid"),
    ("dinov2", "fd_dinov2"),
  ],
)
def test_frechets_distance_bears_its_features_name(extractor, distance):
  x, reference = _normal(40, 4, shift=0.5), _normal(50, 4, seed=1)
  found = protocol.measures(extractor, extractors.Features(x, None), reference)
  assert found[distance] == measures.fid(x, reference)
  others = {"fid", "fd_dinov2", "feature_frechet"} - {distance}
  assert not others & set(found)
  assert not any("inception" in name for name in found)


def test_logits_have_an_inception_score():
  x, logits = _normal(40, 4), _normal(40, 7, seed=1)
  found = protocol.measures("inception", extractors.Features(x, logits), x)
  assert found["inception_score"] > 1


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_an_extractor_is_given_its_own_weights(name, tmp_path):
  config = configs.default()
  config.evaluation.update(
    extractor=name,
    inception_weights=str(tmp_path / "inception.pth"),
    dinov2_weights=str(tmp_path / "dinov2.pth"),
  )
  with pytest.raises(ValueError, match=rf"{name}\.pth is no file"):
    protocol.make_extractor(runs.build(config), _normal(9, 4))
