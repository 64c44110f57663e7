"""Whether samples have collapsed, by the training set alone: no clean truth."""

from collections.abc import Mapping

import numpy as np

from rad_jax.data import subspace
from rad_jax.evaluation import measures
from rad_jax.run import Run

_DIMS = 32
_EDGE = 0.999  # of [-1, 1]
_LEAST_SPREAD, _MOST_SPREAD = 0.5, 1.5
_MOST_SATURATED = 0.25
_SAFE_LAM = 0.3


def against_training(x: np.ndarray, seen: np.ndarray) -> dict[str, float]:
  """Samples x [n, ...] against training examples [m, ...] as the run saw them.

  training_spread is the standard deviation of the samples over that of the
  examples; training_frechet the Frechet distance in the examples' leading
  principal components, over their variance there: their mean alone has 1;
  training_saturated the share of elements at or beyond the ends of [-1, 1],
  less that of the examples.
  """
  x, seen = (part.reshape(len(part), -1) for part in (x, seen))
  saturated = [float(np.mean(np.abs(part) >= _EDGE)) for part in (x, seen)]
  components = subspace.fit(seen, min(_DIMS, *seen.shape))
  moments = [
    measures.moments(subspace.coordinates(components, part))
    for part in (x, seen)
  ]
  distance = measures.frechet_distance(*moments[0], *moments[1])
  return {
    "training_spread": float(np.sqrt(x.var(axis=0).sum() / seen.var(0).sum())),
    "training_frechet": distance / float(np.trace(moments[1][1])),
    "training_saturated": saturated[0] - saturated[1],
  }


def alarms(found: Mapping[str, float]) -> list[str]:
  """A sentence for each sign of collapse in `against_training`'s numbers."""
  said = []
  spread = found["training_spread"]
  if not _LEAST_SPREAD <= spread <= _MOST_SPREAD:
    said.append(
      f"the samples spread {_text(spread)} times as far as the training set"
    )
  if found["training_frechet"] > 1:
    said.append(
      "the samples are further from the training set than its mean alone"
      f" (Frechet distance {_text(found['training_frechet'])} of its variance)"
    )
  if found["training_saturated"] > _MOST_SATURATED:
    said.append(
      f"{found['training_saturated']:.0%} more of their values than of the"
      " training set's lie at the ends of [-1, 1]"
    )
  return said


def advice(run: Run) -> str:
  """What a collapsed run may try, in one sentence."""
  regularised = run.method.objective.clean and run.method.objective.target
  ways = []
  if regularised and run.objective.lam > _SAFE_LAM:
    ways.append(f"train anew with objective.lam={_SAFE_LAM}")
  if not (run.is_synthetic or run.sampling.clip_x_0):
    ways.append("sample and evaluate with sampling.clip_x_0=1")
  return "what may help: " + ", or ".join([*ways, "train longer"])


def _text(value: float) -> str:
  return f"{value:.2g}" if value < 100 else f"{value:,.0f}"
