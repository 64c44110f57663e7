"""Named schemes side by side, on one backbone, over seeds.

demo      the paper's effect in minutes: four objectives
cheap     error against cost of every scheme of cheap adversarial training
baselines other methods, processes and fine-tuning
readings  every reading of the radius, of lambda and of its weight
attacks   attacks on sampling, method by method
"""

import itertools
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from rad_jax import config as configs
from rad_jax.config import ConfigDict, ConfigError
from rad_jax.data import builders, training_set
from rad_jax.experiments import engine, study, table
from rad_jax.experiments.table import Changes, Entry, Row


def _in(section: str, **fields: Any) -> Changes:
  return {f"{section}.{name}": value for name, value in fields.items()}


_objective = partial(_in, "objective")
_regulariser = partial(_in, "regulariser")
_DDPM = _objective(name="ddpm")
_RISING = _objective(radius="rising")
_CONSTANT = _objective(radius="constant")
_SCALED = _objective(beta_role="multiplicative")
_INVERSE = _objective(lambda_t="inverse_std")
_HEUN = {"sampling.sampler": "heun"}
_EDM = _HEUN | {
  "diffusion.process": "edm",
  "diffusion.prediction": "edm",
  "sampling.num_steps": 18,
}
_FLOW = {
  "diffusion.process": "flow",
  "diffusion.prediction": "velocity",
  "sampling.sampler": "euler",
}
# Below the corruption's sigma a model of noisy data alone knows nothing.
_ALL_DIRTY = {"data.corruption.fraction": 1.0, "sampling.stop_sigma": 0.2}

# What each scheme changes in the config, which is Robust_adv's.
_CHEAP = {
  "DDPM": _DDPM,
  "Robust_ran": _objective(name="robust_ran"),
  "FGSM": {},
  "PGD-3": {"attack.name": "pgd", "attack.num_steps": 3},
  "N-FGSM": {"attack.name": "n_fgsm"},
  "bf16 attack": {"attack.dtype": "bfloat16"},
  "every 2": _regulariser(every_steps=2),
  "every 4": _regulariser(every_steps=4),
  "every 4, lam x 4": _regulariser(every_steps=4) | _objective(lam=12.0),
  "half batch": _regulariser(batch_fraction=0.5),
  "quarter batch": _regulariser(batch_fraction=0.25),
  "last half": _regulariser(start=0.5),
  "last quarter": _regulariser(start=0.75),
  "free, 4 replays": _regulariser(free_replays=4),
}
_BASELINES = {
  "DDPM": _DDPM,
  "Robust_ran": _objective(name="robust_ran"),
  "Robust_adv": {},
  "DDPM-IP": _CONSTANT | _objective(name="input_perturbation", beta=0.1),
  "AT_Diff, free": _objective(name="true_noise_only")
  | {"attack.norm": "l2", "attack.start": 0.0}
  | _regulariser(free_replays=4),
  "noise-aware": _objective(name="noise_aware"),
  "noise-aware + ran": _objective(name="noise_aware_ran"),
  "noise-aware + adv": _objective(name="noise_aware_adv"),
  "DDPM, p = 1": _DDPM | _ALL_DIRTY,
  "Robust_adv, p = 1": _ALL_DIRTY,
  "noise-aware, p = 1": _objective(name="noise_aware") | _ALL_DIRTY,
  "noise-aware + adv, p = 1": _objective(name="noise_aware_adv") | _ALL_DIRTY,
  "EDM": _DDPM | _EDM,
  "EDM, Robust_adv": _EDM,
  "flow, Euler": _DDPM | _FLOW,
  "flow, Euler, Robust_adv": _FLOW,
  "flow, Heun, Robust_adv": _FLOW | _HEUN | {"sampling.num_steps": 50},
  "DDPM, then Robust_adv": _regulariser(warmup_steps=200)
  | {"train.init_from": "DDPM", "train.num_steps": 1000},
}
_READINGS = {
  "DDPM": _DDPM,
  "falling": {},
  "falling, beta 0.1": _objective(beta=0.1),
  "falling, omega 1": _objective(omega=1.0),
  "falling x 0.3": _SCALED | _objective(beta=0.3),
  "falling x 1": _SCALED | _objective(beta=1.0),
  "rising": _RISING,
  "rising, beta 0.1": _RISING | _objective(beta=0.1),
  "rising x 0.3": _RISING | _SCALED | _objective(beta=0.3),
  "constant 0.03": _CONSTANT,
  "constant 0.1": _CONSTANT | _objective(beta=0.1),
  "constant 0.3": _CONSTANT | _objective(beta=0.3),
  "constant 0.1, state": _CONSTANT | _objective(beta=0.1, radius_units="state"),
  "falling, inverse_std": _INVERSE,
  "falling, inverse_std, lam 0.3": _INVERSE | _objective(lam=0.3),
}
_DEMO = ("ddpm", "invariance", "robust_ran", "robust_adv")
_ATTACKED = (*_DEMO, "noise_aware")
SCHEMES: dict[str, dict[str, Changes]] = {
  "demo": {name: _objective(name=name) for name in _DEMO},
  "cheap": _CHEAP,
  "baselines": _BASELINES,
  "readings": _READINGS,
  "attacks": {
    name: _objective(name=name)
    | _in("evaluation", protocols=("truth", "attack"), attack_restarts=3)
    for name in _ATTACKED
  },
}
# What stands across in each table's figure.
ACROSS = dict.fromkeys(SCHEMES, "spread_ratio") | {"cheap": "cost"}

