"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B), NHWC.

As in the authors' code, the last layers of all residual branches, of attention
and of the network start at zero: an untrained network returns 0.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from rad_jax.models import layers, network

_fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=_fan_avg)
_Dense = functools.partial(nn.Dense, kernel_init=_fan_avg)


class Conventions(NamedTuple):
  """What published U-Nets of one shape do differently."""

  epsilon: float  # of the group norms
  padding: str | tuple[tuple[int, int], ...]  # where sides are halved
  embed: Callable[..., Array]  # (t [b], features) -> [b, features]


CONVENTIONS = {
  # Ho et al. 2020, and the google/ddpm-* models in diffusers' layout.
  "ddpm": Conventions(1e-6, "SAME", layers.sines_first),
  # Nichol & Dhariwal 2021 (improved-diffusion), and diffusers' own defaults.
  "improved": Conventions(1e-5, ((1, 1), (1, 1)), layers.cosines_first),
}


class _Shared(NamedTuple):
  """What all blocks of a network have in common, as in `unet`."""

  dtype: jnp.dtype = jnp.dtype("float32")
  conventions: Conventions = CONVENTIONS["ddpm"]
  dropout: float = 0.0
  num_groups: int = 0
  num_heads: int = 1
  scale_shift: bool = False

  def norm(self, name: str, dtype: jnp.dtype | None = None) -> nn.Module:
    return layers.GroupNorm(
      self.num_groups, dtype or self.dtype, self.conventions.epsilon, name=name
    )


def _upsample(h: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
  """Doubles both sides by nearest neighbour."""
  b, height, width, c = h.shape
  h = jnp.broadcast_to(h[:, :, None, :, None, :], (b, height, 2, width, 2, c))
  return h.reshape(b, 2 * height, 2 * width, c)


class _ResBlock(nn.Module):
  channels: int
  shared: _Shared

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c_in"],
    time: Float[Array, "b time"],
    train: bool,
  ) -> Float[Array, "b h w c_out"]:
    shared = self.shared
    conv = functools.partial(_Conv3x3, self.channels, dtype=shared.dtype)
    dense = functools.partial(_Dense, dtype=shared.dtype)
    h = conv(name="conv_in")(nn.silu(shared.norm("norm_in")(x)))
    if shared.scale_shift:
      both = dense(2 * self.channels, name="time")(time)
      scale, shift = jnp.split(both[:, None, None, :], 2, axis=-1)
      h = shared.norm("norm_out")(h) * (1 + scale) + shift
    else:
      shift = dense(self.channels, name="time")(time)
      h = shared.norm("norm_out")(h + shift[:, None, None, :])
    dropout = nn.Dropout(shared.dropout, name="dropout")
    h = dropout(nn.silu(h), deterministic=not train)
    h = conv(kernel_init=nn.initializers.zeros, name="conv_out")(h)
    if x.shape[-1] != self.channels:
      x = dense(self.channels, name="shortcut")(x)
    return x + h


