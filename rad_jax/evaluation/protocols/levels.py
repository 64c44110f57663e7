"""A model against the truth by level of the sampler's grid: DDPM's sigma_t."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rad_jax.data.training_set import evenly
from rad_jax.diffusion import process, samplers
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import measures, purify, sampling
from rad_jax.evaluation.subject import Result, Subject, columns


def reconstruction(subject: Subject) -> Result:
  """Noise clean examples up to a level and come back, without further noise."""
  x_0, grid = _clean(subject), sampling.levels(subject.run)

  def row(place: int) -> dict[str, float]:
    levels = jax.tree.map(lambda column: column[place:], grid)
    back = purify.there_and_back(subject, x_0, levels, samplers.ddim(0.0))
    rms = float(np.sqrt(np.mean(np.square(back - x_0, dtype=np.float64))))
    flat, project = back.reshape(len(back), -1), subject.reference.project
    return {
      "reconstruction_rms": rms,
      "reconstruction_psnr_db": float(-20 * np.log10(rms / 2)),
      "reconstruction_support_rms": measures.support_rms(flat, project),
    }

  return _by_level(subject, grid, row)


def flow(subject: Subject) -> Result:
  """The deterministic reverse flow from noise to data, states on the way.

  path_straightness, chord over path_length, is 1 for a straight line; curves
  are RMS distances from alpha m and from m, the clean data's mean.
  """
  grid = sampling.levels(subject.run)
  path = paths(subject, len(_clean(subject)))
  mean = subject.reference.examples.mean(axis=0).astype(np.float64)
  found, curves = flow_measures(path, grid, mean, _places(subject, grid))
  return Result(found, _sigma_t(subject, grid) | curves, {})


def paths(subject: Subject, count: int) -> samplers.Path:
  """The deterministic flow from the noise of samples 0 .. count - 1."""
  run = sampling.changed(subject.run, sampler="ddim", eta=0.0)

  def follow(params, index):
    return samplers.path(*sampling.chain(run, params, index))

  index = np.arange(count, dtype=np.int32)
  return subject.over_devices(follow, index, axis=1)


def flow_measures(
  path: samplers.Path, grid: Level, mean: np.ndarray, places: np.ndarray
) -> tuple[dict[str, float], dict[str, list]]:
  """`flow`'s, of a path [n, b, ...] over the grid [n]; curves at `places`."""
  states, estimates = (
    np.asarray(x, np.float64).reshape(*x.shape[:2], -1)
    for x in (path.x_t, path.x_0_hat)
  )
  states = np.concatenate([states, estimates[-1:]])
  length = np.linalg.norm(np.diff(states, axis=0), axis=-1).sum(axis=0)
  chord = np.linalg.norm(states[-1] - states[0], axis=-1)
  centroid = np.asarray(grid.alpha, np.float64)[:, None] * mean
  return {
    "path_length": float(length.mean()),
    "path_straightness": float((chord / length).mean()),
  }, {
    "state_to_centroid": [_rms_norm(states[n] - centroid[n]) for n in places],
    "estimate_to_centroid": [_rms_norm(estimates[n] - mean) for n in places],
  }


def score(subject: Subject) -> Result:
  """eps_hat against the exact E[eps | x_t], at clean examples, noised.

  For images it is that of the references as a finite set, which a model that
  generalises does not have at low noise. score_error is RMS over elements.
  """
  x_0, grid = _clean(subject), sampling.levels(subject.run)
  index = jnp.arange(len(x_0))
  keys = samplers.sample_keys(subject.run.keys.sampling, index)
  eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:]))(keys)
  estimate = noise_estimate(subject, grid)

  def row(place: int) -> dict[str, float]:
    level = _at(grid, place, len(x_0))
    x_t = np.asarray(process.diffuse(level, jnp.asarray(x_0), eps))
    alpha, sigma = float(grid.alpha[place]), float(grid.sigma[place])
    flat = x_t.reshape(len(x_t), -1).astype(np.float64)
    x_0_hat = subject.reference.denoise(flat, alpha, sigma)
    exact = (flat - alpha * x_0_hat) / sigma
    error = estimate(x_t, place).reshape(flat.shape) - exact
    return {"score_error": float(np.sqrt(np.mean(error**2)))}

  return _by_level(subject, grid, row)


def noise_estimate(
  subject: Subject, grid: Level
) -> Callable[[np.ndarray, int], np.ndarray]:
  """(x_t [n, ...], place in the grid) -> eps_hat [n, ...]; one compilation."""

  def predict(params, x_t, level):
    return sampling.eps_fn(subject.run, params)(x_t, level)

  return lambda x_t, place: subject.over_devices(
    predict, x_t, _at(grid, place, len(x_t))
  )


def _at(grid: Level, place: int, count: int) -> Level:
  return jax.tree.map(lambda column: jnp.full(count, column[place]), grid)


def _clean(subject: Subject) -> np.ndarray:
  return subject.clean(subject.run.evaluation.num_level_examples)


def _places(subject: Subject, grid: Level) -> np.ndarray:
  """Indices of the levels shown, from the most noise to the least."""
  total = len(grid.sigma)
  return evenly(total, min(subject.run.evaluation.num_levels, total))


def _sigma_t(subject: Subject, grid: Level) -> dict[str, list]:
  sigma_t = np.asarray(process.unit_sigma(grid))
  return {"sigma_t": sigma_t[_places(subject, grid)].tolist()}


def _by_level(
  subject: Subject, grid: Level, row: Callable[[int], dict[str, float]]
) -> Result:
  """Curves of a row for each level shown; their means as measures."""
  curves = columns([row(place) for place in _places(subject, grid).tolist()])
  means = {name: float(np.mean(values)) for name, values in curves.items()}
  return Result(means, _sigma_t(subject, grid) | curves, {})


def _rms_norm(x: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.sum(np.square(x), axis=-1))))
