"""Other libraries' networks here, and ours there.

References: diffusers' own UNet2DModel and DDPMPipeline, and, as
improved-diffusion is no package, its network written down here from its
published names, in torch's functions. Without torch or diffusers those are
skipped; names, axes and errors are tested with NumPy and safetensors alone.
"""

import doctest
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny import plane

import rad_jax
from rad_jax import checks
from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.diffusion import parametrisation, schedules
from rad_jax.interop import layouts, pretrained, weights
from rad_jax.models import unet
from rad_jax.training import checkpoints, sharding, workdir

ROOT = pathlib.Path(__file__).parents[1]
FILE = "diffusion_pytorch_model.safetensors"
TIMES = [0, 987]


def tiny(**fields):
  """A config of two levels with attention at the second, on 8 x 8 images."""
  config = configs.default()
  config.data.update(image_size=8, num_channels=1)
  config.model.unet.update(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
  )
  config.sampling.num_steps = 10
  for name, value in fields.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  checks.validate(config)
  return config


def shapes_of(config):
  """Of its parameters; traced once for each network."""
  return _shapes(json.dumps(config.to_dict()))


@functools.lru_cache
def _shapes(text):
  config = configs.default()
  config.update(json.loads(text))
  return jax.eval_shape(runs.build(config).initial_state).params


def random_params(config, seed=0):
  """Activations of order 1, and no parameter at a special value."""
  generator = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = generator.normal(size=leaf.shape).astype(np.float32)
    if len(leaf.shape) == 1:
      is_scale = path[-1].key == "scale"
      return 0.1 * noise + np.float32(is_scale)
    return noise / math.sqrt(math.prod(leaf.shape[:-1]))

  return jax.tree_util.tree_map_with_path(draw, shapes_of(config))


def images(config, seed=1):
  """[b, h, w, c]"""
  shape = (len(TIMES), *runs.build(config).example_shape)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def output(config, params, x_t):
  apply = jax.jit(runs.build(config).network.apply)
  return np.asarray(apply(params, x_t, jnp.array(TIMES)))


def assert_close(ours, theirs):
  """Theirs: a tensor [b, c, h, w]. The task's bound, on outputs of order 1."""
  theirs = theirs.numpy().transpose(0, 2, 3, 1)
  assert 0.1 < np.std(theirs) < 10
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def load(source, config):
  fields = configs.flatten(config.to_dict())
  return pretrained.load(source, shapes_of(config), fields)


def write_folder(config, folder, params=None):
  if params is None:
    params = random_params(config)
  fields = configs.flatten(config.to_dict())
  return pretrained.export(params, folder, fields)


# ---- diffusers: what it computes ----


@pytest.fixture
def diffusers():
  pytest.importorskip("torch")
  return pytest.importorskip("diffusers")


def theirs(diffusers, seed=0, **options):
  """A UNet2DModel with every parameter drawn, biases and norms too."""
  import torch

  torch.manual_seed(seed)
  model = diffusers.UNet2DModel(**options).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.ndim == 1:
        parameter.copy_(0.1 * torch.randn_like(parameter))
        if "norm" in name and name.endswith("weight"):
          parameter += 1
  return model


def evaluate(model, x_t, times=TIMES):
  import torch

  with torch.no_grad():
    x = torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy())
    return model(x, torch.tensor(times), return_dict=False)[0]


# google/ddpm-cifar10-32's config.json, as its owners published it.
CIFAR10 = {
  "act_fn": "silu",
  "attention_head_dim": None,
  "block_out_channels": [128, 256, 256, 256],
  "center_input_sample": False,
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D"] + ["DownBlock2D"] * 2,
  "downsample_padding": 0,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "in_channels": 3,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-6,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 32,
  "time_embedding_type": "positional",
  "up_block_types": ["UpBlock2D"] * 2 + ["AttnUpBlock2D", "UpBlock2D"],
}
SMALL = CIFAR10 | {
  "block_out_channels": [8, 16],
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
  "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
  "in_channels": 1,
  "out_channels": 1,
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "sample_size": 8,
}
OF_DIFFUSERS = {
  "norm_eps": 1e-5,
  "downsample_padding": 1,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
}


def test_ddpm_cifar10_32_computes_the_same(diffusers, tmp_path):
  """The whole published shape, 35.7 M parameters; its folder is flat."""
  config = configs.default()
  model = theirs(diffusers, **CIFAR10)
  model.save_pretrained(tmp_path)
  diffusers.DDPMScheduler().save_pretrained(tmp_path)
  params = load(tmp_path, config)
  assert sum(x.size for x in jax.tree.leaves(params)) == 35_746_307
  x_t = images(config)
  assert_close(output(config, params, x_t), evaluate(model, x_t))


