"""Runs side by side as one page, from what their folders hold.

config.json is all that a run must have. Of the rest, what is there is shown;
what is not is named in a line.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rad_jax.reports import (
  curves,
  figures,
  looks,
  page,
  panels,
  protocols,
  saved,
)
from rad_jax.reports.figures import View
from rad_jax.reports.page import Picture, Section, Text
from rad_jax.reports.panels import Line, Panel
from rad_jax.reports.saved import SavedRun
from rad_jax.reports.tables import Cell, Table

_TRAINING = {
  "train/loss": "loss",
  "train/dsm": "loss of the clean branch",
  "train/regulariser": "loss of the perturbed branch",
  "train/grad_norm": "gradient norm",
  "train/learning_rate": "learning rate",
  "speed/images_per_second": "examples per second",
}
# What a run may lack: the files it would be in, and what writes them.
_OPTIONAL = {
  "training curves": ("metrics.jsonl", "--mode=train"),
  "measures": ("evaluation.json", "--mode=evaluate"),
  "samples": ("samples/step_*/samples.npz", "--mode=sample"),
  "training examples": ("training_examples.npz", "--mode=evaluate"),
  "closest training examples": (
    "memorisation.npz",
    "the memorisation protocol",
  ),
  "purified examples": ("purified/samples.npz", "--mode=purify"),
  "diagnosis": ("diagnosis.json", "--mode=diagnose"),
}


def write(
  workdirs: Sequence[pathlib.Path], folder: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes the report of the workdirs' runs; returns the paths.

  Args:
    workdirs: of runs, or of experiments, which stand for all of their runs.
    folder: where; the first workdir's report/ if not given.

  Raises:
    ValueError: a workdir holds no run, there are more than saved.MOST, or
      a file is damaged.
  """
  runs = saved.read(workdirs)
  sections = [
    Section("The runs", facts(runs)),
    Section("Training", training(runs)),
    Section("Measures", protocols.measures(runs)),
    Section("Samples", examples(runs)),
    *protocols.curves(runs),
    Section("Closest training examples", _memorisation(runs)),
    Section("Purification", _purified(runs)),
    Section("Diagnosis", _diagnosis(runs)),
    Section("Left out", [Text(line) for line in _missing(runs)]),
  ]
  names = [run.name for run in runs]
  return page.write(
    " and ".join(names) if len(runs) <= 2 else f"{len(runs)} runs side by side",
    "; ".join(f"{run.name}: {_summary(run)}" for run in runs) + ".",
    [section for section in sections if section.parts],
    folder or workdirs[0] / "report",
  )


def _summary(run: SavedRun) -> str:
  step = saved.newest_step(run)
  return (
    f"{run.config['objective']['name']} on {run.config['data']['name']},"
    f" {'not trained' if step is None else f'step {step}'},"
    f" seed {run.config['seed']}"
  )


def _missing(runs: Sequence[SavedRun]) -> list[str]:
  """Lines on what runs lack."""
  lines = []
  for what, (files, source) in _OPTIONAL.items():
    without = [run.name for run in runs if not any(run.folder.glob(files))]
    if without:
      of = "" if len(without) == len(runs) else f" of {', '.join(without)}"
      where = "".join(files.partition("/")[:2])
      lines.append(f"No {what}{of} ({where}, by {source}).")
  return lines


# ---- What the runs are ----


def facts(runs: Sequence[SavedRun]) -> list[Table]:
  """What the runs are, and where their configs differ."""
  found = [_facts_of(run) for run in runs]
  names = dict.fromkeys(name for of_run in found for name in of_run)
  rows = {name: [of_run.get(name) for of_run in found] for name in names}
  caption = "What the runs are; step and versions are those of the evaluation."
  head = [run.name for run in runs]
  parts = [Table("runs", ["run", *head], _lines(rows), caption)]
  if differing := differences([run.config for run in runs]):
    caption = "The fields in which the configs differ, and no others."
    head = ["field of the config", *head]
    parts.append(Table("differences", head, _lines(differing), caption))
  return parts


