"""What a measure says of data instead of samples: its zero, and its worst.

A measure has a zero of its own: clean examples are off the subspace of others,
and two draws of one distribution are apart. They are as many as the samples,
or all there are.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from rad_jax.data import examples, synthetic
from rad_jax.data.training_set import evenly
from rad_jax.evaluation.subject import Subject, clean_examples

Measures: TypeAlias = dict[str, float]

HELD_OUT = "clean, held out"
HALVES = "clean, half against half"
TRAINING = "training set"
TRAINING_HALVES = "training set, half against half"
FEWEST = 32  # Fewer examples say little.


def of(
  subject: Subject, measure: Callable[[np.ndarray, slice], Measures]
) -> dict[str, Measures]:
  """measure(x [n, ...], the references' places), of data for x, by its name."""
  name, x, places = clean(subject)
  fields = subject.run.evaluation
  rank = subject.run.data.linear_rank or fields.subspace_rank
  enough = len(x) >= max(FEWEST, rank + 1)
  return ({name: measure(x, places)} if enough else {}) | {
    TRAINING: measure(subject.seen(), slice(None))
  }


def clean(subject: Subject) -> tuple[str, np.ndarray, slice]:
  """Clean examples, named, and the places of the references to compare with.

  Of a synthetic set they are fresh; of images those of evaluation.held_out, or
  else what the references leave over of the training set; or, if that is less,
  half of the references, against the other half.
  """
  run, training_set = subject.run, subject.training_set
  count, total = run.evaluation.num_samples, training_set.num_examples
  if run.is_synthetic:
    # Apart from the streams of training sets and references.
    generator = np.random.default_rng([0, 0, 3])
    x = synthetic.WORLDS[run.data.name]().sample(generator, count)
    return HELD_OUT, x, slice(None)
  if run.evaluation.held_out:
    return HELD_OUT, held_out(subject, count), slice(None)
  used = evenly(total, min(run.evaluation.num_reference, total))
  rest = np.setdiff1d(np.arange(total), used)
  name, index, places = HELD_OUT, rest, slice(None)
  if len(rest) < len(used) // 2:
    name, index, places = HALVES, used[1::2], slice(None, None, 2)
  index = index[evenly(len(index), min(count, len(index)))]
  x = examples.to_model_range(training_set.fetch(index.astype(np.int32)))
  return name, x, places


def held_out(subject: Subject, count: int) -> np.ndarray:
  """At most `count` images of evaluation.held_out, evenly spaced over it.

  They are in the subspace of a linearised training set.
  """
  run = subject.run
  split = run.open_training_set(split=run.evaluation.held_out, linear_rank=0)
  x = clean_examples(split, count)
  if not run.data.linear_rank:
    return x
  flat = x.reshape(len(x), -1)
  return subject.reference.project(flat).reshape(x.shape)
