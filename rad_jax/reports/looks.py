"""How each objective is named and drawn, the same in all reports.

Colours are Okabe & Ito's; markers and dashes tell lines apart in grey too.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Look(NamedTuple):
  """Keyword arguments of Axes.plot, as a dict by _asdict()."""

  label: str
  color: str
  marker: str
  linestyle: tuple[int, tuple[float, ...]]


LOOKS = {
  "ddpm": Look("DDPM", "#0072B2", "o", (0, ())),
  "invariance": Look("invariance", "#D55E00", "X", (0, (1, 1))),
  "robust_ran": Look("Robust_ran", "#56B4E9", "s", (0, (5, 1.5))),
  "robust_adv": Look("Robust_adv", "#009E73", "D", (0, (6, 1.5, 1, 1.5))),
  "jacobian": Look("Jacobian penalty", "#F0E442", "<", (0, (2, 2))),
  "true_noise": Look("true noise", "#E69F00", "^", (0, (3, 1))),
  "true_noise_only": Look("true noise only", "#CC79A7", "v", (0, (3, 1, 1, 1))),
  "input_perturbation": Look("DDPM-IP", "#000000", "P", (0, (8, 3))),
  "noise_aware": Look("noise-aware", "#0072B2", "h", (0, (1, 3))),
  "noise_aware_ran": Look("noise-aware + ran", "#56B4E9", "*", (0, (9, 1))),
  "noise_aware_adv": Look("noise-aware + adv", "#009E73", "p", (0, (4, 4))),
}


def of(objective: str) -> Look:
  """The objective's look; an unknown one is grey, under its own name."""
  return LOOKS.get(objective) or Look(objective, "grey", ".", (0, ()))


def of_runs(objectives: Sequence[str], labels: Sequence[str]) -> list[Look]:
  """Looks that tell runs apart: their objectives', unless two share one."""
  if len(set(objectives)) < len(objectives):
    return cycle(labels)
  return [
    of(objective)._replace(label=label)
    for objective, label in zip(objectives, labels, strict=True)
  ]


def cycle(labels: Sequence[str]) -> list[Look]:
  """Looks for anything else, one after another."""
  known = itertools.cycle(LOOKS.values())
  return [
    look._replace(label=x) for x, look in zip(labels, known, strict=False)
  ]
