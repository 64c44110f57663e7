"""Purifies images with a run's newest checkpoint (robustness.purification)."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

from rad_jax.config import ConfigDict, ConfigError
from rad_jax.data import examples
from rad_jax.diffusion import samplers
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import measures
from rad_jax.evaluation.subject import Subject, open_subject, whole_batches
from rad_jax.robustness import purification
from rad_jax.training import build


def purify(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Purifies config.purify.num_examples inputs.

  Returns:
    workdir/purified: samples.npz (x_0: each input, then what became of it;
    float32, model units) and purification.json: the settings, and the root
    mean square distance from the true support, before and after.

  Raises:
    ConfigError: the input cannot be read, or is of another shape.
    CheckpointError: there is no checkpoint, or it is damaged.
    ValueError: no level of the grid is at or below t_star.
  """
  subject = open_subject(config, workdir)
  x = inputs(subject)
  fields = config.purify
  after = purified(subject, x)
  folder = workdir / "purified"
  folder.mkdir(exist_ok=True)
  np.savez_compressed(folder / "samples.npz", x_0=np.concatenate([x, after]))
  rms = [
    measures.support_rms(part.reshape(len(x), -1), subject.truth.project)
    for part in (x, after)
  ]
  result = {
    "step": subject.model.step,
    **fields.to_dict(),
    "num_levels": len(_levels(config).sigma),
    "support_rms_before": rms[0],
    "support_rms_after": rms[1],
  }
  (folder / "purification.json").write_text(json.dumps(result, indent=2) + "\n")
  return folder


def purified(subject: Subject, x: np.ndarray) -> np.ndarray:
  """x [n, ...] in model units, purified as config.purify says.

  Raises:
    ValueError: no level of the grid is at or below t_star.
  """
  config = subject.config
  levels = _levels(config)
  update = build.update(config, config.purify.sampler)
  padded = np.resize(x, (whole_batches(len(x)), *x.shape[1:]))
  keys = samplers.sample_keys(
    build.keys(config).sampling, jnp.arange(len(padded))
  )

  def run(params, x, keys):
    clip = config.sampling.clip_x_0 or None
    return purification.purify(
      subject.eps_fn(params), levels, update, x, keys, clip
    )

  return subject.run(run, padded, keys)[: len(x)]


def _levels(config: ConfigDict) -> Level:
  fields = config.purify
  return purification.from_level(
    build.process(config).grid(fields.num_steps), fields.t_star
  )


def dirty_examples(subject: Subject, count: int) -> np.ndarray:
  """The first training examples as the run saw them, in model units."""
  count = min(count, subject.training_set.num_examples)
  index = np.arange(count, dtype=np.int32)
  clean = examples.to_model_range(subject.training_set.fetch(index))
  corrupt = build.corruption(subject.config)
  return np.asarray(corrupt(jnp.asarray(index), jnp.asarray(clean)))


def inputs(subject: Subject) -> np.ndarray:
  """The inputs, float32 [n, ...] in model units.

  Raises:
    ConfigError: as `purify`.
  """
  config = subject.config
  count = config.purify.num_examples
  if not config.purify.input:
    return dirty_examples(subject, count)
  try:
    with np.load(config.purify.input) as saved:
      x = examples.to_model_range(saved["x_0"][:count])
  except (OSError, KeyError, ValueError) as error:
    raise ConfigError(
      f"config.purify.input={config.purify.input!r} cannot be read ({error}):"
      " it must be an .npz file that holds x_0 [n, ...]"
    ) from error
  if x.shape[1:] != build.example_shape(config):
    raise ConfigError(
      f"config.purify.input={config.purify.input!r} holds examples of shape"
      f" {x.shape[1:]}, and the run's are {build.example_shape(config)}"
    )
  return x
