"""What a report draws of a model. No measures: arrays in portrait.npz."""

import numpy as np

from rad_jax import files
from rad_jax.data import synthetic
from rad_jax.data.training_set import evenly
from rad_jax.diffusion import process
from rad_jax.evaluation import purify, sampling
from rad_jax.evaluation.protocols import attack, levels
from rad_jax.evaluation.subject import Result, Subject

_STATES = 26
_PATHS = 64
_IMAGES = 12
_FIELD_SIGMAS = (0.1, 0.2, 0.4)
_FIELD_REACH = 1.3
_FIELD_SIDE = 17


def measure(subject: Subject) -> Result:
  """Writes the arrays into the run's folder."""
  rest = field if subject.run.is_synthetic else images
  path = subject.model.workdir / "portrait.npz"
  files.write_npz(path, **flow(subject), **rest(subject))
  return Result({}, {}, {})


def flow(subject: Subject) -> dict[str, np.ndarray]:
  """path [n, b, ...]: states at path_sigma_t, then the last clean estimates."""
  grid = sampling.levels(subject.run)
  places = evenly(len(grid.sigma), min(_STATES, len(grid.sigma)))
  path = levels.paths(subject, _PATHS)
  return {
    "path": np.concatenate([path.x_t[places], path.x_0_hat[-1:]]),
    "path_sigma_t": np.asarray(process.unit_sigma(grid))[places],
  }


def field(subject: Subject) -> dict[str, np.ndarray]:
  """The ways -sigma eps_hat from points of a plane to the clean estimates.

  field [m, k, 2] from field_points [k, 2] of `synthetic.view`, at field_sigma_t
  [m]; field_exact has E[eps | x_t] for eps_hat.
  """
  view = synthetic.view(subject.run.example_shape[0])
  side = np.linspace(-_FIELD_REACH, _FIELD_REACH, _FIELD_SIDE)
  points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
  x_t = (points @ view).astype(np.float32)
  grid = sampling.levels(subject.run)
  estimate = levels.noise_estimate(subject, grid)
  sigma_t = np.asarray(process.unit_sigma(grid))
  places = [int(np.argmin(np.abs(sigma_t - sigma))) for sigma in _FIELD_SIGMAS]
  found, exact = [], []
  for place in places:
    alpha, sigma = float(grid.alpha[place]), float(grid.sigma[place])
    found.append(-sigma * estimate(x_t, place) @ view.T)
    x_0_hat = subject.reference.denoise(x_t.astype(np.float64), alpha, sigma)
    exact.append((alpha * x_0_hat - x_t) @ view.T)
  return {
    "field_points": points,
    "field_sigma_t": sigma_t[places],
    "field": np.stack(found),
    "field_exact": np.stack(exact),
  }


def images(subject: Subject) -> dict[str, np.ndarray]:
  """samples, attacked, clean, dirty and purified."""
  budget = max(subject.run.evaluation.attack_budgets)
  clean, dirty = subject.first(_IMAGES)
  return {
    "samples": attack.sampler(subject, None)(0.0, 0)[:_IMAGES],
    "attacked": attack.sampler(subject, "error")(budget, 0)[:_IMAGES],
    "clean": clean,
    "dirty": dirty,
    "purified": purify.purified(subject, dirty),
  }
