"""Runs side by side as one page, from what their folders hold.

config.json is all that a run must have. Of the rest, what is there is shown:
metrics.jsonl, evaluation.json, samples/, training_examples.npz, purified/,
memorisation.npz and diagnosis.json; what is not is named in a line.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rad_jax.reports import (
  curves,
  figures,
  methods,
  page,
  panels,
  protocols,
  saved,
)
from rad_jax.reports.methods import Method
from rad_jax.reports.page import Picture, Section, Table, Text
from rad_jax.reports.panels import Line, Panel, View
from rad_jax.reports.saved import Run

_TRAINING = {
  "train/loss": "loss",
  "train/dsm": "loss of the clean branch",
  "train/regulariser": "loss of the perturbed branch",
  "train/grad_norm": "gradient norm",
  "train/learning_rate": "learning rate",
  "speed/images_per_second": "examples per second",
}
_DIAGNOSIS = (
  "equivariance_random",
  "equivariance_adversarial",
  "invariance_random",
  "invariance_adversarial",
  "lipschitz_mean",
  "lipschitz_max",
)


def write(
  workdirs: Sequence[pathlib.Path], folder: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes the report of the workdirs' runs; returns the paths.

  Args:
    workdirs: of runs, or of sweeps, which stand for all of their runs.
    folder: where; the first workdir's report/ if not given.

  Raises:
    ValueError: a workdir holds no run, there are more than saved.MOST, or
      a file is damaged.
  """
  runs = saved.read(workdirs)
  found = [
    _facts(runs),
    _training(runs),
    protocols.measures(runs),
    _examples(runs),
    *((section, "") for section in protocols.curves(runs)),
    _memorisation(runs),
    _purified(runs),
    _diagnosis(runs),
  ]
  sections = [section for section, _ in found if section.parts]
  left_out = [Text(missing) for _, missing in found if missing]
  if left_out:
    sections.append(Section("Left out", left_out))
  return page.write(
    " and ".join(run.name for run in runs)
    if len(runs) <= 2
    else f"{len(runs)} runs side by side",
    "; ".join(f"{run.name}: {_summary(run)}" for run in runs) + ".",
    sections,
    folder or workdirs[0] / "report",
  )


# ---- Sections: each with its section, and a line on what is missing ----


def _facts(runs: list[Run]) -> saved.Found:
  """What the runs are, and where their configs differ."""
  facts = [_facts_of(run) for run in runs]
  head = ["run", *(run.name for run in runs)]
  names = dict.fromkeys(name for found in facts for name in found)
  parts = [
    Table(
      "runs",
      head,
      [[name, *(found.get(name) for found in facts)] for name in names],
      "What the runs are; step and versions are those of the evaluation.",
    )
  ]
  differing = differences([run.config for run in runs])
  if differing:
    parts.append(
      Table(
        "differences",
        ["field of the config", *head[1:]],
        [[path, *values] for path, values in differing.items()],
        "The fields in which the configs differ, and no others.",
      )
    )
  return Section("The runs", parts), ""


def _facts_of(run: Run) -> dict[str, page.Cell]:
  config, evaluation = run.config, run.evaluation
  corruption = config["data"]["corruption"]
  dirty = "none"
  if corruption["fraction"]:
    strength = f"sigma {corruption['sigma']:g}"
    if corruption.get("severity"):
      strength = f"severity {corruption['severity']}"
    kind = corruption.get("kind", "gaussian")
    dirty = f"{corruption['fraction']:.0%} {kind}, {strength}"
  versions = evaluation.get("versions", {})
  return {
    "data": config["data"]["name"],
    "corruption": dirty,
    "objective": config["objective"]["name"],
    "lambda": config["objective"]["lam"] if _is_weighed(run) else None,
    "seed": config["seed"],
    "step": saved.newest_step(run),
    "weights": evaluation.get("weights"),
    "parameters": evaluation.get("parameters"),
    **{f"version of {name}": version for name, version in versions.items()},
  }


def _is_weighed(run: Run) -> bool:
  """Whether the training has had two terms, for lambda to weigh."""
  both = {"train/dsm", "train/regulariser"}
  return any(both <= row.keys() for row in run.metrics)