@pytest.mark.parametrize(
  "fields, options",
  [
    ({}, {}),
    ({"conventions": "improved"}, OF_DIFFUSERS),
    (
      {"conventions": "improved", "num_heads": 2},
      OF_DIFFUSERS | {"attention_head_dim": 8},
    ),
    (
      {"scale_shift": True},
      {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    ),
    ({"num_groups": 8, "num_res_blocks": 2}, {"norm_num_groups": 8}),
  ],
  ids=["ddpm", "improved", "heads", "scale_shift", "groups"],
)
def test_diffusers_there_and_back(diffusers, tmp_path, fields, options):
  """Import, then export: the same outputs, and the same tensors and config."""
  if "num_res_blocks" in fields:
    options = options | {"layers_per_block": fields["num_res_blocks"]}
  config = tiny(**{f"model__unet__{k}": v for k, v in fields.items()})
  model = theirs(diffusers, **(SMALL | options))
  model.save_pretrained(tmp_path / "unet")
  diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
  params = load(tmp_path, config)
  x_t = images(config)
  assert_close(output(config, params, x_t), evaluate(model, x_t))

  folder = write_folder(config, tmp_path / "out", params)
  again = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
  np.testing.assert_array_equal(evaluate(again, x_t), evaluate(model, x_t))
  assert_same(load(folder, config), params)


@pytest.mark.parametrize(
  "prediction, schedule",
  [("eps", "linear"), ("x_0", "linear"), ("v", "cosine")],
)
def test_pipeline_runs_ours(diffusers, tmp_path, prediction, schedule):
  """Its scheduler has our levels, and reads the output as ours is meant."""
  import torch

  pytest.importorskip("httpx")  # diffusers' pipelines import it
  config = tiny(
    diffusion__prediction=prediction,
    diffusion__schedule=schedule,
    diffusion__num_timesteps=500,
    sampling__clip_x_0=0.0,
    sampling__variance="large",
  )
  params = random_params(config)
  pipeline = diffusers.DDPMPipeline.from_pretrained(
    write_folder(config, tmp_path, params)
  )
  scheduler = pipeline.scheduler
  alpha_bar = schedules.ALPHA_BAR[schedule](500)
  np.testing.assert_allclose(scheduler.alphas_cumprod, alpha_bar, rtol=1e-4)
  x_t = images(config)
  assert_close(output(config, params, x_t), evaluate(pipeline.unet, x_t))

  pipeline.set_progress_bar_config(disable=True)
  drawn = pipeline(batch_size=2, num_inference_steps=4, output_type="np").images
  assert drawn.shape == (2, 8, 8, 1)
  assert np.all(np.isfinite(drawn))
  assert scheduler.timesteps.tolist() == [499, 333, 166, 0]

  t = 333
  x_0, eps = np.float32(0.3), np.float32(-0.7)
  level = jax.tree.map(
    lambda column: column[500 - 1 - t : 500 - t],
    runs.build(config).process.grid(500),
  )
  predictions = parametrisation.predictions(config.diffusion.sigma_data)
  c_x_0, c_eps = predictions[prediction](level)
  y = c_x_0 * x_0 + c_eps * eps
  state = level.alpha * x_0 + level.sigma * eps
  scheduler.set_timesteps(500)
  tensor = lambda x: torch.tensor(np.asarray(x).reshape(1, 1, 1, 1))
  step = scheduler.step(tensor(y), t, tensor(state))
  assert step.pred_original_sample.item() == pytest.approx(0.3, abs=1e-3)
  assert scheduler.config.variance_type == "fixed_large"
  assert not scheduler.config.clip_sample


# ---- improved-diffusion: its network, by its published names ----


class Improved:
  """UNetModel in torch's functions, over a state dict that it draws.

  Written from the order in which the library creates its blocks: they are
  counted as they come, and nothing is computed from their numbers.
  """

  def __init__(
    self, channels, multipliers, blocks, attended, heads, image_channels
  ):
    import torch

    self.torch, self.heads, self.state = torch, heads, {}
    self.generator = torch.Generator().manual_seed(3)
    self.channels, wide = channels, 4 * channels
    self.wide = wide
    self.tensor("time_embed.0", wide, channels)
    self.tensor("time_embed.2", wide, wide)
    self.tensor("input_blocks.0.0", channels, image_channels, 3, 3)
    self.down, self.up, kept = ["c"], [], [channels]
    width = channels
    for level, multiplier in enumerate(multipliers):
      for _ in range(blocks):
        n = len(self.down)
        self.residual(f"input_blocks.{n}.0", width, channels * multiplier)
        width = channels * multiplier
        if level in attended:
          self.attention(f"input_blocks.{n}.1", width)
        self.down.append("ra" if level in attended else "r")
        kept.append(width)
      if level < len(multipliers) - 1:
        n = len(self.down)
        self.tensor(f"input_blocks.{n}.0.op", width, width, 3, 3)
        self.down.append("d")
        kept.append(width)
    self.residual("middle_block.0", width, width)
    self.attention("middle_block.1", width)
    self.residual("middle_block.2", width, width)
    for level in reversed(range(len(multipliers))):
      for i in range(blocks + 1):
        n, inside = len(self.up), "ra" if level in attended else "r"
        to = channels * multipliers[level]
        self.residual(f"output_blocks.{n}.0", width + kept.pop(), to)
        width = to
        if level in attended:
          self.attention(f"output_blocks.{n}.1", width)
        if level and i == blocks:
          at = f"output_blocks.{n}.{len(inside)}.conv"
          self.tensor(at, width, width, 3, 3)
          inside += "u"
        self.up.append(inside)
    self.norm("out.0", width)
    self.tensor("out.2", 2 * image_channels, width, 3, 3)

  def draw(self, *shape):
    return self.torch.randn(*shape, generator=self.generator)

  def tensor(self, name, *shape):
    scale = math.prod(shape[1:]) ** -0.5
    self.state[f"{name}.weight"] = scale * self.draw(*shape)
    self.state[f"{name}.bias"] = 0.1 * self.draw(shape[0])

  def norm(self, name, width):
    self.state[f"{name}.weight"] = 1 + 0.1 * self.draw(width)
    self.state[f"{name}.bias"] = 0.1 * self.draw(width)

  def residual(self, name, width, to):
    self.norm(f"{name}.in_layers.0", width)
    self.tensor(f"{name}.in_layers.2", to, width, 3, 3)
    self.tensor(f"{name}.emb_layers.1", 2 * to, self.wide)
    self.norm(f"{name}.out_layers.0", to)
    self.tensor(f"{name}.out_layers.3", to, to, 3, 3)
    if width != to:
      self.tensor(f"{name}.skip_connection", to, width, 1, 1)

  def attention(self, name, width):
    self.norm(f"{name}.norm", width)
    self.tensor(f"{name}.qkv", 3 * width, width, 1)
    self.tensor(f"{name}.proj_out", width, width, 1)

  # What it computes.

  def of(self, name):
    return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

  def normed(self, name, h):
    return self.torch.nn.functional.group_norm(h, 32, *self.of(name), eps=1e-5)

  def block(self, name, h, time):
    functional = self.torch.nn.functional
    silu, conv = functional.silu, functional.conv2d
    y = silu(self.normed(f"{name}.in_layers.0", h))
    y = conv(y, *self.of(f"{name}.in_layers.2"), padding=1)
    both = functional.linear(silu(time), *self.of(f"{name}.emb_layers.1"))
    scale, shift = both[:, :, None, None].chunk(2, 1)
    y = silu(self.normed(f"{name}.out_layers.0", y) * (1 + scale) + shift)
    y = conv(y, *self.of(f"{name}.out_layers.3"), padding=1)
    if f"{name}.skip_connection.weight" in self.state:
      h = conv(h, *self.of(f"{name}.skip_connection"))
    return h + y

  def attend(self, name, h):
    b, c = h.shape[:2]
    conv = self.torch.nn.functional.conv1d
    y = self.normed(f"{name}.norm", h).reshape(b, c, -1)
    y = conv(y, *self.of(f"{name}.qkv"))
    q, k, v = y.reshape(b * self.heads, 3 * c // self.heads, -1).chunk(3, 1)
    scores = q.transpose(1, 2) @ k / math.sqrt(c // self.heads)
    y = v @ scores.softmax(-1).transpose(1, 2)
    y = conv(y.reshape(b, c, -1), *self.of(f"{name}.proj_out"))
    return h + y.reshape(h.shape)

  def __call__(self, x, t, return_dict=False):
    functional = self.torch.nn.functional
    half = self.channels // 2
    frequencies = 10_000.0 ** (-self.torch.arange(half) / half)
    angles = t[:, None].float() * frequencies
    time = self.torch.cat([angles.cos(), angles.sin()], 1)
    time = functional.linear(time, *self.of("time_embed.0"))
    time = functional.linear(functional.silu(time), *self.of("time_embed.2"))
    kept, h = [], x
    for n, inside in enumerate(self.down):
      name = f"input_blocks.{n}"
      if inside == "c":
        h = functional.conv2d(h, *self.of(f"{name}.0"), padding=1)
      elif inside == "d":
        at = self.of(f"{name}.0.op")
        h = functional.conv2d(h, *at, stride=2, padding=1)
      else:
        h = self.block(f"{name}.0", h, time)
        h = self.attend(f"{name}.1", h) if "a" in inside else h
      kept.append(h)
    h = self.block("middle_block.0", h, time)
    h = self.block("middle_block.2", self.attend("middle_block.1", h), time)
    for n, inside in enumerate(self.up):
      name = f"output_blocks.{n}"
      h = self.block(f"{name}.0", self.torch.cat([h, kept.pop()], 1), time)
      h = self.attend(f"{name}.1", h) if "a" in inside else h
      if "u" in inside:
        h = functional.interpolate(h, scale_factor=2, mode="nearest")
        at = self.of(f"{name}.{len(inside) - 1}.conv")
        h = functional.conv2d(h, *at, padding=1)
    h = functional.silu(self.normed("out.0", h))
    return (functional.conv2d(h, *self.of("out.2"), padding=1),)


OF_IMPROVED = {
  "conventions": "improved",
  "num_groups": 32,
  "num_heads": 4,
  "scale_shift": True,
  "time_scale": 0.25,
}


@pytest.mark.parametrize(
  "shape",
  [
    # The published CIFAR-10 network, 52.5 M parameters; and a small one.
    dict(channels=128, multipliers=(1, 2, 2, 2), blocks=3, side=32),
    dict(channels=32, multipliers=(1, 2), blocks=1, side=16),
  ],
  ids=["cifar10", "small"],
)
def test_improved_diffusion_computes_the_same(tmp_path, shape):
  """With attention at 16 and 8, of 4,000 steps; the variance is left out."""
  torch = pytest.importorskip("torch")
  side = shape.pop("side")
  levels = range(len(shape["multipliers"]))
  attended = {level for level in levels if side // 2**level in (16, 8)}
  model = Improved(**shape, attended=attended, heads=4, image_channels=3)
  torch.save(model.state, tmp_path / "ema_0.9999_500000.pt")

  config = configs.default()
  config.data.image_size = side
  config.diffusion.update(schedule="cosine", num_timesteps=4000)
  config.model.unet.update(
    channels=shape["channels"],
    channel_multipliers=shape["multipliers"],
    num_res_blocks=shape["blocks"],
    attention_resolutions=(16, 8),
    **OF_IMPROVED,
  )
  checks.validate(config)
  params = load(tmp_path / "ema_0.9999_500000.pt", config)
  x_t = images(config)
  steps = torch.tensor([0, 3987])
  x = torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy())
  expected = model(x, 0.25 * steps)[0]
  assert expected.shape[1] == 6
  apply = jax.jit(runs.build(config).network.apply)
  actual = np.asarray(apply(params, x_t, jnp.array(steps.numpy())))
  assert_close(actual, expected[:, :3])


# ---- Names and axes, without torch ----


def block_names(prefix, shortcut, attention=""):
  layers = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2"]
  layers += ["conv_shortcut"] if shortcut else []
  names = [f"{prefix}.{layer}" for layer in layers]
  if attention:
    inner = ["group_norm", "to_q", "to_k", "to_v", "to_out.0"]
    names += [f"{attention}.{layer}" for layer in inner]
  return names


def test_names_are_those_of_diffusers():
  """Written down by hand for two levels of one block."""
  layers = ["conv_in", "conv_norm_out", "conv_out"]
  layers += ["time_embedding.linear_1", "time_embedding.linear_2"]
  layers += block_names("down_blocks.0.resnets.0", False)
  layers += ["down_blocks.0.downsamplers.0.conv"]
  at = "down_blocks.1.attentions.0"
  layers += block_names("down_blocks.1.resnets.0", True, at)
  at = "mid_block.attentions.0"
  layers += block_names("mid_block.resnets.0", False, at)
  layers += block_names("mid_block.resnets.1", False)
  for i in range(2):
    at = f"up_blocks.0.attentions.{i}"
    layers += block_names(f"up_blocks.0.resnets.{i}", True, at)
    layers += block_names(f"up_blocks.1.resnets.{i}", True)
  layers += ["up_blocks.0.upsamplers.0.conv"]
  state = layouts.to_diffusers(random_params(tiny()))
  expected = {f"{n}.{leaf}" for n in layers for leaf in ("weight", "bias")}
  assert set(state) == expected


def test_axes_are_those_of_pytorch():
  params = random_params(tiny())
  state = layouts.to_diffusers(params)
  block = params["down_1_0_res"]
  pairs = {
    "conv1": block["conv_in"]["kernel"].transpose(3, 2, 0, 1),
    "time_emb_proj": block["time"]["kernel"].T,
    "conv_shortcut": block["shortcut"]["kernel"].T[:, :, None, None],
    "norm1": block["norm_in"]["scale"],
  }
  for name, expected in pairs.items():
    actual = state[f"down_blocks.1.resnets.0.{name}.weight"]
    np.testing.assert_array_equal(actual, expected)
    assert actual.flags.c_contiguous


def test_round_trip_is_exact_and_old_names_are_read():
  """As google/ddpm-cifar10-32's file has them, in half precision or not."""
  config = tiny()
  params = random_params(config)
  state = layouts.to_diffusers(params)
  old = {"to_q": "query", "to_k": "key", "to_v": "value"}
  old |= {"to_out.0": "proj_attn"}
  renamed = {}
  for name, array in state.items():
    for new, before in old.items():
      name = name.replace(f".{new}.", f".{before}.")
    renamed[name] = array
  assert renamed.keys() != state.keys()
  for given in (state, renamed):
    read, layout = layouts.from_pytorch(given, shapes_of(config))
    assert layout == "diffusers"
    assert_same(read, params)
  halves = {name: x.astype(np.float16) for name, x in state.items()}
  read, _ = layouts.from_pytorch(halves, shapes_of(config))
  assert {x.dtype for x in jax.tree.leaves(read)} == {np.dtype("float32")}


# ---- What a source says of its network ----


def taken(config, folder, *given):
  fields = configs.flatten(config.to_dict())
  return pretrained.taken_over(fields, given, folder)


def test_a_network_is_taken_from_its_folder(tmp_path):
  """All that differs at once: then its parameters can be read."""
  there = tiny(
    diffusion__prediction="v",
    diffusion__schedule="cosine",
    diffusion__num_timesteps=300,
    model__unet__conventions="improved",
    model__unet__num_heads=2,
    model__unet__scale_shift=True,
  )
  params = random_params(there)
  source = write_folder(there, tmp_path / "source", params)
  config = configs.default()
  config.train.init_from = str(source)
  config.diffusion.process = "edm"
  config.update_from_flattened_dict(taken(config, tmp_path / "run", "seed"))
  assert config.diffusion == there.diffusion
  assert config.data == there.data
  assert config.model == there.model
  assert taken(config, tmp_path / "run") == {}
  assert_same(load(source, config), params)


def test_equal_networks_in_other_words_take_nothing_over(tmp_path):
  """num_groups=0 is 32 at these widths; sides are in any order."""
  (tmp_path / "config.json").write_text(
    json.dumps(CIFAR10 | {"_class_name": "UNet2DModel"})
  )
  config = configs.default()
  config.train.init_from = str(tmp_path)
  assert taken(config, tmp_path / "run") == {}
  config.model.unet.channel_multipliers = (2, 1, 2, 2)
  assert taken(config, tmp_path / "run") == {
    "model.unet.channel_multipliers": (1, 2, 2, 2)
  }


def test_a_flag_that_contradicts_the_folder_is_refused(tmp_path):
  config = tiny(
    train__init_from=str(write_folder(tiny(), tmp_path / "source")),
    model__unet__channels=16,
    model__unet__num_res_blocks=2,
  )
  flags = "model.unet.channels", "seed", "model.unet.num_res_blocks"
  with pytest.raises(pretrained.MismatchError) as error:
    taken(config, tmp_path / "run", *flags)
  assert (
    "leave out --config.model.unet.channels=16"
    " --config.model.unet.num_res_blocks=2, or type"
    " --config.model.unet.channels=8 --config.model.unet.num_res_blocks=1"
  ) in str(error.value)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_begun_run_needs_its_source_no_more(tmp_path, foreign):
  there, source, run = tiny(), tmp_path / "source", tmp_path / "run"
  if foreign:
    write_folder(there, source)
  else:
    source.mkdir()
    workdir.claim(source, runs.build(there))
  config = configs.default()
  config.train.init_from = str(source)
  first = taken(config, run)
  assert first["model.unet.channels"] == 8
  begun = configs.default()
  begun.update_from_flattened_dict({"train.init_from": str(source)} | first)
  run.mkdir()
  workdir.claim(run, runs.build(begun))
  source.rename(tmp_path / "gone")
  assert taken(config, run) == first
  config.train.init_from = "another"
  assert taken(config, run) == {}


def test_nothing_is_taken_over_without_a_source(tmp_path):
  assert taken(tiny(), tmp_path) == {}


def test_diffusers_folder_is_loaded_without_a_config(tmp_path):
  """The network, its process and prediction are those of the config's run."""
  config = tiny(
    diffusion__prediction="v",
    diffusion__schedule="cosine",
    model__unet__conventions="improved",
    model__unet__num_heads=2,
  )
  run, params = runs.build(config), random_params(config)
  folder = write_folder(config, tmp_path, params)
  (folder / "config.json").write_text("{}")  # as a run's in a hub's folder
  found = rad_jax.load_diffusers(folder)
  assert_same(found.params, params)
  assert found.example_shape == run.example_shape
  assert found.prediction is parametrisation.v
  assert_same(found.process.grid(10), run.process.grid(10))
  args = params, images(config), jnp.array(TIMES)
  text = lambda network: str(jax.make_jaxpr(network.apply)(*args))
  assert text(found.network) == text(run.network)

  parser = doctest.DocTestParser()
  (example,) = parser.get_examples(rad_jax.load_diffusers.__doc__)
  names = {"rad_jax": rad_jax, "jax": jax, "jnp": jnp}
  exec(example.source, names)
  drawn = jax.eval_shape(lambda: names["samples"](str(folder), 2))
  assert drawn.shape == (2, 8, 8, 1)


def test_a_network_without_its_noise_is_not_loaded_alone(tmp_path):
  folder = write_folder(tiny(), tmp_path)
  (folder / "scheduler/scheduler_config.json").unlink()
  with pytest.raises(pretrained.MismatchError, match="scheduler_config.json"):
    rad_jax.load_diffusers(folder)
  with pytest.raises(pretrained.MismatchError, match="no folder of diffusers"):
    rad_jax.load_diffusers(tmp_path / "nowhere")


# ---- Which weights ----


def test_every_form_of_source_is_read(tmp_path):
  """A pipeline, a bare network, a bare file, and shards."""
  config = tiny()
  params = random_params(config)
  folder = write_folder(config, tmp_path / "pipeline", params)
  file = folder / "unet" / FILE
  alone = tmp_path / "alone.safetensors"
  alone.write_bytes(file.read_bytes())
  shards = tmp_path / "shards"
  shards.mkdir()
  (shards / "config.json").write_text((folder / "unet/config.json").read_text())
  state = load_file(file)
  names = sorted(state)
  parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
  for part, inside in parts.items():
    save_file({name: state[name] for name in inside}, shards / part)
  index = {name: part for part, inside in parts.items() for name in inside}
  (shards / f"{FILE}.index.json").write_text(json.dumps({"weight_map": index}))
  for source in (folder, folder / "unet", file, alone, shards):
    assert pretrained.is_foreign(source)
    assert_same(load(source, config), params)


def test_moving_average_beside_raw_weights(tmp_path):
  raw, ema = tiny(train__init_weights="raw"), tiny(train__init_weights="ema")
  pairs = [(raw, random_params(raw, 1)), (ema, random_params(ema, 2))]
  folder = write_folder(raw, tmp_path / "run", pairs[0][1])
  other = write_folder(ema, tmp_path / "other", pairs[1][1])
  (other / "unet").rename(folder / "unet_ema")
  for config, params in pairs:
    assert_same(load(folder, config), params)
  with pytest.raises(
    pretrained.MismatchError, match="init_weights must be ema or"
  ):
    load(folder, tiny())


def test_choice_is_refused_where_the_source_does_not_say(tmp_path):
  folder = write_folder(tiny(), tmp_path)
  for which in ("raw", "ema"):
    with pytest.raises(pretrained.MismatchError, match="does not say which"):
      load(folder, tiny(train__init_weights=which))


def test_files_of_improved_diffusion_say_which(tmp_path):
  """The newest of a folder; a name that contradicts is refused."""
  torch = pytest.importorskip("torch")
  config = tiny()
  drawn = {}
  for seed, name in enumerate(
    ("model000100", "model000200", "ema_0.9999_000100", "ema_0.9999_000200")
  ):
    drawn[name] = random_params(config, seed)
    state = layouts.to_diffusers(drawn[name])
    torch.save(
      {key: torch.from_numpy(x) for key, x in state.items()},
      tmp_path / f"{name}.pt",
    )
  (tmp_path / "opt000200.pt").write_bytes(b"")
  raw, ema = tiny(train__init_weights="raw"), tiny(train__init_weights="ema")
  assert pretrained.is_foreign(tmp_path)
  assert_same(load(tmp_path, raw), drawn["model000200"])
  assert_same(load(tmp_path, ema), drawn["ema_0.9999_000200"])
  assert_same(load(tmp_path / "model000100.pt", raw), drawn["model000100"])
  with pytest.raises(
    pretrained.MismatchError, match="init_weights must be ema or"
  ):
    load(tmp_path, config)
  with pytest.raises(pretrained.MismatchError, match="holds the raw weights"):
    load(tmp_path / "model000100.pt", ema)
  (tmp_path / "ema_0.999_000200.pt").write_bytes(b"")
  with pytest.raises(
    pretrained.MismatchError, match="2 files of the newest ema"
  ):
    load(tmp_path, ema)


# ---- Errors ----


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
  config = tiny()
  folder = write_folder(config, tmp_path)
  file = folder / "unet" / FILE
  state = load_file(file)
  del state["conv_norm_out.weight"], state["mid_block.resnets.1.conv2.bias"]
  state["class_embedding.weight"] = np.zeros((10, 32), np.float32)
  state["conv_out.weight"] = np.zeros((2, 8, 3, 3), np.float32)
  save_file(state, file)
  with pytest.raises(weights.WeightsError) as error:
    load(folder, config)
  for text in (
    str(folder),
    "missing: conv_norm_out.weight, mid_block.resnets.1.conv2.bias",
    "left over: class_embedding.weight",
    "of another shape: conv_out.weight (2, 8, 3, 3), expected (1, 8, 3, 3)",
  ):
    assert text in str(error.value)
  assert "\n" not in str(error.value)


def edit(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"beta_end": 0.03}, r"schedule that ours cannot be \(.*beta_end=0.03"),
    ({"num_train_timesteps": 500}, "num_train_timesteps=500"),
    ({"beta_schedule": "scaled_linear"}, "beta_schedule='scaled_linear'"),
    ({"beta_schedule": "squaredcos_cap_v2"}, "--config.*schedule=cosine$"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
    ({"prediction_type": "sample"}, "--config.diffusion.prediction=x_0$"),
    ({"prediction_type": "flow"}, "predicts 'flow', and ours one of epsilon, "),
  ],
)
def test_another_schedule_is_refused(tmp_path, fields, expected):
  folder = write_folder(tiny(), tmp_path)
  edit(folder / "scheduler/scheduler_config.json", **fields)
  with pytest.raises(pretrained.MismatchError, match=expected):
    load(folder, tiny())


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"norm_num_groups": 2}, "attn_norm_num_groups=4"),
    ({"norm_eps": 1e-5}, "norm_eps=1e-05, downsample_padding=0"),
    ({"freq_shift": 0}, "freq_shift=0"),
    ({"act_fn": "relu"}, "cannot be: act_fn='relu'"),
    ({"attention_head_dim": 8}, "--config.model.unet.num_heads=2$"),
    ({"layers_per_block": 2}, "--config.model.unet.num_res_blocks=2$"),
    (
      {"sample_size": 16},
      r"image_size=16 --config.model.*attention_resolutions='\(8,\)'$",
    ),
    ({"sample_size": [8, 16]}, r"cannot be: sample_size=\[8, 16\]"),
    ({"up_block_types": ["UpBlock2D"] * 2}, "up_block_types=\\['UpBlock2D'"),
    ({"_class_name": "UNet2DConditionModel"}, "and no UNet2DModel"),
    (OF_DIFFUSERS, "--config.model.unet.conventions=improved$"),
  ],
)
def test_another_network_is_refused(tmp_path, fields, expected):
  """Also where all shapes would fit."""
  folder = write_folder(tiny(), tmp_path)
  edit(folder / "unet/config.json", **fields)
  with pytest.raises(pretrained.MismatchError, match=expected):
    load(folder, tiny())


