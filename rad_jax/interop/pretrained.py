"""Networks trained elsewhere, read for fine-tuning; ours, for diffusers.

A diffusers folder states its network in config.json and its noise in
scheduler_config.json; of a bare file both are the user's word.
"""

import logging
import pathlib
import re
import shlex
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree
from safetensors.numpy import save_file

from rad_jax import files
from rad_jax.diffusion import parametrisation, schedules
from rad_jax.interop import descriptions, hub, layouts, weights
from rad_jax.interop.descriptions import Fields, MismatchError
from rad_jax.models.network import Network
from rad_jax.models.unet import unet

_LOG = logging.getLogger("rad_jax")
_FILE = "diffusion_pytorch_model.safetensors"
_SCHEDULER_FILE = "scheduler_config.json"
_TO_FETCH = (
  "give a run's workdir, a diffusers folder, or a .safetensors or .pt file of"
  " a network as config.model.unet says (docs/interop.md)"
)
# What a run takes over from where it starts.
_TAKEN = ("model.", "diffusion.", "data.image_size", "data.num_channels")


class Pretrained(NamedTuple):
  """A network trained elsewhere, with the noise process that it knows.

  fields: the config fields that its folder states, by dotted path.
  """

  network: Network
  params: PyTree
  process: schedules.Process
  prediction: parametrisation.Prediction
  example_shape: tuple[int, int, int]
  fields: dict[str, Any]


def is_foreign(source: pathlib.Path) -> bool:
  """Whether it is another library's: a file, or a folder that no run wrote."""
  if source.suffix in weights.SUFFIXES or source.is_file():
    return True
  path = source / "config.json"
  if path.exists():
    return "_class_name" in files.read_json(path)
  return any(_unet_folders(source)) or bool(_torch_files(source))


def fields_of(
  source: pathlib.Path, image_size: int | None = None
) -> dict[str, Any]:
  """The config fields that a source of parameters states, by dotted path.

  Those of a run are the model's, the process's and the images'. `image_size` is
  for a U-Net that states none. MismatchError if ours can be no such network.
  """
  if is_foreign(source):
    return _foreign_fields(source, image_size)
  saved = files.read_json(source / "config.json")
  return {
    path: tuple(value) if isinstance(value, list) else value
    for path, value in traverse_util.flatten_dict(saved, sep=".").items()
    if path.startswith(_TAKEN)
  }


def taken_over(
  fields: Fields, given: Collection[str], workdir: pathlib.Path
) -> dict[str, Any]:
  """What a config of `fields` takes over from its train.init_from.

  A run that was begun takes them from its config.json: the source may be gone.
  MismatchError if one of them was `given` on the command line; HubError.
  """
  source = fields["train.init_from"]
  if not source:
    return {}
  saved = files.read_json(workdir / "config.json").get("train", {})
  found = workdir if saved.get("init_from") == source else hub.local(source)
  taken = _differing(fields_of(found, fields["data.image_size"]), fields)
  if wrong := [path for path in given if path in taken]:
    raise MismatchError(
      f"config.train.init_from={source!r} is another network: leave out"
      f" {_flags({path: fields[path] for path in wrong})}, or type"
      f" {_flags({path: taken[path] for path in wrong})}"
    )
  if taken:
    _LOG.info("as in %s: %s", source, _flags(taken))
  return taken


def load(source: pathlib.Path, like: PyTree, fields: Fields) -> PyTree:
  """Another library's parameters, as float32 arrays in the structure of `like`.

  `source` is a folder of a diffusers pipeline or UNet2DModel, or of
  improved-diffusion's checkpoints, or a file of either layout; `fields` are a
  flat config's. Raises MismatchError; WeightsError, or ValueError of JSON, if a
  file cannot be used.
  """
  chosen = _choose(source, fields["train.init_weights"])
  stated = fields_of(source, fields["data.image_size"])
  if differing := _differing(stated, fields):
    raise MismatchError(
      f"{source} is another network than the config's; as flags, it is"
      f" {_flags(differing)}"
    )
  if "diffusion.schedule" not in stated:
    _LOG.warning(
      "%s states no noise schedule: it must be config.diffusion's", source
    )
  return _read(chosen, like, fields["model.unet.num_heads"])


