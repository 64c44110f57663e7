"""Studies on two noised worlds: many schemes side by side, three seeds each.

  cheap      error against cost of every scheme of cheap adversarial training
  baselines  other methods, processes and fine-tuning on one backbone
  readings   every reading of the radius, of lambda and of its weight

Each trains on scikit-learn's digits and on the oblique plane, 90% of the
examples noised at sigma 0.2, through the same code as `python -m rad_jax.main`.
Runs that are done are kept: interrupted, it goes on where it was.
"""

import argparse
import os
import pathlib

from demo import WORLDS, load_config, small_networks_on_cpu

_DDPM = {"objective.name": "ddpm"}
_CONSTANT = {"objective.radius": "constant"}
_SCALED = {"objective.beta_role": "multiplicative"}
_EDM = {
  "diffusion.process": "edm",
  "diffusion.prediction": "edm",
  "sampling.sampler": "heun",
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
CHEAP = {
  "DDPM": _DDPM,
  "Robust_ran": {"objective.name": "robust_ran"},
  "FGSM": {},
  "PGD-3": {"attack.name": "pgd", "attack.num_steps": 3},
  "N-FGSM": {"attack.name": "n_fgsm"},
  "bf16 attack": {"attack.dtype": "bfloat16"},
  "every 2": {"regulariser.every_steps": 2},
  "every 4": {"regulariser.every_steps": 4},
  "every 4, lam x 4": {"regulariser.every_steps": 4, "objective.lam": 12.0},
  "half batch": {"regulariser.batch_fraction": 0.5},
  "quarter batch": {"regulariser.batch_fraction": 0.25},
  "last half": {"regulariser.start": 0.5},
  "last quarter": {"regulariser.start": 0.75},
  "free, 4 replays": {"regulariser.free_replays": 4},
}
BASELINES = {
  "DDPM": _DDPM,
  "Robust_ran": {"objective.name": "robust_ran"},
  "Robust_adv": {},
  "DDPM-IP": {"objective.name": "input_perturbation", **_CONSTANT}
  | {"objective.beta": 0.1},
  "AT_Diff, free": {
    "objective.name": "true_noise_only",
    "attack.norm": "l2",
    "attack.start": 0.0,
    "regulariser.free_replays": 4,
  },
  "noise-aware": {"objective.name": "noise_aware"},
  "noise-aware + ran": {"objective.name": "noise_aware_ran"},
  "noise-aware + adv": {"objective.name": "noise_aware_adv"},
  "DDPM, p = 1": _DDPM | _ALL_DIRTY,
  "Robust_adv, p = 1": _ALL_DIRTY,
  "noise-aware, p = 1": {"objective.name": "noise_aware"} | _ALL_DIRTY,
  "noise-aware + adv, p = 1": {"objective.name": "noise_aware_adv"}
  | _ALL_DIRTY,
  "EDM": _DDPM | _EDM,
  "EDM, Robust_adv": _EDM,
  "flow, Euler": _DDPM | _FLOW,
  "flow, Euler, Robust_adv": _FLOW,
  "flow, Heun, Robust_adv": _FLOW
  | {"sampling.sampler": "heun", "sampling.num_steps": 50},
  "DDPM, then Robust_adv": {
    "train.init_from": "DDPM",
    "train.num_steps": 1000,
    "regulariser.warmup_steps": 200,
  },
}
READINGS = {
  "DDPM": _DDPM,
  "falling": {},
  "falling, beta 0.1": {"objective.beta": 0.1},
  "falling, omega 1": {"objective.omega": 1.0},
  "falling x 0.3": _SCALED | {"objective.beta": 0.3},
  "falling x 1": _SCALED | {"objective.beta": 1.0},
  "rising": {"objective.radius": "rising"},
  "rising, beta 0.1": {"objective.radius": "rising"} | {"objective.beta": 0.1},
  "rising x 0.3": {"objective.radius": "rising"}
  | _SCALED
  | {"objective.beta": 0.3},
  "constant 0.03": _CONSTANT,
  "constant 0.1": _CONSTANT | {"objective.beta": 0.1},
  "constant 0.3": _CONSTANT | {"objective.beta": 0.3},
  "constant 0.1, state": _CONSTANT
  | {"objective.beta": 0.1, "objective.radius_units": "state"},
  "falling, inverse_std": {"objective.lambda_t": "inverse_std"},
  "falling, inverse_std, lam 0.3": {"objective.lambda_t": "inverse_std"}
  | {"objective.lam": 0.3},
}
STUDIES = {"cheap": CHEAP, "baselines": BASELINES, "readings": READINGS}
# What stands across in each study's figure.
ACROSS = {
  "cheap": "cost",
  "baselines": "spread_ratio",
  "readings": "spread_ratio",
}


def scheme_config(world: str, changes: dict, seed: int, smoke: bool):
  """The config of one run. Free replays see fewer batches, of more updates."""
  from rad_jax import config as configs

  config = load_config(world)
  config.seed = seed
  config.update_from_flattened_dict(changes)
  config = configs.variant(config, "smoke" if smoke else "")
  config.train.num_steps //= config.regulariser.free_replays
  return config


def study_runs(
  schemes: dict, seeds: int, workdir, smoke: bool, worlds=WORLDS
) -> list:
  """All runs, those that start from another's end behind it."""
  from rad_jax.experiments import sweep

  runs = []
  for seed in range(seeds):
    for world in worlds:

      def name(scheme: str, of=(world, seed)) -> str:
        words = "".join(c for c in scheme if c not in ",=").split()
        return "-".join([of[0], "_".join(words), str(of[1])])

      for scheme, changes in schemes.items():
        config = scheme_config(world, changes, seed, smoke)
        config.data.data_dir = str(workdir / "data")
        if config.train.init_from:
          source = workdir / "runs" / name(config.train.init_from)
          config.train.init_from = str(source)
        labels = {
          "data": world,
          "scheme": scheme,
          "objective": config.objective.name,
          "seed": seed,
        }
        runs.append(sweep.Run(name(scheme), labels, config))
  return sorted(runs, key=lambda run: bool(run.config.train.init_from))


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("study", choices=STUDIES)
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--processes", type=int, default=os.cpu_count())
  parser.add_argument(
    "--smoke", action="store_true", help="seconds a run, no result"
  )
  arguments = parser.parse_args()
  study = arguments.study
  folder = f"runs/study_{study}" + "_smoke" * arguments.smoke
  workdir = (arguments.workdir or pathlib.Path(folder)).absolute()
  small_networks_on_cpu(workdir)

  from rad_jax import validation
  from rad_jax.data import builders
  from rad_jax.experiments import sweep
  from rad_jax.reports import frontier

  builders.prepare("digits", str(workdir / "data"))
  runs = study_runs(
    STUDIES[study],
    arguments.seeds,
    workdir,
    arguments.smoke,
    arguments.worlds,
  )
  for run in runs:
    validation.validate(run.config)
  scratch = [run for run in runs if not run.config.train.init_from]
  sweep.run_all(scratch, workdir, arguments.processes)
  rows = sweep.run_all(runs, workdir, arguments.processes)
  paths = frontier.write_study(rows, workdir, ACROSS[study], "support_rms")
  print(paths[0].read_text())
  for path in paths:
    print(path)


if __name__ == "__main__":
  main()
