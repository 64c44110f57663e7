"""Runs side by side as one page, from what their folders hold."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from rad_jax import files
from rad_jax.reports import curves, figures, looks, page, panels, tables
from rad_jax.reports.page import Part, Picture
from rad_jax.reports.tables import Cell, Table

_TRAINING = {
  "train/loss": "loss",
  "train/dsm": "loss of the clean branch",
  "train/regulariser": "loss of the perturbed branch",
  "train/grad_norm": "gradient norm",
  "train/learning_rate": "learning rate",
  "speed/images_per_second": "examples per second",
}
_FREE = ("protocols", "corruption", "data_dir", "loading")  # to differ
MOST = 8  # More lines than these are not told apart.
# What a run may lack: the files it would be in, and what writes them.
_OPTIONAL = {
  "training curves": ("metrics.jsonl", "--mode=train"),
  "measures": ("evaluation.json", "--mode=evaluate"),
  "samples": ("samples/step_*/samples.npz", "--mode=sample"),
  "training examples": ("training_examples.npz", "--mode=evaluate"),
  "closest training examples": ("memorisation.npz", "protocol memorisation"),
  "purified examples": ("purified/samples.npz", "--mode=purify"),
  "diagnosis": ("diagnosis.json", "--mode=diagnose"),
}


class SavedRun(NamedTuple):
  """What a run's files hold, empty where missing; its name is unique."""

  name: str
  folder: pathlib.Path
  look: looks.Look
  metrics: list[dict[str, Any]]
  config: dict[str, Any]
  evaluation: dict[str, Any]
  diagnosis: dict[str, Any]
  purification: dict[str, Any]


def read(workdirs: Sequence[pathlib.Path]) -> list[SavedRun]:
  """The runs of the workdirs, each once; ValueError if none, or above MOST."""
  found: dict[pathlib.Path, pathlib.Path] = {}
  for workdir in workdirs:
    own = workdir / "config.json"
    several = sorted(workdir.glob("runs/*/config.json"))
    configs = [own] if own.exists() else several
    if not configs:
      raise ValueError(f"no run in {workdir}: train first")
    found |= {path.resolve(): path.parent for path in configs}
  folders = list(found.values())
  if len(folders) > MOST:
    raise ValueError(
      f"{len(folders)} runs, and a report shows {MOST} at most: name some of"
      f" them, as --workdir={folders[0]},{folders[1]}"
    )
  jsons = ("config", "evaluation", "diagnosis", "purified/purification")
  trees = [[files.read_json(f / f"{n}.json") for n in jsons] for f in folders]
  objectives = [config["objective"]["name"] for config, *_ in trees]
  drawn = looks.of_runs(objectives, _names(folders))
  return [
    SavedRun(k.label, f, k, files.read_log(f / "metrics.jsonl"), *trees_of)
    for f, k, trees_of in zip(folders, drawn, trees, strict=True)
  ]


def _names(folders: list[pathlib.Path]) -> list[str]:
  """The folders' last parts, as many as tell all apart, as files do too."""
  whole = [folder.resolve().parts for folder in folders]
  for depth in range(1, max(map(len, whole)) + 1):
    names = ["/".join(parts[-depth:]) for parts in whole]
    if len(set(map(page.file_name, names))) == len(names):
      break
  return names


