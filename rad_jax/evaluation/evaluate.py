"""Evaluation of a run against clean truth, as JSON.

Protocol 1. Of evaluation.num_samples samples, flattened, against the clean
distribution (never the corrupted one):

support_rms: root mean square distance from the true support.
support_psnr_db: the same offset as PSNR; images only.
frechet: Frechet distance of the moments: in the points themselves for
  worlds, in the leading principal components for images. It is no FID.
mean_error: Euclidean distance of the means, in the same features.
spread_ratio: total standard deviation inside the support over the truth's.
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

from rad_jax.config import ConfigDict, is_synthetic
from rad_jax.data import examples, synthetic
from rad_jax.evaluation import measures, sampling, truth
from rad_jax.training import build

PROTOCOL = 1


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict:
  """Samples from the newest checkpoint and measures them.

  Writes workdir/evaluation.json, and workdir/training_examples.npz to look
  at: sampling.num_samples of the training examples, `clean` and `dirty`, as
  the run saw them.
  """
  samples = sampling.draw(config, workdir, config.evaluation.num_samples)
  training_set = build.training_set(config)
  clean = clean_truth(config, training_set)
  result = {
    "protocol": PROTOCOL,
    "step": samples.step,
    "data": config.data.name,
    "objective": config.objective.name,
    "sampling": config.sampling.to_dict(),
    "evaluation": config.evaluation.to_dict(),
    "measures": compare(samples.x_0, clean, images=not is_synthetic(config)),
  }
  save_training_examples(config, workdir, training_set)
  (workdir / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
  return result


def save_training_examples(
  config: ConfigDict, workdir: pathlib.Path, training_set: build.TrainingSet
) -> None:
  """Writes training_examples.npz: float32, model units, by example index."""
  count = min(config.sampling.num_samples, training_set.num_examples)
  index = np.arange(count, dtype=np.int32)
  clean = examples.to_model_range(training_set.fetch(index))
  corrupt = build.corruption(config)
  dirty = np.asarray(corrupt(jnp.asarray(index), jnp.asarray(clean)))
  np.savez_compressed(
    workdir / "training_examples.npz", clean=clean, dirty=dirty
  )


def clean_truth(
  config: ConfigDict, training_set: build.TrainingSet
) -> truth.Truth:
  """The truth that a run's samples are held against."""
  if is_synthetic(config):
    return truth.of_world(synthetic.WORLDS[config.data.name]())
  count = min(config.evaluation.num_reference, training_set.num_examples)
  evenly = np.linspace(0, training_set.num_examples - 1, count).astype(np.int32)
  return truth.of_images(
    training_set.fetch(evenly),
    config.data.linear_rank or config.evaluation.subspace_rank,
    config.evaluation.frechet_dims,
  )


def compare(
  x_0: np.ndarray, clean: truth.Truth, images: bool
) -> dict[str, float]:
  """The measures of samples x_0 [n, ...] against the truth."""
  flat = x_0.reshape(len(x_0), -1)
  mean, covariance = measures.moments(clean.features(flat))
  _, inside = measures.moments(clean.features(clean.project(flat)))
  found = {
    "support_rms": measures.support_rms(flat, clean.project),
    "frechet": measures.frechet_distance(
      mean, covariance, clean.mean, clean.covariance
    ),
    "mean_error": float(np.linalg.norm(mean - clean.mean)),
    "spread_ratio": measures.spread_ratio(inside, clean.inside),
  }
  if images:
    found["support_psnr_db"] = measures.support_psnr(flat, clean.project)
  return found
