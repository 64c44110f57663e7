"""Evaluation of a run's newest checkpoint: a list of protocols, one JSON file.

It is written after each protocol. The next call keeps what the same version
has measured on the same parameters and settings, and goes on.
"""

import json
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from rad_jax import files
from rad_jax.config import ConfigError
from rad_jax.evaluation.protocols import (
  attack,
  levels,
  memorisation,
  portrait,
  quality,
  steps,
  truth,
)
from rad_jax.evaluation.subject import Result, Subject, open_subject, versions
from rad_jax.run import Run

_LOG = logging.getLogger("rad_jax")

# Raised with every change of what a protocol's numbers mean.
VERSION = 4

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


def refuse_unknown(names: Sequence[str]) -> None:
  """Raises ConfigError if a name is not that of a protocol."""
  if not set(names) <= set(PROTOCOLS):
    raise ConfigError(
      f"config.evaluation.protocols={names!r}: it must be among"
      f" {', '.join(PROTOCOLS)}"
    )


def evaluate(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
  """`measure` of workdir's newest checkpoint; raises as `refuse_unknown`."""
  refuse_unknown(run.evaluation.protocols)
  return measure(open_subject(run, workdir))


def measure(subject: Subject) -> dict[str, Any]:
  """Runs evaluation.protocols; writes and returns evaluation.json."""
  folder, result = subject.model.workdir, _header(subject)
  path = folder / "evaluation.json"
  kept = files.read_json(path)
  same = all(kept.get(name) == value for name, value in result.items())
  result["protocols"] = kept["protocols"] if same else {}
  for name in subject.run.evaluation.protocols:
    if name in result["protocols"]:
      continue
    _LOG.info("evaluating: %s", name)
    started = time.perf_counter()
    found = PROTOCOLS[name](subject)
    result["protocols"][name] = found._asdict() | {
      "seconds": round(time.perf_counter() - started, 1)
    }
    _write(result, path)
  clean, dirty = subject.first(subject.run.sampling.num_samples)
  files.write_npz(folder / "training_examples.npz", clean=clean, dirty=dirty)
  return _write(result, path)


def _header(subject: Subject) -> dict[str, Any]:
  """What all numbers of the file belong to, as JSON has it."""
  run, model = subject.run, subject.model
  found = {
    "version": VERSION,
    "step": model.step,
    "weights": "ema" if run.sampling.ema else "raw",
    "parameters": model.digest,
    "seed": run.config["seed"],
    "data": run.data.name,
    "objective": run.objective.name,
    "sampling": run.sampling._asdict(),
    "evaluation": run.evaluation._asdict() | {"protocols": None},
    "versions": versions(),
  }
  return json.loads(json.dumps(found))


def _write(result: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  result["measures"] = {
    name: value
    for protocol in result["protocols"].values()
    for name, value in protocol["measures"].items()
  }
  files.write_json(path, result)
  return result
