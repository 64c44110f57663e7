"""Runs side by side as one page, from what their folders hold."""

import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from rad_jax import files
from rad_jax.data import synthetic
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
_ALONE = "training_"  # begins a measure that needs no clean truth
_BESIDE = (
  " Beside the runs stands what the measures say of data: of clean examples"
  " that are no references, and of the training set as the runs saw it. A run"
  " may pass clean examples by being smoother than they are, which is no merit."
  " Of halves, Frechet distances are a little larger, by chance."
)
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


def folders(text: str) -> list[pathlib.Path]:
  """The folders of a list with commas, which their names may have as well."""
  parts, found = text.split(","), []
  while parts:
    sizes = range(len(parts), 1, -1)
    joined = (n for n in sizes if pathlib.Path(",".join(parts[:n])).is_dir())
    size = next(joined, 1)
    found.append(",".join(parts[:size]))
    parts = parts[size:]
  return [pathlib.Path(name) for name in found if name]


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
  evaluated = [run for run in runs if run.evaluation.get("measures")]
  sections: dict[str, Sequence[Part]] = {
    "Alarms": alarms(runs),
    "Samples": examples(runs),
    "The runs": facts(runs),
    "Measures": measures(evaluated),
    "Against the training set alone": training_set(evaluated),
    "Training": training(runs),
    "Protocols": curves.protocol_pictures(
      {run.look: run.evaluation for run in runs}
    ),
    "Closest training examples": _memorisation(runs),
    "Purification": _purified(runs),
    "Diagnosis": _diagnosis(runs),
    "Left out": lacking,
    "Versions": versions(evaluated),
  }
  of = ", ".join(map(str, workdirs))
  return page.write(
    ", ".join(names) if len(runs) <= 4 else f"{len(runs)} runs of {of}",
    f"Made from what lies in {of}, and from nothing else.",
    {title: parts for title, parts in sections.items() if parts},
    folder or workdirs[0] / "report",
  )


def facts(runs: Sequence[SavedRun]) -> list[Table]:
  """What the runs are, and where their configs differ."""
  head = [run.name for run in runs]
  caption = "What the runs are, and how far they were trained."
  rows = _side_by_side([_facts_of(run) for run in runs])
  parts = [Table("runs", ["run", *head], rows, caption)]
  if rows := differences([run.config for run in runs]):
    caption = "The fields in which the configs differ, and no others."
    head = ["field of the config", *head]
    parts.append(Table("differences", head, rows, caption))
  return parts


def versions(runs: Sequence[SavedRun]) -> list[Table]:
  """What the evaluations of evaluated runs were made with."""
  found = [
    {"parameters": run.evaluation["parameters"]} | run.evaluation["versions"]
    for run in runs
  ]
  if not (rows := _side_by_side(found)):
    return []
  caption = "A digest of the evaluated parameters, and the libraries' versions."
  return [Table("versions", ["", *(r.name for r in runs)], rows, caption)]