def test_what_is_no_model(tmp_path, monkeypatch):
  config = tiny()
  file = tmp_path / "other.safetensors"
  save_file({"fc.weight": np.zeros((2, 2), np.float32)}, file)
  with pytest.raises(weights.WeightsError, match="neither .*: fc.weight"):
    load(file, config)
  file.write_bytes(b"no such thing")
  with pytest.raises(weights.WeightsError, match="no safetensors file"):
    load(file, config)
  with pytest.raises(weights.WeightsError, match=r"none\.pt is no file"):
    load(tmp_path / "none.pt", config)
  (tmp_path / "x.pt").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(weights.WeightsError, match="pip install torch"):
    load(tmp_path / "x.pt", config)
  assert not pretrained.is_foreign(tmp_path / "nowhere")


@pytest.mark.parametrize(
  "version, read",
  [("1.13.1", False), ("2.5.1+cu121", False), ("2.6.0", True)]
  + [("2.13.0+cpu", True), ("3.0.0a0+git1", True)],
)
def test_torch_that_could_run_a_file_s_code_reads_none(
  tmp_path, monkeypatch, version, read
):
  path, opened = tmp_path / "x.pt", []
  path.write_bytes(b"")
  torch = types.SimpleNamespace(
    __version__=version, load=lambda *_, **options: opened.append(options) or {}
  )
  monkeypatch.setitem(sys.modules, "torch", torch)
  if read:
    assert weights.load(path, dict, "") == {}
    assert opened[0]["weights_only"]
    return
  with pytest.raises(weights.WeightsError, match=r"torch>=2\.6") as error:
    weights.load(path, dict, "")
  assert version in str(error.value) and not opened


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"model__name": "mlp"}, "--config.model.name=unet$"),
    ({"diffusion__process": "flow"}, "--config.diffusion.process=ddpm$"),
  ],
)
def test_only_ddpm_s_u_net_is_started_from(tmp_path, fields, expected):
  """Also a file alone, which says neither."""
  folder = write_folder(tiny(), tmp_path / "pipeline")
  alone = tmp_path / "alone.safetensors"
  alone.write_bytes((folder / "unet" / FILE).read_bytes())
  for source in (folder, alone):
    with pytest.raises(pretrained.MismatchError, match=expected):
      load(source, tiny(**fields))


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"model__name": "mlp"}, "model.name='mlp'"),
    ({"diffusion__process": "edm"}, "process='edm'"),
    ({"diffusion__prediction": "velocity"}, "'velocity'.*eps, x_0, v"),
    ({"model__unet__num_groups": 0}, "num_groups=0"),
    ({"model__unet__time_scale": 0.25}, "time_scale=0.25"),
    (
      {"model__unet__num_heads": 2}
      | {"model__unet__attention_resolutions": (8, 4)},
      r"num_heads=2: .*\[8, 16\]",
    ),
  ],
)
def test_export_that_diffusers_could_not_read(tmp_path, fields, expected):
  config = tiny(**fields)
  with pytest.raises(pretrained.MismatchError, match=expected):
    write_folder(config, tmp_path / "out", random_params(tiny()))
  assert not (tmp_path / "out").exists()


