"""The report of a study: tables of all seeds, pictures of the first.

A study's folder holds rows.jsonl, a row for each run, and runs/<name>/ with
evaluation.json, training_examples.npz, samples and maybe portrait.npz.
"""

import itertools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from rad_jax import files
from rad_jax.data import subspace, synthetic
from rad_jax.reports import charts, curves, figures, looks, page, panels, tables
from rad_jax.reports.page import Part, Picture
from rad_jax.reports.tables import Cell, Row, Table

# Measures of the tables, by what they are called there.
MEASURES = {
  "support_rms": "error: RMS distance from the true support",
  "spread_ratio": "spread inside the support over the truth's; 1 is right",
  "score_error": "error of eps_hat, mean over noise levels",
  "support_psnr_db": "PSNR against the true support, dB",
  "frechet": "Frechet distance of the moments",
}
_CLEAR = 2.0  # How far a difference must stand out, in standard errors.
_PATHS = 40  # How many are shown.

Portraits: TypeAlias = dict[looks.Look, dict[str, np.ndarray]]


class Study(NamedTuple):
  """Rows of each (data, corruption, method) by seed, and methods' looks."""

  rows: Sequence[Row]
  cells: dict[tuple, list[Row]]
  data: list[str]
  corruptions: list[str]
  looks: dict[str, looks.Look]
  dirtiest: str  # the corruption of the pictures
  strongest: str  # the method of Robust_adv's largest lambda, or ""

  def values(self, data: str, corruption: str, method: str, measure: str):
    """A cell's measure over the seeds that have it, float64 [n]."""
    rows = self.cells.get((data, corruption, method), [])
    return tables.values(rows, measure)


def gather(rows: Sequence[Row]) -> Study:
  """What the rows of a study tell, from the cleanest data to the dirtiest."""
  numbers = lambda name: map(float, re.findall(r"\d+\.?\d*", name))
  # By the numbers in a name, p90-s0.2 as (90, 0.2); outliers come last.
  dirt = lambda name: (name == "outliers", *numbers(name))
  corruptions = sorted(tables.distinct(rows, "corruption"), key=dirt)
  noisy = [name for name in corruptions if name != "outliers"]
  robust = [row for row in rows if row["objective"] == "robust_adv"]
  strongest = max(robust, key=lambda row: row["lam"], default={"method": ""})
  by_seed = sorted(rows, key=lambda row: row["seed"])
  found = charts.looks_of(rows, ("method",), ("lam",))
  return Study(
    rows,
    tables.groups(by_seed, "data", "corruption", "method"),
    tables.distinct(rows, "data"),
    corruptions,
    {method: look for (method,), look in found.items()},
    noisy[-1] if noisy else "outliers",
    strongest["method"],
  )


