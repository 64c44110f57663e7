"""The paper's controlled study: data with known truth, corruptions, methods."""

import itertools
import pathlib
from collections.abc import Mapping

from rad_jax.config import ConfigDict, ConfigError
from rad_jax.experiments import engine, table
from rad_jax.experiments.table import Changes, Entry, Row

_LINEARISED: Changes = {
  "data.path": "",
  "data.flip": False,
  "data.image_size": 8,
  "data.linear_rank": 32,
  "model.mlp.width": 256,
}
DATA: dict[str, Changes] = {
  "oblique_plane": {"data.name": "oblique_plane", "data.path": ""},
  "three_gaussians": {"data.name": "three_gaussians", "data.path": ""},
  "digits": _LINEARISED
  | {"data.name": "digits", "data.num_channels": 1, "data.linear_rank": 16},
  # The images of config.data.path, small enough for an MLP.
  "colour": {k: v for k, v in _LINEARISED.items() if k != "data.path"}
  | {"data.name": "image_folder"},
  "butterflies": _LINEARISED
  | {"data.name": "huggingface:huggan__smithsonian_butterflies_subset"},
}


def _noise(fraction: float, sigma: float, kind: str = "gaussian") -> Changes:
  strength = {"kind": kind, "fraction": fraction, "sigma": sigma}
  return {f"data.corruption.{k}": value for k, value in strength.items()}


CORRUPTIONS: dict[str, Changes] = {
  "clean": {"data.corruption.fraction": 0.0},
  "p50-s0.1": _noise(0.5, 0.1),
  "p50-s0.2": _noise(0.5, 0.2),
  "p90-s0.1": _noise(0.9, 0.1),
  "p90-s0.2": _noise(0.9, 0.2),
  "outliers": _noise(0.1, 1.0, "outlier"),
}
METHODS: dict[str, Changes] = {
  "ddpm": {"objective.name": "ddpm"},
  "invariance": {"objective.name": "invariance"},
  "robust_ran": {"objective.name": "robust_ran"},
  "robust_adv-lam1": {"objective.name": "robust_adv", "objective.lam": 1.0},
  "robust_adv-lam3": {"objective.name": "robust_adv", "objective.lam": 3.0},
  "noise_aware": {"objective.name": "noise_aware"},
}


def run(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """The rows of config.study, in workdir, by engine.run_all."""
  found, fields = entries(config), config.study
  return engine.run_all(found, workdir, fields.processes, fields.group_size)


def entries(config: ConfigDict) -> list[Entry]:
  """The runs of config.study; the first seed's are portrayed.

  Noise-aware training is left out where no noise has a sigma.
  """
  fields = config.study
  refuse_unknown(config, data=DATA, corruptions=CORRUPTIONS, methods=METHODS)
  found = []
  for data, method, corruption, seed in itertools.product(
    fields.data, fields.methods, fields.corruptions, range(fields.seeds)
  ):
    if method == "noise_aware" and corruption in ("clean", "outliers"):
      continue
    changes = DATA[data] | CORRUPTIONS[corruption] | METHODS[method]
    protocols = config.evaluation.protocols + ("portrait",) * (seed == 0)
    changes |= {"seed": seed, "evaluation.protocols": protocols}
    names = {"data": data, "corruption": corruption, "method": method}
    name = f"{'-'.join(names.values())}-seed{seed}"
    found.append(table.entry(name, config, changes, **names))
  if not found:
    raise ConfigError(
      f"config.study has no cell: methods={fields.methods!r},"
      f" corruptions={fields.corruptions!r}, seeds={fields.seeds}"
    )
  return found


def refuse_unknown(config: ConfigDict, **axes: Mapping[str, Changes]) -> None:
  """Raises ConfigError if config.study has no or unknown names on an axis."""
  for axis, known in axes.items():
    names = config.study[axis]
    if not names or set(names) - set(known):
      raise ConfigError(
        f"config.study.{axis}={names!r}: it must be some of {', '.join(known)}"
      )