def write(
  workdirs: Sequence[pathlib.Path], folder: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes the report of the workdirs' runs; returns the paths.

  An experiment's workdir stands for all of its runs. Raises as `read`.
  """
  runs = read(workdirs)
  names = [run.name for run in runs]
  lacking = []
  for what, (found, source) in _OPTIONAL.items():
    if without := [r.name for r in runs if not any(r.folder.glob(found))]:
      of = "" if without == names else f" of {', '.join(without)}"
      where = "".join(found.partition("/")[:2])
      lacking.append(f"No {what}{of} ({where}, by {source}).")
  sections: dict[str, Sequence[Part]] = {
    "The runs": facts(runs),
    "Training": training(runs),
    "Measures": measures(runs),
    "Samples": examples(runs),
    "Protocols": curves.protocol_pictures(
      {run.look: run.evaluation for run in runs}
    ),
    "Closest training examples": _memorisation(runs),
    "Purification": _purified(runs),
    "Diagnosis": _diagnosis(runs),
    "Left out": lacking,
  }
  return page.write(
    " and ".join(names) if len(runs) <= 2 else f"{len(runs)} runs side by side",
    "From the runs' folders alone.",
    {title: parts for title, parts in sections.items() if parts},
    folder or workdirs[0] / "report",
  )


def facts(runs: Sequence[SavedRun]) -> list[Table]:
  """What the runs are, and where their configs differ."""
  head = [run.name for run in runs]
  caption = "What the runs are; step and versions are those of the evaluation."
  rows = _side_by_side([_facts_of(run) for run in runs])
  parts = [Table("runs", ["run", *head], rows, caption)]
  if rows := differences([run.config for run in runs]):
    caption = "The fields in which the configs differ, and no others."
    head = ["field of the config", *head]
    parts.append(Table("differences", head, rows, caption))
  return parts


def _side_by_side(found: Sequence[dict[str, Cell]]) -> list[list[Cell]]:
  """A line for each name: the name, and its value in each dict."""
  names = dict.fromkeys(name for of_run in found for name in of_run)
  return [[name, *(of_run.get(name) for of_run in found)] for name in names]


def _facts_of(run: SavedRun) -> dict[str, Cell]:
  config, evaluation = run.config, run.evaluation
  corruption = config["data"]["corruption"]
  severity, sigma = corruption.get("severity"), corruption["sigma"]
  strength = f"severity {severity}" if severity else f"sigma {sigma:g}"
  kind = corruption.get("kind", "gaussian")
  dirty = f"{corruption['fraction']:.0%} {kind}, {strength}"
  trained = run.metrics[-1]["step"] if run.metrics else None
  versions = evaluation.get("versions", {}).items()
  purified = run.purification.items()
  return {
    "data": config["data"]["name"],
    "corruption": dirty if corruption["fraction"] else "none",
    "objective": config["objective"]["name"],
    "seed": config["seed"],
    "step": evaluation.get("step", trained),
    "weights": evaluation.get("weights"),
    "parameters": evaluation.get("parameters"),
    **{f"version of {name}": version for name, version in versions},
    **{f"purification: {name}": _field(value) for name, value in purified},
  }


def differences(configs: Sequence[dict[str, Any]]) -> list[list[Cell]]:
  """Where configs differ: "a.b" and its values; not in sweep's and study's."""
  flat = [traverse_util.flatten_dict(config, sep=".") for config in configs]
  rows: list[list[Cell]] = []
  for path in sorted(set().union(*flat)):
    found = [leaves.get(path, "unset") for leaves in flat]
    alike = all(value == found[0] for value in found)
    if not alike and not path.startswith(("sweep.", "study.")):
      rows.append([path, *map(_field, found)])
  return rows


def _field(value: Any) -> Cell:
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return json.dumps(value)
  return value if value != "" else '""'


def measures(runs: Sequence[SavedRun]) -> list[Table]:
  """The measures of all protocols, the best run by each in bold."""
  shown = [run for run in runs if run.evaluation.get("measures")]
  if not shown:
    return []
  rows = _side_by_side([run.evaluation["measures"] for run in shown])
  caption = "The measures of the evaluation, against clean truth."
  best: set[tuple[int, int]] = set()
  # Values compare where the same clean data was measured alike, as far as told.
  grounds = [
    {"version": run.evaluation.get("version")}
    | run.evaluation.get("evaluation", {})
    | run.config["data"]
    for run in shown
  ]
  told = set.intersection(*map(set, grounds)).difference(_FREE)
  if any(of[name] != grounds[0][name] for of in grounds for name in told):
    caption += " None is marked as the best: the runs differ in their clean"
    caption += " data, or in how they were evaluated."
  elif len(shown) > 1:
    caption += " The best value of a row is bold."
    for i, (name, *values) in enumerate(rows):
      better = tables.BETTER.get(str(name))
      best |= {(i, j + 1) for j in tables.best_of(values, better)}
  head = ["measure", *(run.name for run in shown)]
  return [Table("measures", head, rows, caption, best)]


def training(runs: Sequence[SavedRun]) -> list[Picture]:
  """Training against the step, a panel for each number."""
  drawn = []
  for name, title in _TRAINING.items():
    lines = []
    for run in runs:
      rows = [row for row in run.metrics if name in row]
      x, y = ([row[column] for row in rows] for column in ("step", name))
      if rows:
        lines.append(panels.Line(x, y, run.look._asdict() | {"marker": None}))
    scale = "linear" if name == "train/learning_rate" else "zero"
    if lines:
      drawn.append(panels.Panel(title, "step", lines, y_scale=scale))
  if not drawn:
    return []
  return [Picture("training", panels.line_figure(drawn), "Training by step.")]


def examples(runs: Sequence[SavedRun]) -> list[Picture]:
  """Samples beside training examples, a picture for each data set."""
  groups: dict[str, list[SavedRun]] = {}
  for run in runs:
    key = json.dumps(run.config["data"], sort_keys=True)
    groups.setdefault(key, []).append(run)
  parts = []
  for number, group in enumerate(groups.values(), 1):
    if views := figures.beside_truth([(run.folder, run.look) for run in group]):
      caption = f"{group[0].config['data']['name']}: examples and samples."
      name = "samples" if number == 1 else f"samples_{number}"
      parts.append(Picture(name, figures.example_figure(views), caption))
  return parts


def _memorisation(runs: Sequence[SavedRun]) -> list[Picture]:
  """The closest pairs of images; pairs of points say nothing."""
  caption = "samples over their nearest training examples; above, distances."
  return [
    Picture(f"memorisation_{run.name}", figure, f"{run.name}: {caption}")
    for run in runs
    if (figure := figures.pair_figure(run.folder / "memorisation.npz"))
  ]


def _purified(runs: Sequence[SavedRun]) -> list[Picture]:
  parts = []
  for run in runs:
    found = figures.arrays(run.folder / "purified" / "samples.npz")
    if not found:
      continue
    before, after = np.split(found["x_0"], 2)
    views = [("before", before, "black"), ("purified", after, "black")]
    figure = figures.example_figure(views)
    caption = f"{run.name}: examples before and after purification."
    parts.append(Picture(f"purified_{run.name}", figure, caption))
  return parts


def _diagnosis(runs: Sequence[SavedRun]) -> list[Picture]:
  if not (found := {run.name: run.diagnosis for run in runs if run.diagnosis}):
    return []
  caption = "Distance from an equivariant network, dashed, against sigma_t."
  return [Picture("diagnosis", curves.diagnosis_figure(found), caption)]
