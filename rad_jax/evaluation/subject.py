"""What a protocol is given, and what it gives back."""

import importlib.metadata
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rad_jax.data import examples, synthetic
from rad_jax.data.training_set import TrainingSet, evenly
from rad_jax.evaluation import reference, sampling
from rad_jax.evaluation.reference import Reference
from rad_jax.evaluation.sampling import Model
from rad_jax.run import Run
from rad_jax.version import __version__

_CHUNK = 1000  # Examples corrupted at once.
_PART = 10_000  # of a training set that is gone through


class Result(NamedTuple):
  """A protocol's numbers."""

  measures: dict[str, float]  # by names that no other protocol has
  curves: dict[str, list]  # of equal length
  baselines: dict[str, dict[str, float]]  # the measures, of data by name


class Subject(NamedTuple):
  """A trained model, its clean training set, and what it is held against."""

  model: Model
  training_set: TrainingSet
  reference: Reference

  @property
  def run(self) -> Run:
    """The model's run."""
    return self.model.run

  def samples(self) -> np.ndarray:
    """evaluation.num_samples samples, [n, ...] in model units."""
    return sampling.draw(self.model, self.run.evaluation.num_samples)

  def clean(self, count: int) -> np.ndarray:
    """`clean_examples` of the training set."""
    return clean_examples(self.training_set, count)

  def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` first examples, clean and as the run saw them."""
    count = min(count, self.training_set.num_examples)
    return self.pairs(np.arange(count))

  def seen(self) -> np.ndarray:
    """As many training examples as samples, as the run saw them, evenly."""
    total = self.training_set.num_examples
    index = evenly(total, min(self.run.evaluation.num_samples, total))
    parts = np.array_split(index, -(-len(index) // _CHUNK))
    return np.concatenate([self.pairs(part)[1] for part in parts])

  def everything(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The whole training set in parts, clean and as the run saw it."""
    total = self.training_set.num_examples
    for start in range(0, total, _PART):
      yield self.pairs(np.arange(start, min(start + _PART, total)))

  def pairs(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`pairs` of the run and its training set."""
    return pairs(self.run, self.training_set, index)

  def over_devices(
    self, function: Callable[..., Any], *arrays: Any, axis: int = 0
  ) -> Any:
    """function(params, *arrays [b, ...]), any b; results have it at `axis`."""
    mesh = self.model.mesh
    count = len(arrays[0])
    filled = -(-count // mesh.size) * mesh.size
    fill = lambda x: np.resize(x, (filled, *x.shape[1:]))
    compiled = sampling.over_devices(function, mesh, len(arrays))
    found = compiled(self.model.params, *jax.tree.map(fill, arrays))
    rows = (*[slice(None)] * axis, slice(count))
    return jax.tree.map(lambda x: np.asarray(x)[rows], found)


def open_subject(run: Run, workdir: pathlib.Path) -> Subject:
  """The newest checkpoint in workdir, with its training set and reference."""
  model = sampling.newest_model(run, workdir)
  training_set = run.open_training_set()
  return Subject(model, training_set, reference_of(run, training_set))


def reference_of(run: Run, training_set: TrainingSet) -> Reference:
  """What a run's samples are held against."""
  if run.is_synthetic:
    return reference.of_world(synthetic.WORLDS[run.data.name]())
  total = training_set.num_examples
  index = evenly(total, min(run.evaluation.num_reference, total))
  return image_reference(run, training_set.fetch(index))


def image_reference(run: Run, x_0: np.ndarray) -> Reference:
  """`reference.of_images` by the run's fields."""
  fields = run.evaluation
  rank = run.data.linear_rank or fields.subspace_rank
  return reference.of_images(x_0, rank, fields.frechet_dims)


def pairs(
  run: Run, training_set: TrainingSet, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Training examples by index [n], clean and as the run saw them."""
  index = index.astype(np.int32)
  clean = examples.to_model_range(training_set.fetch(index))
  dirty = run.corrupt(jnp.asarray(index), jnp.asarray(clean))
  return clean, np.asarray(dirty)


def clean_examples(training_set: TrainingSet, count: int) -> np.ndarray:
  """At most `count`, evenly spaced over the set, model units, [n, ...]."""
  total = training_set.num_examples
  index = evenly(total, min(count, total))
  return examples.to_model_range(training_set.fetch(index))


def columns(rows: list[dict[str, Any]]) -> dict[str, list]:
  """A table's rows as curves."""
  return {name: [row[name] for row in rows] for name in rows[0]}


def versions() -> dict[str, str]:
  """Of the libraries that numbers depend on."""
  names = ("jax", "jaxlib", "flax", "numpy", "scipy", "scikit-learn", "pillow")
  return {"rad_jax": __version__} | {
    name: importlib.metadata.version(name) for name in names
  }
