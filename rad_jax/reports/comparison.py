"""Runs side by side: one table and its figures, from their saved results.

A run is a folder with config.json, evaluation.json, training_examples.npz and
samples/. Runs that differ only in their seed are one row.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from rad_jax.reports import figures
from rad_jax.reports.methods import COLOURS, LABELS


class Run(NamedTuple):
  """The saved results of one run."""

  data: str
  objective: str
  seed: int
  measures: dict[str, float]
  samples: np.ndarray
  clean: np.ndarray
  dirty: np.ndarray


class Row(NamedTuple):
  """Runs of one objective on one data set.

  measures: by name, over seeds. first: the run of the smallest seed.
  """

  data: str
  objective: str
  measures: dict[str, np.ndarray]
  relative_cost: float
  first: Run


def read_run(folder: pathlib.Path) -> Run:
  """Reads a run that was trained, sampled and evaluated.

  Raises:
    FileNotFoundError: one of these files is missing.
  """
  config = json.loads((folder / "config.json").read_text())
  result = json.loads((folder / "evaluation.json").read_text())
  path = folder / "samples" / f"step_{result['step']}" / "samples.npz"
  with np.load(path) as saved:
    samples = saved["x_0"]
  with np.load(folder / "training_examples.npz") as saved:
    clean, dirty = saved["clean"], saved["dirty"]
  return Run(
    data=config["data"]["name"],
    objective=config["objective"]["name"],
    seed=config["seed"],
    measures=result["measures"],
    samples=samples,
    clean=clean,
    dirty=dirty,
  )


def compare(
  runs: list[Run], step_seconds: dict[str, dict[str, float]]
) -> list[Row]:
  """One row for each data set and objective, in the order of the runs.

  Args:
    runs: the runs, seeds included.
    step_seconds: time of a step by data set and objective, from which the cost
      relative to ddpm comes.
  """
  groups: dict[tuple[str, str], list[Run]] = {}
  for run in runs:
    groups.setdefault((run.data, run.objective), []).append(run)
  return [
    Row(
      data=data,
      objective=objective,
      measures={
        name: np.array([run.measures[name] for run in group])
        for name in group[0].measures
      },
      relative_cost=step_seconds[data][objective] / step_seconds[data]["ddpm"],
      first=min(group, key=lambda run: run.seed),
    )
    for (data, objective), group in groups.items()
  ]


def markdown_table(rows: list[Row]) -> str:
  """The rows as a Markdown table, mean +- standard deviation over seeds.

  The smallest error of each data set is bold.
  """
  lines = [
    "| data | objective | error (RMS) | PSNR, dB | Frechet | spread | cost |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    peers = [r for r in rows if r.data == row.data]
    best = min(peers, key=lambda r: r.measures["support_rms"].mean())
    error = _mean_std(row.measures["support_rms"])
    psnr = row.measures.get("support_psnr_db")
    lines.append(
      f"| {row.data} | {_label(row)} |"
      f" {f'**{error}**' if row is best else error} |"
      f" {'' if psnr is None else _mean_std(psnr, 1)} |"
      f" {_mean_std(row.measures['frechet'])} |"
      f" {_mean_std(row.measures['spread_ratio'])} |"
      f" {row.relative_cost:.2f} |"
    )
  return "\n".join(lines)


def error_figure(rows: list[Row]) -> Figure:
  """The error of every run: a bar for the mean, a dot for each seed."""
  names = list(dict.fromkeys(row.data for row in rows))
  figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
  axes = figure.subplots(1, len(names), squeeze=False)
  for axis, name in zip(axes[0], names, strict=True):
    peers = [row for row in rows if row.data == name]
    errors = [row.measures["support_rms"] for row in peers]
    axis.bar(
      [_label(row) for row in peers],
      [e.mean() for e in errors],
      color=[COLOURS.get(row.objective, "grey") for row in peers],
    )
    for place, values in enumerate(errors):
      axis.plot(np.full(len(values), place), values, "k.", markersize=5)
    axis.set_title(name)
    axis.set_ylabel("distance from clean truth (RMS)")
    axis.tick_params("x", rotation=20)
    axis.spines[["top", "right"]].set_visible(False)
  return figure


def sample_figure(rows: list[Row]) -> Figure:
  """One data set: the clean and the training examples, then each row's samples.

  Images as a grid; points as they are, or, in 3-D, seen from the edge of the
  oblique plane.
  """
  first = rows[0].first
  panels = [
    ("clean truth", first.clean, "black"),
    ("training set", first.dirty, "black"),
  ]
  for row in rows:
    error = row.measures["support_rms"].mean()
    colour = COLOURS.get(row.objective, "grey")
    title = f"{_label(row)}\nerror {error:.3f}"
    panels.append((title, row.first.samples, colour))
  figure = Figure(figsize=(2.6 * len(panels), 3.4), layout="constrained")
  axes = figure.subplots(
    1, len(panels), squeeze=False, sharex=True, sharey=True
  )
  for axis, (title, examples, colour) in zip(axes[0], panels, strict=True):
    axis.set_title(title)
    if examples.ndim == 4:
      grid = figures.image_grid(examples[:36], columns=6)
      axis.imshow(grid.squeeze(), cmap="gray", interpolation="nearest")
      axis.set_axis_off()
    else:
      figures.draw_points(axis, examples, colour)
      axis.label_outer()
  return figure


def write(rows: list[Row], folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes table.md, errors.png and samples_<data>.png; returns the paths."""
  folder.mkdir(parents=True, exist_ok=True)
  table = folder / "table.md"
  table.write_text(markdown_table(rows) + "\n")
  drawn = {"errors": error_figure(rows)}
  for name in dict.fromkeys(row.data for row in rows):
    drawn[f"samples_{name.replace('/', '_')}"] = sample_figure(
      [row for row in rows if row.data == name]
    )
  paths = [table]
  for name, figure in drawn.items():
    paths.append(folder / f"{name}.png")
    figure.savefig(paths[-1], dpi=150)
  return paths


def _label(row: Row) -> str:
  return LABELS.get(row.objective, row.objective)


def _mean_std(values: np.ndarray, digits: int = 3) -> str:
  return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"