def test_config_knows_the_conventions():
  for name in unet.CONVENTIONS:
    tiny(model__unet__conventions=name)


@pytest.mark.parametrize(
  "fields",
  [
    {"model__unet__conventions": "own"},
    {"model__unet__num_groups": 3},
    {"model__unet__num_heads": 3},
    {"model__unet__num_heads": 0},
    {"model__unet__time_scale": 0.0},
    {"train__init_weights": "both"},
  ],
)
def test_bad_fields(fields):
  (path,) = fields
  with pytest.raises(configs.ConfigError, match=path.replace("__", ".")):
    tiny(**fields)


# ---- Runs ----


def test_own_runs_weights_are_chosen(tmp_path):
  """A run's moving average or raw weights, whatever its sampling.ema."""
  config = plane()
  run = runs.build(config)
  new = jax.jit(run.initial_state)()
  state = new._replace(
    params=random_params(config, 1), ema_params=random_params(config, 2)
  )
  workdir.claim(tmp_path, run)
  with checkpoints.open_manager(tmp_path) as manager:
    checkpoints.save(manager, 7, state)
  for which, params in (
    ("raw", state.params),
    ("ema", state.ema_params),
    ("", state.ema_params),
  ):
    started = workdir.start_from(
      tmp_path,
      new,
      runs.build(plane(train__init_weights=which)),
      sharding.device_mesh(),
    )
    assert_same(started.params, params)
    assert_same(started.ema_params, params)