def differences(configs: Sequence[Any]) -> dict[str, list[page.Cell]]:
  """Where nested dicts differ: "a.b" and its value in each of them.

  What a config says of many runs together is no difference of one.
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
    return [(prefix.removesuffix("."), tree)]
  return [
    leaf
    for name, child in tree.items()
    for leaf in _leaves(child, f"{prefix}{name}.")
  ]


def _field(value: Any) -> page.Cell:
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return json.dumps(value)
  return value if value != "" else '""'


def _training(runs: list[Run]) -> saved.Found:
  names = [n for n in _TRAINING if any(n in r for m in runs for r in m.metrics)]
  looks = saved.looks(runs)
  found = [
    Panel(
      _TRAINING[name],
      "step",
      [
        Line(
          *_column(run.metrics, name), methods.style(look) | {"marker": None}
        )
        for run, look in zip(runs, looks, strict=True)
        if any(name in row for row in run.metrics)
      ],
      log_y=name != "train/learning_rate",
    )
    for name in names
  ]
  parts = []
  if found:
    caption = "Training against the step, a line for each run."
    parts.append(Picture("training", panels.line_figure(found), caption))
  return Section("Training", parts), saved.missing(
    "training curves", "metrics.jsonl", runs, lambda run: run.metrics
  )


def _column(
  rows: list[dict[str, Any]], name: str
) -> tuple[list[int], list[float]]:
  kept = [row for row in rows if name in row]
  return [row["step"] for row in kept], [row[name] for row in kept]


def _examples(runs: list[Run]) -> saved.Found:
  """Samples beside training examples, a picture for each data set."""
  parts = []
  for number, group in enumerate(_by_data(runs), 1):
    training = [
      found for run, _ in group if (found := saved.arrays(_training_path(run)))
    ]
    views = []
    if training:
      views.append(View("clean truth", training[0]["clean"]))
      views.append(View("as trained on", training[0]["dirty"]))
    views += [
      View(run.name, found["x_0"], look.colour)
      for run, look in group
      if (found := saved.samples(run.folder))
    ]
    if not views:
      continue
    data = group[0][0].config["data"]["name"]
    shown = "Training examples, clean and as trained on, and samples"
    if not training:
      shown = "Samples"
    elif len(views) == 2:
      shown = "Training examples, clean and as trained on"
    kept = [
      v for v in views if v.examples.shape[1:] == views[0].examples.shape[1:]
    ]
    parts.append(
      Picture(
        "samples" if number == 1 else f"samples_{number}",
        panels.example_figure(kept),
        f"{shown}: {data}.",
      )
    )
  lines = [
    saved.missing(
      "samples",
      "samples/, by --mode=sample",
      runs,
      lambda run: saved.samples(run.folder),
    ),
    saved.missing(
      "training examples",
      "training_examples.npz, by --mode=evaluate",
      runs,
      lambda run: _training_path(run).exists(),
    ),
  ]
  return Section("Samples", parts), " ".join(filter(None, lines))


def _training_path(run: Run) -> pathlib.Path:
  return run.folder / "training_examples.npz"


def _by_data(runs: list[Run]) -> list[list[tuple[Run, Method]]]:
  """Runs, with their looks, that were trained on the same data, together."""
  groups: dict[str, list[tuple[Run, Method]]] = {}
  for run, look in zip(runs, saved.looks(runs), strict=True):
    key = json.dumps(run.config["data"], sort_keys=True)
    groups.setdefault(key, []).append((run, look))
  return list(groups.values())


def _purified(runs: list[Run]) -> saved.Found:
  parts = []
  for run in runs:
    found = saved.arrays(run.folder / "purified" / "samples.npz")
    if not found:
      continue
    before, after = np.split(found["x_0"], 2)
    views = [View("before", before), View("purified", after)]
    told = run.purification
    caption = f"{run.name}: examples before purification, and purified."
    if told:
      caption = (
        f"{run.name}: examples before purification from"
        f" t_star {told['t_star']:g} by {told['sampler']}, and purified; the"
        " root mean square distance from the true support goes from"
        f" {told['support_rms_before']:.3g} to {told['support_rms_after']:.3g}."
      )
    parts.append(
      Picture(f"purified_{run.name}", panels.example_figure(views), caption)
    )
  return Section("Purification", parts), saved.missing(
    "purified examples",
    "purified/, by --mode=purify",
    runs,
    lambda run: (run.folder / "purified" / "samples.npz").exists(),
  )


def _memorisation(runs: list[Run]) -> saved.Found:
  """The closest pairs of images; pairs of points say nothing."""
  parts = []
  for run in runs:
    pairs: Any = saved.arrays(run.folder / "memorisation.npz")
    if pairs and pairs["samples"].ndim == 4:
      parts.append(
        Picture(
          f"memorisation_{run.name}",
          figures.pair_figure(**pairs),
          f"{run.name}: the samples nearest to a training example, over that"
          " example; above, their distance in the extractor's features.",
        )
      )
  return Section("Closest training examples", parts), saved.missing(
    "closest training examples",
    "memorisation.npz, by the protocol memorisation",
    runs,
    lambda run: (run.folder / "memorisation.npz").exists(),
  )


def _diagnosis(runs: list[Run]) -> saved.Found:
  shown = [
    (run, look)
    for run, look in zip(runs, saved.looks(runs), strict=True)
    if run.diagnosis
  ]
  parts = []
  if len(shown) == 1:
    figure = curves.diagnosis_figure(shown[0][0].diagnosis)
    caption = (
      f"{shown[0][0].name}: how far the network is from equivariant (dashed),"
      " against sigma_t."
    )
    parts = [Picture("diagnosis", figure, caption)]
  elif shown:
    axes = protocols.Axes("sigma_t", "sigma_t", y=_DIAGNOSIS)
    columns = [
      (look, _by_column(run.diagnosis["levels"])) for run, look in shown
    ]
    caption = (
      "Equivariance and invariance error and local Lipschitz constant against"
      " sigma_t; an equivariant network has 0, 1 and 1."
    )
    drawn = protocols.pictures("diagnosis", axes, columns)
    parts = [picture._replace(caption=caption) for picture in drawn]
  return Section("Diagnosis", parts), saved.missing(
    "diagnosis",
    "diagnosis.json, by --mode=diagnose",
    runs,
    lambda r: r.diagnosis,
  )


def _by_column(rows: list[dict[str, Any]]) -> dict[str, list]:
  return {name: [row[name] for row in rows] for name in rows[0]}


def _summary(run: Run) -> str:
  step = saved.newest_step(run)
  return (
    f"{run.config['objective']['name']} on {run.config['data']['name']},"
    f" {'not trained' if step is None else f'step {step}'},"
    f" seed {run.config['seed']}"
  )