_DIGITS_COUNTS = {
  "train.batch_size": 128,
  "sampling.num_samples": 64,
  "sampling.batch_size": 512,
  "evaluation.num_samples": 2000,
}
# Counts that data and schemes only lower: a smoke config has shrunk them.
_COUNTS = ("train.num_steps", "sampling.num_steps", *_DIGITS_COUNTS)


def run(config: ConfigDict, workdir: pathlib.Path, name: str) -> list[Row]:
  """The rows of a table of SCHEMES; those of the demo with step_seconds."""
  if name not in SCHEMES:
    raise ConfigError(
      f"config.study.schemes={name!r}: it must be one of {', '.join(SCHEMES)}"
    )
  found = entries(config, SCHEMES[name], workdir)
  rows = run_all(config, found, workdir)
  if name != "demo":
    return rows
  seconds = engine.timed(workdir)
  pairs = zip(found, rows, strict=True)
  return [row | {"step_seconds": seconds(one.config)} for one, row in pairs]


def run_all(
  config: ConfigDict,
  found: list[Entry],
  workdir: pathlib.Path,
  group_size: int = 0,
) -> list[Row]:
  """The rows of entries, by engine.run_all; their data is prepared first."""
  for name in sorted({one.config.data.name for one in found}):
    if training_set.needs_preparation(name):
      builders.prepare(name, config.data.data_dir or None)
  how = workdir, config.study.processes, group_size
  scratch = [one for one in found if not one.config.train.init_from]
  engine.run_all(scratch, *how)
  return engine.run_all(found, *how)


def entries(
  config: ConfigDict,
  schemes: dict[str, Changes],
  workdir: pathlib.Path,
  seeds: Sequence[int] = (),
) -> list[Entry]:
  """A run for each seed, data and scheme, those with init_from last.

  The seeds are by default those of config.study.
  """
  study.refuse_unknown(config, data=study.DATA)
  fields = configs.flatten(config.to_dict())
  own = {path: fields[path] for path in _COUNTS}
  found = []
  for seed, data, (scheme, scheme_changes) in itertools.product(
    seeds or range(config.study.seeds), config.study.data, schemes.items()
  ):
    name = lambda of, data=data, seed=seed: f"{data}-{_word(of)}-seed{seed}"
    counts = own | (_DIGITS_COUNTS if data == "digits" else {})
    changes = study.DATA[data] | counts | scheme_changes | {"seed": seed}
    changes |= {path: min(changes[path], own[path]) for path in _COUNTS}
    # Free replays see fewer batches, of more updates.
    changes["train.num_steps"] //= changes.get("regulariser.free_replays", 1)
    if source := changes.get("train.init_from"):
      folder = workdir.absolute() / "runs" / name(source)
      changes["train.init_from"] = str(folder)
    names = {"data": data, "method": scheme}
    found.append(table.entry(name(scheme), config, changes, **names))
  return sorted(found, key=lambda one: bool(one.config.train.init_from))


def _word(scheme: str) -> str:
  return "_".join("".join(c for c in scheme if c not in ",=").split())