@pytest.mark.slow
def test_fine_tuning_and_export_from_the_command_line(tmp_path):
  """Import, train one step, export, import: two commands."""
  pictures = tmp_path / "pictures"
  pictures.mkdir()
  generator = np.random.default_rng(0)
  for i in range(4):
    pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(pictures / f"{i}.png")
  config = tiny(
    model__unet__channel_multipliers=(1,),
    model__unet__attention_resolutions=(),
  )
  params = random_params(config)
  source = write_folder(config, tmp_path / "source", params)
  run = tmp_path / "run"
  args = [
    "--config=configs/cifar10_finetune.py:smoke",
    f"--workdir={run}",
    f"--config.train.init_from={source}",
    "--config.data.name=image_folder",
    f"--config.data.path={pictures}",
    "--config.train.num_steps=1",
    "--config.train.batch_size=4",
  ]
  for more in ([], ["--mode=export", "--config.sampling.ema=False"]):
    done = subprocess.run(
      [sys.executable, "-m", "rad_jax.main", *args, *more],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
  assert f"{run / 'diffusers'} (raw weights of step 1)" in done.stdout
  saved = json.loads((run / "config.json").read_text())
  assert saved["regulariser"]["warmup_steps"] > 0
  # The first step's rate is 0: what comes out is what went in.
  assert_same(load(run / "diffusers", config), params)
