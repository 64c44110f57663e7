"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B), NHWC.

Where the paper is silent the authors' published code decides: kernels are
drawn by uniform variance scaling over the average fan, and the last layer of
each residual branch, of each attention block and of the network starts at
zero, so that an untrained network returns 0.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from rad_jax.models import embedding, network, normalisation

_fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=_fan_avg)
_Dense = functools.partial(nn.Dense, kernel_init=_fan_avg)


def _improved_embedding(
  t: Real[Array, " b"], features: int
) -> Float[Array, "b features"]:
  """`[cos(t f_i), sin(t f_i)]` with `f_i = 10000^(-i / half)`."""
  half = features // 2
  exponents = jnp.arange(half, dtype=jnp.float32) / half
  frequencies = jnp.exp(-math.log(10_000.0) * exponents)
  angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Conventions(NamedTuple):
  """What published U-Nets of one shape do differently.

  epsilon: added to the variance in group norms.
  padding: of the convolutions that halve the sides, as flax's Conv takes it.
  embed: (t [b], features) -> the sinusoidal embedding [b, features].
  """

  epsilon: float
  padding: str | tuple[tuple[int, int], ...]
  embed: Callable[..., Array]


CONVENTIONS = {
  # Ho et al. 2020, and the google/ddpm-* models in diffusers' layout.
  "ddpm": Conventions(1e-6, "SAME", embedding.sinusoidal_embedding),
  # Nichol & Dhariwal 2021 (improved-diffusion), and diffusers' own defaults.
  "improved": Conventions(1e-5, ((1, 1), (1, 1)), _improved_embedding),
}


class _Norm(NamedTuple):
  """num_groups: of every group norm; 0: `_num_groups` of its channels."""

  num_groups: int = 0
  epsilon: float = CONVENTIONS["ddpm"].epsilon


_DDPM_NORM = _Norm()


def _group_norm(
  channels: int, dtype: jnp.dtype, name: str, norm: _Norm = _DDPM_NORM
) -> normalisation.GroupNorm:
  """Group norm with up to 32 groups, or as many as `norm` says."""
  groups = norm.num_groups or _num_groups(channels)
  return normalisation.GroupNorm(groups, dtype, norm.epsilon, name=name)


