"""Runs side by side as one page, from what their folders hold.

config.json is all that a run must have. Of the rest, what is there is shown;
what is not is named in a line.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from rad_jax import files
from rad_jax.reports import curves, figures, looks, page, panels, tables
from rad_jax.reports.page import Part, Picture
from rad_jax.reports.panels import Line, Panel
from rad_jax.reports.tables import Cell, Table

_TRAINING = {
  "train/loss": "loss",
  "train/dsm": "loss of the clean branch",
  "train/regulariser": "loss of the perturbed branch",
  "train/grad_norm": "gradient norm",
  "train/learning_rate": "learning rate",
  "speed/images_per_second": "examples per second",
}
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
  """What is known of a run, apart from its arrays.

  name: unique among the runs of a page, and the label of its look.
  metrics: rows of metrics.jsonl, oldest first.
  config, evaluation, diagnosis, purification: the JSON files; empty where
    missing.
  """

  name: str
  folder: pathlib.Path
  look: looks.Look
  metrics: list[dict[str, Any]]
  config: dict[str, Any]
  evaluation: dict[str, Any]
  diagnosis: dict[str, Any]
  purification: dict[str, Any]


def read(workdirs: Sequence[pathlib.Path]) -> list[SavedRun]:
  """The runs of the workdirs, each once.

  Raises:
    ValueError: a workdir holds no run, there are more than MOST, or a file
      is damaged.
  """
  found = [folder for workdir in workdirs for folder in _find(workdir)]
  folders = list({folder.resolve(): folder for folder in found}.values())
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
    SavedRun(k.label, f, k, files.read_rows(f / "metrics.jsonl"), *trees_of)
    for f, k, trees_of in zip(folders, drawn, trees, strict=True)
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
  names: list[str] = []
  for depth in range(1, max(len(f.resolve().parts) for f in folders) + 1):
    names = ["/".join(f.resolve().parts[-depth:]) for f in folders]
    if len(set(map(page.file_name, names))) == len(names):
      break
  return names


def write(
  workdirs: Sequence[pathlib.Path], folder: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes the report of the workdirs' runs; returns the paths.

  Args:
    workdirs: of runs, or of experiments, which stand for all of their runs.
    folder: where; the first workdir's report/ if not given.

  Raises:
    ValueError: a workdir holds no run, there are more than MOST, or
      a file is damaged.
  """
  runs = read(workdirs)
  sections: dict[str, Sequence[Part]] = {
    "The runs": facts(runs),
    "Training": training(runs),
    "Measures": measures(runs),
    "Samples": examples(runs),
    "Protocols": curves.protocol_pictures(
      {run.look: run.evaluation.get("protocols", {}) for run in runs}
    ),
    "Closest training examples": _memorisation(runs),
    "Purification": _purified(runs),
    "Diagnosis": _diagnosis(runs),
    "Left out": _missing(runs),
  }
  names = [run.name for run in runs]
  return page.write(
    " and ".join(names) if len(runs) <= 2 else f"{len(runs)} runs side by side",
    "; ".join(map(_summary, runs)) + ".",
    {title: parts for title, parts in sections.items() if parts},
    folder or workdirs[0] / "report",
  )


def _summary(run: SavedRun) -> str:
  step = _facts_of(run)["step"]
  return (
    f"{run.name}: {run.config['objective']['name']} on"
    f" {run.config['data']['name']},"
    f" {'not trained' if step is None else f'step {step}'},"
    f" seed {run.config['seed']}"
  )


def _missing(runs: Sequence[SavedRun]) -> list[str]:
  """Lines on what runs lack."""
  lines = []
  for what, (found, source) in _OPTIONAL.items():
    without = [run.name for run in runs if not any(run.folder.glob(found))]
    if without:
      of = "" if len(without) == len(runs) else f" of {', '.join(without)}"
      where = "".join(found.partition("/")[:2])
      lines.append(f"No {what}{of} ({where}, by {source}).")
  return lines


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
  dirty = "none"
  if corruption["fraction"]:
    strength = f"sigma {corruption['sigma']:g}"
    if corruption.get("severity"):
      strength = f"severity {corruption['severity']}"
    kind = corruption.get("kind", "gaussian")
    dirty = f"{corruption['fraction']:.0%} {kind}, {strength}"
  trained = run.metrics[-1]["step"] if run.metrics else None
  versions = evaluation.get("versions", {})
  return {
    "data": config["data"]["name"],
    "corruption": dirty,
    "objective": config["objective"]["name"],
    "seed": config["seed"],
    "step": evaluation.get("step", trained),
    "weights": evaluation.get("weights"),
    "parameters": evaluation.get("parameters"),
    **{f"version of {name}": version for name, version in versions.items()},
  }


