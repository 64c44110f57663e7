"""Curves over the noise levels: a network's diagnosis, a config's hint."""

import json
import pathlib
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LAWS = {
  "uniform": "uniform",
  "gaussian": "Gaussian",
  "corner": "at corners",
}

# Okabe & Ito's palette, told apart in grey too.
_BLUE, _RED = "#0072B2", "#D55E00"
_COLOURS = (_BLUE, "#56B4E9", _RED, "#E69F00", "#009E73")


def diagnosis_table(result: dict[str, Any]) -> str:
  """evaluation.diagnose's result as a Markdown table, a line a level."""
  columns = (
    "sigma_t",
    "radius",
    "equivariance_random",
    "equivariance_adversarial",
    "invariance_random",
    "invariance_adversarial",
    "lipschitz_mean",
    "lipschitz_max",
  )
  heads = (
    "sigma_t",
    "r",
    "equivariance error: random w",
    "PGD",
    "invariance error: random w",
    "PGD",
    "Lipschitz: mean",
    "max",
  )
  lines = [_row(heads), _row(["---"] * len(heads))]
  for level in result["levels"]:
    lines.append(_row([_number(level[name]) for name in columns]))
  return "\n".join(lines)


def diagnosis_figure(result: dict[str, Any]) -> Figure:
  """Three panels over sigma_t; the dashed line is an equivariant network."""
  figure = Figure(figsize=(11, 3.4), layout="constrained")
  axes = figure.subplots(1, 3)
  panels = (
    (
      "equivariance error",
      0,
      ("equivariance_random", "random w"),
      ("equivariance_adversarial", "PGD's w"),
    ),
    (
      "invariance error",
      1,
      ("invariance_random", "random w"),
      ("invariance_adversarial", "PGD's w"),
    ),
    (
      "local Lipschitz constant, noise units",
      1,
      ("lipschitz_mean", "mean"),
      ("lipschitz_max", "maximum"),
    ),
  )
  levels = result["levels"]
  sigma_t = np.array([level["sigma_t"] for level in levels])
  for axis, (title, ideal, *lines) in zip(axes, panels, strict=True):
    axis.axhline(ideal, color="black", linewidth=1, linestyle="--")
    drawn = []
    for (name, label), colour, marker in zip(
      lines, (_BLUE, _RED), "os", strict=True
    ):
      # None, where an error is not told, becomes NaN: a gap.
      values = np.array([level[name] for level in levels], float)
      axis.plot(
        sigma_t, values, marker=marker, markersize=4, label=label, color=colour
      )
      drawn.append(values)
    _scale_y(axis, np.concatenate(drawn))
    _scale_x(axis, sigma_t)
    axis.set_title(title)
    axis.legend(frameon=False)
  figure.suptitle(
    f"{result['objective']} on {result['data']}, step {result['step']}"
  )
  return figure


