"""The U-Net's layers one by one: forward and backward, ours and PyTorch's."""

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import timing
from rad_jax.models import layers as norms
from rad_jax.models import unet

# What, side, channels in and out: those of DDPM's U-Net for CIFAR-10.
LAYERS = (
  ("convolution", 32, 128, 128),
  ("convolution", 32, 256, 128),
  ("convolution", 16, 256, 256),
  ("convolution", 16, 512, 256),
  ("convolution", 8, 256, 256),
  ("convolution", 4, 256, 256),
  ("downsampling", 32, 128, 128),
  ("group norm, silu", 32, 128, 128),
  ("group norm, silu", 16, 256, 256),
  ("flax's group norm, silu", 32, 128, 128),
  ("flax's group norm, silu", 16, 256, 256),
  ("upsampling", 16, 256, 256),
  ("attention", 16, 256, 256),
)


def rows(batch_size: int, rounds: int) -> list[dict]:
  """Forward, and gradients of input and weights, of each layer in float32."""
  found = []
  for what, side, c_in, c_out in LAYERS:
    for backward in (False, True):
      contenders = {
        "rad_jax": _ours(what, batch_size, side, c_in, c_out, backward)
      }
      if importlib.util.find_spec("torch"):
        contenders["torch"] = _torch(
          what, batch_size, side, c_in, c_out, backward
        )
      times = timing.interleaved(contenders, rounds, 0.05)
      row = {
        "benchmark": "layers",
        "setting": f"{what}, {side} x {side}, {c_in} to {c_out}",
        "pass": "forward and backward" if backward else "forward",
        "batch_size": batch_size,
        "seconds": float(np.median(times["rad_jax"])),
      }
      if "torch" in times:
        row["torch_over_rad_jax"] = timing.ratio(times, "torch", "rad_jax")
      found.append(row)
  return found


def _ours(
  what: str, b: int, side: int, c_in: int, c_out: int, backward: bool
) -> Callable[[], object]:
  float32 = jnp.dtype("float32")
  layer: nn.Module
  if what == "convolution":
    layer = nn.Conv(c_out, (3, 3))
  elif what == "downsampling":
    layer = nn.Conv(c_out, (3, 3), strides=2)
  elif what == "attention":
    layer = unet._Attention()
  elif what == "upsampling":
    layer = nn.Sequential([unet._upsample])
  elif what == "flax's group norm, silu":
    layer = nn.Sequential([nn.GroupNorm(32), nn.silu])
  else:
    layer = nn.Sequential([norms.GroupNorm(32, float32), nn.silu])
  x = jax.random.normal(jax.random.key(0), (b, side, side, c_in))
  params = layer.init(jax.random.key(1), x)

  def value(params, x):
    return jnp.sum(jnp.square(layer.apply(params, x)))

  run = jax.jit(jax.grad(value, (0, 1)) if backward else layer.apply)
  return lambda: jax.block_until_ready(run(params, x))


def _torch(
  what: str, b: int, side: int, c_in: int, c_out: int, backward: bool
) -> Callable[[], object]:
  import torch
  from diffusers.models.attention_processor import Attention

  from benchmarks import peer

  layer: torch.nn.Module
  if what == "convolution":
    layer = torch.nn.Conv2d(c_in, c_out, 3, padding=1)
  elif what == "downsampling":
    layer = torch.nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
  elif what == "attention":
    layer = Attention(
      c_in,
      heads=1,
      dim_head=c_in,
      norm_num_groups=32,
      residual_connection=True,
      bias=True,
    )
  elif what == "upsampling":
    layer = torch.nn.Upsample(scale_factor=2, mode="nearest")
  else:
    layer = torch.nn.Sequential(torch.nn.GroupNorm(32, c_in), torch.nn.SiLU())
  layer = layer.to(peer.DEVICE, memory_format=torch.channels_last)
  x = torch.randn(b, c_in, side, side, device=peer.DEVICE)
  x = x.to(memory_format=torch.channels_last).requires_grad_(backward)

  def run() -> None:
    if backward:
      layer(x).square().sum().backward()
    else:
      with torch.no_grad():
        layer(x)
    peer.synchronize()

  return run
