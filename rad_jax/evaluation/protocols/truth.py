"""Samples against the clean truth, never against the corrupted set.

frechet, mean_error and sliced_wasserstein are in the points themselves for
synthetic sets, in the leading principal components for images: no FID.
spread_ratio is the standard deviation inside the support over the truth's;
mode_error the largest error of a mode's share; spurious the share in no mode.
"""

import numpy as np

from rad_jax.evaluation import baselines, measures
from rad_jax.evaluation import subject as subjects
from rad_jax.evaluation.reference import Reference
from rad_jax.evaluation.subject import Result, Subject


def measure(subject: Subject) -> Result:
  """The measures of evaluation.num_samples samples."""
  run, whole = subject.run, subject.reference

  def against(x: np.ndarray, places: slice) -> dict[str, float]:
    part = whole.examples[places]
    clean = whole
    if len(part) < len(whole.examples):
      clean = subjects.image_reference(run, part)
    return compare(x, clean, images=not run.is_synthetic)

  found = against(subject.samples(), slice(None))
  return Result(found, {}, baselines.of(subject, against))


def compare(
  x_0: np.ndarray, clean: Reference, images: bool
) -> dict[str, float]:
  """The measures of samples x_0 [n, ...] against the truth."""
  flat = x_0.reshape(len(x_0), -1)
  features = clean.features(flat)
  mean, covariance = measures.moments(features)
  _, inside = measures.moments(clean.features(clean.project(flat)))
  found = {
    "support_rms": measures.support_rms(flat, clean.project),
    "frechet": measures.frechet_distance(
      mean, covariance, clean.mean, clean.covariance
    ),
    "mean_error": float(np.linalg.norm(mean - clean.mean)),
    "spread_ratio": measures.spread_ratio(inside, clean.inside),
    "sliced_wasserstein": measures.sliced_wasserstein(
      features, clean.features(clean.examples)
    ),
  }
  if images:
    found["support_psnr_db"] = measures.support_psnr(flat, clean.project)
  if clean.modes is not None:
    shares, spurious = measures.mode_shares(
      flat, clean.modes, clean.mode_radius
    )
    found["mode_error"] = float(np.abs(shares - 1 / len(shares)).max())
    found["spurious"] = spurious
  return found