def alarms(runs: Sequence[SavedRun]) -> list[str]:
  """A paragraph for each run that seems to have collapsed."""
  return [
    f"{run.name} has collapsed, it seems: {'; '.join(found)}."
    for run in runs
    if (found := run.evaluation.get("alarms"))
  ]


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
  trained = run.metrics[-1]["step"] if run.metrics else 0
  purified = run.purification.items()
  return {
    "data": config["data"]["name"],
    "corruption": dirty if corruption["fraction"] else "none",
    "objective": config["objective"]["name"],
    "seed": config["seed"],
    "trained": f"{trained} of {config['train']['num_steps']} steps",
    **({"evaluated at step": evaluation["step"]} if evaluation else {}),
    **({"weights": evaluation["weights"]} if evaluation else {}),
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


def measures(runs: Sequence[SavedRun]) -> list[Part]:
  """The measures against clean data, the best run by each in bold.

  Those that disagree on the order of the runs come first, and what they see.
  """
  rows, head = _measured(runs, alone=False)
  if not rows:
    return []
  caption = f"Samples against {'; '.join(dict.fromkeys(map(_truth, runs)))}."
  if len(head) > len(runs) + 1:
    caption += _BESIDE
  if not _alike(runs):
    caption += " None is marked as the best: the runs differ in their clean"
    caption += " data, or in how they were evaluated."
    return [Table("measures", head, rows, caption)]
  if len(runs) < 2:
    return [Table("measures", head, rows, caption)]
  order = disagreeing([row[: len(runs) + 1] for row in rows])
  rows.sort(key=lambda row: row[0] not in order)
  said = _explained(order, [run.name for run in runs])
  calm = [j for j, r in enumerate(runs, 1) if not r.evaluation.get("alarms")]
  if len(calm) < 2:
    caption += " None is marked as the best: alarms leave nothing to compare."
    return [*said, Table("measures", head, rows, caption)]
  best = {
    (i, calm[place])
    for i, row in enumerate(rows)
    for place in tables.best_of(
      [row[j] for j in calm], tables.BETTER.get(str(row[0]))
    )
  }
  caption += " The best value of a row is bold"
  caption += ", of the runs without an alarm." if len(calm) < len(runs) else "."
  return [*said, Table("measures", head, rows, caption, best)]


def _explained(order: dict[str, list[int]], names: list[str]) -> list[str]:
  """A paragraph for each ranking of the runs, on the measures that have it."""
  said: dict[str, dict[str, list[str]]] = {}
  for measure, places in order.items():
    ranked = " before ".join(names[j] for j in places)
    sees = said.setdefault(ranked, {})
    sees.setdefault(tables.SEES[measure], []).append(measure)
  paragraphs = []
  for ranked, sees in said.items():
    of = [f"{' and '.join(of)} ({x})" for x, of in sees.items()]
    paragraphs.append(f"{ranked}: {', '.join(of)}.")
  lead = "The measures disagree on the order of the runs, best first. Behind"
  lead += " each stands what it sees, and what it is blind to."
  return [lead, *paragraphs] if order else []


def training_set(runs: Sequence[SavedRun]) -> list[Table]:
  """The measures that need no clean truth."""
  rows, head = _measured(runs, alone=True)
  if not rows:
    return []
  caption = (
    "Samples against the training set as the run saw it, for which no clean"
    " truth is needed. training_spread is the samples' standard deviation over"
    " the training set's; training_frechet the Frechet distance over the"
    " training set's variance, 1 for its mean alone; training_saturated the"
    " share of values at the ends of [-1, 1], less the training set's. They"
    " tell a collapse, not which run is better: if the training set is noisy,"
    " to be like it is no aim."
  )
  return [Table("training_set", head, rows, caption)]


def _measured(
  runs: Sequence[SavedRun], alone: bool
) -> tuple[list[list[Cell]], list[str]]:
  """Rows and head: the measures that need no clean truth, or the others."""
  kept = lambda found: {
    name: value
    for name, value in found.items()
    if name.startswith(_ALONE) == alone
  }
  found = [kept(run.evaluation["measures"]) for run in runs]
  beside = {k: kept(v) for k, v in baselines(runs).items() if kept(v)}
  rows = _side_by_side([*found, *beside.values()]) if any(found) else []
  return rows, ["measure", *(run.name for run in runs), *beside]


def baselines(runs: Sequence[SavedRun]) -> dict[str, dict[str, float]]:
  """What the measures say of data; a column a run where runs differ in it."""
  found: dict[str, dict[str, dict[str, float]]] = {}
  for run in runs:
    for name, values in run.evaluation.get("baselines", {}).items():
      found.setdefault(name, {})[run.name] = values
  columns: dict[str, dict[str, float]] = {}
  for name, of in found.items():
    whole = {k: v for values in of.values() for k, v in values.items()}
    alike = all(values.items() <= whole.items() for values in of.values())
    own = {f"{name} of {run}": values for run, values in of.items()}
    columns |= {name: whole} if alike else own
  return columns


def disagreeing(rows: Sequence[Sequence[Cell]]) -> dict[str, list[int]]:
  """Measures that rank two runs otherwise than another does: best runs first.

  rows: a measure's name, then its value of each run.
  """
  costs, signs = {}, {}
  for name, *values in rows:
    cost = tables.cost_of(values, tables.BETTER.get(str(name)))
    if np.isfinite(cost).all():
      costs[str(name)] = cost
      signs[str(name)] = np.sign(cost[:, None] - cost)
  found = set()
  for pair in itertools.combinations(signs, 2):
    if np.any(signs[pair[0]] * signs[pair[1]] < 0):
      found |= {*pair}
  order = lambda name: np.argsort(costs[name], kind="stable").tolist()
  kept = [name for name in costs if name in found]
  return {name: order(name) for name in sorted(kept, key=order)}


def _truth(run: SavedRun) -> str:
  """What its samples are held against."""
  data = run.config["data"]
  if data["name"] in synthetic.WORLDS:
    return "the known distribution of the data"
  if data["corruption"]["fraction"]:
    return "the training images before they were corrupted"
  return "the training images as they are: no cleaner ones are known"


def _alike(runs: Sequence[SavedRun]) -> bool:
  """Whether the same clean data was measured alike, as far as is told."""
  grounds = [
    {"version": run.evaluation.get("version")}
    | run.evaluation.get("evaluation", {})
    | run.config["data"]
    for run in runs
  ]
  told = set.intersection(*map(set, grounds)).difference(_FREE)
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
      parts.append(Picture(name, figures.example_figure(views, 2), caption))
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
