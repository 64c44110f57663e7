"""Purifies images with a run's newest checkpoint (robustness.purification)."""

import pathlib

import numpy as np

from rad_jax import files
from rad_jax.config import ConfigError
from rad_jax.data import examples
from rad_jax.diffusion import samplers
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import measures, sampling
from rad_jax.evaluation.subject import Subject, open_subject
from rad_jax.robustness import purification
from rad_jax.run import Run


def purify(run: Run, workdir: pathlib.Path) -> pathlib.Path:
  """Purifies purify.num_examples inputs; returns the folder written."""
  subject = open_subject(run, workdir)
  x = inputs(subject)
  after = purified(subject, x)
  folder = workdir / "purified"
  files.write_npz(folder / "samples.npz", x_0=np.concatenate([x, after]))
  rms = [
    measures.support_rms(part.reshape(len(x), -1), subject.reference.project)
    for part in (x, after)
  ]
  result = {
    "step": subject.model.step,
    **run.purify._asdict(),
    "num_levels": len(_levels(run).sigma),
    "support_rms_before": rms[0],
    "support_rms_after": rms[1],
  }
  files.write_json(folder / "purification.json", result)
  return folder


def purified(subject: Subject, x: np.ndarray) -> np.ndarray:
  """x [n, ...] in model units, purified as the run's section purify says."""
  run = subject.run
  update = sampling.update(run, run.purify.sampler)
  return there_and_back(subject, x, _levels(run), update)


def there_and_back(
  subject: Subject, x: np.ndarray, levels: Level, update: samplers.Update
) -> np.ndarray:
  """x [n, ...] noised up to levels[0] and brought back by the sampler."""
  run = subject.run

  def noise_and_reverse(params, x, index):
    return purification.purify(
      sampling.eps_fn(run, params),
      levels,
      update,
      x,
      samplers.sample_keys(run.keys.sampling, index),
      run.sampling.clip_x_0 or None,
    )

  index = np.arange(len(x), dtype=np.int32)
  return subject.over_devices(noise_and_reverse, x, index)


def inputs(subject: Subject) -> np.ndarray:
  """purify.input's or training examples as the run saw them, in model units."""
  run, path = subject.run, subject.run.purify.input
  count = run.purify.num_examples
  if not path:
    return subject.first(count)[1]
  try:
    with np.load(path) as saved:
      x = examples.to_model_range(saved["x_0"][:count])
  except (OSError, KeyError, ValueError) as error:
    raise ConfigError(
      f"config.purify.input={path!r} cannot be read ({error}): it must be an"
      " .npz file that holds x_0 [n, ...]"
    ) from error
  if x.shape[1:] != run.example_shape:
    raise ConfigError(
      f"config.purify.input={path!r} holds examples of shape {x.shape[1:]},"
      f" and the run's are {run.example_shape}"
    )
  return x


def _levels(run: Run) -> Level:
  grid = run.process.grid(run.purify.num_steps)
  return purification.from_level(grid, run.purify.t_star)
