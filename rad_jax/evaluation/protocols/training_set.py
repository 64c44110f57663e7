"""Samples against the training set as the run saw it: no clean truth.

What `collapse.against_training` measures; beside it, the same of one half of
the training set against the other.
"""

from rad_jax.evaluation import baselines, collapse
from rad_jax.evaluation.subject import Result, Subject


def measure(subject: Subject) -> Result:
  """The measures of evaluation.num_samples samples."""
  seen = subject.seen()
  found = collapse.against_training(subject.samples(), seen)
  beside = {}
  if len(seen) >= 2 * baselines.FEWEST:
    halves = collapse.against_training(seen[1::2], seen[::2])
    beside = {baselines.TRAINING_HALVES: halves}
  return Result(found, {}, beside)
