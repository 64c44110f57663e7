"""Tables and curves from the JSON of --mode=diagnose, hint and evaluate."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from rad_jax import files
from rad_jax.reports import looks, panels, tables
from rad_jax.reports.looks import Look
from rad_jax.reports.page import Picture

Columns: TypeAlias = Mapping[str, list]

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
_RADIUS = {
  "r": "r(t), noise units",
  "lam_t": "lambda_t",
  "mean_shift": "mean |sigma w|, state units",
}
# Of a protocol's curves: the column across, its title and scale; the column
# that parts the rows into lines, if any; and the columns up, all where empty.
_BY_LEVEL = ("sigma_t", "noise level sigma_t", "level", "", ())
_STEPS = ("evaluations", "network evaluations per sample", "log", "sampler")
_ATTACK = ("budget", "budget (noise units)", "plain", "attack")
_PROTOCOLS: dict[str, tuple] = {
  "steps": (*_STEPS, ("support_rms", "frechet")),
  "attack": (*_ATTACK, ("moved", "support_rms", "frechet")),
}


def write_diagnosis(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Writes diagnosis.md and diagnosis.png beside diagnosis.json."""
  result = files.read_json(workdir / "diagnosis.json")
  files.write_text(workdir / "diagnosis.md", diagnosis_table(result))
  figure = diagnosis_figure({"": result})
  figure.suptitle("{objective} on {data}, step {step}".format_map(result))
  path = panels.save(figure, workdir / "diagnosis.png")
  return [workdir / "diagnosis.md", path]


def diagnosis_table(result: dict[str, Any]) -> str:
  """evaluation.diagnose's result as a Markdown table, a line a level."""
  head = ["sigma_t", "r", "equivariance error: random w", "PGD"]
  head += ["invariance error: random w", "PGD", "Lipschitz: mean", "max"]
  columns = ["sigma_t", "radius"]
  columns += [name for _, _, *pair in _DIAGNOSES for name in pair]
  rows = [[level[name] for name in columns] for level in result["levels"]]
  return tables.markdown(tables.Table("", head, rows))


def diagnosis_figure(results: dict[str, dict[str, Any]]) -> Figure:
  """Three panels over sigma_t, of one or several runs' results, by name."""
  names = [f"{name}, " if len(results) > 1 else "" for name in results]
  ideal_style: dict[str, Any] = {"color": "black", "linestyle": "--"}
  ideal_style |= {"linewidth": 1, "label": "an equivariant network"}
  shown = []
  for title, ideal, *columns in _DIAGNOSES:
    lines: list[panels.Line] = []
    for result, look in zip(results.values(), looks.cycle(names), strict=True):
      x = [level["sigma_t"] for level in result["levels"]]
      if not lines:
        lines.append(panels.Line(x, [ideal] * len(x), ideal_style))
      for column, word, dash in zip(columns, _WORDS, "-:", strict=True):
        y = [level[column] for level in result["levels"]]
        label = {"label": look.label + word, "linestyle": dash}
        lines.append(panels.Line(x, y, look._asdict() | label))
    shown.append(panels.Panel(title, "sigma_t", lines, x_scale="level"))
  return panels.line_figure(shown)


