"""Ways to sample: samples against the truth by sampler, steps and more.

Curves: sampler, num_steps, stop_sigma, temperature, evaluations (of the
network), and the measures of `truth`, as support_rms and frechet.
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
  """Every combination; where a list is empty, the run's own field."""
  fields, own = subject.run.evaluation, subject.run.sampling
  axes = {
    "sampler": fields.samplers or (own.sampler,),
    "num_steps": fields.step_counts,
    "stop_sigma": fields.stop_sigmas or (own.stop_sigma,),
    "temperature": fields.temperatures or (own.temperature,),
  }
  rows = [
    _row(subject, dict(zip(axes, values, strict=True)))
    for values in itertools.product(*axes.values())
  ]
  names = dict.fromkeys(name for row in rows for name in row)
  return Result({}, columns([dict.fromkeys(names) | row for row in rows]), {})


def _row(subject: Subject, chosen: dict[str, Any]) -> dict[str, Any]:
  run = sampling.changed(subject.run, **chosen)
  found = chosen | {"evaluations": sampling.evaluations(run)}
  try:
    count = run.evaluation.num_step_samples
    x_0 = sampling.draw(subject.model, count, **chosen)
    images = not run.is_synthetic
    return found | truth.compare(x_0, subject.reference, images)
  except NonFiniteSamples as error:
    _LOG.warning("%s: %s", chosen, error)
    return found
