"""The paper's controlled study, on worlds with known truth.

Every world under every corruption with every method, over seeds: a run each,
cells of one table. Runs of one program are trained together
(training.together). The study's folder holds groups/, their checkpoints, and
as a sweep's (experiments.sweep) runs/<name>/ and sweep.jsonl.
"""

import copy
import hashlib
import json
import pathlib
from typing import Any

from rad_jax import validation
from rad_jax.config import ConfigDict, ConfigError
from rad_jax.evaluation import evaluate, sampling, subject
from rad_jax.experiments import sweep
from rad_jax.experiments.sweep import Row, Run
from rad_jax.training import build, loop, sharding, together

Changes = dict[str, Any]

_LINEARISED: Changes = {"data.flip": False, "model.mlp.width": 256}
WORLDS: dict[str, Changes] = {
  "oblique_plane": {"data.name": "oblique_plane"},
  "three_gaussians": {"data.name": "three_gaussians"},
  "digits": _LINEARISED
  | {
    "data.name": "digits",
    "data.image_size": 8,
    "data.num_channels": 1,
    "data.linear_rank": 16,
  },
  # The images of config.data.path, small enough for an MLP.
  "colour": _LINEARISED
  | {"data.name": "image_folder", "data.image_size": 8, "data.linear_rank": 32},
  "butterflies": _LINEARISED
  | {
    "data.name": "huggingface:huggan__smithsonian_butterflies_subset",
    "data.image_size": 8,
    "data.linear_rank": 32,
  },
}


def _noise(fraction: float, sigma: float) -> Changes:
  return {
    "data.corruption.kind": "gaussian",
    "data.corruption.fraction": fraction,
    "data.corruption.sigma": sigma,
  }


CORRUPTIONS: dict[str, Changes] = {
  "clean": {"data.corruption.fraction": 0.0},
  "p50-s0.1": _noise(0.5, 0.1),
  "p50-s0.2": _noise(0.5, 0.2),
  "p90-s0.1": _noise(0.9, 0.1),
  "p90-s0.2": _noise(0.9, 0.2),
  "outliers": {
    "data.corruption.kind": "outlier",
    "data.corruption.fraction": 0.1,
    "data.corruption.sigma": 1.0,
  },
}
METHODS: dict[str, Changes] = {
  "ddpm": {"objective.name": "ddpm"},
  "invariance": {"objective.name": "invariance"},
  "robust_ran": {"objective.name": "robust_ran"},
  "robust_adv-lam1": {"objective.name": "robust_adv", "objective.lam": 1.0},
  "robust_adv-lam3": {"objective.name": "robust_adv", "objective.lam": 3.0},
  "noise_aware": {"objective.name": "noise_aware"},
}


def cells(config: ConfigDict) -> list[Run]:
  """The runs of config.study.

  Noise-aware training is left out where there is no noise, as it is DDPM
  there, and where there are outliers, whose noise has no sigma. The runs of
  the first seed are portrayed (evaluation.protocols.portrait).

  Raises:
    ConfigError: a name is not known, or a combination is not valid.
  """
  fields = config.study
  for axis, known in (
    ("worlds", WORLDS),
    ("corruptions", CORRUPTIONS),
    ("methods", METHODS),
  ):
    unknown = [name for name in fields[axis] if name not in known]
    if unknown or not fields[axis]:
      raise ConfigError(
        f"config.study.{axis}={fields[axis]!r}: it must be some of"
        f" {', '.join(known)}"
      )
  found = [
    _cell(config, world, corruption, method, seed)
    for world in fields.worlds
    for method in fields.methods
    for corruption in fields.corruptions
    for seed in range(fields.seeds)
    if method != "noise_aware" or corruption not in ("clean", "outliers")
  ]
  if not found:
    raise ConfigError(
      f"config.study has no cell: methods={fields.methods!r},"
      f" corruptions={fields.corruptions!r}, seeds={fields.seeds}"
    )
  return found


def _cell(
  config: ConfigDict, world: str, corruption: str, method: str, seed: int
) -> Run:
  name = f"{world}-{corruption}-{method}-seed{seed}"
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(
    WORLDS[world] | CORRUPTIONS[corruption] | METHODS[method]
  )
  config.seed = seed
  if config.data.name != "image_folder":
    config.data.path = ""
  if seed == 0:
    config.evaluation.protocols = (*config.evaluation.protocols, "portrait")
  try:
    validation.validate(config)
  except ConfigError as error:
    raise ConfigError(f"run {name}: {error}") from error
  labels = {
    "world": world,
    "corruption": corruption,
    "method": method,
    "objective": config.objective.name,
    "lam": config.objective.lam,
    "seed": seed,
  }
  return Run(name, labels, config)


def run(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """Does all runs of the study that have no row yet; returns all rows.

  Raises:
    ConfigError: as `cells`, or workdir holds another study.
  """
  return sweep.run_all(
    cells(config),
    workdir,
    config.study.processes,
    lambda runs: groups(runs, config.study.group_size),
    run_group,
  )


def groups(runs: list[Run], size: int) -> list[list[Run]]:
  """The runs by program, at most `size` together."""
  by_program: dict[tuple, list[Run]] = {}
  for one in runs:
    by_program.setdefault(together.program(one.config), []).append(one)
  return [
    group[start : start + size]
    for group in by_program.values()
    for start in range(0, len(group), size)
  ]


def run_group(group: list[Run], workdir: pathlib.Path) -> list[Row]:
  """Trains a group, then samples and evaluates each of its runs."""
  identity = [[one.name, sweep.record(one)["config"]] for one in group]
  digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
  runs = [one.config for one in group]
  sets = together.training_sets(runs)
  states = together.train(runs, sets, workdir / "groups" / digest)
  params = build.parameters_of(states, runs[0])
  return [
    measured(one, together.one(params, place), sets[place], workdir)
    for place, one in enumerate(group)
  ]


def measured(
  one: Run, params: Any, training_set: build.TrainingSet, workdir: pathlib.Path
) -> Row:
  """The row of a run with trained parameters, after sampling and evaluation."""
  folder = workdir / "runs" / one.name
  folder.mkdir(parents=True, exist_ok=True)
  loop.claim(folder, one.config, resuming=False)
  model = sampling.Model(
    one.config,
    folder,
    sharding.device_mesh(),
    params,
    one.config.train.num_steps,
    sampling.digest(params),
  )
  truth = subject.clean_truth(one.config, training_set)
  row = sweep.record(one)
  try:
    sampling.save_samples(model)
    found = evaluate.measure(subject.Subject(model, training_set, truth))
  except sampling.NonFiniteSamples as error:
    return row | {"error": str(error)}
  return row | found["measures"]
