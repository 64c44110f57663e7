"""Sample quality in the features of an extractor, against clean references.

Frechet's distance is `fid` with Inception, `fd_dinov2` with DINOv2 (Stein et
al. 2023), and otherwise `feature_frechet`, comparable with itself only.
precision_low and _high are the bootstrap's 95% interval over samples.
"""

import json
import pathlib
from typing import Any

import numpy as np
import scipy.special

from rad_jax import files
from rad_jax.config import ConfigError, differences
from rad_jax.evaluation import baselines, feature_measures
from rad_jax.evaluation.subject import Result, Subject, versions
from rad_jax.features import extractors
from rad_jax.run import Run

_SUBSET = 1000
# Names of Frechet's distance whose numbers can be held against published ones.
_DISTANCES = {"inception": "fid", "dinov2": "fd_dinov2"}


def measure(subject: Subject) -> Result:
  """The measures of evaluation.num_samples samples."""
  extractor, _, reference = references(subject)

  def against(x: np.ndarray, places: slice) -> dict[str, float]:
    found = extractors.extract_all(extractor, x)
    return measures(extractor.name, found, reference[places])

  found = against(subject.samples(), slice(None))
  return Result(found, {}, baselines.of(subject, against))


def make_extractor(run: Run, clean: np.ndarray) -> extractors.Extractor:
  """The run's extractor, made from clean references [n, ...]."""
  fields = run.evaluation
  weights = getattr(fields, f"{fields.extractor}_weights", "")
  make = extractors.EXTRACTORS[fields.extractor]
  return make(clean, fields.extractor_dims, 0, weights)


def measures(
  name: str, found: extractors.Features, reference: np.ndarray
) -> dict[str, float]:
  """All measures of samples' features, by the extractor of that name."""
  x = found.features
  size = min(_SUBSET, len(x), len(reference))
  kid = feature_measures.kid(x, reference, subset_size=size)
  precision, recall = feature_measures.precision_recall(x, reference)
  density, coverage = feature_measures.density_coverage(x, reference)
  holding = feature_measures.balls(x, reference, 3).holding > 0
  low, high = feature_measures.bootstrap(np.mean, holding)
  scores = _scores(found.logits) if found.logits is not None else {}
  return {
    _DISTANCES.get(name, "feature_frechet"): feature_measures.fid(x, reference),
    "kid": kid.mean,
    "kid_std": kid.std,
    "precision": precision,
    "precision_low": low,
    "precision_high": high,
    "recall": recall,
    "density": density,
    "coverage": coverage,
    **scores,
  }


def _scores(logits: np.ndarray) -> dict[str, float]:
  """The Inception Score of class logits [n, classes]."""
  probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
  splits = min(10, len(logits))
  score = feature_measures.inception_score(probabilities, splits)
  return {"inception_score": score.mean, "inception_score_std": score.std}


def references(
  subject: Subject,
) -> tuple[extractors.Extractor, np.ndarray, np.ndarray]:
  """The extractor, clean references [n, ...], and their features [n, k].

  Features are kept in evaluation.reference, or beside the run.
  """
  run = subject.run
  clean = subject.clean(run.evaluation.num_reference)
  extractor = make_extractor(run, clean)
  identity = _identity(run, extractor.version)
  digest = files.digest(identity)
  path = pathlib.Path(
    run.evaluation.reference
    or subject.model.workdir / "references" / f"{digest}.npz"
  )
  if path.exists():
    with np.load(path) as saved:
      _refuse_other(path, json.loads(str(saved["identity"])), identity)
      return extractor, clean, saved["features"]
  found = extractors.extract_all(extractor, clean).features
  files.write_npz(
    path,
    features=found,
    identity=json.dumps(identity),
    versions=json.dumps(versions()),
  )
  return extractor, clean, found


def _identity(run: Run, version: str) -> dict[str, Any]:
  """All that reference features depend on, the extractor's version included."""
  data, names, identity = run.data, ["name", "split"], {}
  if run.is_synthetic:
    identity = {"seed": run.config["seed"], "num_examples": data.num_examples}
  else:
    names += ["crop_size", "image_size", "num_channels", "linear_rank"]
  return identity | {
    "extractor": version,
    "count": run.evaluation.num_reference,
    **{name: getattr(data, name) for name in names},
  }


def _refuse_other(path: pathlib.Path, saved: dict, identity: dict) -> None:
  if differing := differences(saved, identity):
    raise ConfigError(
      f"the references in {path} are of something else ({'; '.join(differing)}"
      "): choose another evaluation.reference, or remove the file"
    )
