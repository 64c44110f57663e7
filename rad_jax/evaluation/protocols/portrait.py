"""What a report draws of a model. No measures: arrays in portrait.npz.

path [n, b, ...], path_sigma_t [n]: states of the deterministic reverse flow
from the noise of samples 0 .. b - 1, at levels spread over the sampler's grid,
and after them the clean estimates of the last one.

Of worlds, the field in which samples move, on a grid of points in the plane
`synthetic.view`: field_points [k, 2], field_sigma_t [m]; field [m, k, 2], the
way -sigma eps_hat from a state to its clean estimate (sigma^2 times the
score), in that plane, and field_exact, where E[eps | x_t] stands for eps_hat.

Of images: samples [c, ...], and attacked, the same under protocol attack's
"joint" at the largest of evaluation.attack_budgets; dirty [c, ...], training
examples as the run saw them, and purified, what config.purify makes of them;
clean, what they were.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rad_jax.config import is_synthetic
from rad_jax.data import examples, synthetic
from rad_jax.data.training_set import evenly
from rad_jax.diffusion import process, samplers
from rad_jax.evaluation import purify
from rad_jax.evaluation.protocols import attack
from rad_jax.evaluation.subject import Result, Subject, whole_batches
from rad_jax.training import build

_STATES = 26
_PATHS = 64
_IMAGES = 12
_FIELD_SIGMAS = (0.1, 0.2, 0.4)
_FIELD_REACH = 1.3
_FIELD_SIDE = 17


def measure(subject: Subject) -> Result:
  """Writes the arrays into the run's folder."""
  arrays: dict[str, Any] = flow(subject)
  if is_synthetic(subject.config):
    arrays |= field(subject)
  else:
    arrays |= images(subject)
  np.savez_compressed(subject.model.workdir / "portrait.npz", **arrays)
  return Result({}, {})


def flow(subject: Subject) -> dict[str, np.ndarray]:
  """path and path_sigma_t."""
  config = subject.config
  grid = build.sampler_levels(config)
  shape = build.example_shape(config)
  places = evenly(len(grid.sigma), min(_STATES, len(grid.sigma)))
  index = np.arange(whole_batches(_PATHS), dtype=np.int32)

  def run(params, index):
    keys = samplers.sample_keys(build.keys(config).sampling, index)
    path = samplers.path(
      subject.eps_fn(params),
      grid,
      samplers.ddim(0.0),
      samplers.noise(grid, keys, shape),
      keys,
      config.sampling.clip_x_0 or None,
    )
    return jnp.concatenate([path.x_t[places], path.x_0_hat[-1:]])

  return {
    "path": subject.run(run, index)[:, :_PATHS],
    "path_sigma_t": np.asarray(process.unit_sigma(grid))[places],
  }


def field(subject: Subject) -> dict[str, np.ndarray]:
  """field, field_exact, field_points and field_sigma_t."""
  view = synthetic.view(build.example_shape(subject.config)[0])
  side = np.linspace(-_FIELD_REACH, _FIELD_REACH, _FIELD_SIDE)
  points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
  x_t = (points @ view).astype(np.float32)
  padded = np.resize(x_t, (whole_batches(len(x_t)), x_t.shape[1]))
  grid = build.sampler_levels(subject.config)
  sigma_t = np.asarray(process.unit_sigma(grid))
  places = [int(np.argmin(np.abs(sigma_t - sigma))) for sigma in _FIELD_SIGMAS]
  predict = lambda params, x_t, level: subject.eps_fn(params)(x_t, level)
  found, exact = [], []
  for place in places:
    level = jax.tree.map(
      lambda column, n=place: jnp.full(len(padded), column[n]), grid
    )
    eps_hat = subject.run(predict, padded, level)[: len(x_t)]
    alpha, sigma = float(grid.alpha[place]), float(grid.sigma[place])
    found.append(-sigma * eps_hat @ view.T)
    x_0_hat = subject.truth.denoise(x_t.astype(np.float64), alpha, sigma)
    exact.append((alpha * x_0_hat - x_t) @ view.T)
  return {
    "field_points": points,
    "field_sigma_t": sigma_t[places],
    "field": np.stack(found),
    "field_exact": np.stack(exact),
  }


def images(subject: Subject) -> dict[str, np.ndarray]:
  """samples, attacked, clean, dirty and purified."""
  budget = max(subject.config.evaluation.attack_budgets)
  dirty = purify.dirty_examples(subject, _IMAGES)
  index = np.arange(len(dirty), dtype=np.int32)
  return {
    "samples": attack.sampler(subject, None)(0.0)[:_IMAGES],
    "attacked": attack.sampler(subject, "joint")(budget)[:_IMAGES],
    "clean": examples.to_model_range(subject.training_set.fetch(index)),
    "dirty": dirty,
    "purified": purify.purified(subject, dirty),
  }
