"""A run's own config as a config file, --config=rad_jax/saved.py:WORKDIR."""

import pathlib

from rad_jax import config as configs
from rad_jax import files
from rad_jax.config import ConfigDict, ConfigError


def get_config(workdir: str | pathlib.Path) -> ConfigDict:
  """The config of the run in workdir.

  Fields that the run is too old to have had are at their defaults. Raises
  ConfigError if there is no run, or one with fields that are not known.
  """
  path = pathlib.Path(workdir) / "config.json"
  found = configs.flatten(files.read_json(path))
  if not path.exists():
    raise ConfigError(f"no run in {workdir}: train first")
  if unknown := sorted(found.keys() - configs.FIELDS.keys()):
    raise ConfigError(
      f"{path} is of another version of rad_jax, with fields that this one does"
      f" not have ({', '.join(unknown)}): use that version"
    )
  config = configs.default()
  try:
    config.update_from_flattened_dict(
      {name: configs.from_json(value) for name, value in found.items()}
    )
  except (TypeError, ValueError) as error:
    raise ConfigError(f"{path} is damaged: {error}") from error
  return config
