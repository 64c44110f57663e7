"""What the folders of runs hold, read for reports."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rad_jax.reports import methods, page
from rad_jax.reports.methods import Method
from rad_jax.reports.page import Section

# A section, and a line on what is missing in it, empty if nothing is.
Found: TypeAlias = tuple[Section, str]

# More lines than these are not told apart.
MOST = 8


class Run(NamedTuple):
  """What is known of a run but for its arrays.

  name: unique among the runs of a page.
  config: as saved. metrics: rows of metrics.jsonl, oldest first.
  evaluation, diagnosis, purification: the JSON files, empty where missing.
  """

  name: str
  folder: pathlib.Path
  config: dict[str, Any]
  metrics: list[dict[str, Any]]
  evaluation: dict[str, Any]
  diagnosis: dict[str, Any]
  purification: dict[str, Any]


def read(workdirs: Sequence[pathlib.Path]) -> list[Run]:
  """The runs of the workdirs, each once.

  Raises:
    ValueError: a workdir holds no run, there are more than MOST, or a file
      is damaged.
  """
  folders = list(
    dict.fromkeys(found for workdir in workdirs for found in _find(workdir))
  )
  if len(folders) > MOST:
    raise ValueError(
      f"{len(folders)} runs, and a report shows {MOST} at most: name some of"
      f" them, as --workdir={folders[0]},{folders[1]}"
    )
  return [
    Run(
      name=name,
      folder=folder,
      config=_json(folder / "config.json"),
      metrics=_json_lines(folder / "metrics.jsonl"),
      evaluation=_json(folder / "evaluation.json"),
      diagnosis=_json(folder / "diagnosis.json"),
      purification=_json(folder / "purified" / "purification.json"),
    )
    for name, folder in zip(_names(folders), folders, strict=True)
  ]


def _find(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The folders of a workdir's runs: its own, or those of a sweep."""
  if (workdir / "config.json").exists():
    return [workdir]
  found = sorted(path.parent for path in workdir.glob("runs/*/config.json"))
  if not found:
    raise ValueError(f"no run in {workdir}: train first")
  return found


def _names(folders: list[pathlib.Path]) -> list[str]:
  """The folders' last parts, as many as tell all apart, as files do too."""
  whole = [folder.resolve().parts for folder in folders]
  for depth in range(1, max(map(len, whole)) + 1):
    names = ["/".join(parts[-depth:]) for parts in whole]
    if len(set(map(page.file_name, names))) == len(names):
      return names
  raise ValueError(f"the same run twice: {folders[0]}")


def _json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON file's content, empty if there is no file."""
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def _json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a file of JSON lines; a torn last one is left out."""
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  try:
    return [json.loads(line) for line in lines if line.endswith("\n")]
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def arrays(path: pathlib.Path | None) -> dict[str, np.ndarray]:
  """An .npz file's arrays, none if there is no file."""
  if path is None or not path.exists():
    return {}
  with np.load(path) as saved:
    return {name: saved[name] for name in saved}


def samples(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The newest saved samples of a run's folder."""
  found = folder.glob("samples/step_*/samples.npz")
  step = lambda path: int(path.parent.name.removeprefix("step_"))
  return arrays(max(found, key=step, default=None))


def newest_step(run: Run) -> int | None:
  """That of the evaluation, else the last of the training."""
  last = run.metrics[-1]["step"] if run.metrics else None
  return run.evaluation.get("step", last)


def looks(runs: list[Run]) -> list[Method]:
  """How each run is drawn, its name as label."""
  return methods.looks(
    [run.config["objective"]["name"] for run in runs],
    [run.name for run in runs],
  )


def missing(
  what: str, where: str, runs: list[Run], there: Callable[[Run], Any]
) -> str:
  """A line on the runs without something; empty if all have it."""
  without = [run.name for run in runs if not there(run)]
  if not without:
    return ""
  of = "" if len(without) == len(runs) else f" of {', '.join(without)}"
  return f"No {what}{of} ({where})."
