"""The configs that tests share: with them they share compiled programs.

Fields are set at "a.b", written as a__b. What does not change the step, such as
its number, its log and its checkpoints, costs no compilation.
"""

import importlib

import jax

from rad_jax import checks
from rad_jax.config import ConfigDict

PLANE = {
  "train.num_steps": 60,
  "train.batch_size": 16,
  "train.log_every_steps": 20,
  "checkpoint.every_steps": 5,
  "checkpoint.keep": 3,
  "data.num_examples": 64,
  "data.corruption.fraction": 0.9,
  "model.mlp.width": 8,
  "model.mlp.depth": 1,
  "diffusion.num_timesteps": 50,
  "optimizer.warmup_steps": 2,
  "sampling.num_steps": 4,
}


def load(name: str, variant: str = "", **fields: object) -> ConfigDict:
  """configs/<name>.py."""
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.update_from_flattened_dict(
    {path.replace("__", "."): value for path, value in fields.items()}
  )
  return config


def plane(**fields: object) -> ConfigDict:
  """A run of a second on the oblique plane."""
  config = load("oblique_plane", **PLANE | fields)
  checks.validate(config, jax.device_count())
  return config
