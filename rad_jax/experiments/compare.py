"""Every method at its best: knobs chosen on some seeds, compared on others.

A method's knobs are its changes of training in METHODS and the ways to sample
of the protocol `steps`. On the tuning seeds, which begin at TUNING, each method
is trained with each of its changes, and the pair of changes and way with the
least mean Frechet distance is chosen. With these changes it is trained on the
seeds 0, 1, ..., which are compared.
"""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rad_jax import files
from rad_jax.config import ConfigDict
from rad_jax.experiments import schemes
from rad_jax.experiments.table import Changes, Entry, Row

TUNING = 100
# What a way to sample is, in the curves of the protocol.
WAY = ("sampler", "num_steps", "stop_sigma", "temperature")
_CHOSEN_BY = "frechet"


def _lams(name: str, *lams: float, **fields: Any) -> dict[str, Changes]:
  changed = {"objective.name": name}
  changed |= {f"objective.{field}": value for field, value in fields.items()}
  return {f"lambda {lam:g}": changed | {"objective.lam": lam} for lam in lams}


_DDPM: Changes = {"objective.name": "ddpm"}
# A deterministic sampler has no noise to lower.
_COLD: Changes = {
  "sampling.variance": "large",
  "evaluation.samplers": ("ddpm",),
  "evaluation.step_counts": (300,),
  "evaluation.temperatures": (1.0, 0.9, 0.8, 0.7),
}
_AT_DIFF: Changes = {
  "objective.name": "true_noise_only",
  "objective.radius": "constant",
  "attack.norm": "l2",
  "attack.goal": "denoising",
  "attack.start": 0.0,
}
# Of each method, its knobs of training by name.
METHODS: dict[str, dict[str, Changes]] = {
  "DDPM": {"": _DDPM},
  "DDPM, low temperature": {"": _DDPM | _COLD},
  "invariance": _lams("invariance", 0.3, 1.0, 3.0),
  "Robust_ran": _lams("robust_ran", 1.0, 3.0, 10.0, 30.0),
  "Robust_adv": _lams("robust_adv", 0.3, 1.0, 3.0, 10.0),
  "Robust_adv, rising": _lams("robust_adv", 3.0, 10.0, 30.0, radius="rising"),
  "Jacobian penalty": _lams("jacobian", 1.0, 3.0, 10.0, 30.0),
  "bounded loss": {
    f"c {c:g}": _DDPM | {"objective.influence": c} for c in (0.3, 1.0, 3.0)
  },
  "AT_Diff": {
    f"beta {beta:g}": _AT_DIFF | {"objective.beta": beta}
    for beta in (0.03, 0.1, 0.3)
  },
  "noise-aware": {"": {"objective.name": "noise_aware"}},
  "noise-aware + adv": _lams("noise_aware_adv", 0.1, 0.3, 1.0),
}


def run(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """A row for each run and way, those of tuning seeds and the compared ones.

  A row has data, method, knobs, WAY, seed, tuning, chosen and the measures.
  """
  fields = config.study
  tuning = range(TUNING, TUNING + fields.tuning_seeds)
  everything = {(m, k) for m, knobs in METHODS.items() for k in knobs}
  tried = list(_rows(config, workdir, fields.data, everything, tuning))
  best = choose(tried)
  compared: list[Row] = []
  for data in fields.data:
    of_data = {(key[1], way[0]) for key, way in best.items() if key[0] == data}
    compared += _rows(config, workdir, [data], of_data, range(fields.seeds))
  rows = [row | {"tuning": True} for row in tried]
  rows += [row | {"tuning": False} for row in compared]
  rows = [
    row | {"chosen": best[row["data"], row["method"]] == _setting(row)}
    for row in rows
  ]
  files.write_json(workdir / "compared.json", rows)
  return rows


def choose(tried: Iterable[Row]) -> dict[tuple[str, str], tuple]:
  """(data, method) -> the knobs and way of the least mean Frechet distance."""
  found: dict[tuple[str, str], dict[tuple, list[float]]] = {}
  for row in tried:
    settings = found.setdefault((row["data"], row["method"]), {})
    value = row[_CHOSEN_BY]
    settings.setdefault(_setting(row), []).append(
      np.inf if value is None else value
    )
  return {
    key: min(settings, key=lambda setting: np.mean(settings[setting]))
    for key, settings in found.items()
  }


def _setting(row: Row) -> tuple:
  return row["knobs"], *(row[name] for name in WAY)


def _rows(
  config: ConfigDict,
  workdir: pathlib.Path,
  data: Iterable[str],
  chosen: set[tuple[str, str]],
  seeds: range,
) -> Iterator[Row]:
  """Trains methods with knobs on seeds; yields a row for each way to sample."""
  config = config.copy_and_resolve_references()
  config.study.data = tuple(data)
  named = {f"{m} {k}".strip(): (m, k) for m, k in sorted(chosen)}
  changes = {name: METHODS[m][k] for name, (m, k) in named.items()}
  entries = schemes.entries(config, changes, workdir, seeds)
  done = schemes.run_all(config, entries, workdir, config.study.group_size)
  for one, row in zip(entries, done, strict=True):
    method, knobs = named[one.labels["method"]]
    label = {"data": one.labels["data"], "method": method, "knobs": knobs}
    label |= {"seed": one.labels["seed"], "passes": row["passes"]}
    if "error" not in row:  # else it has no ways
      yield from (label | way for way in _ways(workdir, one))


def _ways(workdir: pathlib.Path, one: Entry) -> list[dict[str, Any]]:
  """The rows of the protocol `steps` of a run."""
  path = workdir / "runs" / one.name / "evaluation.json"
  curves = files.read_json(path)["protocols"]["steps"]["curves"]
  return [
    dict(zip(curves, values, strict=True))
    for values in zip(*curves.values(), strict=True)
  ]