def differences(configs: Sequence[dict[str, Any]]) -> list[list[Cell]]:
  """Where nested dicts differ: lines of "a.b" and its value in each of them.

  Settings of an experiment as a whole are no difference of a run.
  """
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
  if not _comparable(shown):
    caption += (
      " No value is marked as the best: the runs differ in their clean data,"
      " or in how they were evaluated."
    )
  elif len(shown) > 1:
    caption += " The best value of a row is bold."
    for i, (name, *values) in enumerate(rows):
      better = tables.BETTER.get(str(name))
      best |= {(i, j + 1) for j in tables.best_of(values, better)}
  head = ["measure", *(run.name for run in shown)]
  return [Table("measures", head, rows, caption, best)]


def _comparable(runs: Sequence[SavedRun]) -> bool:
  """Whether the same clean data was measured alike, as far as all tell."""
  free = ("protocols", "corruption", "data_dir", "loading")
  grounds = [
    {"version": run.evaluation.get("version")}
    | run.evaluation.get("evaluation", {})
    | run.config["data"]
    for run in runs
  ]
  told = set.intersection(*map(set, grounds)).difference(free)
  return all(of[name] == grounds[0][name] for of in grounds for name in told)


def training(runs: Sequence[SavedRun]) -> list[Picture]:
  """Training against the step, a panel for each number."""
  drawn = []
  for name, title in _TRAINING.items():
    lines = []
    for run in runs:
      rows = [row for row in run.metrics if name in row]
      x, y = ([row[column] for row in rows] for column in ("step", name))
      if rows:
        lines.append(Line(x, y, looks.style(run.look) | {"marker": None}))
    scale = "linear" if name == "train/learning_rate" else "zero"
    if lines:
      drawn.append(Panel(title, "step", lines, y_scale=scale))
  if not drawn:
    return []
  caption = "Training against the step, a line for each run."
  return [Picture("training", panels.line_figure(drawn), caption)]


def examples(runs: Sequence[SavedRun]) -> list[Picture]:
  """Samples beside training examples, a picture for each data set."""
  groups: dict[str, list[SavedRun]] = {}
  for run in runs:
    key = json.dumps(run.config["data"], sort_keys=True)
    groups.setdefault(key, []).append(run)
  parts = []
  for number, group in enumerate(groups.values(), 1):
    views = figures.beside_truth([(run.folder, run.look) for run in group])
    if views:
      caption = (
        f"{group[0].config['data']['name']}: samples, under the name of their"
        " run, beside training examples, as far as there are any."
      )
      name = "samples" if number == 1 else f"samples_{number}"
      parts.append(Picture(name, figures.example_figure(views), caption))
  return parts


def _memorisation(runs: Sequence[SavedRun]) -> list[Picture]:
  """The closest pairs of images; pairs of points say nothing."""
  caption = (
    "the samples nearest to a training example, over that example; above,"
    " their distance in the extractor's features."
  )
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
    figure = figures.example_figure(
      [figures.View("before", before), figures.View("purified", after)]
    )
    caption = f"{run.name}: examples before and after purification"
    if told := run.purification:
      caption += (
        f" from t_star {told['t_star']:g} by {told['sampler']}; the root mean"
        " square distance from the true support goes from"
        f" {told['support_rms_before']:.3g} to {told['support_rms_after']:.3g}"
      )
    parts.append(Picture(f"purified_{run.name}", figure, f"{caption}."))
  return parts


def _diagnosis(runs: Sequence[SavedRun]) -> list[Picture]:
  found = {run.name: run.diagnosis for run in runs if run.diagnosis}
  if not found:
    return []
  caption = (
    "How far the network is from equivariant (dashed black), and its local"
    " Lipschitz constant, against sigma_t."
  )
  return [Picture("diagnosis", curves.diagnosis_figure(found), caption)]
