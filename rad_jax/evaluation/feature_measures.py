"""Sample quality from features: FID, KID, IS, precision, recall, and kin.

Float64, on features [n, d] of samples and [m, d] of a clean reference. The
published names hold with Inception's features only. FID and the Inception
Score are biased in n: compare at equal n only. KID is not.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.special

from rad_jax.evaluation import measures

# Rows of distances in memory at once: 10,000 reference rows make 80 MB.
_CHUNK = 1000


class Estimate(NamedTuple):
  """Mean and std over subsets (KID's overlap: not the std of the mean)."""

  mean: float
  std: float


class Balls(NamedTuple):
  """Samples in the balls round reference rows, to their k-th neighbours."""

  holding: np.ndarray  # how many balls hold each sample, int [n]
  covered: np.ndarray  # whether each ball holds any sample, bool [m]


def moments(
  x: np.ndarray, batch_size: int = 10_000
) -> tuple[np.ndarray, np.ndarray]:
  """Mean [d] and unbiased covariance [d, d] of x [n >= 2, d], by batches."""
  if len(x) < 2:
    raise ValueError(f"no covariance of {len(x)} rows: two are needed")
  mean, scatter = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
  for rows in range(0, len(x), batch_size):  # Chan et al. 1983, Eq. 1.5
    batch = np.asarray(x[rows : rows + batch_size], np.float64)
    total = rows + len(batch)
    centre = batch.mean(axis=0)
    offset, shift = batch - centre, centre - mean
    between = np.outer(shift, shift) * (rows * len(batch) / total)
    scatter = scatter + offset.T @ offset + between
    mean = mean + shift * (len(batch) / total)
  return mean, scatter / (len(x) - 1)


def fid(x: np.ndarray, reference: np.ndarray) -> float:
  """Frechet distance (Heusel et al. 2017), large by bias alone if n <= d."""
  return measures.frechet_distance(*moments(x), *moments(reference))


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
  """Unbiased squared MMD, kernel (x.y / d + 1)^3 (Binkowski et al. 2018)."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

  def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    linear = a @ b.T / x.shape[1] + 1
    return linear * linear * linear  # Ten times faster than ** 3.

  def within(a: np.ndarray) -> float:
    gram = kernel(a, a)  # Gretton et al. 2012, Eq. 3
    return (gram.sum() - np.trace(gram)) / (len(a) * (len(a) - 1))

  return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kid(
  x: np.ndarray,
  reference: np.ndarray,
  subset_size: int = 1000,
  num_subsets: int = 100,
  seed: int = 0,
) -> Estimate:
  """Kernel Inception Distance: `polynomial_mmd` over random subsets of rows."""
  if not 2 <= subset_size <= min(len(x), len(reference)):
    raise ValueError(
      f"KID's subsets of {subset_size} rows must have 2 or more, and no more"
      f" than the {len(x)} samples and {len(reference)} reference rows"
    )
  generator = np.random.default_rng(seed)
  draw = lambda rows: rows[
    generator.choice(len(rows), subset_size, replace=False)
  ]
  return _estimate(
    [polynomial_mmd(draw(x), draw(reference)) for _ in range(num_subsets)]
  )


def inception_score(probabilities: np.ndarray, splits: int = 10) -> Estimate:
  """exp(mean KL(p(y|x), p(y))), by splits (Salimans et al. 2016, section 4).

  From 1, where all rows [n, classes] are alike, to the number of classes; their
  order must have no meaning.
  """
  if not 1 <= splits <= len(probabilities):
    raise ValueError(f"no {splits} splits of {len(probabilities)} rows")

  def score(part: np.ndarray) -> float:
    marginal = part.mean(axis=0, keepdims=True)
    divergence = scipy.special.rel_entr(part, marginal).sum(axis=1)
    return float(np.exp(divergence.mean()))

  parts = np.array_split(np.asarray(probabilities, np.float64), splits)
  return _estimate([score(part) for part in parts])


def _estimate(values: list[float]) -> Estimate:
  return Estimate(float(np.mean(values)), float(np.std(values)))


def precision_recall(
  x: np.ndarray, reference: np.ndarray, k: int = 3
) -> tuple[float, float]:
  """Improved precision and recall (Kynkaanniemi et al. 2019, 1904.06991)."""
  precision = np.mean(balls(x, reference, k).holding > 0)
  recall = np.mean(balls(reference, x, k).holding > 0)
  return float(precision), float(recall)


def density_coverage(
  x: np.ndarray, reference: np.ndarray, k: int = 5
) -> tuple[float, float]:
  """Density and coverage (Naeem et al. 2020, arXiv 2002.09797, Eqs. 4 and 5).

  Density, balls that hold a sample over k, is about 1 for equal laws.
  """
  found = balls(x, reference, k)
  return float(np.mean(found.holding) / k), float(np.mean(found.covered))


def balls(x: np.ndarray, reference: np.ndarray, k: int) -> Balls:
  """Which samples x [n, d] lie in the balls round reference rows [m, d].

  Each reaches to the k-th nearest other row. O(m (n + m)) distances.
  """
  if not 1 <= k < len(reference):
    raise ValueError(f"{len(reference)} rows have no {k}-th neighbours")
  # The nearest, number 0, is the row itself.
  within = _squared_distances(reference, reference)
  radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in within])
  holding, covered = [], np.zeros(len(reference), bool)
  for distances in _squared_distances(x, reference):
    inside = distances <= radii
    holding.append(inside.sum(axis=1))
    covered |= inside.any(axis=0)
  return Balls(np.concatenate(holding), covered)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
  """[up to _CHUNK, m] at a time, between the rows of x and of y [m, d]."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  centre = y.mean(axis=0)  # Far from 0 the terms would cancel each other.
  x, y = x - centre, y - centre
  norms = np.square(y).sum(axis=1)
  for start in range(0, len(x), _CHUNK):
    rows = x[start : start + _CHUNK]
    own = np.square(rows).sum(axis=1, keepdims=True)
    yield np.maximum(own + norms - 2 * rows @ y.T, 0)


def bootstrap(
  statistic: Callable[[np.ndarray], float],
  x: np.ndarray,
  num_resamples: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile interval (Efron 1979) of a statistic of x's independent rows.

  Repeated rows spoil statistics of neighbours: resample those of `balls`, as
  in `bootstrap(np.mean, balls(x, reference, k).holding > 0)`.
  """
  generator = np.random.default_rng(seed)
  draw = lambda: x[generator.integers(len(x), size=len(x))]
  values = [statistic(draw()) for _ in range(num_resamples)]
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
