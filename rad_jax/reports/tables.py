"""Rows of an experiment, grouped and averaged over seeds, and tables of them.

A row is a dict: `run`, labels, `steps`, `passes`, then measures or `error`.
"""

import csv
import io
import json
import math
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rad_jax import files
from rad_jax.reports import looks

Row: TypeAlias = dict[str, Any]
Cell: TypeAlias = str | int | float | None

# Rows that agree in them are one line of a table and one point of a figure.
LABELS: tuple[str, ...] = ("data", "corruption", "method", "objective")
LABELS += ("lam", "radius", "beta", "fraction", "sigma")
_RECORD = "run seed config steps passes seconds step_seconds error".split()

_LOWER = (
  "support_rms frechet mean_error sliced_wasserstein mode_error spurious fid"
  " feature_frechet fd_dinov2 kid reconstruction_rms near_duplicates"
  " reconstruction_support_rms score_error"
)
_HIGHER = (
  "support_psnr_db reconstruction_psnr_db precision recall coverage"
  " inception_score"
)
# Where a measure's best value lies; of the others none is marked.
BETTER = {"spread_ratio": "near 1"}
BETTER |= dict.fromkeys(_LOWER.split(), "lower")
BETTER |= dict.fromkeys(_HIGHER.split(), "higher")
_COMPONENTS = "of images, in the leading components; blind to all beyond them"
_FEATURES = (
  "mean and covariance of features; blind to what these leave out, and"
)
_FEATURES += " larger by chance where samples are few"
_DISTANCE = "distance from the clean support; blind to samples that shrink to"
_DISTANCE += " the mean, or that leave out a part of the support"
_BACK = "clean examples, noised and denoised; blind to samples from noise alone"
# What each of them sees, and what it is blind to.
SEES = {
  "support_rms": _DISTANCE,
  "support_psnr_db": _DISTANCE,
  "spread_ratio": "how wide samples spread inside the support; blind to where"
  " they lie, and to noise off the support",
  "frechet": f"mean and covariance, {_COMPONENTS}, and to any other shape",
  "mean_error": "a shift of the mean; blind to spread, shape and noise",
  "sliced_wasserstein": f"the distribution line by line, {_COMPONENTS}",
  "mode_error": "the shares of the modes; blind to the shape of each",
  "spurious": "samples in no mode; blind to modes that have no samples",
  "fid": _FEATURES,
  "feature_frechet": _FEATURES,
  "fd_dinov2": _FEATURES,
  "kid": "the distribution of features; blind to what these leave out",
  "precision": "samples that lie among clean examples; blind to what is"
  " missing: one good image again and again has 1",
  "recall": "clean examples that lie among samples; blind to bad samples, and"
  " raised by samples that are far apart",
  "coverage": "clean examples that have a sample near; blind to bad samples",
  "inception_score": "sure and varied classes; blind to the data",
  "reconstruction_rms": _BACK,
  "reconstruction_psnr_db": _BACK,
  "reconstruction_support_rms": _BACK,
  "score_error": "the network at each noise level; blind to how its errors add"
  " up in sampling",
  "near_duplicates": "copies of training examples; blind to how good samples"
  " are",
}

_NUMBER = re.compile(r"-?[\d.]+(e[+-]\d+)?( ± [\d.]+)?|-?(inf|nan)")
_MARKS = re.compile(r"[\\`*~$|\[\]]")


class Table(NamedTuple):
  """Rows of cells, the first of which names the row; None is an empty cell."""

  name: str  # of its files, unique on a page
  head: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  caption: str = ""
  best: Collection[tuple[int, int]] = ()  # bold (row, column), head apart


def finished(rows: Sequence[Row]) -> list[Row]:
  """The rows of runs that did not fail."""
  return [row for row in rows if "error" not in row]


def rows_of_data(rows: Sequence[Row], runs: pathlib.Path) -> list[Row]:
  """What the measures say of the rows' data, from their evaluations in `runs`.

  Each is a row whose method and objective is the name of the data. Clean data
  is one for all corruptions and seeds.
  """
  found: dict[str, Row] = {}
  for row in finished(rows):
    evaluation = files.read_json(runs / row["run"] / "evaluation.json")
    for name, measures in evaluation.get("baselines", {}).items():
      labels = ["data"]
      if not name.startswith("clean"):
        labels += ["corruption", "fraction", "sigma", "seed"]
      own = {"method": name, "objective": name, **measures}
      own |= {label: row[label] for label in labels if label in row}
      found[json.dumps(own)] = own
  return list(found.values())