def _num_groups(channels: int) -> int:
  """Returns 32 or the largest power of two that divides `channels`.

  Narrow networks would get groups of one channel, whose norm removes exactly
  the constant that the time adds to that channel: eps_hat would not depend on
  t. They get groups of four instead, as DDPM's 128 channels do.
  """
  groups = math.gcd(32, channels)
  return groups if groups < channels else max(channels // 4, 1)


def _upsample(h: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
  """Doubles both sides by nearest neighbour."""
  b, height, width, c = h.shape
  h = jnp.broadcast_to(h[:, :, None, :, None, :], (b, height, 2, width, 2, c))
  return h.reshape(b, 2 * height, 2 * width, c)


class _ResBlock(nn.Module):
  channels: int
  dropout: float
  dtype: jnp.dtype
  norm: _Norm = _DDPM_NORM
  scale_shift: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c_in"],
    time: Float[Array, "b time"],
    train: bool,
  ) -> Float[Array, "b h w c_out"]:
    group_norm = functools.partial(
      _group_norm, dtype=self.dtype, norm=self.norm
    )
    h = nn.silu(group_norm(x.shape[-1], name="norm_in")(x))
    h = _Conv3x3(self.channels, dtype=self.dtype, name="conv_in")(h)
    norm_out = group_norm(self.channels, name="norm_out")
    if self.scale_shift:
      both = _Dense(2 * self.channels, dtype=self.dtype, name="time")(time)
      scale, shift = jnp.split(both[:, None, None, :], 2, axis=-1)
      h = norm_out(h) * (1 + scale) + shift
    else:
      shift = _Dense(self.channels, dtype=self.dtype, name="time")(time)
      h = norm_out(h + shift[:, None, None, :])
    h = nn.silu(h)
    h = nn.Dropout(self.dropout, name="dropout")(h, deterministic=not train)
    h = _Conv3x3(
      self.channels,
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="conv_out",
    )(h)
    if x.shape[-1] != self.channels:
      x = _Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
    return x + h


class _Attention(nn.Module):
  """Self-attention over all pixels, with a residual."""

  dtype: jnp.dtype
  norm: _Norm = _DDPM_NORM
  num_heads: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    b, height, width, c = x.shape
    h = _group_norm(c, self.dtype, "norm", self.norm)(x)
    whole = (b, height * width, 1, c)
    heads = (b, height * width, self.num_heads, c // self.num_heads)
    h = h.reshape(whole)
    query = _Dense(c, dtype=self.dtype, name="query")(h).reshape(heads)
    key = _Dense(c, dtype=self.dtype, name="key")(h).reshape(heads)
    value = _Dense(c, dtype=self.dtype, name="value")(h).reshape(heads)
    h = jax.nn.dot_product_attention(query, key, value).reshape(whole)
    h = _Dense(
      c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="output"
    )(h)
    return x + h.reshape(x.shape)


class _UNet(nn.Module):
  channels: int
  channel_multipliers: tuple[int, ...]
  num_res_blocks: int
  attention_resolutions: tuple[int, ...]
  dropout: float
  dtype: jnp.dtype
  remat: bool
  conventions: Conventions
  num_groups: int
  num_heads: int
  scale_shift: bool
  time_scale: float

  @nn.compact
  def __call__(
    self, x_t: Float[Array, "b h w c"], t: Real[Array, " b"], train: bool
  ) -> Float[Array, "b h w c"]:
    levels = len(self.channel_multipliers)
    _check_sides(x_t.shape, levels)
    norm = _Norm(self.num_groups, self.conventions.epsilon)

    # With `self` counted as 0, argument 3 is the Python bool `train`.
    res_class = (
      nn.remat(_ResBlock, static_argnums=(3,)) if self.remat else _ResBlock
    )

    def res_block(h, channels, name):
      return res_class(
        channels,
        self.dropout,
        self.dtype,
        norm,
        self.scale_shift,
        name=f"{name}_res",
      )(h, time, train)

    def attention(h, name):
      return _Attention(
        self.dtype, norm, self.num_heads, name=f"{name}_attention"
      )(h)

    def res_then_attention(h, channels, name):
      h = res_block(h, channels, name)
      if h.shape[1] in self.attention_resolutions:
        h = attention(h, name)
      return h

    time = self._time_features(t)
    h = _Conv3x3(self.channels, dtype=self.dtype, name="conv_in")(x_t)
    skips = [h]

    for level, multiplier in enumerate(self.channel_multipliers):
      channels = self.channels * multiplier
      for i in range(self.num_res_blocks):
        h = res_then_attention(h, channels, f"down_{level}_{i}")
        skips.append(h)
      if level < levels - 1:
        h = _Conv3x3(
          channels,
          strides=2,
          padding=self.conventions.padding,
          dtype=self.dtype,
          name=f"downsample_{level}",
        )(h)
        skips.append(h)

    channels = self.channels * self.channel_multipliers[-1]
    h = res_block(h, channels, "middle_0")
    h = attention(h, "middle")
    h = res_block(h, channels, "middle_1")

    for level in reversed(range(levels)):
      channels = self.channels * self.channel_multipliers[level]
      for i in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = res_then_attention(h, channels, f"up_{level}_{i}")
      if level > 0:
        h = _Conv3x3(channels, dtype=self.dtype, name=f"upsample_{level}")(
          _upsample(h)
        )

    float32 = jnp.dtype("float32")
    h = nn.silu(_group_norm(h.shape[-1], float32, "norm_out", norm)(h))
    return _Conv3x3(
      x_t.shape[-1], kernel_init=nn.initializers.zeros, name="conv_out"
    )(h)

  def _time_features(self, t: Real[Array, " b"]) -> Float[Array, "b time"]:
    """The two-layer MLP on the embedding, and the silu before every use."""
    time = self.conventions.embed(self.time_scale * t, self.channels)
    time = nn.silu(_Dense(4 * self.channels, name="time_0")(time))
    return nn.silu(_Dense(4 * self.channels, name="time_1")(time))


def _check_sides(shape: tuple[int, ...], levels: int) -> None:
  """Raises unless height and width can be halved `levels - 1` times."""
  _, height, width, _ = shape
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
  """Returns the DDPM U-Net for images `[b, h, w, c]`.

  DDPM's CIFAR-10 network is `unet(128, (1, 2, 2, 2), 2, (16,), 0.1)`; it has
  35,746,307 parameters.

  Args:
    channels: at the first level, even and at least 4.
    channel_multipliers: of `channels`, one per level; each level after the
      first halves the sides.
    num_res_blocks: per level on the way down; the way up has one more.
    attention_resolutions: heights in pixels, of the feature maps that are
      followed by attention; those that do not occur have no effect. The middle
      always has attention.
    dropout: probability, in [0, 1).
    dtype: of the arithmetic, "float32", or a type of 16 bits. Parameters, group
      statistics, time features, the output layer and the output are always
      float32: the robust losses compare outputs that differ by less than 16
      bits can resolve.
    remat: recompute residual blocks in the backward pass, for less memory.
    conventions: a name in CONVENTIONS. This and what follows is for networks
      that were trained elsewhere.
    num_groups: of all group norms, a divisor of `channels`; 0: 32, or fewer
      in each layer that is too narrow for them.
    num_heads: of attention, a divisor of the channels where it is.
    scale_shift: the time scales and shifts each residual block's second norm
      (Nichol & Dhariwal 2021), in place of a shift before it.
    time_scale: what t is multiplied by before it is embedded.

  Examples:
    >>> network = rad_jax.unet(128, (1, 2, 2, 2), 2, (16,), dropout=0.1)
    >>> x_t, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    >>> shapes = jax.eval_shape(network.init, jax.random.key(0), x_t, t)
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
    35746307
  """
  return network.from_module(
    _UNet(
      channels,
      tuple(channel_multipliers),
      num_res_blocks,
      tuple(attention_resolutions),
      dropout,
      jnp.dtype(dtype),
      remat,
      CONVENTIONS[conventions],
      num_groups,
      num_heads,
      scale_shift,
      time_scale,
    )
  )
