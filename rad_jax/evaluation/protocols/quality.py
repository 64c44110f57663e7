"""Sample quality in the features of an extractor, against clean references.

Frechet's distance is `fid` with Inception alone and `fd_dinov2` with DINOv2
(Stein et al. 2023); with the others it is `feature_frechet`, comparable with
itself only. kid (with kid_std, over subsets), precision, recall, density and
coverage are in the same features; inception_score needs class logits. Intervals
are 95% ones of the bootstrap over samples.
"""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import scipy.special

from rad_jax.config import ConfigDict, ConfigError, is_synthetic
from rad_jax.evaluation import quality
from rad_jax.evaluation.subject import Result, Subject, versions
from rad_jax.features import extractors

_SUBSET = 1000
# Names of Frechet's distance whose numbers can be held against published ones.
_DISTANCES = {"inception": "fid", "dinov2": "fd_dinov2"}


def measure(subject: Subject) -> Result:
  """The measures of evaluation.num_samples samples."""
  clean = subject.clean(subject.config.evaluation.num_reference)
  extractor = make_extractor(subject, clean)
  reference = reference_features(subject, extractor, clean)
  found = extractors.extract_all(extractor, subject.samples())
  return Result(measures(extractor.name, found, reference), {})


def measures(
  name: str, found: extractors.Features, reference: np.ndarray
) -> dict[str, float]:
  """All measures of samples' features, by the extractor of that name."""
  distance = _DISTANCES.get(name, "feature_frechet")
  return (
    {distance: quality.fid(found.features, reference)}
    | compare(found.features, reference)
    | (scores(found.logits) if found.logits is not None else {})
  )


def make_extractor(subject: Subject, clean: np.ndarray) -> extractors.Extractor:
  """The config's extractor; of clean references [n, ...]."""
  fields = subject.config.evaluation
  weights = fields.get(f"{fields.extractor}_weights", "")
  make = extractors.EXTRACTORS[fields.extractor]
  return make(clean, fields.extractor_dims, 0, weights)


def compare(x: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """All but Frechet's distance and the Inception Score."""
  size = min(_SUBSET, len(x), len(reference))
  kid = quality.kid(x, reference, subset_size=size)
  both = quality.precision_recall(x, reference)
  spread = quality.density_coverage(x, reference)
  holding = quality.balls(x, reference, 3).holding > 0
  low, high = quality.bootstrap(np.mean, holding)[:2]
  return {
    "kid": kid.mean,
    "kid_std": kid.std,
    "precision": both.precision,
    "precision_low": float(low),
    "precision_high": float(high),
    "recall": both.recall,
    "density": spread.density,
    "coverage": spread.coverage,
  }


def scores(logits: np.ndarray) -> dict[str, float]:
  """The Inception Score of class logits [n, classes]."""
  probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
  score = quality.inception_score(probabilities, min(10, len(logits)))
  return {"inception_score": score.mean, "inception_score_std": score.std}


def reference_features(
  subject: Subject, extractor: extractors.Extractor, clean: np.ndarray
) -> np.ndarray:
  """Features of the clean references, [n, ...] -> [n, k], cached.

  evaluation.reference names a file to share among runs: it is written if
  missing, and refused if it is of another set, count, preprocessing or
  extractor. Without a name they lie beside the run.

  Raises:
    ConfigError: the file is of something else; the differences are named.
  """
  config = subject.config
  identity = reference_identity(config, extractor.version)
  digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
  path = pathlib.Path(
    config.evaluation.reference
    or subject.model.workdir / "references" / f"{digest}.npz"
  )
  if path.exists():
    with np.load(path) as saved:
      refuse_other(path, json.loads(str(saved["identity"])), identity)
      return saved["features"]
  found = extractors.extract_all(extractor, clean).features
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    np.savez(
      file,
      features=found,
      identity=json.dumps(identity),
      versions=json.dumps(versions()),
    )
  return found


def reference_identity(config: ConfigDict, version: str) -> dict[str, Any]:
  """All that reference features depend on, the extractor's version included."""
  data = config.data
  names = ["name", "split"]
  if is_synthetic(config):
    identity = {"seed": config.seed, "num_examples": data.num_examples}
  else:
    identity = {}
    names += ["crop_size", "image_size", "num_channels", "linear_rank"]
  return identity | {
    "extractor": version,
    "count": config.evaluation.num_reference,
    **{name: data[name] for name in names},
  }


def refuse_other(path: pathlib.Path, saved: dict, identity: dict) -> None:
  """Raises ConfigError if a file's references are of something else."""
  differing = [
    f"{name}: {saved.get(name)} there, {value} here"
    for name, value in identity.items()
    if saved.get(name) != value
  ]
  if differing:
    raise ConfigError(
      f"the references in {path} are of something else ({'; '.join(differing)}"
      "): choose another evaluation.reference, or remove the file"
    )