def load_diffusers(
  source: str | pathlib.Path, init_weights: str = ""
) -> Pretrained:
  """The network of a diffusers folder, or of hf:owner/name, and its process.

  `init_weights` is "ema" or "raw" where the folder has both. Raises
  MismatchError, WeightsError and HubError. The network has no dropout.

  Examples:
    Its samples, by any sampler:

    >>> def samples(source, count):
    ...   there = rad_jax.load_diffusers(source)
    ...   predict = rad_jax.as_predictor(there.network, there.prediction)
    ...   return rad_jax.samplers.sample(
    ...     lambda x_t, level: predict(there.params, x_t, level),
    ...     there.process.grid(50),
    ...     rad_jax.samplers.ddim(),
    ...     jax.random.key(0),
    ...     index=jnp.arange(count),
    ...     shape=there.example_shape,
    ...     clip_x_0=1.0,
    ...   )
  """
  folder = hub.local(source)
  fields = _foreign_fields(folder)
  if not {"model.unet.channels", "diffusion.schedule"} <= fields.keys():
    raise MismatchError(
      f"{source} is no folder of diffusers': a network's config.json and its"
      f" {_SCHEDULER_FILE} are needed"
    )
  options = traverse_util.unflatten_dict(fields, sep=".")["model"]["unet"]
  network = unet(dropout=0.0, **options)
  side = fields["data.image_size"]
  shape = side, side, fields["data.num_channels"]
  x_t, t = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
  like = jax.eval_shape(network.init, jax.random.key(0), x_t, t)
  alpha_bar = schedules.ALPHA_BAR[fields["diffusion.schedule"]]
  return Pretrained(
    network,
    _read(_choose(folder, init_weights), like, options["num_heads"]),
    schedules.ddpm(alpha_bar(fields["diffusion.num_timesteps"])),
    parametrisation.predictions(1.0)[fields["diffusion.prediction"]],
    shape,
    fields,
  )


def export(
  params: PyTree, folder: pathlib.Path, fields: Fields
) -> pathlib.Path:
  """Writes a folder for diffusers' DDPMPipeline; MismatchError if none fits."""
  described = {
    "unet/config.json": descriptions.unet_config(fields),
    f"scheduler/{_SCHEDULER_FILE}": descriptions.scheduler_config(fields),
    "model_index.json": {
      "_class_name": "DDPMPipeline",
      "scheduler": ["diffusers", "DDPMScheduler"],
      "unet": ["diffusers", "UNet2DModel"],
    },
  }
  for path, tree in described.items():
    files.write_json(folder / path, tree)
  state = layouts.to_diffusers(params)
  save_file(state, folder / "unet" / _FILE, {"format": "pt"})
  return folder


def _foreign_fields(
  source: pathlib.Path, image_size: int | None = None
) -> dict[str, Any]:
  """`fields_of` another library's source, whatever else lies in its folder."""
  name = str(source)
  folders = _unet_folders(source)
  folder = folders[0] if folders else source
  if not folder.is_dir():
    folder = folder.parent
  fields: dict[str, Any] = {"model.name": "unet", "diffusion.process": "ddpm"}
  described = files.read_json(folder / "config.json")
  if "_class_name" in described:
    fields |= descriptions.network_fields(described, name, image_size)
  places = folder, folder / "scheduler", folder.parent / "scheduler"
  found = (files.read_json(place / _SCHEDULER_FILE) for place in places)
  if scheduler := next(filter(None, found), {}):
    fields |= descriptions.process_fields(scheduler, name)
  return fields