def write(
  rows: Sequence[Row], workdir: pathlib.Path, notes: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes workdir/report; returns the paths, the page first.

  `notes` is a text that discusses the study, paragraphs between empty lines.
  """
  runs = workdir / "runs"
  gone = [row["run"] for row in rows if not (runs / row["run"]).is_dir()]
  if gone:
    raise ValueError(
      f"{runs} lacks {len(gone)} of {len(rows)} runs, {gone[0]} the first:"
      " bring them back, or take their lines out of"
      f" {workdir / 'rows.jsonl'} for the study to run them again"
    )
  study = gather(rows)
  order = order_table(study)
  found = notes.read_text().strip().split("\n\n") if notes else []
  paragraphs = [*outcome(order), *(" ".join(text.split()) for text in found)]
  figure = charts.error_figure(rows, study.corruptions)
  errors = Picture("errors", figure, "Means and deviations over seeds.")
  ends = (study.corruptions[0], study.dirtiest)
  clean, dirty = (tables.groups(rows, "corruption")[end,] for end in ends)
  figure = charts.frontier_figure(clean, dirty, "support_rms")
  caption = f"Errors after training on {ends[0]} data and on {ends[1]}."
  frontier = Picture("frontier", figure, caption)
  sections: dict[str, Sequence[Part]] = {
    "What was found": [*paragraphs, order, errors],
    "Clean against dirty": [frontier],
  }
  for data in study.data:
    title = f"{data}, pictures trained on {study.dirtiest}".replace("_", " ")
    sections[title[0].upper() + title[1:]] = _of_data(study, data, runs)
  sections["All cells"] = [cells_table(study)]
  return page.write(
    "Adversarial training of diffusion models on data with known truth",
    f"{len(rows)} runs; means and standard deviations over seeds. p90-s0.2 is"
    " Gaussian noise of sigma 0.2 on 90% of the training examples; outliers are"
    " a tenth of them replaced by uniform noise. Models are held against the"
    " truth: a synthetic set's own distribution, or the training images before"
    " they were corrupted. Noise-aware training is DDPM on"
    " clean data, and not defined on outliers.",
    sections,
    workdir / "report",
  )


def verdict(smaller: np.ndarray, larger: np.ndarray) -> str:
  """Whether mean `smaller` is lower; "unclear" within two standard errors."""
  difference = larger.mean() - smaller.mean()
  several = [v for v in (smaller, larger) if len(v) > 1]
  variance = sum(v.var(ddof=1) / len(v) for v in several)
  if abs(difference) <= _CLEAR * np.sqrt(variance):
    return "unclear"
  return "yes" if difference > 0 else "no"


def order_table(study: Study) -> Table:
  """The paper's order of errors, cell by cell."""
  claims = {
    "Robust_ran below DDPM": ("robust_ran", "ddpm"),
    "Robust_adv below Robust_ran": (study.strongest, "robust_ran"),
    "DDPM below invariance": ("ddpm", "invariance"),
  }
  claims = {k: v for k, v in claims.items() if {*v} <= study.looks.keys()}
  rows: list[list[Cell]] = []
  for cell in itertools.product(study.data, study.corruptions):
    rows.append([", ".join(cell)])
    for pair in claims.values():
      of = [study.values(*cell, method, "support_rms") for method in pair]
      rows[-1].append(verdict(*of) if all(map(len, of)) else None)
  caption = "Whether the paper's order of errors holds: yes or no where the"
  caption += " means are two standard errors apart over seeds, else unclear."
  return Table("order", ["data, corruption", *claims], rows, caption)


def outcome(order: Table) -> list[str]:
  """How far each claim of the order holds, and where it does not."""
  lines = []
  for column, claim in enumerate(order.head[1:], 1):
    of = {row[0]: row[column] for row in order.rows if row[column]}
    against = [f"{cell} ({of[cell]})" for cell in of if of[cell] != "yes"]
    line = f"{claim}: in {len(of) - len(against)} of {len(of)} cells"
    rest = f"; not in {', '.join(against)}" if against else ""
    lines.append(f"{line}{rest}.")
  return lines


def measure_table(
  study: Study, data: str, measure: str, beside: Sequence[Row] = ()
) -> Table | None:
  """A measure by method and corruption; None if no run of the data has it.

  beside: `tables.rows_of_data`, which come last and are never bold.
  """
  found = [
    [study.values(data, c, method, measure) for c in study.corruptions]
    for method in study.looks
  ]
  if not any(len(cell) for row in found for cell in row):
    return None
  best = set()
  for j, column in enumerate(zip(*found, strict=True), 1):
    means = [cell.mean() if len(cell) else None for cell in column]
    best |= {(i, j) for i in tables.best_of(means, tables.BETTER[measure])}
  rows = [
    [look.label, *(tables.mean_std(cell, significant=3) for cell in row)]
    for look, row in zip(study.looks.values(), found, strict=True)
  ]
  of_data = [row for row in beside if row["data"] == data and measure in row]
  for (name,), group in tables.groups(of_data, "method").items():
    cells = [
      [row for row in group if row.get("corruption") in (c, None)]
      for c in study.corruptions
    ]
    found_of = [tables.values(cell, measure) for cell in cells]
    rows.append([name, *(tables.mean_std(x, significant=3) for x in found_of)])
  caption = f"{data}: {MEASURES[measure]}. The best of a column is bold."
  head = ["method", *study.corruptions]
  return Table(f"{data}-{measure}", head, rows, caption, best)


def cells_table(study: Study) -> Table:
  """Mean and standard deviation of every measure of every cell."""
  names = tables.measures_of(study.rows)
  rows: list[list[Cell]] = []
  for cell in itertools.product(study.data, study.corruptions, study.looks):
    found = [study.values(*cell, name) for name in names]
    if any(map(len, found)):
      rows.append([*cell, len(found[0])])
      for v in found:
        rows[-1] += [v.mean(), v.std()] if len(v) else [None, None]
  stds = [text for name in names for text in (name, f"{name} std")]
  head = ["data", "corruption", "method", "seeds", *stds]
  return Table("cells", head, rows, "Every number, over seeds.")


def _of_data(study: Study, data: str, folder: pathlib.Path) -> list[Part]:
  """The tables and pictures of a data set, whose runs are in the folder."""
  cells = {
    look: study.cells[data, study.dirtiest, method]
    for method, look in study.looks.items()
    if (data, study.dirtiest, method) in study.cells
  }
  runs = {look: folder / rows[0]["run"] for look, rows in cells.items()}
  caption = "Samples beside the clean truth and the training set."
  drawn = [Picture("samples", charts.sample_figure(cells, folder), caption)]
  drawn += curves.protocol_pictures(
    {k: files.read_json(run / "evaluation.json") for k, run in runs.items()}
  )
  found = {k: figures.arrays(run / "portrait.npz") for k, run in runs.items()}
  if portraits := {look: x for look, x in found.items() if x}:
    run = next(iter(runs.values()))
    clean = figures.arrays(run / "training_examples.npz")["clean"]
    two = [study.looks.get(name) for name in ("ddpm", study.strongest)]
    pair = {k: x for k, x in portraits.items() if k in two} or portraits
    if clean.ndim == 4:
      names = ("first principal component", "second principal component")
      plane = subspace.fit(clean, 2)
      flat = lambda x: subspace.coordinates(plane, x)
      others = _image_rows(portraits, clean)
    else:
      names = figures.VIEW_LABELS[clean.shape[1]]
      flat = lambda x: x @ synthetic.view(clean.shape[1]).T
      others = _fields(pair, flat(clean))
    drawn += [_trajectories(pair, flat, clean, names), others]
  beside = tables.rows_of_data(study.rows, folder)
  return [
    *filter(None, (measure_table(study, data, m, beside) for m in MEASURES)),
    *(p._replace(name=f"{data}-{p.name}") for p in drawn),
  ]


def _trajectories(
  portraits: Portraits,
  flat: Callable[[np.ndarray], np.ndarray],
  clean: np.ndarray,
  labels: Sequence[str],
) -> Picture:
  """Paths at flat(x), [n, 2], for examples x."""
  count = len(portraits)
  figure, axes = panels.grid(count, count, 5.0, 4.6, sharex=True, sharey=True)
  for axis, (look, portrait) in zip(axes, portraits.items(), strict=True):
    paths = np.array([flat(x[:_PATHS]) for x in portrait["path"]])
    axis.scatter(*flat(clean).T, s=4, color="0.75", linewidths=0)
    axis.plot(*paths.transpose(2, 0, 1), color=look.color, linewidth=0.6)
    axis.plot(*paths[-1].T, ".", color="black", markersize=4)
    axis.set(title=look.label, xlabel=labels[0], ylabel=labels[1])
    axis.set_aspect("equal")
    axis.label_outer()
    axis.spines[["top", "right"]].set_visible(False)
  caption = "The reverse flow from noise to samples, black; clean data, grey."
  return Picture("trajectories", figure, caption)


def _fields(portraits: Portraits, clean: np.ndarray) -> Picture:
  """clean: [n, 2], as the fields see it."""
  first = next(iter(portraits.values()))
  rows = [(k.label, k.color, x["field"]) for k, x in portraits.items()]
  rows.append(("exact, of clean data", "black", first["field_exact"]))
  sigmas = first["field_sigma_t"]
  across, width = len(sigmas), panels.WIDTH / len(sigmas)
  share = {"sharex": True, "sharey": True}
  figure, axes = panels.grid(len(rows) * across, across, width, 3.5, **share)
  scale = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
  side = round(len(first["field_points"]) ** 0.5)
  # Every second row and column of the square grid.
  thinned = lambda x: x.reshape(side, side, 2)[::2, ::2].reshape(-1, 2)
  drawn = itertools.product(rows, range(across))
  for axis, ((label, colour, field), n) in zip(axes, drawn, strict=True):
    axis.scatter(*clean.T, s=5, color="0.75", linewidths=0)
    points, arrows = thinned(first["field_points"]), thinned(field[n])
    axis.quiver(*points.T, *arrows.T / 2, color=colour, **scale)
    axis.set_title(f"{label}, sigma_t {sigmas[n]:.2g}", fontsize="medium")
    axis.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axis.spines[["top", "right"]].set_visible(False)
  caption = "Half the way to the clean estimate; clean data, grey."
  return Picture("fields", figure, caption)


def _image_rows(portraits: Portraits, clean: np.ndarray) -> Picture:
  figure, axes = panels.grid(len(portraits), 2, panels.WIDTH / 2, 2.5)
  flat = clean.reshape(len(clean), 1, -1)
  for axis, (look, portrait) in zip(axes, portraits.items(), strict=True):
    x = portrait["samples"]
    away = np.linalg.norm(flat - x.reshape(len(x), -1), axis=-1)
    rows = {
      "samples": x,
      "nearest training": clean[away.argmin(axis=0)],
      "samples, attacked": portrait["attacked"],
      "training, dirty": portrait["dirty"],
      "the same, purified": portrait["purified"],
    }
    figures.draw_image_rows(axis, rows, columns=len(x))
    axis.set_title(look.label, fontsize="medium")
  caption = "Each model's samples, plain and attacked, and its purification."
  return Picture("images", figure, caption)
