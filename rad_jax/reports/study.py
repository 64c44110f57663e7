"""The report of a study: tables and pictures, data set by data set.

A study's folder holds rows.jsonl, a row for each run, and runs/<name>/ with
evaluation.json, training_examples.npz, samples and, of the first seed,
portrait.npz. Pictures are of the first seed, tables of all.
"""

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rad_jax import files
from rad_jax.reports import (
  charts,
  figures,
  looks,
  page,
  panels,
  portrait,
  saved,
  tables,
)
from rad_jax.reports.page import Picture, Section, Text
from rad_jax.reports.panels import Line, Panel
from rad_jax.reports.tables import Cell, Row, Table

# Measures of the tables, by what they are called there.
MEASURES = {
  "support_rms": "error: RMS distance from the true support",
  "spread_ratio": "spread inside the support over the truth's; 1 is right",
  "score_error": "error of eps_hat, mean over noise levels",
  "support_psnr_db": "PSNR against the true support, dB",
  "frechet": "Frechet distance of the moments",
}
# How far a difference must stand out, in standard errors.
_CLEAR = 2.0
_CURVES = (
  ("score", "score_error", "error of eps_hat"),
  ("reconstruction", "reconstruction_support_rms", "noised and back: error"),
  ("flow", "estimate_to_centroid", "clean estimate to centroid"),
)


class Study(NamedTuple):
  """What is known of a study.

  rows: of rows.jsonl. folder: of its runs.
  cells: the rows of each (data, corruption, method).
  data, corruptions: in their order. looks: of each method, in its order.
  dirtiest: the corruption that pictures are of.
  strongest: the method of Robust_adv's largest lambda, "" without one.
  """

  rows: Sequence[Row]
  folder: pathlib.Path
  cells: dict[tuple, list[Row]]
  data: list[str]
  corruptions: list[str]
  looks: dict[str, looks.Look]
  dirtiest: str
  strongest: str

  def values(self, data: str, corruption: str, method: str, measure: str):
    """A cell's measure over the seeds that have it, float64 [n]."""
    rows = self.cells.get((data, corruption, method), [])
    return tables.values(rows, measure)

  def run(self, data: str, method: str) -> pathlib.Path:
    """The folder of a method's first seed under the dirtiest corruption."""
    rows = self.cells.get((data, self.dirtiest, method), [])
    first = min(rows, key=lambda row: row["seed"], default={"run": "none"})
    return self.folder / first["run"]


def gather(rows: Sequence[Row], folder: pathlib.Path) -> Study:
  """The rows of a study, whose runs lie in a folder."""
  corruptions = tables.distinct(rows, "corruption")
  corruptions.sort(key=_dirt)
  noisy = [name for name in corruptions if name != "outliers"]
  robust = [row for row in rows if row["objective"] == "robust_adv"]
  strongest = max(robust, key=lambda row: row["lam"], default={"method": ""})
  found = charts.looks_of(rows, ("method",), ("lam",))
  return Study(
    rows,
    folder,
    tables.groups(rows, ("data", "corruption", "method")),
    tables.distinct(rows, "data"),
    corruptions,
    {method: look for (method,), look in found.items()},
    noisy[-1] if noisy else "outliers",
    strongest["method"],
  )


def _dirt(corruption: str) -> tuple:
  """Numbers in a name, p90-s0.2 as (90, 0.2); outliers come last."""
  numbers = map(float, re.findall(r"\d+\.?\d*", corruption))
  return corruption == "outliers", *numbers