def _differing(stated: Fields, fields: Fields) -> dict[str, Any]:
  """What is stated, and is otherwise in a config's fields."""
  resolutions, groups = (
    f"model.unet.{name}" for name in ("attention_resolutions", "num_groups")
  )
  ours = {path: fields[path] for path in stated if path in fields}
  if stated.get(groups):
    ours[groups] = descriptions.groups({**stated, groups: fields[groups]})

  def same(path: str, theirs: Any) -> bool:
    if not isinstance(theirs, tuple) or ours[path] is None:
      return theirs == ours[path]
    order = sorted if path == resolutions else list
    return order(theirs) == order(ours[path])

  return {
    path: x for path, x in stated.items() if path in ours and not same(path, x)
  }


def _flags(fields: Fields) -> str:
  """As they are typed on a command line."""
  return " ".join(
    f"--config.{path}={shlex.quote(str(value))}"
    for path, value in fields.items()
  )


def _read(chosen: pathlib.Path, like: PyTree, num_heads: int) -> PyTree:
  """The parameters of a file, or of a UNet2DModel's folder."""
  try:
    params, layout = layouts.from_pytorch(_state(chosen), like, num_heads)
  except weights.WeightsError as error:
    raise weights.WeightsError(f"{chosen}: {error}; {_TO_FETCH}") from error
  _LOG.info("starting from %s, in %s's layout", chosen, layout)
  return params


def _choose(source: pathlib.Path, which: str) -> pathlib.Path:
  """The file, or the folder of a UNet2DModel, that `which` means in source."""
  held = ""
  if source.is_file() or source.suffix in weights.SUFFIXES:
    found = re.fullmatch(r"(ema_[\d.]+_|model)\d+\.pt", source.name)
    if found:
      held = "raw" if found[1] == "model" else "ema"
  else:
    folders = _unet_folders(source)
    if len(folders) != 1 and not which:
      raise MismatchError(
        f"{source} holds a moving average and raw weights:"
        " config.train.init_weights must be ema or raw"
      )
    if not folders:
      return _newest(source, which)
    source = folders[-1]
    if len(folders) == 2:
      return folders[which == "ema"]
  if which and which != held:
    holds = f"holds the {held} weights" if held else "does not say which it has"
    raise MismatchError(
      f'config.train.init_weights={which!r}: {source} {holds}; set it to ""'
    )
  return source


def _newest(folder: pathlib.Path, which: str) -> pathlib.Path:
  """improved-diffusion's last checkpoint of the raw or averaged weights."""
  start = "ema_" if which == "ema" else "model"
  found = [p for p in _torch_files(folder) if p.name.startswith(start)]
  steps = [int(re.findall(r"(\d+)\.pt$", path.name)[0]) for path in found]
  last = [p for p, s in zip(found, steps, strict=True) if s == max(steps)]
  if len(last) != 1:
    raise MismatchError(
      f"{folder} has {len(last)} files of the newest {which} weights"
      f" ({', '.join(path.name for path in last) or 'none'}): name the file"
    )
  return last[0]


def _torch_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """improved-diffusion's checkpoints, without those of its optimiser."""
  return sorted([*folder.glob("model*.pt"), *folder.glob("ema_*.pt")])


def _unet_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """diffusers' raw weights, and its moving average where it is kept apart."""
  has_config = lambda path: (path / "config.json").exists()
  found = [*filter(has_config, (folder / "unet", folder / "unet_ema"))]
  return found or [*filter(has_config, [folder])]


def _state(chosen: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a file, or of all of a folder's shards."""
  if not chosen.is_dir():
    return weights.load(chosen, dict, _TO_FETCH)
  index = files.read_json(chosen / f"{_FILE}.index.json")
  state: dict[str, np.ndarray] = {}
  for name in sorted({*index.get("weight_map", {"": _FILE}).values()}):
    state |= weights.load(chosen / name, dict, _TO_FETCH)
  return state