def _lines(rows: dict[str, list[Cell]]) -> list[list[Cell]]:
  return [[name, *values] for name, values in rows.items()]


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
  # lambda weighs the two terms of a training that has both.
  both = {"train/dsm", "train/regulariser"}
  weighed = any(both <= row.keys() for row in run.metrics)
  versions = evaluation.get("versions", {})
  return {
    "data": config["data"]["name"],
    "corruption": dirty,
    "objective": config["objective"]["name"],
    "lambda": config["objective"]["lam"] if weighed else None,
    "seed": config["seed"],
    "step": saved.newest_step(run),
    "weights": evaluation.get("weights"),
    "parameters": evaluation.get("parameters"),
    **{f"version of {name}": version for name, version in versions.items()},
  }


def differences(configs: Sequence[Any]) -> dict[str, list[Cell]]:
  """Where nested dicts differ: "a.b" and its value in each of them.

  Settings of an experiment as a whole are no difference of a run.
  """
  flat = [dict(_leaves(config)) for config in configs]
  paths = sorted({path for leaves in flat for path in leaves})
  return {
    path: [_field(leaves.get(path, "unset")) for leaves in flat]
    for path in paths
    if any(leaves.get(path) != flat[0].get(path) for leaves in flat)
    and not path.startswith(("sweep.", "study."))
  }


def _leaves(tree: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
  if not isinstance(tree, dict):
    yield prefix.removesuffix("."), tree
    return
  for name, child in tree.items():
    yield from _leaves(child, f"{prefix}{name}.")


def _field(value: Any) -> Cell:
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return json.dumps(value)
  return value if value != "" else '""'


# ---- Pictures ----


def training(runs: Sequence[SavedRun]) -> list[Picture]:
  """Training against the step, a panel for each number."""
  drawn = []
  for name, title in _TRAINING.items():
    lines = []
    for run, look in zip(runs, saved.looks_of(runs), strict=True):
      found = [(row["step"], row[name]) for row in run.metrics if name in row]
      style = looks.style(look) | {"marker": None}
      if found:
        x, y = np.transpose(found)
        lines.append(Line(x, y, style))
    scale = "linear" if name == "train/learning_rate" else "zero"
    if lines:
      drawn.append(Panel(title, "step", lines, y_scale=scale))
  caption = "Training against the step, a line for each run."
  figure = drawn and panels.line_figure(drawn)
  return [Picture("training", figure, caption)] if figure else []


def examples(runs: Sequence[SavedRun]) -> list[Picture]:
  """Samples beside training examples, a picture for each data set."""
  groups: dict[str, list[tuple[pathlib.Path, str, str]]] = {}
  for run, look in zip(runs, saved.looks_of(runs), strict=True):
    shown = (run.folder, run.name, look.colour)
    key = json.dumps(run.config["data"], sort_keys=True)
    groups.setdefault(key, []).append(shown)
  parts = []
  for number, (key, group) in enumerate(groups.items(), 1):
    if views := figures.beside_truth(group):
      parts.append(
        Picture(
          "samples" if number == 1 else f"samples_{number}",
          figures.example_figure(views),
          f"{json.loads(key)['name']}: samples, under the name of their run,"
          " beside training examples, as far as there are any.",
        )
      )
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
    found = saved.arrays(run.folder / "purified" / "samples.npz")
    if not found:
      continue
    before, after = np.split(found["x_0"], 2)
    views = [View("before", before), View("purified", after)]
    caption = f"{run.name}: examples before and after purification"
    if told := run.purification:
      caption += (
        f" from t_star {told['t_star']:g} by {told['sampler']}; the root mean"
        " square distance from the true support goes from"
        f" {told['support_rms_before']:.3g} to {told['support_rms_after']:.3g}"
      )
    caption += "."
    figure = figures.example_figure(views)
    parts.append(Picture(f"purified_{run.name}", figure, caption))
  return parts


def _diagnosis(runs: Sequence[SavedRun]) -> list[Picture]:
  found = {run.name: run.diagnosis for run in runs if run.diagnosis}
  caption = (
    "How far the network is from equivariant (dashed black), and its local"
    " Lipschitz constant, against sigma_t."
  )
  figure = found and curves.diagnosis_figure(found)
  return [Picture("diagnosis", figure, caption)] if figure else []
