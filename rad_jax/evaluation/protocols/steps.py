"""Few-step sampling: samples against the truth by sampler and by steps.

Curves: sampler, num_steps, evaluations (of the network), support_rms, frechet.
"""

import itertools
import logging
from typing import Any

from rad_jax.evaluation import sampling
from rad_jax.evaluation.protocols import truth
from rad_jax.evaluation.sampling import NonFiniteSamples
from rad_jax.evaluation.subject import Result, Subject, columns

_LOG = logging.getLogger("rad_jax")


def measure(subject: Subject) -> Result:
  """Every sampler at every number of steps."""
  fields = subject.run.evaluation
  pairs = itertools.product(fields.samplers, fields.step_counts)
  return Result({}, columns([_row(subject, *pair) for pair in pairs]), {})


def _row(subject: Subject, name: str, num_steps: int) -> dict[str, Any]:
  found: dict[str, Any] = {"support_rms": None, "frechet": None}
  try:
    count = subject.run.evaluation.num_step_samples
    x_0 = sampling.draw(subject.model, count, name, num_steps)
    found = truth.distances(subject, x_0)
  except NonFiniteSamples as error:
    _LOG.warning("%s, %d steps: %s", name, num_steps, error)
  return {
    "sampler": name,
    "num_steps": num_steps,
    "evaluations": sampling.evaluations(subject.run, num_steps, name),
    **found,
  }
