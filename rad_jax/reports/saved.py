"""What the folders of runs hold, read for reports."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rad_jax import files
from rad_jax.reports import looks, page

# More lines than these are not told apart.
MOST = 8


class SavedRun(NamedTuple):
  """What is known of a run, apart from its arrays.

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


def read(workdirs: Sequence[pathlib.Path]) -> list[SavedRun]:
  """The runs of the workdirs, each once.

  Raises:
    ValueError: a workdir holds no run, there are more than MOST, or a file
      is damaged.
  """
  folders = [found for workdir in workdirs for found in _find(workdir)]
  folders = list(dict.fromkeys(folders))
  if len(folders) > MOST:
    raise ValueError(
      f"{len(folders)} runs, and a report shows {MOST} at most: name some of"
      f" them, as --workdir={folders[0]},{folders[1]}"
    )
  return [
    SavedRun(
      *(name, folder, files.read_json(folder / "config.json")),
      files.read_rows(folder / "metrics.jsonl"),
      files.read_json(folder / "evaluation.json"),
      files.read_json(folder / "diagnosis.json"),
      files.read_json(folder / "purified" / "purification.json"),
    )
    for name, folder in zip(_names(folders), folders, strict=True)
  ]


def _find(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The folders of a workdir's runs: its own, or those of an experiment."""
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


def arrays(path: pathlib.Path | None) -> dict[str, np.ndarray]:
  """An .npz file's arrays, none if there is no file."""
  if path is None or not path.exists():
    return {}
  with np.load(path) as opened:
    return {name: opened[name] for name in opened}


def samples(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The newest saved samples of a run's folder."""
  found = folder.glob("samples/step_*/samples.npz")
  step = lambda path: int(path.parent.name.removeprefix("step_"))
  return arrays(max(found, key=step, default=None))


def newest_step(run: SavedRun) -> int | None:
  """That of the evaluation, else the last of the training."""
  last = run.metrics[-1]["step"] if run.metrics else None
  return run.evaluation.get("step", last)


def looks_of(runs: Sequence[SavedRun]) -> list[looks.Look]:
  """How each run is drawn, its name as label."""
  objectives = [run.config["objective"]["name"] for run in runs]
  return looks.of_runs(objectives, [run.name for run in runs])
