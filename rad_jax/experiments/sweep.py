"""A grid of free values: every combination of the axes of config.sweep."""

import itertools
import pathlib
from typing import Any

from rad_jax import config as configs
from rad_jax.config import ConfigDict
from rad_jax.experiments import engine, table
from rad_jax.experiments.table import AXES, Entry, Row


def run(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """The rows of config.sweep, in workdir, by engine.run_all."""
  found = engine.matched(entries(config), config.sweep.match, workdir)
  return engine.run_all(found, workdir, config.sweep.processes)


def entries(config: ConfigDict) -> list[Entry]:
  """The product of the axes of config.sweep; what would be the same run, once.

  Raises:
    ConfigError: a combination is not valid; it is named.
  """
  own = configs.flatten(config.to_dict())
  values = [config.sweep[axis] or (own[path],) for axis, path in AXES.items()]
  found: dict[str, Entry] = {}
  for point in itertools.product(*values):
    one = _entry(config, dict(zip(AXES, point, strict=True)))
    found.setdefault(one.name, one)
  return list(found.values())


def _entry(config: ConfigDict, point: dict[str, Any]) -> Entry:
  ignored = table.ignores(point["objective"], point["fraction"])
  point = {axis: v for axis, v in point.items() if axis not in ignored}
  words = [str(point["objective"])] + [
    f"{axis}_{value}".removesuffix(".0")
    for axis, value in point.items()
    if config.sweep[axis] and axis != "objective"
  ]
  base = configs.as_ddpm(config) if "radius" in ignored else config
  changes = {AXES[axis]: value for axis, value in point.items()}
  return table.entry("-".join(words), base, changes)
