"""A model against the truth, noise level by noise level.

Each takes evaluation.num_level_examples clean examples, at num_levels levels
spread over the sampler's grid; sigma_t says which, as DDPM's (1 is noise).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rad_jax.data.training_set import evenly
from rad_jax.diffusion import process, samplers
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import measures, purify, sampling
from rad_jax.evaluation.subject import Result, Subject


def reconstruction(subject: Subject) -> Result:
  """Noise clean examples up to a level and come back, without further noise.

  Curves over sigma_t: reconstruction_rms, of the difference from the example,
  element by element; reconstruction_psnr_db, the same for the range [-1, 1];
  reconstruction_support_rms, distance from the true support. Measures: their
  means over the levels.
  """
  x_0, grid, places = _setting(subject)
  curves = _curves(grid, places)
  for place in places:
    levels = jax.tree.map(lambda column, n=place: column[n:], grid)
    back = purify.there_and_back(subject, x_0, levels, samplers.ddim(0.0))
    rms = float(np.sqrt(np.mean(np.square(back - x_0, dtype=np.float64))))
    flat = back.reshape(len(back), -1)
    _append(
      curves,
      reconstruction_rms=rms,
      reconstruction_psnr_db=float(-20 * np.log10(rms / 2)),
      reconstruction_support_rms=measures.support_rms(
        flat, subject.reference.project
      ),
    )
  return _with_means(curves)


def flow(subject: Subject) -> Result:
  """The deterministic reverse flow from noise to data, states on the way.

  Measures, means over examples: path_length, the sum of |x_s - x_t| over
  steps; path_straightness, |x_end - x_start| over it, 1 for a straight line.
  Curves over sigma_t, root mean squares over examples: state_to_centroid,
  |x_t - alpha m| for the clean data's mean m; estimate_to_centroid, |x_0_hat -
  m|: near 0 where the estimate is the mean of all data.
  """
  run = subject.run
  x_0, grid, places = _setting(subject)

  def follow(params, index):
    chain = sampling.chain(run, params, index, grid, samplers.ddim(0.0))
    return samplers.path(*chain)

  index = np.arange(len(x_0), dtype=np.int32)
  path = subject.over_devices(follow, index, axis=1)
  mean = subject.reference.examples.mean(axis=0).astype(np.float64)
  return Result(*flow_measures(path, grid, mean, places))


def flow_measures(
  path: samplers.Path, grid: Level, mean: np.ndarray, places: np.ndarray
) -> tuple[dict[str, float], dict[str, list]]:
  """`flow`'s measures and curves.

  Args:
    path: [n, b, ...].
    grid: its levels, [n].
    mean: of the clean data, flat, [d].
    places: which levels the curves show.
  """
  states, estimates = (
    np.asarray(x, np.float64).reshape(*x.shape[:2], -1)
    for x in (path.x_t, path.x_0_hat)
  )
  states = np.concatenate([states, estimates[-1:]])
  length = np.linalg.norm(np.diff(states, axis=0), axis=-1).sum(axis=0)
  chord = np.linalg.norm(states[-1] - states[0], axis=-1)
  curves = _curves(grid, places)
  for n in places:
    alpha = float(grid.alpha[n])
    _append(
      curves,
      state_to_centroid=_rms_norm(states[n] - alpha * mean),
      estimate_to_centroid=_rms_norm(estimates[n] - mean),
    )
  return {
    "path_length": float(length.mean()),
    "path_straightness": float((chord / length).mean()),
  }, curves


def score(subject: Subject) -> Result:
  """eps_hat against the exact E[eps | x_t], at clean examples, noised.

  Of a synthetic set it is exact; of images it is that of the references as a
  finite set, which a model that generalises does not have at low noise. Curve
  over sigma_t: score_error, the root mean square of an element of eps_hat
  minus the exact one, which is sigma times the error of the score. Measure:
  its mean over the levels.
  """
  x_0, grid, places = _setting(subject)
  keys = samplers.sample_keys(subject.run.keys.sampling, jnp.arange(len(x_0)))
  eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:]))(keys)
  estimate = noise_estimate(subject, grid)
  curves = _curves(grid, places)
  for place in places:
    level = _at(grid, place, len(x_0))
    x_t = np.asarray(process.diffuse(level, jnp.asarray(x_0), eps))
    alpha, sigma = float(grid.alpha[place]), float(grid.sigma[place])
    flat = x_t.reshape(len(x_t), -1).astype(np.float64)
    x_0_hat = subject.reference.denoise(flat, alpha, sigma)
    exact = (flat - alpha * x_0_hat) / sigma
    error = estimate(x_t, place).reshape(flat.shape) - exact
    _append(curves, score_error=float(np.sqrt(np.mean(error**2))))
  return _with_means(curves)


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


def _setting(subject: Subject) -> tuple[np.ndarray, Level, np.ndarray]:
  """Clean examples; the sampler's levels; which are shown, falling."""
  fields = subject.run.evaluation
  grid = sampling.levels(subject.run)
  total = len(grid.sigma)
  return (
    subject.clean(fields.num_level_examples),
    grid,
    evenly(total, min(fields.num_levels, total)),
  )


def _curves(grid: Level, places: np.ndarray) -> dict[str, list]:
  return {"sigma_t": np.asarray(process.unit_sigma(grid))[places].tolist()}


def _append(curves: dict[str, list], **values: float) -> None:
  for name, value in values.items():
    curves.setdefault(name, []).append(value)


def _with_means(curves: dict[str, list]) -> Result:
  means = {
    name: float(np.mean(values))
    for name, values in curves.items()
    if name != "sigma_t"
  }
  return Result(means, curves)


def _rms_norm(x: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.sum(np.square(x), axis=-1))))
