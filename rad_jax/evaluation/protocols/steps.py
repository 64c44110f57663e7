"""Few-step sampling: samples against the truth by sampler and by steps.

Curves, one row for each of evaluation.samplers and evaluation.step_counts:
sampler, num_steps, evaluations (of the network, for one sample), support_rms
and frechet (protocol truth's). Samples that are not finite have None.
"""

import logging

from rad_jax.config import is_synthetic
from rad_jax.evaluation import sampling
from rad_jax.evaluation.protocols import truth
from rad_jax.evaluation.sampling import NonFiniteSamples
from rad_jax.evaluation.subject import Result, Subject
from rad_jax.training import build

_LOG = logging.getLogger("rad_jax")


def measure(subject: Subject) -> Result:
  """Every sampler at every number of steps."""
  fields = subject.config.evaluation
  rows = [
    row(subject, name, num_steps)
    for name in fields.samplers
    for num_steps in fields.step_counts
  ]
  return Result({}, {name: [row[name] for row in rows] for name in rows[0]})


def row(subject: Subject, sampler: str, num_steps: int) -> dict:
  """One sampler at one number of steps."""
  config = subject.config
  images = not is_synthetic(config)
  found: dict[str, float] = {}
  try:
    count = config.evaluation.num_step_samples
    x_0 = sampling.draw(subject.model, count, sampler, num_steps)
    found = truth.compare(x_0, subject.truth, images)
  except NonFiniteSamples as error:
    _LOG.warning("%s, %d steps: %s", sampler, num_steps, error)
  return {
    "sampler": sampler,
    "num_steps": num_steps,
    "evaluations": build.evaluations(config, num_steps, sampler),
    "support_rms": found.get("support_rms"),
    "frechet": found.get("frechet"),
  }
