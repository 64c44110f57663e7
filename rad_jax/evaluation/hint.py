"""What a config's lambda and radius will do, before any training.

By robustness.shrinkage, exact for a linear network on Gaussian data, the
equivariant target eps_hat + w (`applies`) and random w. Under an attack the
directions far from equivariant shrink more than it says, the others less.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rad_jax import files
from rad_jax.data import corruptions
from rad_jax.diffusion import process as processes
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import sampling
from rad_jax.robustness import objectives, radius, shrinkage
from rad_jax.run import Run

LAMBDAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
# Standard deviations of the training data along a direction, model units.
STDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_CURVE_LEVELS = 50
# Of dirt that is not known.
_STD = 0.1
# Where a U-Net on images is begun with: at 3 it collapsed.
_CAUTIOUS = 0.3


class Law(NamedTuple):
  """How w is spread: a name in shrinkage.LAWS, in units of `reach` radii."""

  name: str
  reach: float


def hint(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
  """Evaluates the closed form for a run; writes and returns hint.json.

  For DDIM, unclipped. `ratios` are samples' stds over the data's.
  """
  fields, law, noise = run.objective, law_of_w(run), _noise(run)
  levels = sampling.levels(run)
  r = radii(run, levels, fields.radius, fields.beta_role)
  unit_lam_t = _lambdas(fields.lambda_t, 1.0, r)
  rho = shrinkage.std_of_w(law.reach * r, law.name)
  alpha, sigma = (
    np.asarray(x, np.float64) for x in (levels.alpha, levels.sigma)
  )

  def ratio(q: float, lam: float) -> float:
    lam_t = lam * unit_lam_t
    variance = shrinkage.sampled_variance(
      q**2, alpha, sigma, lam_t, rho, **noise
    )
    return math.sqrt(variance) / q

  def halving(q: float) -> float | None:
    try:
      return shrinkage.lambda_for(
        0.5, q**2, alpha, sigma, unit_lam_t, rho, **noise
      )
    except ValueError:
      return None

  result = {
    "data": run.data.name,
    "objective": fields.name,
    "lam": fields.lam,
    "law": law.name,
    "reach": law.reach,
    **noise,
    "num_steps": len(alpha),
    "applies": run.method.objective.target is objectives.equivariant,
    "stds": list(STDS),
    "rows": [
      {
        "lam": lam,
        "own": lam == fields.lam,
        "ratios": [ratio(q, lam) for q in STDS],
      }
      for lam in sorted({*LAMBDAS, fields.lam})
    ],
    "halving": [halving(q) for q in STDS],
    "advice": _advice(run, ratio, halving),
    "curves": curves(run, law),
  }
  files.write_json(workdir / "hint.json", result)
  return result


def _advice(
  run: Run,
  ratio: Callable[[float, float], float],
  halving: Callable[[float], float | None],
) -> dict[str, Any]:
  """The lambda to begin with, None if none halves dirt of std `std`.

  known: whether std is the config's own; left, kept: `ratio` at std and at 1.
  """
  fields = run.config["data"]["corruption"]
  known = fields["kind"] == "gaussian" and fields["fraction"] > 0
  strength = (fields[name] for name in ("kind", "sigma", "severity"))
  std = corruptions.strength_of(*strength) if known else _STD
  halves = halving(std)
  cautious = run.config["model"]["name"] == "unet" and not run.data.linear_rank
  lam = _CAUTIOUS if cautious else halves and float(f"{halves:.2g}")
  return {
    "std": std,
    "known": known,
    "cautious": cautious,
    "lam": lam,
    "left": ratio(std, lam or 0.0),
    "kept": ratio(1.0, lam or 0.0),
  }


def law_of_w(run: Run) -> Law:
  """The law of the run's w; uniform for an objective without one.

  Attacks with gradient steps are taken to end at corners, unprojected ones at
  the farthest. So is a random w in the l2 ball, mostly near its surface.
  """
  attack = run.attack
  if attack is None:
    name = run.config["attack"]["name"] or run.method.objective.attack
    return Law("gaussian" if name == "gaussian" else "uniform", 1.0)
  if attack.num_steps == 0:
    name = "uniform" if attack.norm == "linf" else "corner"
    return Law(name, float(attack.start))
  if attack.project:
    return Law("corner", 1.0)
  reach = attack.start + attack.num_steps * attack.step_size
  return Law("corner", float(reach))


def radii(run: Run, levels: Level, shape: str, beta_role: str) -> np.ndarray:
  """r at each level by a reading of radius and beta: float64 [n]."""
  fields = run.objective
  r = radius.radius(
    processes.unit_sigma(levels),
    sigma_max=processes.unit_sigma(run.process.grid(1))[0],
    shape=shape,
    omega=fields.omega,
    beta=fields.beta,
    multiplicative=beta_role == "multiplicative",
    in_state_units=fields.radius_units == "state",
  )
  return np.asarray(r, np.float64)


def curves(run: Run, law: Law) -> dict[str, Any]:
  """sigma_t [m], and for each reading r, lam_t and the mean |sigma w_i|."""
  fields, diffusion = run.objective, run.config["diffusion"]
  count = _CURVE_LEVELS
  if diffusion["process"] == "ddpm":
    count = min(count, diffusion["num_timesteps"])
  levels = run.process.grid(count)
  sigma = np.asarray(levels.sigma, np.float64)

  def curve(shape: str, beta_role: str, lambda_t: str) -> dict[str, Any]:
    r = radii(run, levels, shape, beta_role)
    size = shrinkage.mean_size_of_w(law.reach * r, law.name)
    own = (shape, lambda_t) == (fields.radius, fields.lambda_t)
    return {
      "radius": shape,
      "beta_role": beta_role,
      "lambda_t": lambda_t,
      "own": own and (shape == "constant" or beta_role == fields.beta_role),
      "r": r.tolist(),
      "lam_t": _lambdas(lambda_t, fields.lam, r).tolist(),
      "mean_shift": (sigma * size).tolist(),
    }

  return {
    "sigma_t": np.asarray(processes.unit_sigma(levels), np.float64).tolist(),
    "readings": [
      curve(shape, beta_role, lambda_t)
      for shape in radius.RADII
      for beta_role in ("additive", "multiplicative")
      for lambda_t in radius.LAMBDAS
      if shape != "constant" or beta_role == "additive"
    ],
  }


def _lambdas(name: str, lam: float, r: np.ndarray) -> np.ndarray:
  """lambda_t at radii r: float64 [n]."""
  lam_t = radius.LAMBDAS[name](lam, jnp.asarray(r, jnp.float32))
  return np.asarray(lam_t, np.float64)


def _noise(run: Run) -> dict[str, Any]:
  """The noise of the run's sampler, as shrinkage.sampled_variance has it."""
  chosen = run.sampling
  ancestral = chosen.sampler == "ddpm"
  eta = {"ddpm": 1.0, "ddim": float(chosen.eta)}.get(chosen.sampler, 0.0)
  return {"eta": eta, "large": ancestral and chosen.variance == "large"}