def write_diagnosis(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Writes diagnosis.md and diagnosis.png beside diagnosis.json.

  Raises:
    FileNotFoundError: there is no diagnosis.json.
  """
  result = json.loads((workdir / "diagnosis.json").read_text())
  return _write(
    diagnosis_table(result),
    workdir / "diagnosis.md",
    diagnosis_figure(result),
    workdir / "diagnosis.png",
  )


def hint_table(result: dict[str, Any]) -> str:
  """evaluation.hint's result in Markdown: a line a lambda, and the halving."""
  reach = "" if result["reach"] == 1 else f", reaching {result['reach']:g} r"
  lines = [
    "Standard deviation left of a direction of the training data,"
    f" {result['objective']} on {result['data']}: w"
    f" {_LAWS[result['law']]}{reach}, {result['num_steps']} sampling steps at"
    f" eta {result['eta']:g}.",
    "",
  ]
  if not result["applies"]:
    lines += [
      f"{result['objective']} does not ask for equivariance: this is what"
      " that would do.",
      "",
    ]
  stds = [f"std {q:g}" for q in result["stds"]]
  lines += [_row(["lambda", *stds]), _row(["---"] * (1 + len(stds)))]
  for row in result["rows"]:
    name = f"{row['lam']:g}" + (" (config)" if row["own"] else "")
    lines.append(_row([name, *map(_number, row["ratios"])]))
  halving = [_number(lam) for lam in result["halving"]]
  lines.append(_row(["lambda that leaves half", *halving]))
  return "\n".join(lines)


def radius_figure(result: dict[str, Any]) -> Figure:
  """r(t), lambda_t and the mean shift over sigma_t, a line a reading.

  Colour is the radius; dashed is a multiplicative beta. lambda_t has the
  constant one once, in black: it is the same at every radius. The config's
  own reading is thick.
  """
  figure = Figure(figsize=(12, 4.2), layout="constrained")
  axes = figure.subplots(1, 3)
  curves = result["curves"]
  sigma_t = np.array(curves["sigma_t"])
  names = dict.fromkeys(_radius_name(one) for one in curves["readings"])
  colours = dict(zip(names, _COLOURS, strict=True))
  # The config's own comes first, and stands for those it coincides with.
  readings = sorted(curves["readings"], key=lambda one: not one["own"])
  fields = {
    "r": "r(t), noise units",
    "lam_t": "lambda_t",
    "mean_shift": "mean |sigma w|, state units",
  }
  for axis, (field, title) in zip(axes, fields.items(), strict=True):
    drawn: dict[str, Any] = {}
    for reading in readings:
      constant = field == "lam_t" and reading["lambda_t"] == "constant"
      name = "constant lambda" if constant else _radius_name(reading)
      if name not in drawn:
        colour = "black" if constant else colours[name]
        drawn[name] = axis.plot(sigma_t, reading[field], **_line(reading))[0]
        drawn[name].set_color(colour)
    _scale_x(axis, sigma_t)
    _scale_y(axis, np.ravel([line.get_ydata() for line in drawn.values()]))
    axis.set_title(title)
    if field == "lam_t" and "constant lambda" in drawn:
      axis.legend(
        [drawn["constant lambda"]], ["constant lambda"], frameon=False
      )
    if field == "r":
      handles = [drawn[name] for name in names]
  figure.legend(
    handles,
    [f"radius {name}" for name in names],
    loc="outside lower center",
    ncols=len(names),
    frameon=False,
  )
  own = next(one for one in readings if one["own"])
  figure.suptitle(
    f"{result['data']}: w {_LAWS[result['law']]}, lambda {result['lam']:g};"
    f" thick: {_radius_name(own)} radius, {own['lambda_t']} lambda_t"
  )
  return figure


def write_hint(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Writes hint.md and radius.png beside hint.json.

  Raises:
    FileNotFoundError: there is no hint.json.
  """
  result = json.loads((workdir / "hint.json").read_text())
  return _write(
    hint_table(result),
    workdir / "hint.md",
    radius_figure(result),
    workdir / "radius.png",
  )


def _radius_name(reading: dict[str, Any]) -> str:
  if reading["radius"] == "constant":
    return "constant"
  return f"{reading['radius']}, {reading['beta_role']}"


def _line(reading: dict[str, Any]) -> dict[str, Any]:
  dashed = reading["radius"] != "constant" and (
    reading["beta_role"] == "multiplicative"
  )
  return {
    "linewidth": 3 if reading["own"] else 1.5,
    "linestyle": "--" if dashed else "-",
    "zorder": 2 if reading["own"] else 3,
  }


def _scale_x(axis: Axes, sigma_t: np.ndarray) -> None:
  """Linear, or logit where levels crowd at an end (EDM's do, at both)."""
  crowded = np.mean((sigma_t < 0.05) | (sigma_t > 0.95)) > 0.5
  if crowded and np.all(sigma_t < 1):
    axis.set_xscale("logit")
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
  axis.set_xlabel("sigma_t")
  axis.spines[["top", "right"]].set_visible(False)


def _scale_y(axis: Axes, values: np.ndarray) -> None:
  """From 0; or logarithmic, eight decades at most, beyond three decades."""
  positive = values[np.isfinite(values) & (values > 0)]
  if positive.size and positive.max() > 1000 * positive.min():
    axis.set_yscale("log")
    if positive.min() < 1e-8 * positive.max():
      axis.set_ylim(bottom=1e-8 * positive.max())
  else:
    # A little under 0, so that a line at 0 is seen.
    top = axis.get_ylim()[1]
    axis.set_ylim(-0.03 * top, top)


def _row(cells) -> str:
  return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.3g}"


def _write(
  table: str,
  table_path: pathlib.Path,
  figure: Figure,
  figure_path: pathlib.Path,
) -> list[pathlib.Path]:
  table_path.write_text(table + "\n")
  figure.savefig(figure_path, dpi=150)
  return [table_path, figure_path]
