"""Noise processes: which levels a run trains on, and which a sampler visits.

DDPM's timesteps are 0 .. T-1, the literature's minus one. Tables are float64,
cast last: cumulated in float32, 1 - alpha_bar_0 is off by 1.7e-4.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int, Key

from rad_jax.diffusion.process import Level

AlphaBar = Float64[np.ndarray, " t"]  # decreasing in (0, 1)


class Process(NamedTuple):
  """A noise process: levels to train at, and to sample through."""

  draw: Callable[[Key[Array, " b"]], Level]  # one key an example -> levels [b]
  grid: Callable[[int], Level]  # num_steps -> levels, most noise first, no data


def linear_alpha_bar(num_timesteps: int) -> AlphaBar:
  """alpha_bar of betas linear from 1e-4 to 0.02 (Ho et al. 2020, section 4).

  Both scale with 1000 / T (Nichol & Dhariwal 2021, code): same end at any T.
  """
  scale = 1000 / num_timesteps
  if num_timesteps <= 20:
    raise ValueError(
      f"the linear schedule needs num_timesteps > 20, got {num_timesteps}"
    )
  return np.cumprod(1 - np.linspace(1e-4 * scale, 0.02 * scale, num_timesteps))


def cosine_alpha_bar(num_timesteps: int) -> AlphaBar:
  """alpha_bar of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17)."""
  u = np.arange(num_timesteps + 1) / num_timesteps
  f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
  beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
  return np.cumprod(1 - beta)


ALPHA_BAR = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}


def ddpm(alpha_bar: np.ndarray) -> Process:
  """DDPM: alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), t uniform."""
  alpha_bar = np.asarray(alpha_bar, np.float64)
  time, input_scale = np.arange(len(alpha_bar)), np.ones(len(alpha_bar))
  table = _level(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), time, input_scale)

  at = lambda t: jax.tree.map(lambda column: column[t], table)
  one = lambda key: jax.random.randint(key, (), 0, len(alpha_bar))
  return Process(
    draw=lambda keys: at(jax.vmap(one)(keys)),
    grid=lambda num_steps: at(respaced_timesteps(len(alpha_bar), num_steps)),
  )


def respaced_timesteps(
  num_timesteps: int, num_steps: int
) -> Int[np.ndarray, " n"]:
  """Evenly from T-1 down to 0: our choice; DDIM's code has a fixed stride."""
  if not 1 <= num_steps <= num_timesteps:
    raise ValueError(
      f"sampling takes 1 to {num_timesteps} steps, got {num_steps}"
    )
  if num_steps == 1:
    return np.array([num_timesteps - 1])
  return np.rint(np.linspace(num_timesteps - 1, 0, num_steps)).astype(int)


def edm(
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  sigma_data: float = 0.5,
  log_mean: float = -1.2,
  log_std: float = 1.2,
  rho: float = 7.0,
) -> Process:
  """EDM: alpha = 1, ln sigma normal in training (Karras et al. 2022, table 1).

  A sampler's levels are even in sigma^(1 / rho). The network's input is scaled
  by c_in; its time is c_noise = ln(sigma) / 4, brought to DDPM's 0 to 999.
  """

  def level(sigma, xp):
    low, high = np.log(sigma_min), np.log(sigma_max)
    return Level(
      alpha=xp.ones_like(sigma),
      sigma=sigma,
      time=999 * (xp.log(sigma) - low) / (high - low),
      input_scale=1 / xp.hypot(sigma, sigma_data),
    )

  def draw(keys):
    z = jax.vmap(jax.random.normal)(keys)
    return level(jnp.exp(log_mean + log_std * z), jnp)

  def grid(num_steps):
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _level(*level(np.linspace(*ends, num_steps) ** rho, np))

  return Process(draw, grid)


def flow(time: str = "uniform", end: float = 1e-3) -> Process:
  """Flow matching's straight path: alpha = 1 - t, sigma = t (Liu et al. 2022).

  Some texts reverse t. It is "uniform" or "logit_normal" (Esser et al. 2024,
  section 3.1), and keeps `end` from 0 and 1, where x_t hides eps or x_0.
  """
  level = lambda t, xp: Level(1 - t, t, 999 * t, xp.ones_like(t))

  def draw(keys):
    if time == "logit_normal":
      t = jax.nn.sigmoid(jax.vmap(jax.random.normal)(keys))
    else:
      t = jax.vmap(jax.random.uniform)(keys)
    return level(end + (1 - 2 * end) * t, jnp)

  def grid(num_steps):
    return _level(*level(np.linspace(1 - end, end, num_steps), np))

  return Process(draw, grid)


_EDM = ("sigma_min", "sigma_max", "sigma_data", "log_mean", "log_std", "rho")
# Settings of all processes, by name -> the process.
PROCESSES: dict[str, Callable[[Mapping[str, Any]], Process]] = {
  "ddpm": lambda s: ddpm(ALPHA_BAR[s["schedule"]](s["num_timesteps"])),
  "edm": lambda s: edm(**{name: s[name] for name in _EDM}),
  "flow": lambda s: flow(s["time"]),
}


def stopped(levels: Level, sigma: float) -> Level:
  """Levels of sigma_t / alpha_t >= the data's sigma (Daras et al. 2024)."""
  keep = np.asarray(levels.sigma / levels.alpha) >= sigma
  if not keep.any():
    raise ValueError(f"no noise level of the sampler reaches sigma {sigma}")
  return jax.tree.map(lambda column: column[keep], levels)


def _level(*columns: np.ndarray) -> Level:
  """Float32 on the device, from float64 tables."""
  return Level(*(jnp.asarray(column, jnp.float32) for column in columns))
