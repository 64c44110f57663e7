"""A grid of free values: every combination of the axes of config.sweep.

Without an axis it is the frontier: a few lambdas, on clean and on dirty data.
"""

import itertools
import pathlib

from rad_jax import config as configs
from rad_jax.config import ConfigDict
from rad_jax.experiments import engine, table


def run(config: ConfigDict, workdir: pathlib.Path) -> list[table.Row]:
  """The rows of config.sweep, in workdir, by engine.run_all."""
  chosen = entries(with_axes(config))
  found = engine.matched(chosen, config.sweep.match, workdir)
  return engine.run_all(found, workdir, config.sweep.processes)


def with_axes(config: ConfigDict) -> ConfigDict:
  """config itself, or, if its sweep has no axis, a copy with the frontier's."""
  if any(config.sweep[axis] for axis in table.AXES):
    return config
  config = config.copy_and_resolve_references()
  dirty = config.data.corruption.fraction or 0.9
  config.sweep.update(lam=(0.3, 1.0, 3.0), fraction=(0.0, dirty))
  return config


def entries(config: ConfigDict) -> list[table.Entry]:
  """The product of config.sweep's axes; what would be the same run, once."""
  own = configs.flatten(config.to_dict())
  axes = table.AXES
  values = [config.sweep[axis] or (own[path],) for axis, path in axes.items()]
  found: dict[str, table.Entry] = {}
  for point in itertools.product(*values):
    values_of = dict(zip(axes, point, strict=True))
    ignored = table.ignores(values_of["objective"], values_of["fraction"])
    counted = {a: v for a, v in values_of.items() if a not in ignored}
    words = [str(counted["objective"])] + [
      f"{axis}_{value}".removesuffix(".0")
      for axis, value in counted.items()
      if config.sweep[axis] and axis != "objective"
    ]
    name = "-".join(words)
    if name not in found:
      base = configs.as_ddpm(config) if "radius" in ignored else config
      changes = {axes[axis]: value for axis, value in counted.items()}
      found[name] = table.entry(name, base, changes)
  return list(found.values())