def measures_of(rows: Sequence[Row]) -> list[str]:
  """The names of the measures, in order of appearance."""
  names = dict.fromkeys(name for row in rows for name in row)
  return [name for name in names if name not in (*LABELS, *_RECORD)]


def groups(rows: Sequence[Row], *columns: str) -> dict[tuple, list[Row]]:
  """Rows by their values in the columns, in order of appearance."""
  found: dict[tuple, list[Row]] = {}
  for row in rows:
    found.setdefault(tuple(map(row.get, columns)), []).append(row)
  return found


def distinct(rows: Sequence[Row], column: str) -> list[Any]:
  """The column's values without None, in order of appearance."""
  found = dict.fromkeys(row.get(column) for row in rows)
  return [value for value in found if value is not None]


def varying(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
  """The columns in which the rows have two values or more."""
  return [name for name in columns if len(distinct(rows, name)) > 1]


def values(rows: Sequence[Row], measure: str) -> np.ndarray:
  """A measure over seeds: of the rows that have it, float64 [n]."""
  found = [row.get(measure) for row in rows]
  return np.array([value for value in found if value is not None], float)


def mean_std(
  found: np.ndarray, significant: int = 4, digits: int | None = None
) -> str:
  """Mean ± standard deviation of values [n], if they differ; "" of none.

  `significant` digits of the mean are shown, or `digits` after the point.
  """
  if len(found) == 0:
    return ""
  mean = found.mean()
  if digits is None:
    known = np.isfinite(mean) and mean
    size = math.floor(math.log10(abs(mean))) if known else 0
    digits = max(0, significant - 1 - size)
  deviation = f" ± {found.std():.{digits}f}" if np.ptp(found) else ""
  return f"{mean:.{digits}f}{deviation}"


def cost_of(found: Sequence[Any], better: str | None) -> np.ndarray:
  """Values [n] so that the least is best by BETTER's `better`; inf if none."""
  known = np.array(found, float)
  costs = {"lower": known, "higher": -known, "near 1": abs(known - 1)}
  cost = costs.get(str(better), np.nan * known)
  return np.where(np.isfinite(cost), cost, np.inf)


def best_of(found: Sequence[Any], better: str | None) -> list[int]:
  """Places of the best values by BETTER's `better`; none if all are alike."""
  cost = cost_of(found, better)
  best = cost == cost.min()
  return [] if best.all() else np.flatnonzero(best).tolist()


def text_of(cell: Cell) -> str:
  """A cell as it is shown: four digits of a fraction, whole numbers whole."""
  if cell is None:
    return ""
  return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def label(column: str, value: Cell) -> str:
  """A row's label as it is shown."""
  is_name = column == "objective"
  return looks.of(str(value)).label if is_name else text_of(value)


def title(row: Row, columns: Sequence[str]) -> str:
  """A row's labels in words, as "digits, fraction 0.9, sigma 0.2"."""
  bare = ("data", "corruption", "method", "objective")
  return ", ".join(
    ("" if name in bare else f"{name} ") + label(name, row[name])
    for name in columns
    if row.get(name) is not None
  )


def markdown(table: Table) -> str:
  """The table as Markdown, its best cells bold; ValueError if it is ragged."""
  lines = [list(map(escaped, table.head))]
  for i, row in enumerate(table.rows):
    if len(row) != len(table.head):
      raise ValueError(
        f"table {table.name}: a row of {len(row)} cells under a head of"
        f" {len(table.head)}"
      )
    cells = [escaped(text_of(cell)) for cell in row]
    lines.append(
      [f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(cells)]
    )
  head, *rest = [f"| {' | '.join(cells)} |\n" for cells in lines]
  return "".join([head, "|" + "---|" * len(table.head) + "\n", *rest])


def in_full(table: Table) -> str:
  """The table as CSV, its values in full; no text begins a formula."""
  lines = io.StringIO()
  written = csv.writer(lines, lineterminator="\n")
  for row in [table.head, *table.rows]:
    written.writerow([_no_formula(cell) for cell in row])
  return lines.getvalue()


def _no_formula(cell: Cell) -> Cell:
  """The cell; text that a spreadsheet would compute, behind an apostrophe."""
  if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
    return cell
  return (
    f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
  )


def escaped(text: str) -> str:
  """Text in Markdown: no column, tag, link, emphasis or formula begins."""
  return " ".join(_MARKS.sub(r"\\\g<0>", text).replace("<", "&lt;").split())