class _Attention(nn.Module):
  """Self-attention over all pixels, with a residual."""

  shared: _Shared = _Shared()

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    b, height, width, c = x.shape
    num_heads = self.shared.num_heads
    whole = (b, height * width, 1, c)
    heads = (b, height * width, num_heads, c // num_heads)
    dense = functools.partial(_Dense, c, dtype=self.shared.dtype)
    h = self.shared.norm("norm")(x).reshape(whole)
    query = dense(name="query")(h).reshape(heads)
    key = dense(name="key")(h).reshape(heads)
    value = dense(name="value")(h).reshape(heads)
    h = jax.nn.dot_product_attention(query, key, value).reshape(whole)
    h = dense(kernel_init=nn.initializers.zeros, name="output")(h)
    return x + h.reshape(x.shape)


class _UNet(nn.Module):
  channels: int
  channel_multipliers: tuple[int, ...]
  num_res_blocks: int
  attention_resolutions: tuple[int, ...]
  remat: bool
  time_scale: float
  shared: _Shared

  @nn.compact
  def __call__(
    self, x_t: Float[Array, "b h w c"], t: Real[Array, " b"], train: bool
  ) -> Float[Array, "b h w c"]:
    shared = self.shared
    widths = [self.channels * m for m in self.channel_multipliers]
    self._refuse_odd_sides(*x_t.shape[1:3])
    conv = functools.partial(_Conv3x3, dtype=shared.dtype)
    time = shared.conventions.embed(self.time_scale * t, self.channels)
    for name in ("time_0", "time_1"):  # the second silu is that of every use
      time = nn.silu(_Dense(4 * self.channels, name=name)(time))
    # With `self` counted as 0, argument 3 is the Python bool `train`.
    of_res = (
      nn.remat(_ResBlock, static_argnums=(3,)) if self.remat else _ResBlock
    )

    def residual(h, width, name):
      return of_res(width, shared, name=f"{name}_res")(h, time, train)

    def block(h, width, name):
      h = residual(h, width, name)
      attends = h.shape[1] in self.attention_resolutions
      return _Attention(shared, name=f"{name}_attention")(h) if attends else h

    h = conv(self.channels, name="conv_in")(x_t)
    skips = [h]
    for level, width in enumerate(widths):
      for i in range(self.num_res_blocks):
        h = block(h, width, f"down_{level}_{i}")
        skips.append(h)
      if level < len(widths) - 1:
        h = conv(
          width,
          strides=2,
          padding=shared.conventions.padding,
          name=f"downsample_{level}",
        )(h)
        skips.append(h)

    h = residual(h, widths[-1], "middle_0")
    h = _Attention(shared, name="middle_attention")(h)
    h = residual(h, widths[-1], "middle_1")

    for level, width in reversed([*enumerate(widths)]):
      for i in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, width, f"up_{level}_{i}")
      if level > 0:
        h = conv(width, name=f"upsample_{level}")(_upsample(h))

    h = nn.silu(shared.norm("norm_out", jnp.dtype("float32"))(h))
    zeros = nn.initializers.zeros
    return _Conv3x3(x_t.shape[-1], kernel_init=zeros, name="conv_out")(h)

  def _refuse_odd_sides(self, height: int, width: int) -> None:
    levels = len(self.channel_multipliers)
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
      raise ValueError(
        f"The image sides {height}x{width} must be divisible by {factor} = "
        f"2**(levels - 1) for a U-Net with {levels} levels."
      )


def unet(
  channels: int,
  channel_multipliers: Sequence[int],
  num_res_blocks: int,
  attention_resolutions: Sequence[int],
  dropout: float,
  dtype: str = "float32",
  remat: bool = False,
  conventions: str = "ddpm",
  num_groups: int = 0,
  num_heads: int = 1,
  scale_shift: bool = False,
  time_scale: float = 1.0,
) -> network.Network:
  """The DDPM U-Net for images [b, h, w, c].

  DDPM's CIFAR-10 network is `unet(128, (1, 2, 2, 2), 2, (16,), 0.1)`, of
  35,746,307 parameters. `conventions` and what follows are for networks trained
  elsewhere. `init` and `apply` raise ValueError of sides that cannot be halved.

  Args:
    channels: at the first level, even and at least 4.
    channel_multipliers: one per level; each after the first halves the sides.
    num_res_blocks: per level on the way down; the way up has one more.
    attention_resolutions: heights with attention; the middle always has it.
    dropout: probability, in [0, 1).
    dtype: of the arithmetic. Parameters, statistics, time features and output
      are float32: robust losses compare outputs closer than 16 bits resolve.
    remat: recompute residual blocks in the backward pass, for less memory.
    conventions: a name in CONVENTIONS.
    num_groups: of all group norms; 0: `layers.default_groups`.
    num_heads: of attention, a divisor of its channels.
    scale_shift: the time scales and shifts each residual block's second norm.
    time_scale: what t is multiplied by before it is embedded.
  """
  return network.from_module(
    _UNet(
      channels,
      tuple(channel_multipliers),
      num_res_blocks,
      tuple(attention_resolutions),
      remat,
      time_scale,
      _Shared(
        jnp.dtype(dtype),
        CONVENTIONS[conventions],
        dropout,
        num_groups,
        num_heads,
        scale_shift,
      ),
    )
  )
