"""How a trained network's noise estimate moves with its state.

With moved = eps_theta(x_t + sigma w) - eps_theta(x_t), w in noise units:
equivariance error is RMS(moved - w) / RMS(w), 0 for the paper's ideal;
invariance error is RMS(moved) / RMS(w), 1 there; the Lipschitz constant is
the largest singular value of d moved / dw at w = 0, 1 there.
"""

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from rad_jax import files
from rad_jax.diffusion import process as processes
from rad_jax.diffusion.process import Level, per_example
from rad_jax.evaluation import sampling, subject
from rad_jax.robustness import attacks, noising, objectives
from rad_jax.robustness.noising import Noised
from rad_jax.run import Run

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]
Keys = Key[Array, " b"]
EpsFn = Callable[[Batch], Batch]

# Apart from the sampler's streams, which are numbered by sample.
_STREAM = 2**32 - 1
# Where the state moves by a smaller part of its size, float32's rounding shows.
_LEAST_MOVE = 1e-5


class Errors(NamedTuple):
  """Mean squares over each example's elements, [b], in noise units squared."""

  equivariance: Scalars  # of moved - w
  invariance: Scalars  # of moved
  w: Scalars


class Measured(NamedTuple):
  """The measures of a batch, [b] each."""

  radius: Scalars  # of w's linf ball, noise units
  random: Errors  # at w uniform in the ball
  least_equivariant: Errors  # at the w that PGD-10 finds for |moved - w|^2
  most_moved: Errors  # at the w that it finds for |moved|^2
  lipschitz: Scalars


def diagnose(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
  """Measures the newest checkpoint; writes and returns diagnosis.json."""
  model, fields = sampling.newest_model(run, workdir), run.diagnose
  x_0 = subject.clean_examples(run.open_training_set(), fields.num_examples)
  size = min(run.sampling.batch_size, len(x_0))
  size = math.ceil(size / model.mesh.size) * model.mesh.size
  measure_batch = sampling.over_devices(
    make_measure(run), model.mesh, num_split=2, num_shared=2
  )
  grid = run.process.grid(fields.num_levels)
  levels = []
  for n in tqdm(range(fields.num_levels), desc="diagnose", unit="level"):
    level = jax.tree.map(lambda column, n=n: column[n], grid)
    parts = [
      jax.tree.map(
        lambda x, rows=rows: np.asarray(x)[:rows],
        measure_batch(model.params, batch, place, level, np.int32(n)),
      )
      for batch, place, rows in _batches(x_0, size)
    ]
    measured = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    levels.append(summary(level, measured))
  result = {
    "step": model.step,
    "objective": run.objective.name,
    "data": run.data.name,
    "process": run.config["diffusion"]["process"],
    "prediction": run.config["diffusion"]["prediction"],
    "num_examples": len(x_0),
    "power_iterations": fields.power_iterations,
    "levels": levels,
  }
  files.write_json(workdir / "diagnosis.json", result)
  return result


def _batches(
  x_0: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Equal batches, the last filled up; rows' places; how many rows count."""
  for start in range(0, len(x_0), size):
    place = np.arange(start, start + size, dtype=np.int32)
    yield x_0[place % len(x_0)], place, min(size, len(x_0) - start)


def make_measure(run: Run) -> Callable[..., Measured]:
  """Builds (params, x_0 [b, ...], place [b], level, n) -> measures. Jit-able.

  At the n-th level, a scalar; draws depend on the run's seed, n and place only.
  """
  key = jax.random.fold_in(run.keys.sampling, np.uint32(_STREAM))

  def measure_batch(params, x_0, place, level, n):
    level = jax.tree.map(lambda v: jnp.broadcast_to(v, place.shape), level)
    level_key = jax.random.fold_in(key, n)
    keys = jax.vmap(lambda i: jax.random.fold_in(level_key, i))(place)
    # The second is no longer used; with three, all draws stay what they were.
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
    shape = x_0.shape[1:]
    z = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 0])
    radius = run.method.radius(processes.unit_sigma(level))
    noised = noising.blind(x_0, jnp.zeros(place.shape), level, z)
    eps_fn = lambda x_t: sampling.eps_fn(run, params)(x_t, level)
    iterations = run.diagnose.power_iterations
    return measure(eps_fn, noised, keys[:, 2], radius, iterations)

  return measure_batch


