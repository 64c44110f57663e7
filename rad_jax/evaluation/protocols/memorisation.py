"""Memorisation: how near samples are to training examples, in features.

near_duplicates is the share of samples less than a third as far from their
nearest as from their second (Yoon et al. 2023), with its 95% interval (Wilson).
It is of the whole training set as the run saw it; near_duplicates_clean, where
examples are dirty, of the whole clean set, which a model may complete. A model
that generalises comes no nearer than evaluation.held_out's examples.
"""

import numpy as np
import scipy.stats
from sklearn.neighbors import NearestNeighbors

from rad_jax import files
from rad_jax.evaluation import baselines
from rad_jax.evaluation.protocols import quality
from rad_jax.evaluation.subject import Result, Subject
from rad_jax.features import extractors

_RATIO = 1 / 3
_PAIRS = 32


def measure(subject: Subject) -> Result:
  """The measures of evaluation.num_samples samples."""
  extractor, *_ = quality.references(subject)
  features = lambda x: extractors.extract_all(extractor, x).features
  clean, seen = (
    np.concatenate(parts)
    for parts in zip(
      *((features(a), features(b)) for a, b in subject.everything()),
      strict=True,
    )
  )
  samples = subject.samples()
  own = features(samples)
  distances, places = nearest_two(own, seen)
  closest = np.argsort(distances[:, 0])[:_PAIRS]
  files.write_npz(
    subject.model.workdir / "memorisation.npz",
    samples=samples[closest],
    neighbours=subject.pairs(places[closest])[1],
    distances=distances[closest, 0],
  )
  found, beside = compare(distances), {}
  if not np.array_equal(clean, seen):
    of_clean = compare(nearest_two(own, clean)[0])
    found |= {f"{name}_clean": value for name, value in of_clean.items()}
  if subject.run.evaluation.held_out:
    theirs = features(baselines.held_out(subject, len(samples)))
    beside = {baselines.HELD_OUT: compare(nearest_two(theirs, seen)[0])}
  return Result(found, {}, beside)


def nearest_two(
  x: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Distances [n, 2] of x to its two nearest rows of train; the nearest [n]."""
  distances, places = NearestNeighbors(n_neighbors=2).fit(train).kneighbors(x)
  return distances, places[:, 0]


def compare(distances: np.ndarray) -> dict[str, float]:
  """The measures of distances [n, 2]."""
  near = distances[:, 0] < _RATIO * distances[:, 1]
  share = scipy.stats.binomtest(int(near.sum()), len(near)).proportion_ci(
    method="wilson"
  )
  return {
    "nearest": float(np.median(distances[:, 0])),
    "near_duplicates": float(near.mean()),
    "near_duplicates_low": float(share.low),
    "near_duplicates_high": float(share.high),
  }
