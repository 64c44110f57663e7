"""How each objective is named and drawn, the same in all reports.

Colours are Okabe & Ito's. Markers and dashes are all different, so that the
methods are told apart in grey; the noise-aware ones have their blind
counterpart's colour.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

Dashes: TypeAlias = tuple[int, tuple[float, ...]]


class Method(NamedTuple):
  """An objective's looks: colour, marker and dashes as Matplotlib's."""

  label: str
  colour: str
  marker: str
  dashes: Dashes


METHODS = {
  "ddpm": Method("DDPM", "#0072B2", "o", (0, ())),
  "invariance": Method("invariance", "#D55E00", "X", (0, (1, 1))),
  "robust_ran": Method("Robust_ran", "#56B4E9", "s", (0, (5, 1.5))),
  "robust_adv": Method("Robust_adv", "#009E73", "D", (0, (6, 1.5, 1, 1.5))),
  "true_noise": Method("true noise", "#E69F00", "^", (0, (3, 1))),
  "true_noise_only": Method(
    "true noise only", "#CC79A7", "v", (0, (3, 1, 1, 1))
  ),
  "input_perturbation": Method("DDPM-IP", "#000000", "P", (0, (8, 3))),
  "noise_aware": Method("noise-aware", "#0072B2", "h", (0, (1, 3))),
  "noise_aware_ran": Method(
    "noise-aware + ran", "#56B4E9", "*", (0, (6, 1, 1, 1, 1, 1))
  ),
  "noise_aware_adv": Method(
    "noise-aware + adv", "#009E73", "p", (0, (8, 2, 2, 2))
  ),
}
COLOURS = {name: method.colour for name, method in METHODS.items()}
LABELS = {name: method.label for name, method in METHODS.items()}


def of(objective: str) -> Method:
  """The objective's looks; one that is not known is grey, under its name."""
  return METHODS.get(objective) or Method(objective, "grey", ".", (0, ()))


def style(method: Method) -> dict[str, Any]:
  """The looks as keyword arguments of Axes.plot."""
  return {
    "color": method.colour,
    "marker": method.marker,
    "linestyle": method.dashes,
    "label": method.label,
  }


def looks(objectives: Sequence[str], labels: Sequence[str]) -> list[Method]:
  """What tells runs apart: their objective's looks, where no two share it."""
  if len(set(objectives)) < len(objectives):
    return cycle(labels)
  return [
    of(objective)._replace(label=label)
    for objective, label in zip(objectives, labels, strict=True)
  ]


def cycle(labels: Sequence[str]) -> list[Method]:
  """Looks for anything else, one after another, those of own colour first."""
  known = list(METHODS.values())
  return [
    known[i % len(known)]._replace(label=label)
    for i, label in enumerate(labels)
  ]