def measure(
  eps_fn: EpsFn,
  noised: Noised,
  keys: Keys,
  radius: Scalars,
  power_iterations: int,
) -> Measured:
  """All measures of a batch of states, by one key and one radius an example."""
  keys = jax.vmap(lambda k: jax.random.split(k, 4))(keys)
  shape = noised.x_t.shape[1:]
  pgd = attacks.ATTACKS["pgd"]
  objective = objectives.OBJECTIVES["robust_adv"]

  def adversarial(name: str, keys: Keys) -> Errors:
    eps_hat = eps_fn(noised.x_t)
    goal = objectives.goal(name, objective, eps_fn, eps_hat, noised)
    w = attacks.maximise(pgd, goal, keys, radius, shape)
    return errors(eps_fn, noised, w)

  uniform = attacks.BALLS[pgd.norm].uniform(keys[:, 0], radius, shape)
  return Measured(
    radius=radius,
    random=errors(eps_fn, noised, uniform),
    least_equivariant=adversarial("residual", keys[:, 1]),
    most_moved=adversarial("J", keys[:, 2]),
    lipschitz=lipschitz(eps_fn, noised, keys[:, 3], power_iterations),
  )


def errors(eps_fn: EpsFn, noised: Noised, w: Batch) -> Errors:
  """How eps_fn moves when the state moves by sigma w; see `Errors`."""
  x_t = processes.shifted(noised.x_t, noised.sigma, w)
  moved = eps_fn(x_t) - eps_fn(noised.x_t)
  still = jnp.zeros_like(w)
  return Errors(
    equivariance=objectives.squared_error(moved, w),
    invariance=objectives.squared_error(moved, still),
    w=objectives.squared_error(w, still),
  )


def lipschitz(
  eps_fn: EpsFn, noised: Noised, keys: Keys, power_iterations: int
) -> Scalars:
  """The largest singular value of each Jacobian of eps_hat by w, from below."""
  still = jnp.zeros_like(noised.x_t)
  estimate = lambda w: eps_fn(processes.shifted(noised.x_t, noised.sigma, w))
  forward = lambda v: jax.jvp(estimate, (still,), (v,))[1]
  _, backward = jax.vjp(estimate, still)
  draw = lambda key: jax.random.normal(key, still.shape[1:])
  v = jax.lax.fori_loop(
    0,
    power_iterations,
    lambda _, v: _unit(backward(forward(v))[0]),
    _unit(jax.vmap(draw)(keys)),
  )
  return _norm(forward(v))


def summary(level: Level, measured: Measured) -> dict[str, float | None]:
  """One level's means over examples; an error lost in rounding is None."""
  sigma_t = float(processes.unit_sigma(level))
  radius = float(np.mean(measured.radius))
  told = sigma_t * radius >= _LEAST_MOVE

  def relative(kind: str, errors: Errors) -> float | None:
    error = np.mean(getattr(errors, kind))
    return float(np.sqrt(error / np.mean(errors.w))) if told else None

  found = {
    "alpha": float(level.alpha),
    "sigma": float(level.sigma),
    "sigma_t": sigma_t,
    "radius": radius,
    "equivariance_random": relative("equivariance", measured.random),
    "equivariance_adversarial": relative(
      "equivariance", measured.least_equivariant
    ),
    "invariance_random": relative("invariance", measured.random),
    "invariance_adversarial": relative("invariance", measured.most_moved),
    "lipschitz_mean": float(np.mean(measured.lipschitz)),
    "lipschitz_max": float(np.max(measured.lipschitz)),
  }
  for name, value in found.items():
    if value is not None and not math.isfinite(value):
      raise FloatingPointError(
        f"{name} is {value} at sigma_t {sigma_t:.4g}: the network's estimates"
        " are not finite"
      )
  return found


def _norm(v: Batch) -> Scalars:
  return jnp.sqrt(jnp.sum(jnp.square(v), axis=tuple(range(1, v.ndim))))


def _unit(v: Batch) -> Batch:
  tiny = jnp.finfo(v.dtype).tiny
  return v / per_example(jnp.maximum(_norm(v), tiny), v.ndim)
