"""A model against the truth, noise level by noise level.

Each takes evaluation.num_level_examples clean examples, at num_levels levels
spread over the sampler's grid; sigma_t says which, as DDPM's (1 is noise).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rad_jax.data.training_set import evenly
from rad_jax.diffusion import process, samplers
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import measures
from rad_jax.evaluation.subject import Result, Subject, whole_batches
from rad_jax.training import build


def reconstruction(subject: Subject) -> Result:
  """Noise clean examples up to a level and come back, without further noise.

  Curves over sigma_t: reconstruction_rms, of the difference from the example,
  element by element; reconstruction_psnr_db, the same for the range [-1, 1];
  reconstruction_support_rms, distance from the true support. Measures: their
  means over the levels.
  """
  x_0 = _examples(subject)
  grid = build.sampler_levels(subject.config)
  keys = _keys(subject, len(x_0))
  curves = _curves(grid, places := _places(subject, grid))
  for place in places:
    levels = jax.tree.map(lambda column, n=place: column[n:], grid)
    back = subject.run(_there_and_back(subject, levels), x_0, keys)
    rms = float(np.sqrt(np.mean(np.square(back - x_0, dtype=np.float64))))
    flat = back.reshape(len(back), -1)
    _append(
      curves,
      reconstruction_rms=rms,
      reconstruction_psnr_db=float(-20 * np.log10(rms / 2)),
      reconstruction_support_rms=measures.support_rms(
        flat, subject.truth.project
      ),
    )
  return _with_means(curves)


def _there_and_back(subject: Subject, levels: Level):
  update = samplers.ddim(0.0)
  clip = subject.config.sampling.clip_x_0 or None

  def run(params, x_0, keys):
    x_t = levels.alpha[0] * x_0 + samplers.noise(levels, keys, x_0.shape[1:])
    return samplers.reverse(
      subject.eps_fn(params), levels, update, x_t, keys, clip
    )

  return run


def flow(subject: Subject) -> Result:
  """The deterministic reverse flow from noise to data, states on the way.

  Measures, means over examples: path_length, the sum of |x_s - x_t| over
  steps; path_straightness, |x_end - x_start| over it, 1 for a straight line.
  Curves over sigma_t, root mean squares over examples: state_to_centroid,
  |x_t - alpha m| for the clean data's mean m; estimate_to_centroid, |x_0_hat -
  m|: near 0 where the estimate is the mean of all data.
  """
  grid = build.sampler_levels(subject.config)
  shape = build.example_shape(subject.config)
  keys = _keys(subject, len(_examples(subject)))
  clip = subject.config.sampling.clip_x_0 or None

  def run(params, keys):
    x_T = samplers.noise(grid, keys, shape)
    return samplers.path(
      subject.eps_fn(params), grid, samplers.ddim(0.0), x_T, keys, clip
    )

  path = subject.run(run, keys)
  mean = subject.truth.examples.mean(axis=0).astype(np.float64)
  return Result(*flow_measures(path, grid, mean, _places(subject, grid)))


def flow_measures(
  path: samplers.Path, grid: Level, mean: np.ndarray, places: np.ndarray
) -> tuple[dict[str, float], dict[str, list]]:
  """`flow`'s numbers.

  Args:
    path: [n, b, ...].
    grid: its levels, [n].
    mean: of the clean data, flat, [d].
    places: which levels the curves show.
  """
  states, estimates = (
    np.asarray(x, np.float64).reshape(*x.shape[:2], -1) for x in path
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

  Of a world it is exact; of images it is that of the references as a finite
  set, which a model that generalises does not have at low noise. Curve over
  sigma_t: score_error, the root mean square of an element of eps_hat minus
  the exact one, which is sigma times the error of the score. Measure: its
  mean over the levels.
  """
  x_0 = _examples(subject)
  grid = build.sampler_levels(subject.config)
  keys = _keys(subject, len(x_0))
  curves = _curves(grid, places := _places(subject, grid))
  noised = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:]))(keys)
  predict = lambda params, x_t, level: subject.eps_fn(params)(x_t, level)
  for place in places:
    level = jax.tree.map(
      lambda column, n=place: jnp.full(len(x_0), column[n]), grid
    )
    x_t = np.asarray(process.diffuse(level, jnp.asarray(x_0), noised))
    eps_hat = subject.run(predict, x_t, level)
    alpha, sigma = float(grid.alpha[place]), float(grid.sigma[place])
    flat = x_t.reshape(len(x_t), -1).astype(np.float64)
    exact = (flat - alpha * subject.truth.denoise(flat, alpha, sigma)) / sigma
    error = eps_hat.reshape(flat.shape) - exact
    _append(curves, score_error=float(np.sqrt(np.mean(error**2))))
  return _with_means(curves)


def _examples(subject: Subject) -> np.ndarray:
  x_0 = subject.clean(subject.config.evaluation.num_level_examples)
  return np.resize(x_0, (whole_batches(len(x_0)), *x_0.shape[1:]))


def _keys(subject: Subject, count: int) -> Array:
  return samplers.sample_keys(
    build.keys(subject.config).sampling, jnp.arange(count)
  )


def _places(subject: Subject, grid: Level) -> np.ndarray:
  """Indices of the levels shown, from the most noise to the least."""
  total = len(grid.sigma)
  return evenly(total, min(subject.config.evaluation.num_levels, total))


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
