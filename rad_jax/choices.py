"""What a config leaves open, chosen for its folder of images and the machine.

configs/my_images.py leaves fields open: they are None unless a flag sets them.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rad_jax import config as configs
from rad_jax import memory
from rad_jax.config import ConfigDict, ConfigError
from rad_jax.data import folder, sources, training_set

# How many images of a folder are looked at.
_LOOKED_AT = 32
# A Robust_adv step's, over channels x side^2 x examples: measured for float32,
# 32 channels, a side of 16 and XLA for CPUs.
_BYTES = 1000


class Images(NamedTuple):
  """A folder: number of images, median of their shorter sides, whether grey."""

  num_images: int
  side: int
  is_grey: bool


class Machine(NamedTuple):
  """Whether it has accelerators, how many devices, free bytes of the first.

  has_bfloat16: whether it computes in bfloat16 at no loss of speed.
  """

  is_accelerated: bool
  num_devices: int
  memory: float | None
  has_bfloat16: bool


Choice = tuple[Any, str]
Rule = Callable[[ConfigDict, Images, Machine], Choice]


def fill(config: ConfigDict, saved: dict[str, Any]) -> dict[str, Choice]:
  """Fills open fields in place; returns value and reason of each, by path.

  `saved` is the config.json of the run that goes on, or {}: its values stay.
  """
  fields = configs.flatten(config.to_dict())
  kept = configs.flatten(saved)
  unset = [path for path in RULES if fields[path] is None]
  chosen: dict[str, Choice] = {}
  if not unset:
    return chosen
  if saved:
    choose = lambda path: (kept[path], "as in the run that goes on")
  else:
    images, machine = look_at(config), this_machine()
    choose = lambda path: RULES[path](config, images, machine)
  for path in unset:
    value, reason = choose(path)
    value = tuple(value) if isinstance(value, list) else value
    config.update_from_flattened_dict({path: value})
    chosen[path] = value, reason
  return chosen


def look_at(config: ConfigDict) -> Images:
  """The images of data.path, by some of them; ConfigError without a path."""
  data = config.data
  if not data.path:
    raise ConfigError("which images? Name their folder: --config.data.path=DIR")
  source = folder.open_folder(
    data.path, data.split, 3, max_megapixels=data.max_megapixels
  )
  seen, error = [], None
  for i in np.unique(training_set.evenly(len(source), _LOOKED_AT)):
    try:
      seen.append(source[int(i)])
    except sources.ExampleError as found:
      error = found
  if error and not seen:
    raise error
  return Images(
    len(source),
    int(statistics.median(min(x.shape[:2]) for x in seen)),
    all((x == x[..., :1]).all() for x in seen),
  )


def this_machine() -> Machine:
  """The machine this process runs on."""
  device = jax.local_devices()[0]
  capability = getattr(device, "compute_capability", "0")
  return Machine(
    device.platform != "cpu",
    jax.device_count(),
    memory.available(),
    device.platform == "tpu" or float(capability) >= 8,
  )


def _num_channels(config: ConfigDict, images: Images, _: Machine) -> Choice:
  return (1, "the images are grey") if images.is_grey else (3, "colour")


def _image_size(config: ConfigDict, images: Images, machine: Machine) -> Choice:
  side = config.data.crop_size or images.side
  most = 64 if machine.is_accelerated else 16
  size = max(8, min(most, 2 ** (side.bit_length() - 1)))
  where = "an accelerator" if machine.is_accelerated else "a CPU"
  return size, f"a power of two, at most {most} on {where}, of images of {side}"


def _loading(config: ConfigDict, images: Images, machine: Machine) -> Choice:
  data = config.data
  gigabytes = images.num_images * data.image_size**2 * data.num_channels / 1e9
  if gigabytes < 2:
    return "memory", f"the decoded images take {gigabytes:.2g} GB"
  return "stream", f"decoded, the images would take {gigabytes:.2g} GB"


def _dtype(config: ConfigDict, images: Images, machine: Machine) -> Choice:
  if machine.has_bfloat16:
    return "bfloat16", "half the memory and more speed on this accelerator"
  return "float32", "bfloat16 is not faster on this machine"


def _channels(config: ConfigDict, images: Images, machine: Machine) -> Choice:
  if machine.is_accelerated:
    return 128, "as DDPM's network on CIFAR-10"
  return 32, "a narrow network, for a CPU"


def _multipliers(config: ConfigDict, images: Images, _: Machine) -> Choice:
  side, levels = config.data.image_size, 1
  while side % 2 == 0 and side >= 8 and levels < 6:
    side, levels = side // 2, levels + 1
  return (1, 2, 2, 2, 4, 4)[:levels], f"levels down to a side of {side}"


def _attention(config: ConfigDict, images: Images, _: Machine) -> Choice:
  levels = len(config.model.unet.channel_multipliers)
  sides = [config.data.image_size // 2**level for level in range(1, levels)]
  chosen = tuple(side for side in sides if side <= 16)[:1]
  return chosen, "the largest side below the image's, up to 16"


def _batch_size(config: ConfigDict, images: Images, machine: Machine) -> Choice:
  devices = machine.num_devices
  most = 128 if machine.is_accelerated else 32
  size = min(most, 2 ** (images.num_images.bit_length() - 1))
  size = max(size // devices, 1) * devices
  return size, f"at most {most}, no more than there are images"


def _micro_batches(
  config: ConfigDict, images: Images, machine: Machine
) -> Choice:
  data, size = config.data, config.train.batch_size // machine.num_devices
  need = _BYTES * config.model.unet.channels * data.image_size**2 * size
  need /= 2 if config.model.dtype == "bfloat16" else 1
  if machine.memory is None:
    return 1, "the memory is not known"
  pieces = 1
  while need / pieces > 0.7 * machine.memory and size % (2 * pieces) == 0:
    pieces *= 2
  gigabytes = f"{need / pieces / 1e9:.2g} of {machine.memory / 1e9:.2g} GB"
  return pieces, f"a step then takes some {gigabytes} that are free"


def _num_steps(config: ConfigDict, images: Images, machine: Machine) -> Choice:
  if not machine.is_accelerated:
    return 3000, "for a first result on a CPU; more is better"
  steps = 1000 * images.num_images // config.train.batch_size
  steps = min(max(round(steps, -3), 20_000), 400_000)
  seen = steps * config.train.batch_size / images.num_images
  return (
    steps,
    f"each of {images.num_images:,} images is then seen {seen:,.0f} times",
  )


def _learning_rate(config: ConfigDict, images: Images, _: Machine) -> Choice:
  if config.model.unet.channels >= 128:
    return 2e-4, "as DDPM's"
  return 1e-3, "the network is narrow"


def _warmup_steps(config: ConfigDict, images: Images, _: Machine) -> Choice:
  return min(config.train.num_steps // 20, 5000), "a 20th of the steps"


def _ema_decay(config: ConfigDict, images: Images, _: Machine) -> Choice:
  long = config.train.num_steps >= 100_000
  return (0.9999 if long else 0.999), "by the number of steps"


def _lam(config: ConfigDict, images: Images, _: Machine) -> Choice:
  return 0.3, "the paper's; at 3 a U-Net collapsed on real images"


def _clip_x_0(config: ConfigDict, images: Images, _: Machine) -> Choice:
  return 1.0, "images lie in [-1, 1]"


# In this order: a rule sees what those before it have chosen.
RULES: dict[str, Rule] = {
  "data.num_channels": _num_channels,
  "data.image_size": _image_size,
  "data.loading": _loading,
  "model.dtype": _dtype,
  "model.unet.channels": _channels,
  "model.unet.channel_multipliers": _multipliers,
  "model.unet.attention_resolutions": _attention,
  "train.batch_size": _batch_size,
  "train.micro_batches": _micro_batches,
  "train.num_steps": _num_steps,
  "objective.lam": _lam,
  "sampling.clip_x_0": _clip_x_0,
  "optimizer.learning_rate": _learning_rate,
  "optimizer.warmup_steps": _warmup_steps,
  "optimizer.ema_decay": _ema_decay,
}
