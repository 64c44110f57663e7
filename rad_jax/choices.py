"""What a config leaves open, chosen for its folder of images and the machine.

configs/my_images.py leaves fields open: they are None unless a flag sets them.
"""

import pathlib
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rad_jax import config as configs
from rad_jax import files, memory
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


# A field, its value, and the reason.
Choices = Iterator[tuple[str, Any, str]]


def fill(config: ConfigDict, workdir: pathlib.Path) -> list[tuple[str, str]]:
  """Fills open fields in place; returns each as a flag, and the reason.

  The values of the run in workdir stay, if there is one.
  """
  fields = configs.flatten(config.to_dict())
  unset = [path for path, value in fields.items() if value is None]
  said: list[tuple[str, str]] = []
  if not unset:
    return said
  if saved := files.read_json(workdir / "config.json"):
    found = _kept(unset, saved)
  else:
    found = choices(config, look_at(config), this_machine())
  for path, value, reason in found:
    if path in unset:
      config.update_from_flattened_dict({path: value})
      said.append((configs.as_flag(path, value), reason))
  return said


def _kept(unset: list[str], saved: dict[str, Any]) -> Choices:
  values = configs.flatten(saved)
  for path in unset:
    value = values.get(path, configs.FIELDS[path].default)
    yield path, configs.from_json(value), "as in the run that goes on"


def choices(config: ConfigDict, images: Images, machine: Machine) -> Choices:
  """What an open field is to be; config is filled before the next is asked."""
  yield from _data(config, images, machine)
  yield from _network(config, machine)
  yield from _training(config, images, machine)
  lam = "the paper's; at 3 a U-Net collapsed on real images"
  yield "objective.lam", 0.3, lam
  yield "sampling.clip_x_0", 1.0, "images lie in [-1, 1]"


def look_at(config: ConfigDict) -> Images:
  """The images of data.path, by some of them; ConfigError without a path."""
  data = config.data
  if not data.path:
    raise ConfigError("which images? Name their folder: --config.data.path=DIR")
  source = folder.open_folder(
    data.path, data.split, 3, max_megapixels=data.max_megapixels
  )
  sides, are_grey, error = [], [], None
  for i in np.unique(training_set.evenly(len(source), _LOOKED_AT)):
    try:
      image = source[int(i)]
    except sources.ExampleError as found:
      error = found
      continue
    sides.append(min(image.shape[:2]))
    are_grey.append(bool((image == image[..., :1]).all()))
  if error and not sides:
    raise error
  return Images(len(source), int(statistics.median(sides)), all(are_grey))


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


def _data(config: ConfigDict, images: Images, machine: Machine) -> Choices:
  data = config.data
  channels, colour = (1, "grey") if images.is_grey else (3, "in colour")
  yield "data.num_channels", channels, f"the images are {colour}"
  side = data.crop_size or images.side
  most, here = (64, "") if machine.is_accelerated else (16, " on a CPU")
  size = max(8, min(most, 2 ** (side.bit_length() - 1)))
  reason = f"a power of two, of images of {side}; at most {most}{here}"
  yield "data.image_size", size, reason
  gigabytes = images.num_images * data.image_size**2 * data.num_channels / 1e9
  loading = "memory" if gigabytes < 2 else "stream"
  yield "data.loading", loading, f"decoded, the images take {gigabytes:.2g} GB"


def _network(config: ConfigDict, machine: Machine) -> Choices:
  if machine.has_bfloat16:
    yield "model.dtype", "bfloat16", "it is faster on this machine"
  else:
    yield "model.dtype", "float32", "bfloat16 is not faster on this machine"
  if machine.is_accelerated:
    yield "model.unet.channels", 128, "as DDPM's network on CIFAR-10"
  else:
    yield "model.unet.channels", 32, "a narrow network, for a CPU"
  sides = [config.data.image_size]
  while sides[-1] % 2 == 0 and sides[-1] >= 8 and len(sides) < 6:
    sides.append(sides[-1] // 2)
  multipliers = (1, 2, 2, 2, 4, 4)[: len(sides)]
  reason = f"levels down to a side of {sides[-1]}"
  yield "model.unet.channel_multipliers", multipliers, reason
  levels = len(config.model.unet.channel_multipliers)
  attended = tuple(side for side in sides[1:levels] if side <= 16)[:1]
  reason = "the largest side below the image's, up to 16"
  yield "model.unet.attention_resolutions", attended, reason


def _training(config: ConfigDict, images: Images, machine: Machine) -> Choices:
  train, count, devices = config.train, images.num_images, machine.num_devices
  most = 128 if machine.is_accelerated else 32
  size = min(most, 2 ** (count.bit_length() - 1))
  size = max(size // devices, 1) * devices
  reason = f"at most {most}, and no more than there are images"
  yield "train.batch_size", size, reason
  pieces, reason = _pieces(config, machine)
  yield "train.micro_batches", pieces, reason
  if machine.is_accelerated:
    steps = round(1000 * count // train.batch_size, -3)
    steps = min(max(steps, 20_000), 400_000)
    seen = steps * train.batch_size / count
    reason = f"{count:,} images are seen {seen:,.0f} times"
  else:
    steps, reason = 3000, "for a first result on a CPU; more is better"
  yield "train.num_steps", steps, reason
  if config.model.unet.channels >= 128:
    yield "optimizer.learning_rate", 2e-4, "as DDPM's"
  else:
    yield "optimizer.learning_rate", 1e-3, "the network is narrow"
  warmup = min(train.num_steps // 20, 5000)
  yield "optimizer.warmup_steps", warmup, "a 20th of the steps, at most 5,000"
  decay = 0.9999 if train.num_steps >= 100_000 else 0.999
  yield "optimizer.ema_decay", decay, "0.9999 from 100,000 steps"


def _pieces(config: ConfigDict, machine: Machine) -> tuple[int, str]:
  """train.micro_batches, and the reason."""
  size = config.train.batch_size // machine.num_devices
  elements = config.model.unet.channels * config.data.image_size**2 * size
  need = _BYTES * elements / (1 + (config.model.dtype == "bfloat16"))
  if machine.memory is None:
    return 1, "how much memory is free is not known"
  pieces = 1
  while need / pieces > 0.7 * machine.memory and size % (2 * pieces) == 0:
    pieces *= 2
  used, free = need / pieces / 1e9, machine.memory / 1e9
  return pieces, f"a step then takes some {used:.2g} GB; {free:.2g} are free"