def write(
  rows: Sequence[Row], workdir: pathlib.Path, notes: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes workdir/report; returns the paths, the page first.

  `notes` is a text that discusses the study, paragraphs between empty lines.

  Raises:
    OSError: there are no such notes.
    ValueError: a file of the study is damaged, or a run's folder is gone.
  """
  runs = workdir / "runs"
  gone = [row["run"] for row in rows if not (runs / row["run"]).is_dir()]
  if gone:
    raise ValueError(
      f"{runs} lacks {len(gone)} of {len(rows)} runs, {gone[0]} the first:"
      " bring them back, or take their lines out of"
      f" {workdir / 'rows.jsonl'} for the study to run them again"
    )
  study = gather(rows, runs)
  order = order_table(study)
  found: list[page.Part] = [Text(line) for line in outcome(order)]
  if notes:
    paragraphs = notes.read_text().strip().split("\n\n")
    found += [Text(" ".join(text.split())) for text in paragraphs]
  sections = [
    Section("What was found", [*found, order, _errors(study)]),
    Section("Clean against dirty", [_frontier(study)]),
    *(_of_data(study, data) for data in study.data),
    Section("All cells", [cells_table(study)]),
  ]
  return page.write(
    "Adversarial training of diffusion models on data with known truth",
    f"{len(rows)} runs: {len(study.data)} data sets under"
    f" {len(study.corruptions)} corruptions, {len(study.looks)} methods,"
    f" {len(tables.distinct(rows, 'seed'))} seeds; means and standard"
    " deviations over seeds. p90-s0.2 is Gaussian noise of sigma 0.2 on 90% of"
    " the training examples, and so on; outliers, a tenth of them replaced by"
    " uniform noise. A model is held against the clean truth, which it has not"
    " seen.",
    sections,
    workdir / "report",
  )


# ---- Numbers ----


def verdict(smaller: np.ndarray, larger: np.ndarray) -> str:
  """Whether the mean of `smaller` is below that of `larger`.

  "yes" or "no" if they are two standard errors of the difference apart, else
  "unclear".
  """
  difference = larger.mean() - smaller.mean()
  error = np.sqrt(
    sum(v.var(ddof=1) / len(v) if len(v) > 1 else 0 for v in (smaller, larger))
  )
  if abs(difference) <= _CLEAR * error:
    return "unclear"
  return "yes" if difference > 0 else "no"


def order_table(study: Study) -> Table:
  """The paper's order of errors, cell by cell."""
  claims = [
    ("Robust_ran below DDPM", "robust_ran", "ddpm"),
    ("Robust_adv below Robust_ran", study.strongest, "robust_ran"),
    ("DDPM below invariance", "ddpm", "invariance"),
  ]
  claims = [c for c in claims if {*c[1:]} <= study.looks.keys()]
  rows: list[list[Cell]] = []
  for cell in itertools.product(study.data, study.corruptions):
    found = []
    for _, *pair in claims:
      of = [study.values(*cell, method, "support_rms") for method in pair]
      found.append(verdict(*of) if all(map(len, of)) else None)
    rows.append([", ".join(cell), *found])
  return Table(
    "order",
    ["data, corruption", *(claim for claim, *_ in claims)],
    rows,
    "Whether the paper's order of errors holds: yes or no where the means are"
    " two standard errors apart over seeds, else unclear.",
  )


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


def measure_table(study: Study, data: str, measure: str) -> Table | None:
  """A measure by method and corruption; None if no run of the data has it."""
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
  return Table(
    f"{data}-{measure}",
    ["method", *study.corruptions],
    [
      [look.label, *(tables.mean_std(cell, significant=3) for cell in row)]
      for look, row in zip(study.looks.values(), found, strict=True)
    ],
    f"{data}: {MEASURES[measure]}. The best of a column is bold; noise-aware"
    " training is DDPM on clean data and not defined on outliers.",
    best,
  )


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


# ---- Pictures of all data ----


def _errors(study: Study) -> Picture:
  return Picture(
    "errors",
    charts.error_figure(study.rows, study.corruptions),
    "The dirtier the data, the farther DDPM is from the truth and the more"
    " Robust_adv (green) gains; means and standard deviations over seeds.",
  )


def _frontier(study: Study) -> Picture:
  clean, dirty = (
    [row for row in study.rows if row["corruption"] == corruption]
    for corruption in (study.corruptions[0], study.dirtiest)
  )
  return Picture(
    "frontier",
    charts.frontier_figure(clean, dirty, "support_rms"),
    f"Error of the models trained on {study.corruptions[0]} data and on"
    f" {study.dirtiest}: downwards is robustness, to the left is clean data"
    " learnt better.",
  )


# ---- Pictures of one data set ----


def _of_data(study: Study, data: str) -> Section:
  parts: list[page.Part] = [
    table for name in MEASURES if (table := measure_table(study, data, name))
  ]
  parts += [_samples(study, data), _levels(study, data)]
  portraits = {
    study.looks[method]: found
    for method in study.looks
    if (found := saved.arrays(study.run(data, method) / "portrait.npz"))
  }
  if portraits:
    run = study.run(data, next(iter(study.looks)))
    clean = saved.arrays(run / "training_examples.npz")["clean"]
    pair = [study.looks.get(name) for name in ("ddpm", study.strongest)]
    shown = {look: x for look, x in portraits.items() if look in pair}
    drawn = portrait.pictures(shown, portraits, clean)
    parts += [p._replace(name=f"{data}-{p.name}") for p in drawn]
  title = f"{data.replace('_', ' ')}, pictures trained on {study.dirtiest}"
  return Section(title[0].upper() + title[1:], parts)


def _samples(study: Study, data: str) -> Picture:
  shown = []
  for method, look in study.looks.items():
    found = study.values(data, study.dirtiest, method, "support_rms")
    if len(found):
      title = f"{look.label}: error {found.mean():.3g}"
      shown.append((study.run(data, method), title, look.colour))
  return Picture(
    f"{data}-samples",
    figures.example_figure(figures.beside_truth(shown)),
    "Samples beside the clean truth and the training set: DDPM repeats the"
    " noise it was shown, Robust_adv draws nearer to the clean support.",
  )


def _levels(study: Study, data: str) -> Picture:
  shown = []
  for protocol, name, title in _CURVES:
    lines = []
    for method, look in study.looks.items():
      path = study.run(data, method) / "evaluation.json"
      if evaluation := files.read_json(path):
        curves = evaluation["protocols"][protocol]["curves"]
        style = looks.style(look)
        lines.append(Line(curves["sigma_t"], curves[name], style))
    xlabel = "noise level sigma_t"
    shown.append(Panel(title, xlabel, lines, "", "level", "linear"))
  return Picture(
    f"{data}-levels",
    panels.line_figure(shown),
    "By noise level (0 clean, 1 noise). Left: error against the exact noise."
    " Middle: clean examples noised and denoised, where Robust_adv ends nearer"
    " to the support. Right: the clean estimate leaves the centroid of the data"
    " as the noise falls.",
  )
