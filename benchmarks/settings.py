"""The networks that are timed, each a config."""

import importlib.util
import pathlib
from typing import NamedTuple

import jax

from rad_jax.config import ConfigDict

_CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


class Setting(NamedTuple):
  """A network and its data.

  config: the file's name in configs/.
  changes: of the config's fields.
  batch_size: on a CPU and on an accelerator.
  """

  config: str
  changes: dict[str, object]
  batch_size: tuple[int, int]


SETTINGS = {
  "mlp": Setting("oblique_plane", {}, (256, 256)),
  "digits_unet": Setting("digits", {"model.name": "unet"}, (128, 128)),
  "unet32": Setting(
    "cifar10",
    {
      "model.unet.channels": 64,
      "model.unet.channel_multipliers": (1, 2, 2),
      "model.unet.num_res_blocks": 1,
    },
    (8, 512),
  ),
  "cifar10": Setting("cifar10", {}, (4, 512)),
}


def config_of(name: str, variant: str = "") -> ConfigDict:
  """The config of configs/<name>.py."""
  path = _CONFIGS / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def load(
  name: str, objective: str, dtype: str, batch_size: int = 0
) -> ConfigDict:
  """The config of a setting.

  Args:
    name: of SETTINGS.
    objective: of the config.
    dtype: the network's compute type.
    batch_size: 0 is the setting's own, by platform.
  """
  setting = SETTINGS[name]
  config = config_of(setting.config)
  config.update_from_flattened_dict(setting.changes)
  config.data.linear_rank = 0
  config.objective.name = objective
  config.model.dtype = dtype
  on_accelerator = jax.default_backend() != "cpu"
  config.train.batch_size = batch_size or setting.batch_size[on_accelerator]
  return config
