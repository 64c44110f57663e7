"""What a config's lambda and radius will do, before any training.

By the closed form of robustness.shrinkage. It is exact for a linear network,
Gaussian data, the equivariant target eps_hat + w (`applies`) and a w that is
random. For other objectives it tells what that target would do with the
config's numbers. For adversarial w it takes each direction to get its share;
an attack gives most of it to directions in which the network is far from
equivariant: of them the shrinkage is understated, of the others overstated.
"""

import json
import math
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rad_jax.config import ConfigDict
from rad_jax.diffusion import process as processes
from rad_jax.diffusion import schedules
from rad_jax.diffusion.process import Level
from rad_jax.robustness import objectives, radius, shrinkage
from rad_jax.training import build

LAMBDAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
# Standard deviations of the training data along a direction, model units.
STDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_CURVE_LEVELS = 50


class Law(NamedTuple):
  """How w is spread: a name in shrinkage.LAWS, in so many radii."""

  name: str
  reach: float


def hint(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Evaluates the closed form for a config, and writes workdir/hint.json.

  The sampler is DDIM's: "ddpm" is taken at eta 1, "euler" and "heun" at eta 0;
  clean estimates are not clipped.

  Returns:
    data, objective, lam, law, reach, eta, num_steps, applies; stds [k], in
    model units; rows, each with lam, own (whether it is the config's) and
    ratios [k], standard deviation of samples over the data's; halving [k],
    the lambda that leaves half of it, None where none does; and curves:
    sigma_t [m] and readings, each with radius, beta_role, lambda_t, own, r
    [m] in noise units, lam_t [m], and mean_shift [m], mean |sigma w_i| in
    state units.
  """
  fields, law, eta = config.objective, law_of_w(config), _eta(config)
  levels = schedules.stopped(
    build.process(config).grid(config.sampling.num_steps),
    config.sampling.stop_sigma,
  )
  r = radii(config, levels)
  unit_lam_t = lambdas(fields.lambda_t, 1.0, r)
  rho = shrinkage.std_of_w(law.reach * r, law.name)
  alpha, sigma = (
    np.asarray(x, np.float64) for x in (levels.alpha, levels.sigma)
  )

  def ratios(lam: float) -> list[float]:
    lam_t = lam * unit_lam_t
    return [
      math.sqrt(shrinkage.sampled_variance(q**2, alpha, sigma, lam_t, rho, eta))
      / q
      for q in STDS
    ]

  def halving(q: float) -> float | None:
    try:
      return shrinkage.lambda_for(0.5, q**2, alpha, sigma, unit_lam_t, rho, eta)
    except ValueError:
      return None

  target = objectives.OBJECTIVES[fields.name].target
  result = {
    "data": config.data.name,
    "objective": fields.name,
    "lam": fields.lam,
    "law": law.name,
    "reach": law.reach,
    "eta": eta,
    "num_steps": len(alpha),
    "applies": target is objectives.equivariant,
    "stds": list(STDS),
    "rows": [
      {"lam": lam, "own": lam == fields.lam, "ratios": ratios(lam)}
      for lam in sorted({*LAMBDAS, fields.lam})
    ],
    "halving": [halving(q) for q in STDS],
    "curves": curves(config, law),
  }
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "hint.json").write_text(json.dumps(result, indent=2) + "\n")
  return result


def law_of_w(config: ConfigDict) -> Law:
  """The law of the config's w.

  Attacks with gradient steps are taken to end at corners, unprojected ones at
  the farthest. So is the l2 ball, of which nearly all is near its surface. An
  objective without w is given a uniform one.
  """
  attack = build.attack(config)
  if attack is None:
    objective = objectives.OBJECTIVES[config.objective.name]
    name = config.attack.name or objective.attack
    return Law("gaussian" if name == "gaussian" else "uniform", 1.0)
  if attack.num_steps == 0:
    name = "uniform" if attack.norm == "linf" else "corner"
    return Law(name, float(attack.start))
  if attack.project:
    return Law("corner", 1.0)
  return Law(
    "corner", float(attack.start + attack.num_steps * attack.step_size)
  )


def radii(config: ConfigDict, levels: Level) -> np.ndarray:
  """r at each level: float64 [n], noise units."""
  r = build.radius_of(config)(processes.unit_sigma(levels))
  return np.asarray(r, np.float64)


def lambdas(name: str, lam: float, r: np.ndarray) -> np.ndarray:
  """lambda_t at radii r: float64 [n]."""
  return np.asarray(
    radius.LAMBDAS[name](lam, jnp.asarray(r, jnp.float32)), np.float64
  )


def readings(config: ConfigDict) -> list[dict[str, Any]]:
  """Every combination of radius, beta_role and lambda_t that differs.

  The radius "constant" is beta in either role and stands once; `own` marks
  the config's.
  """
  fields = config.objective
  return [
    {
      "radius": shape,
      "beta_role": role,
      "lambda_t": name,
      "own": (shape, name) == (fields.radius, fields.lambda_t)
      and (shape == "constant" or role == fields.beta_role),
    }
    for shape in radius.RADII
    for role in ("additive", "multiplicative")
    for name in radius.LAMBDAS
    if shape != "constant" or role == "additive"
  ]


def curves(config: ConfigDict, law: Law) -> dict[str, Any]:
  """r, lambda_t and the mean shift over the noise levels, by reading."""
  count = _CURVE_LEVELS
  if config.diffusion.process == "ddpm":
    count = min(count, config.diffusion.num_timesteps)
  levels = build.process(config).grid(count)
  sigma = np.asarray(levels.sigma, np.float64)

  def curve(reading: dict[str, Any]) -> dict[str, Any]:
    of_reading = _override(
      config, radius=reading["radius"], beta_role=reading["beta_role"]
    )
    r = radii(of_reading, levels)
    size = shrinkage.mean_size_of_w(law.reach * r, law.name)
    lam_t = lambdas(reading["lambda_t"], config.objective.lam, r)
    return {
      **reading,
      "r": r.tolist(),
      "lam_t": lam_t.tolist(),
      "mean_shift": (sigma * size).tolist(),
    }

  return {
    "sigma_t": np.asarray(processes.unit_sigma(levels), np.float64).tolist(),
    "readings": [curve(reading) for reading in readings(config)],
  }


def _override(config: ConfigDict, **objective) -> ConfigDict:
  config = config.copy_and_resolve_references()
  config.objective.update(objective)
  return config


def _eta(config: ConfigDict) -> float:
  sampling = config.sampling
  return {"ddpm": 1.0, "ddim": float(sampling.eta)}.get(sampling.sampler, 0.0)
