"""Cheap adversarial training: error against cost, scheme by scheme.

Trains every scheme on scikit-learn's digits and on the oblique plane, 90% of
the examples noised at sigma 0.2, three seeds each, through the same code as
`python -m rad_jax.main`. All schemes make the same number of updates; what
differs is the network passes they take. Runs that are done are kept:
interrupted, it goes on where it was.
"""

import argparse
import pathlib

from demo import WORLDS, load_config

# What each scheme changes in Robust_adv.
SCHEMES = {
  "DDPM": {"objective.name": "ddpm"},
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
  "AT_Diff, free": {
    "objective.name": "true_noise_only",
    "attack.norm": "l2",
    "attack.start": 0.0,
    "regulariser.free_replays": 4,
  },
}


def scheme_config(world: str, scheme: str, seed: int, smoke: bool):
  """The config of one run. Free replays see fewer batches, of more updates."""
  config = load_config(world, smoke)
  config.seed = seed
  config.update_from_flattened_dict(SCHEMES[scheme])
  config.train.num_steps //= config.regulariser.free_replays
  return config


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, default="runs/study")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument(
    "--smoke", action="store_true", help="seconds, without meaning"
  )
  arguments = parser.parse_args()

  from rad_jax import config as configs
  from rad_jax.data import builders
  from rad_jax.experiments import sweep
  from rad_jax.reports import frontier

  workdir = arguments.workdir.absolute()
  data_dir = str(workdir / "data")
  builders.prepare("digits", data_dir)
  runs = []
  for seed in range(arguments.seeds):
    for world in WORLDS:
      for scheme in SCHEMES:
        config = scheme_config(world, scheme, seed, arguments.smoke)
        config.data.data_dir = data_dir
        configs.validate(config)
        name = f"{world}-{scheme}-{seed}".replace(" ", "_").replace(",", "")
        labels = {
          "data": world,
          "scheme": scheme,
          "objective": config.objective.name,
          "seed": seed,
        }
        runs.append(sweep.Run(name, labels, config))
  rows = sweep.run_all(runs, workdir, arguments.processes)
  for path in frontier.write_study(rows, workdir, "support_rms"):
    print(path)
  print((workdir / "study.md").read_text())


if __name__ == "__main__":
  main()
