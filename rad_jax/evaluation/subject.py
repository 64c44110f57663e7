"""What a protocol is given, and what it gives back."""

import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import rad_jax
from rad_jax.config import ConfigDict, is_synthetic
from rad_jax.data import examples, synthetic
from rad_jax.data.training_set import evenly
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.evaluation import sampling, truth
from rad_jax.evaluation.sampling import Model
from rad_jax.training import build, chips, sharding


class Result(NamedTuple):
  """A protocol's numbers.

  measures: one number each, by names that no other protocol has.
  curves: lists of equal length, one for each x of the protocol.
  """

  measures: dict[str, float]
  curves: dict[str, list]


class Subject(NamedTuple):
  """A trained model, the set it was trained on, and the clean truth."""

  model: Model
  training_set: build.TrainingSet
  truth: truth.Truth

  @property
  def config(self) -> ConfigDict:
    """The run's config."""
    return self.model.config

  def samples(self, **other: Any) -> np.ndarray:
    """evaluation.num_samples samples, [n, ...]; `other` as sampling.draw."""
    count = self.config.evaluation.num_samples
    return sampling.draw(self.model, count, **other)

  def clean(self, count: int) -> np.ndarray:
    """Clean training examples, evenly spaced, model units, [count, ...]."""
    count = min(count, self.training_set.num_examples)
    return examples.to_model_range(
      self.training_set.fetch(evenly(self.training_set.num_examples, count))
    )

  def eps_fn(self, params: Any) -> EpsFn:
    """The noise predictor at some parameters."""
    predict = build.predictor(self.config)
    return lambda x_t, level: predict(params, x_t, level, None)

  def run(self, function: Callable[..., Any], *arrays: Any) -> Any:
    """function(params, *arrays [b, ...]), over all devices, as NumPy arrays.

    b must be a multiple of the number of devices.
    """
    mesh = self.model.mesh
    everywhere, split = sharding.replicated(mesh), sharding.by_example(mesh)
    compiled = jax.jit(
      function,
      in_shardings=(everywhere, *[split] * len(arrays)),
      out_shardings=everywhere,
      compiler_options=chips.compiler_options(),
    )
    return jax.tree.map(np.asarray, compiled(self.model.params, *arrays))


def open_subject(config: ConfigDict, workdir: pathlib.Path) -> Subject:
  """The newest checkpoint in workdir.

  Raises:
    CheckpointError: there is none, or it is damaged.
    ConfigError: the run was of another model, data or objective.
    NotPrepared: the data is not on the disk.
  """
  model = sampling.newest_model(config, workdir)
  training_set = build.training_set(config)
  return Subject(model, training_set, clean_truth(config, training_set))


def clean_truth(
  config: ConfigDict, training_set: build.TrainingSet
) -> truth.Truth:
  """The truth that a run's samples are held against."""
  if is_synthetic(config):
    return truth.of_world(synthetic.WORLDS[config.data.name]())
  count = min(config.evaluation.num_reference, training_set.num_examples)
  return truth.of_images(
    training_set.fetch(evenly(training_set.num_examples, count)),
    config.data.linear_rank or config.evaluation.subspace_rank,
    config.evaluation.frechet_dims,
  )


def versions() -> dict[str, str]:
  """Of the libraries that numbers depend on."""
  names = ("jax", "jaxlib", "flax", "numpy", "scipy", "scikit-learn", "pillow")
  return {"rad_jax": rad_jax.__version__} | {
    name: importlib.metadata.version(name) for name in names
  }


def whole_batches(count: int) -> int:
  """The next multiple of the number of devices."""
  devices = jax.device_count()
  return -(-count // devices) * devices
