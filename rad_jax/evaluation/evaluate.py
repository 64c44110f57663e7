"""Evaluation of a run's newest checkpoint: a list of protocols, one JSON file.

evaluation.protocols names them; each one's module in evaluation/protocols says
what it measures. The file is written after each protocol: interrupted, the
next call goes on, and what it finds done by the same version on the same
parameters and settings it keeps.
"""

import json
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from rad_jax.config import ConfigDict
from rad_jax.data import examples
from rad_jax.evaluation.protocols import (
  attack,
  levels,
  memorisation,
  portrait,
  quality,
  steps,
  truth,
)
from rad_jax.evaluation.subject import (
  Result,
  Subject,
  open_subject,
  versions,
)
from rad_jax.training import build

_LOG = logging.getLogger("rad_jax")

# Raised with every change of what a protocol's numbers mean.
VERSION = 3

PROTOCOLS: dict[str, Callable[[Subject], Result]] = {
  "truth": truth.measure,
  "quality": quality.measure,
  "reconstruction": levels.reconstruction,
  "flow": levels.flow,
  "score": levels.score,
  "steps": steps.measure,
  "memorisation": memorisation.measure,
  "attack": attack.measure,
  "portrait": portrait.measure,
}


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the protocols of config.evaluation.protocols on workdir's model.

  Returns: as `measure`.

  Raises:
    CheckpointError, ConfigError, NotPrepared: as `open_subject`.
    NonFiniteSamples: the sampler diverged.
  """
  return measure(open_subject(config, workdir))


def measure(subject: Subject) -> dict[str, Any]:
  """Runs the protocols of the subject's config.evaluation.protocols.

  Writes evaluation.json into the run's folder, and training_examples.npz to
  look at: sampling.num_samples of the training examples, `clean` and `dirty`,
  as the run saw them.

  Returns:
    The file's content: version, step, weights ("ema" or "raw"), parameters
    (a digest), seed, data, objective, sampling, evaluation, versions;
    protocols, by name, each with measures, curves and seconds; and measures,
    those of all protocols together.

  Raises:
    NonFiniteSamples: the sampler diverged.
  """
  path = subject.model.workdir / "evaluation.json"
  result = header(subject)
  kept = json.loads(path.read_text()) if path.exists() else {}
  if all(kept.get(name) == value for name, value in result.items()):
    result["protocols"] = kept["protocols"]
  else:
    result["protocols"] = {}
  for name in subject.config.evaluation.protocols:
    if name in result["protocols"]:
      continue
    _LOG.info("evaluating: %s", name)
    started = time.perf_counter()
    found = PROTOCOLS[name](subject)
    result["protocols"][name] = found._asdict() | {
      "seconds": round(time.perf_counter() - started, 1)
    }
    _write(result, path)
  save_training_examples(subject)
  return _write(result, path)


def header(subject: Subject) -> dict[str, Any]:
  """What all numbers of the file belong to."""
  config, model = subject.config, subject.model
  found = {
    "version": VERSION,
    "step": model.step,
    "weights": "ema" if config.sampling.ema else "raw",
    "parameters": model.digest,
    "seed": config.seed,
    "data": config.data.name,
    "objective": config.objective.name,
    "sampling": config.sampling.to_dict(),
    "evaluation": config.evaluation.to_dict() | {"protocols": None},
    "versions": versions(),
  }
  return json.loads(json.dumps(found))  # Tuples as the lists of the file.


def save_training_examples(subject: Subject) -> None:
  """Writes training_examples.npz: float32, model units, by example index."""
  config, training_set = subject.config, subject.training_set
  count = min(config.sampling.num_samples, training_set.num_examples)
  index = np.arange(count, dtype=np.int32)
  clean = examples.to_model_range(training_set.fetch(index))
  corrupt = build.corruption(config)
  dirty = np.asarray(corrupt(jnp.asarray(index), jnp.asarray(clean)))
  np.savez_compressed(
    subject.model.workdir / "training_examples.npz", clean=clean, dirty=dirty
  )


def _write(result: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  result["measures"] = {
    name: value
    for protocol in result["protocols"].values()
    for name, value in protocol["measures"].items()
  }
  whole = path.with_suffix(".tmp")
  whole.write_text(json.dumps(result, indent=2) + "\n")
  whole.replace(path)
  return result
