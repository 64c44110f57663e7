"""The report of a study: tables and pictures, data set by data set.

A study's folder holds rows.jsonl, a row for each run, and runs/<name>/ with
evaluation.json, training_examples.npz, samples and, of the first seed,
portrait.npz. Pictures are of the first seed, tables of all.
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
  """What is known of a study.

  rows: of rows.jsonl. folder: of its runs.
  cells: the rows of each (data, corruption, method), by seed.
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


def gather(rows: Sequence[Row], folder: pathlib.Path) -> Study:
  """The rows of a study, whose runs lie in a folder."""
  corruptions = sorted(tables.distinct(rows, "corruption"), key=_dirt)
  noisy = [name for name in corruptions if name != "outliers"]
  robust = [row for row in rows if row["objective"] == "robust_adv"]
  strongest = max(robust, key=lambda row: row["lam"], default={"method": ""})
  by_seed = sorted(rows, key=lambda row: row["seed"])
  found = charts.looks_of(rows, ("method",), ("lam",))
  return Study(
    rows,
    folder,
    tables.groups(by_seed, "data", "corruption", "method"),
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
  found = notes.read_text().strip().split("\n\n") if notes else []
  paragraphs = [*outcome(order), *(" ".join(text.split()) for text in found)]
  sections: dict[str, Sequence[Part]] = {
    "What was found": [*paragraphs, order, _errors(study)],
    "Clean against dirty": [_frontier(study)],
  }
  for data in study.data:
    title = f"{data.replace('_', ' ')}, pictures trained on {study.dirtiest}"
    sections[title[0].upper() + title[1:]] = _of_data(study, data)
  sections["All cells"] = [cells_table(study)]
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
    rows.append([", ".join(cell)])
    for _, *pair in claims:
      of = [study.values(*cell, method, "support_rms") for method in pair]
      rows[-1].append(verdict(*of) if all(map(len, of)) else None)
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


def _errors(study: Study) -> Picture:
  figure = charts.error_figure(study.rows, study.corruptions)
  caption = (
    "The dirtier the data, the farther DDPM is from the truth and the more"
    " Robust_adv (green) gains; means and standard deviations over seeds."
  )
  return Picture("errors", figure, caption)


def _frontier(study: Study) -> Picture:
  pair = (study.corruptions[0], study.dirtiest)
  of = [[row for row in study.rows if row["corruption"] == c] for c in pair]
  caption = (
    f"Error of the models trained on {pair[0]} data and on {pair[1]}:"
    " downwards is robustness, to the left is clean data learnt better."
  )
  figure = charts.frontier_figure(*of, "support_rms")
  return Picture("frontier", figure, caption)


def _of_data(study: Study, data: str) -> list[Part]:
  """The tables and pictures of a data set."""
  cells = {
    look: study.cells[data, study.dirtiest, method]
    for method, look in study.looks.items()
    if (data, study.dirtiest, method) in study.cells
  }
  runs = {look: study.folder / rows[0]["run"] for look, rows in cells.items()}
  caption = (
    "Samples beside the clean truth and the training set: DDPM repeats the"
    " noise it was shown, Robust_adv draws nearer to the clean support."
  )
  drawn = [
    Picture("samples", charts.sample_figure(cells, study.folder), caption)
  ]
  drawn += curves.protocol_pictures(
    {
      look: files.read_json(run / "evaluation.json").get("protocols", {})
      for look, run in runs.items()
    }
  )
  found = {k: figures.arrays(run / "portrait.npz") for k, run in runs.items()}
  if portraits := {look: x for look, x in found.items() if x}:
    run = next(iter(runs.values()))
    clean = figures.arrays(run / "training_examples.npz")["clean"]
    pair = [study.looks.get(name) for name in ("ddpm", study.strongest)]
    shown = {look: x for look, x in portraits.items() if look in pair}
    drawn += _portraits(shown or portraits, portraits, clean)
  return [
    *(t for name in MEASURES if (t := measure_table(study, data, name))),
    *(p._replace(name=f"{data}-{p.name}") for p in drawn),
  ]


def _portraits(
  pair: Portraits, everyone: Portraits, clean: np.ndarray
) -> list[Picture]:
  """Trajectories, and of images rows of images, of points fields.

  Args:
    pair: the models that are compared, one at least.
    everyone: all models.
    clean: training examples, [n, h, w, c] or [n, 2 or 3].
  """
  if clean.ndim == 4:
    plane = subspace.fit(clean, 2)
    names = ("first principal component", "second principal component")
    flat = lambda x: subspace.coordinates(plane, x)
    return [
      _trajectories(pair, flat, clean, names),
      _image_rows(everyone, clean),
    ]
  names = figures.VIEW_LABELS[clean.shape[1]]
  flat = lambda x: x @ synthetic.view(clean.shape[1]).T
  return [_trajectories(pair, flat, clean, names), _fields(pair, flat(clean))]


def _trajectories(
  portraits: Portraits,
  flat: Callable[[np.ndarray], np.ndarray],
  clean: np.ndarray,
  labels: Sequence[str],
) -> Picture:
  """Paths at flat(x), [n, 2], for examples x."""
  count = len(portraits)
  figure, axes = panels.grid(count, count, 5, 4.6, sharex=True, sharey=True)
  for axis, (look, portrait) in zip(axes, portraits.items(), strict=True):
    paths = np.array([flat(x[:_PATHS]) for x in portrait["path"]])
    axis.scatter(*flat(clean).T, s=4, color="0.75", linewidths=0)
    axis.plot(*paths.transpose(2, 0, 1), color=look.colour, linewidth=0.6)
    axis.plot(*paths[-1].T, ".", color="black", markersize=4)
    axis.set(title=look.label, xlabel=labels[0], ylabel=labels[1])
    axis.set_aspect("equal")
    axis.label_outer()
    axis.spines[["top", "right"]].set_visible(False)
  caption = (
    "The deterministic reverse flow from noise to samples (black dots), clean"
    " data in grey: Robust_adv's paths end nearer to it."
  )
  return Picture("trajectories", figure, caption)


def _fields(portraits: Portraits, clean: np.ndarray) -> Picture:
  """clean: [n, 2], as the fields see it."""
  first = next(iter(portraits.values()))
  rows = [
    (look.label, look.colour, x["field"]) for look, x in portraits.items()
  ]
  rows.append(("exact, of clean data", "black", first["field_exact"]))
  sigmas = first["field_sigma_t"]
  across, width = len(sigmas), panels.WIDTH / len(sigmas)
  share = {"sharex": True, "sharey": True}
  figure, axes = panels.grid(len(rows) * across, across, width, 3.5, **share)
  scale = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
  drawn = itertools.product(rows, range(across))
  for axis, ((label, colour, field), n) in zip(axes, drawn, strict=True):
    axis.scatter(*clean.T, s=5, color="0.75", linewidths=0)
    points, arrows = _thinned(first["field_points"]), _thinned(field[n])
    axis.quiver(*points.T, *arrows.T / 2, color=colour, **scale)
    axis.set_title(f"{label}, sigma_t {sigmas[n]:.2g}", fontsize="medium")
    axis.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axis.spines[["top", "right"]].set_visible(False)
  caption = (
    "From states on a grid, half the way to the clean estimate (sigma^2 times"
    " the score), clean data under it in grey: at low noise DDPM's arrows fade"
    " before they reach the data, Robust_adv's lead on, as the exact ones do."
  )
  return Picture("fields", figure, caption)


def _thinned(grid: np.ndarray) -> np.ndarray:
  """Every second row and column of a square grid [k, 2]."""
  side = round(len(grid) ** 0.5)
  return grid.reshape(side, side, 2)[::2, ::2].reshape(-1, 2)


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
  caption = (
    "Of each model: samples and the clean training images nearest to them;"
    " samples whose way was attacked; noised training images, and what"
    " purification by the model makes of them."
  )
  return Picture("images", figure, caption)
