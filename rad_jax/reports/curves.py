"""Tables and curves over the noise levels, of --mode=diagnose and --mode=hint.

Each is drawn from the JSON file of its mode.
"""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rad_jax import files
from rad_jax.reports import looks, panels, tables
from rad_jax.reports.panels import Line, Panel
from rad_jax.reports.tables import Table

_LAWS = {"uniform": "uniform", "gaussian": "Gaussian", "corner": "at corners"}
# Okabe & Ito's palette, told apart in grey too.
_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73")
# A measure's title, its value of an equivariant network, and the columns of
# its mean or random and of its largest or adversarial value.
_DIAGNOSES = (
  ("equivariance error", 0, "equivariance_random", "equivariance_adversarial"),
  ("invariance error", 1, "invariance_random", "invariance_adversarial"),
  ("local Lipschitz constant", 1, "lipschitz_mean", "lipschitz_max"),
)
_WORDS = ("random w, or mean", "PGD's w, or maximum")
_FIELDS = {
  "r": "r(t), noise units",
  "lam_t": "lambda_t",
  "mean_shift": "mean |sigma w|, state units",
}


def write_diagnosis(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Writes diagnosis.md and diagnosis.png beside diagnosis.json."""
  result = files.read_json(workdir / "diagnosis.json")
  files.write_text(workdir / "diagnosis.md", diagnosis_table(result))
  figure = diagnosis_figure({"": result})
  figure.suptitle(
    f"{result['objective']} on {result['data']}, step {result['step']}"
  )
  path = panels.save(figure, workdir / "diagnosis.png")
  return [workdir / "diagnosis.md", path]


def diagnosis_table(result: dict[str, Any]) -> str:
  """evaluation.diagnose's result as a Markdown table, a line a level."""
  columns = [name for _, _, *pair in _DIAGNOSES for name in pair]
  head = ["equivariance error: random w", "PGD"]
  head += ["invariance error: random w", "PGD", "Lipschitz: mean", "max"]
  rows = [
    [level[name] for name in ("sigma_t", "radius", *columns)]
    for level in result["levels"]
  ]
  return tables.markdown(Table("", ["sigma_t", "r", *head], rows))


def diagnosis_figure(results: dict[str, dict[str, Any]]) -> Figure:
  """Three panels over sigma_t, of one or several runs' results, by name.

  The dashed black line is an equivariant network.
  """
  found = [result["levels"] for result in results.values()]
  names = [f"{name}, " if len(results) > 1 else "" for name in results]
  shown = []
  for title, ideal, *columns in _DIAGNOSES:
    style: dict[str, Any] = {"color": "black", "linestyle": "--"}
    style |= {"linewidth": 1, "label": "an equivariant network"}
    sigma_t = [level["sigma_t"] for level in found[0]]
    lines = [Line(sigma_t, [ideal] * len(sigma_t), style)]
    for levels, look in zip(found, looks.cycle(names), strict=True):
      for column, word, dash in zip(columns, _WORDS, ("-", ":"), strict=True):
        # None, where an error is not told, becomes NaN: a gap.
        y = np.array([level[column] for level in levels], float)
        x = [level["sigma_t"] for level in levels]
        label = {"label": look.label + word, "linestyle": dash}
        lines.append(Line(x, y, looks.style(look) | label))
    shown.append(Panel(title, "sigma_t", lines, x_scale="level"))
  return panels.line_figure(shown)


def write_hint(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Writes hint.md and radius.png beside hint.json."""
  result = files.read_json(workdir / "hint.json")
  files.write_text(workdir / "hint.md", hint_table(result))
  path = panels.save(radius_figure(result), workdir / "radius.png")
  return [workdir / "hint.md", path]


def hint_table(result: dict[str, Any]) -> str:
  """evaluation.hint's result in Markdown: a line a lambda, and the halving."""
  reach = "" if result["reach"] == 1 else f", reaching {result['reach']:g} r"
  lead = (
    "Standard deviation left of a direction of the training data,"
    f" {result['objective']} on {result['data']}: w"
    f" {_LAWS[result['law']]}{reach}, {result['num_steps']} sampling steps at"
    f" eta {result['eta']:g}.\n\n"
  )
  if not result["applies"]:
    lead += (
      f"{result['objective']} does not ask for equivariance: this is what"
      " that would do.\n\n"
    )
  head = ["lambda", *(f"std {q:g}" for q in result["stds"])]
  rows = [
    [f"{row['lam']:g}" + " (config)" * row["own"], *row["ratios"]]
    for row in result["rows"]
  ]
  rows.append(["lambda that leaves half", *result["halving"]])
  return lead + tables.markdown(Table("hint", head, rows))


def radius_figure(result: dict[str, Any]) -> Figure:
  """r(t), lambda_t and the mean shift over sigma_t, a line a reading.

  Colour is the radius; dashed is a multiplicative beta. The constant lambda_t
  is drawn once, in black: it is the same at every radius. The config's own
  reading is thick.
  """
  curves = result["curves"]
  names = dict.fromkeys(map(_radius_name, curves["readings"]))
  colours = dict(zip(names, _COLOURS, strict=True))
  # The config's own comes first, and stands for those it coincides with.
  readings = sorted(curves["readings"], key=lambda one: not one["own"])
  shown = []
  for field, title in _FIELDS.items():
    lines: dict[str, Line] = {}
    for one in readings:
      name, colour = _radius_name(one), colours[_radius_name(one)]
      if field == "lam_t" and one["lambda_t"] == "constant":
        name, colour = "constant lambda", "black"
      y = np.array(one[field], float)
      style = {
        "color": colour,
        "label": name,
        "linestyle": "--" if "multiplicative" in name else "-",
        "linewidth": 3 if one["own"] else 1.5,
        "zorder": 2 if one["own"] else 3,
      }
      # On a logarithmic scale, zeros are gaps.
      y[y <= 0] = np.nan
      lines.setdefault(name, Line(curves["sigma_t"], y, style))
    drawn = list(lines.values())
    shown.append(Panel(title, "sigma_t", drawn, x_scale="level"))
  figure = panels.line_figure(shown)
  own = next(one for one in readings if one["own"])
  figure.suptitle(
    f"{result['data']}: w {_LAWS[result['law']]}, lambda {result['lam']:g};"
    f" thick: {_radius_name(own)}, {own['lambda_t']} lambda_t"
  )
  return figure


def _radius_name(reading: dict[str, Any]) -> str:
  if reading["radius"] == "constant":
    return "radius constant"
  return f"radius {reading['radius']}, {reading['beta_role']}"
