"""Training steps, ours beside the peer's, in turns."""

import importlib.util
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import ours, settings, timing
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.training import chips, passes
from rad_jax.training.state import num_parameters

OBJECTIVES = ("ddpm", "robust_ran", "robust_adv")
CHEAP: dict[str, dict[str, object]] = {
  "half batch": {"regulariser.batch_fraction": 0.5},
  "free, 2 replays": {"regulariser.free_replays": 2},
  "bfloat16 attack": {"attack.dtype": "bfloat16"},
}
PEERS = ("eager", "compiled")


def rows(
  name: str,
  dtype: str,
  batch_size: int,
  rounds: int,
  objectives: Sequence[str],
  cheap: bool,
  peers: tuple[str, ...] = PEERS,
) -> list[dict]:
  """One row for each objective of one setting, ours and the peer's.

  Args:
    name: of settings.SETTINGS.
    dtype: compute type of the network.
    batch_size: 0 is the setting's own.
    rounds: of timing.
    objectives: of OBJECTIVES, what is timed beside ddpm.
    cheap: whether the cheap schemes are timed as well.
    peers: of the peer, what is timed: "eager", "compiled".
  """
  configs = {
    objective: settings.load(name, objective, dtype, batch_size)
    for objective in OBJECTIVES
    if objective in ("ddpm", *objectives)
  }
  if cheap:
    for scheme, changes in CHEAP.items():
      configs[scheme] = settings.load(name, "robust_adv", dtype, batch_size)
      configs[scheme].update_from_flattened_dict(changes)
  contenders = {objective: ours.step(c) for objective, c in configs.items()}
  if configs["ddpm"].model.name == "unet" and _has_peer():
    contenders |= _peers(configs, peers)
  times = timing.interleaved(contenders, rounds)
  return [_row(name, dtype, who, configs, times) for who in times]


def _has_peer() -> bool:
  return all(map(importlib.util.find_spec, ("torch", "diffusers")))


def _peers(
  configs: dict[str, ConfigDict], peers: tuple[str, ...]
) -> timing.Contenders:
  import torch

  from benchmarks import peer

  contenders: timing.Contenders = {}
  config = configs["ddpm"]
  for kind in peers:
    model = peer.network(config).train()
    expected = num_parameters(_state(config))
    if peer.num_parameters(model) != expected:
      raise AssertionError(
        f"the peer has {peer.num_parameters(model):,} parameters and ours"
        f" {expected:,}"
      )
    predict = torch.compile(model) if kind == "compiled" else model
    contenders |= {
      f"torch {kind}, {objective}": peer.step(
        configs[objective], model, predict
      )
      for objective in OBJECTIVES
      if objective in configs
    }
  return contenders


def _state(config: ConfigDict):
  return jax.eval_shape(runs.build(config).initial_state)


def _row(
  name: str,
  dtype: str,
  who: str,
  configs: dict[str, ConfigDict],
  times: timing.Times,
) -> dict:
  *kind, objective = who.split(", ", 1) if who.startswith("torch") else [who]
  config = configs[objective]
  run = runs.build(config)
  seconds = float(np.median(times[who]))
  row = {
    "benchmark": "train",
    "setting": name,
    "dtype": dtype,
    "batch_size": config.train.batch_size,
    "library": kind[0] if kind else "rad_jax",
    "objective": objective,
    "seconds": seconds,
    "quartiles": np.percentile(times[who], (25, 75)).tolist(),
    "examples_per_second": config.train.batch_size / seconds,
    # What it costs over its own library's DDPM, and what it needs at least.
    "over_ddpm": timing.ratio(times, who, ", ".join([*kind, "ddpm"])),
    "passes_over_ddpm": run.step_passes / 3,
    "over_rad_jax": timing.ratio(times, who, objective),
  }
  if config.model.name == "unet":
    flops = run.step_passes * config.train.batch_size
    flops *= passes.flops(run.network, run.initial_state, run.example_shape)
    row["tflops_per_second"] = flops / seconds / 1e12
    peak = chips.peak_flops(jax.devices()[0])
    if peak and dtype == "bfloat16":
      row["share_of_peak"] = flops / seconds / peak
  return row
