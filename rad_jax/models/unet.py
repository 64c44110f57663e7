"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B), NHWC.

Where the paper is silent the authors' published code decides: kernels are
drawn by uniform variance scaling over the average fan, and the last layer of
each residual branch, of each attention block and of the network starts at
zero, so that an untrained network returns 0.
"""

import functools
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


class Conventions(NamedTuple):
  """What published U-Nets of one shape do differently.

  epsilon: of the group norms. padding: of the convolutions that halve the
  sides. embed: (t [b], features) -> the sinusoidal embedding [b, features].
  """

  epsilon: float
  padding: str | tuple[tuple[int, int], ...]
  embed: Callable[..., Array]


CONVENTIONS = {
  # Ho et al. 2020, and the google/ddpm-* models in diffusers' layout.
  "ddpm": Conventions(1e-6, "SAME", embedding.sines_first),
  # Nichol & Dhariwal 2021 (improved-diffusion), and diffusers' own defaults.
  "improved": Conventions(1e-5, ((1, 1), (1, 1)), embedding.cosines_first),
}


def _upsample(h: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
  """Doubles both sides by nearest neighbour."""
  b, height, width, c = h.shape
  h = jnp.broadcast_to(h[:, :, None, :, None, :], (b, height, 2, width, 2, c))
  return h.reshape(b, 2 * height, 2 * width, c)


class _ResBlock(nn.Module):
  channels: int
  dropout: float
  dtype: jnp.dtype
  num_groups: int
  epsilon: float
  scale_shift: bool

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c_in"],
    time: Float[Array, "b time"],
    train: bool,
  ) -> Float[Array, "b h w c_out"]:
    norm = functools.partial(
      normalisation.GroupNorm, self.num_groups, self.dtype, self.epsilon
    )
    conv = functools.partial(_Conv3x3, self.channels, dtype=self.dtype)
    dense = functools.partial(_Dense, dtype=self.dtype)
    h = conv(name="conv_in")(nn.silu(norm(name="norm_in")(x)))
    if self.scale_shift:
      both = dense(2 * self.channels, name="time")(time)
      scale, shift = jnp.split(both[:, None, None, :], 2, axis=-1)
      h = norm(name="norm_out")(h) * (1 + scale) + shift
    else:
      shift = dense(self.channels, name="time")(time)
      h = norm(name="norm_out")(h + shift[:, None, None, :])
    h = nn.silu(h)
    h = nn.Dropout(self.dropout, name="dropout")(h, deterministic=not train)
    h = conv(kernel_init=nn.initializers.zeros, name="conv_out")(h)
    if x.shape[-1] != self.channels:
      x = dense(self.channels, name="shortcut")(x)
    return x + h


class _Attention(nn.Module):
  """Self-attention over all pixels, with a residual."""

  dtype: jnp.dtype
  num_groups: int = 0
  epsilon: float = CONVENTIONS["ddpm"].epsilon
  num_heads: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    b, height, width, c = x.shape
    whole = (b, height * width, 1, c)
    heads = (b, height * width, self.num_heads, c // self.num_heads)
    dense = functools.partial(_Dense, c, dtype=self.dtype)
    h = normalisation.GroupNorm(
      self.num_groups, self.dtype, self.epsilon, name="norm"
    )(x).reshape(whole)
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
    widths = [self.channels * m for m in self.channel_multipliers]
    _, height, width, _ = x_t.shape
    factor = 2 ** (len(widths) - 1)
    if height % factor or width % factor:
      raise ValueError(
        f"The image sides {height}x{width} must be divisible by {factor} = "
        f"2**(levels - 1) for a U-Net with {len(widths)} levels."
      )
    conv = functools.partial(_Conv3x3, dtype=self.dtype)
    time = self._time_features(t)
    residual = functools.partial(self._residual, time=time, train=train)

    def block(h, width, name):
      h = residual(h, width, name)
      attends = h.shape[1] in self.attention_resolutions
      return self._attention(h, name) if attends else h

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
          padding=self.conventions.padding,
          name=f"downsample_{level}",
        )(h)
        skips.append(h)

    h = residual(h, widths[-1], "middle_0")
    h = self._attention(h, "middle")
    h = residual(h, widths[-1], "middle_1")

    for level, width in reversed([*enumerate(widths)]):
      for i in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, width, f"up_{level}_{i}")
      if level > 0:
        h = conv(width, name=f"upsample_{level}")(_upsample(h))

    epsilon, float32 = self.conventions.epsilon, jnp.dtype("float32")
    h = normalisation.GroupNorm(
      self.num_groups, float32, epsilon, name="norm_out"
    )(h)
    return _Conv3x3(
      x_t.shape[-1], kernel_init=nn.initializers.zeros, name="conv_out"
    )(nn.silu(h))

  def _time_features(self, t: Real[Array, " b"]) -> Float[Array, "b time"]:
    """The two-layer MLP on the embedding, and the silu before every use."""
    time = self.conventions.embed(self.time_scale * t, self.channels)
    time = nn.silu(_Dense(4 * self.channels, name="time_0")(time))
    return nn.silu(_Dense(4 * self.channels, name="time_1")(time))

  def _residual(
    self, h: Array, channels: int, name: str, time: Array, train: bool
  ) -> Array:
    # With `self` counted as 0, argument 3 is the Python bool `train`.
    block = (
      nn.remat(_ResBlock, static_argnums=(3,)) if self.remat else _ResBlock
    )
    return block(
      channels,
      self.dropout,
      self.dtype,
      self.num_groups,
      self.conventions.epsilon,
      self.scale_shift,
      name=f"{name}_res",
    )(h, time, train)

  def _attention(self, h: Array, name: str) -> Array:
    return _Attention(
      self.dtype,
      self.num_groups,
      self.conventions.epsilon,
      self.num_heads,
      name=f"{name}_attention",
    )(h)


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
    channel_multipliers: one per level; each after the first halves the sides.
    num_res_blocks: per level on the way down; the way up has one more.
    attention_resolutions: heights in pixels of the feature maps that are
      followed by attention. The middle always has attention.
    dropout: probability, in [0, 1).
    dtype: of the arithmetic. Parameters, group statistics, time features, the
      output layer and the output are always float32: the robust losses compare
      outputs that differ by less than 16 bits can resolve.
    remat: recompute residual blocks in the backward pass, for less memory.
    conventions: a name in CONVENTIONS. This and what follows is for networks
      that were trained elsewhere.
    num_groups: of all group norms, a divisor of `channels`; 0: see
      `normalisation.default_groups`.
    num_heads: of attention, a divisor of the channels where it is.
    scale_shift: the time scales and shifts each residual block's second norm
      (Nichol & Dhariwal 2021), in place of a shift before it.
    time_scale: what t is multiplied by before it is embedded.

  Raises:
    ValueError: in `init` and `apply`: the sides cannot be halved that often.
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
