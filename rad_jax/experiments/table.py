"""The runs of an experiment, and its rows.

Runs are in runs/<name>/; rows.jsonl has a row for each finished one: RECORD and
its measures, or its error. Labels are null where an axis makes no difference;
config is a fingerprint; seconds, of training, are absent for groups.
"""

import copy
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from rad_jax import checks, files
from rad_jax import config as configs
from rad_jax.config import ConfigDict, ConfigError
from rad_jax.evaluation import evaluate
from rad_jax.robustness import objectives

Changes: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]

AXES = {
  "objective": "objective.name",
  "lam": "objective.lam",
  "radius": "objective.radius",
  "beta": "objective.beta",
  "fraction": "data.corruption.fraction",
  "sigma": "data.corruption.sigma",
  "seed": "seed",
}
LABELS = ("data", "corruption", "method", *AXES)
RECORD = ("run", *LABELS, "config", "steps", "passes", "seconds")


class Entry(NamedTuple):
  """One run: its folder's name, unique; its LABELS; a valid config."""

  name: str
  labels: dict[str, Any]
  config: ConfigDict


def entry(name: str, base: ConfigDict, changes: Changes, **names: str) -> Entry:
  """The run of a config changed by dotted path; `names` are further labels."""
  config = copy.deepcopy(base)
  try:
    config.update_from_flattened_dict(changes)
    checks.validate(config)
    evaluate.refuse_unknown(config.evaluation.protocols)
  except (TypeError, ConfigError) as error:
    raise ConfigError(f"run {name}: {error}") from error
  fields = configs.flatten(config.to_dict())
  ignored = ignores(config.objective.name, config.data.corruption.fraction)
  labels = {
    "data": config.data.name,
    "corruption": None,
    "method": config.objective.name,
    **{a: None if a in ignored else fields[path] for a, path in AXES.items()},
  }
  return Entry(name, labels | names, config)


def ignores(objective: str, fraction: float | int = 1) -> set[str]:
  """Axes that make no difference to an objective on data so corrupted."""
  found = set() if fraction else {"sigma"}
  chosen = objectives.OBJECTIVES.get(objective)
  if chosen and not (chosen.target and chosen.clean):
    found |= {"lam"} if chosen.target else {"lam", "radius", "beta"}
  return found


def read(workdir: pathlib.Path) -> list[Row]:
  """The rows of workdir, oldest first; a run whose row is damaged has none."""
  return files.read_rows(workdir / "rows.jsonl")


def append(row: Row, workdir: pathlib.Path) -> None:
  """Adds a row to those of workdir."""
  files.append_row(workdir / "rows.jsonl", row)


def refuse_changed(entries: Sequence[Entry], workdir: pathlib.Path) -> None:
  """Raises ConfigError if workdir holds a run of a name with another config."""
  known = {row["run"]: row["config"] for row in read(workdir)}
  for one in entries:
    saved = files.read_json(workdir / "runs" / one.name / "config.json")
    kept = known.get(one.name) or (saved and fingerprint(saved))
    now = one.config.to_dict()
    if not kept or kept == fingerprint(now):
      continue
    found = saved and configs.differences(bound(saved), bound(now))
    found = found or ["its folder is gone"]
    configs.refuse_another(f"{workdir} holds a run {one.name}", found)


def bound(config: dict[str, Any]) -> dict[str, Any]:
  """What binds a run, by dotted path: neither where data lies nor the grid."""
  return {
    path: value
    for path, value in configs.flatten(config).items()
    if path not in configs.UNBOUND and not path.startswith(("sweep.", "study."))
  }


def fingerprint(config: dict[str, Any]) -> str:
  """`files.digest` of what is bound of a resolved config."""
  return files.digest(bound(config))