def write_hint(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Writes hint.md and radius.png beside hint.json."""
  result = files.read_json(workdir / "hint.json")
  files.write_text(workdir / "hint.md", hint_table(result))
  path = panels.save(radius_figure(result), workdir / "radius.png")
  return [workdir / "hint.md", path]


def hint_table(result: dict[str, Any]) -> str:
  """evaluation.hint's result in Markdown: a line a lambda, halving, advice."""
  reach = "" if result["reach"] == 1 else f", reaching {result['reach']:g} r"
  lead = (
    "Standard deviation left of a direction of the training data, {objective}"
    " on {data}: w {law}{reach}, {num_steps} sampling steps at eta {eta:g}.\n\n"
  )
  if not result["applies"]:
    lead += (
      "{objective} does not ask for equivariance, which would do this.\n\n"
    )
  words = {"law": _LAWS[result["law"]], "reach": reach}
  head = ["lambda", *(f"std {q:g}" for q in result["stds"])]
  rows = [
    [f"{row['lam']:g}" + " (config)" * row["own"], *row["ratios"]]
    for row in result["rows"]
  ]
  rows.append(["lambda that leaves half", *result["halving"]])
  table = tables.markdown(tables.Table("hint", head, rows))
  return lead.format_map(result | words) + table + f"\n{_advice(result)}\n"


def _advice(result: dict[str, Any]) -> str:
  """What to type, in a sentence."""
  if not result["applies"]:
    return (
      "Take --config.objective.name=robust_adv, which asks for equivariance."
    )
  advice = result["advice"]
  dirt = f"standard deviation {advice['std']:g}"
  dirt += (
    " (the corruption's)" if advice["known"] else " (a guess at your dirt)"
  )
  if not advice["lam"]:
    return (
      f"Keep --config.objective.lam={result['lam']:g}: no lambda halves detail"
      f" of {dirt}, of which DDPM leaves {advice['left']:.0%}."
    )
  said = (
    f"Begin with --config.objective.lam={advice['lam']:g}: it leaves"
    f" {advice['left']:.0%} of detail of {dirt}, and {advice['kept']:.0%} of"
    " what has 1"
  )
  if advice["cautious"]:
    said += "; larger ones can collapse a U-Net on images"
  return f"{said}."


def radius_figure(result: dict[str, Any]) -> Figure:
  """r(t), lambda_t and the mean shift over sigma_t, a line a reading.

  Colour is the radius; dashed, a multiplicative beta; black, the constant
  lambda_t, the same at every radius; thick, the config's own reading.
  """
  curves = result["curves"]
  names = dict.fromkeys(map(_radius_name, curves["readings"]))
  colours = dict(zip(names, _COLOURS, strict=True))
  # The config's own comes first, and stands for those it coincides with.
  readings = sorted(curves["readings"], key=lambda one: not one["own"])
  shown = []
  for field, title in _RADIUS.items():
    lines: dict[str, panels.Line] = {}
    for one in readings:
      name, colour = _radius_name(one), colours[_radius_name(one)]
      if field == "lam_t" and one["lambda_t"] == "constant":
        name, colour = "constant lambda", "black"
      y = np.array(one[field], float)
      y[y <= 0] = np.nan  # On a logarithmic scale, zeros are gaps.
      style: dict[str, Any] = {"color": colour, "label": name}
      style["linestyle"] = "--" if "multiplicative" in name else "-"
      style |= {"linewidth": 3, "zorder": 2} if one["own"] else {"zorder": 3}
      lines.setdefault(name, panels.Line(curves["sigma_t"], y, style))
    drawn = list(lines.values())
    shown.append(panels.Panel(title, "sigma_t", drawn, x_scale="level"))
  figure = panels.line_figure(shown)
  figure.suptitle(
    f"{result['data']}: w {_LAWS[result['law']]}, lambda {result['lam']:g};"
    f" thick: {_radius_name(readings[0])}, {readings[0]['lambda_t']} lambda_t"
  )
  return figure


def _radius_name(reading: dict[str, Any]) -> str:
  if reading["radius"] == "constant":
    return "radius constant"
  return f"radius {reading['radius']}, {reading['beta_role']}"


def protocol_pictures(
  evaluations: Mapping[Look, dict[str, Any]],
) -> list[Picture]:
  """A picture a protocol, a panel a column, a line a run or its series."""
  pictures = []
  of = {look: found.get("protocols", {}) for look, found in evaluations.items()}
  for name in dict.fromkeys(name for found in of.values() for name in found):
    x, xlabel, x_scale, series, up = _PROTOCOLS.get(name, _BY_LEVEL)
    runs = {k: v.get(name, {}).get("curves", {}) for k, v in of.items()}
    runs = {look: columns for look, columns in runs.items() if x in columns}
    shown: dict[str, list[panels.Line]] = {}
    for look, columns in _by_series(runs, series) if series else runs.items():
      for y in up or columns:
        if y != x and columns.get(y):
          line = panels.Line(columns[x], columns[y], look._asdict())
          shown.setdefault(y, []).append(line)
    if shown:
      drawn = [
        panels.Panel(y, xlabel, shown[y], x_scale=x_scale) for y in shown
      ]
      caption = f"Protocol {name}: {', '.join(shown)} against {xlabel}."
      pictures.append(Picture(name, panels.line_figure(drawn), caption))
  return pictures


def _by_series(
  runs: Mapping[Look, Columns], series: str
) -> Iterator[tuple[Look, Columns]]:
  """Each run's rows for each value of `series`, which is told by the dashes."""
  values = itertools.chain(*(columns[series] for columns in runs.values()))
  drawn = looks.cycle(list(dict.fromkeys(values)))
  for (run, columns), own in itertools.product(runs.items(), drawn):
    kept = [value == own.label for value in columns[series]]
    rows = {k: list(itertools.compress(v, kept)) for k, v in columns.items()}
    both = run._replace(
      label=f"{run.label}: {own.label}", linestyle=own.linestyle
    )
    yield (own if len(runs) == 1 else both), rows
