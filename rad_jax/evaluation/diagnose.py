"""How a trained network's noise estimate moves with its state.

At a state x_t of a clean training example, and a perturbation w in noise
units, let moved = eps_theta(x_t + sigma w) - eps_theta(x_t):

equivariance error: RMS(moved - w) / RMS(w). 0 for an equivariant network,
  the paper's ideal; 1 for an invariant one.
invariance error: RMS(moved) / RMS(w). 1 for an equivariant network, 0 for an
  invariant one.
Lipschitz constant: the largest singular value of the Jacobian of w ->
  eps_theta(x_t + sigma w) at w = 0. An equivariant network has eps_theta(x_t
  + sigma w) = eps_theta(x_t) + w, whose Jacobian is the identity: 1, and with
  it every other singular value. In state units, of x_t -> eps_theta(x_t), it
  is divided by sigma.

w is uniform in the linf ball of the run's radius r(t), or the strongest that
PGD-10 finds there for the error concerned. The measures are defined for
models of every objective, noise process and prediction.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from rad_jax.config import ConfigDict
from rad_jax.data import examples
from rad_jax.diffusion import process as processes
from rad_jax.diffusion.process import Level, per_example
from rad_jax.evaluation import sampling
from rad_jax.robustness import attacks, noising, objectives
from rad_jax.robustness.noising import Noised
from rad_jax.training import build, chips, sharding

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]
Keys = Key[Array, " b"]
EpsFn = Callable[[Batch], Batch]

# Apart from the sampler's streams, which are numbered by sample.
_STREAM = 2**32 - 1
# An error is not told where the state moves by less than this part of its
# size: there float32's rounding shows.
_LEAST_MOVE = 1e-5


class Errors(NamedTuple):
  """Mean squares over each example's elements, [b], in noise units squared.

  equivariance: of moved - w. invariance: of moved. w: of w.
  """

  equivariance: Scalars
  invariance: Scalars
  w: Scalars


class Measured(NamedTuple):
  """The measures of a batch, [b] each.

  radius: of w's ball, noise units.
  random: errors at w uniform in the ball.
  least_equivariant, most_moved: errors at the w that PGD finds for |moved -
    w|^2 and for |moved|^2.
  lipschitz: the Lipschitz constants.
  """

  radius: Scalars
  random: Errors
  least_equivariant: Errors
  most_moved: Errors
  lipschitz: Scalars


def diagnose(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Measures the newest checkpoint in workdir, and writes diagnosis.json.

  Returns:
    step, objective, data, process, prediction, num_examples,
    power_iterations; and levels, from the most noise to the least, each with
    alpha, sigma, sigma_t, radius (noise units, mean over examples),
    equivariance_random, equivariance_adversarial, invariance_random,
    invariance_adversarial, lipschitz_mean and lipschitz_max. Errors are None
    where the radius is 0 or lost in float32's rounding.

  Raises:
    CheckpointError: workdir has no checkpoint, or a damaged one.
    ConfigError: workdir's run was of another model, data or objective.
    FloatingPointError: the network's estimates are not finite.
  """
  mesh = sharding.device_mesh()
  state = sampling.newest_state(config, workdir, mesh)
  params = build.parameters_of(state, config)
  everywhere, split = sharding.replicated(mesh), sharding.by_example(mesh)
  measure_batch = jax.jit(
    make_measure(config),
    in_shardings=(everywhere, split, split, everywhere, everywhere),
    out_shardings=everywhere,
    compiler_options=chips.compiler_options(),
  )
  batches = list(clean_batches(config, jax.device_count()))
  count = config.diagnose.num_levels
  grid = build.process(config).grid(count)
  levels = []
  for n in tqdm(range(count), desc="diagnose", unit="level"):
    level = jax.tree.map(lambda column, n=n: column[n], grid)
    parts = [
      jax.tree.map(
        lambda x, rows=rows: np.asarray(x)[:rows],
        measure_batch(params, x_0, index, level, np.int32(n)),
      )
      for x_0, index, rows in batches
    ]
    measured = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    levels.append(summary(level, measured))
  result = {
    "step": int(state.step),
    "objective": config.objective.name,
    "data": config.data.name,
    "process": config.diffusion.process,
    "prediction": config.diffusion.prediction,
    "num_examples": sum(rows for _, _, rows in batches),
    "power_iterations": config.diagnose.power_iterations,
    "levels": levels,
  }
  text = json.dumps(result, indent=2, allow_nan=False)
  (workdir / "diagnosis.json").write_text(text + "\n")
  return result


def clean_batches(
  config: ConfigDict, num_devices: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Clean training examples, evenly spaced over the set, in equal batches.

  The last batch is filled up from the start.

  Yields:
    x_0 [b, ...] in model units; the place of each, [b]; how many are not
    filling.
  """
  training_set = build.training_set(config)
  count = min(config.diagnose.num_examples, training_set.num_examples)
  evenly = np.linspace(0, training_set.num_examples - 1, count).astype(np.int32)
  size = min(config.sampling.batch_size, count)
  size = math.ceil(size / num_devices) * num_devices
  for start in range(0, count, size):
    place = np.arange(start, start + size, dtype=np.int32)
    x_0 = examples.to_model_range(training_set.fetch(evenly[place % count]))
    yield x_0, place, min(size, count - start)


def make_measure(config: ConfigDict) -> Callable[..., Measured]:
  """Builds (params, x_0 [b, ...], place [b], level, n) -> measures. Jit-able.

  The level is one, with scalar fields; n is its number. Noise and w of an
  example are drawn from the run's seed, n and its place alone.
  """
  predict, radius_of = build.predictor(config), build.radius_of(config)
  key = jax.random.fold_in(build.keys(config).sampling, np.uint32(_STREAM))
  iterations = config.diagnose.power_iterations

  def measure_batch(params, x_0, place, level, n):
    level = jax.tree.map(lambda v: jnp.broadcast_to(v, place.shape), level)
    level_key = jax.random.fold_in(key, n)
    keys = jax.vmap(lambda i: jax.random.fold_in(level_key, i))(place)
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
    shape = x_0.shape[1:]
    z = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 0])
    radius = radius_of(processes.unit_sigma(level))
    noised = noising.blind(x_0, jnp.zeros(place.shape), level, z)
    eps_fn = lambda x_t: predict(params, x_t, level)
    return measure(eps_fn, noised, keys[:, 2], radius, iterations)

  return measure_batch


def measure(
  eps_fn: EpsFn,
  noised: Noised,
  keys: Keys,
  radius: Scalars,
  power_iterations: int,
) -> Measured:
  """All measures of one noise predictor at one batch of states.

  Args:
    eps_fn: x_t [b, ...] -> eps_hat [b, ...], example by example.
    noised: the states; its x_t, eps and sigma are used.
    keys: one an example, [b].
    radius: of w's ball, [b], noise units.
    power_iterations: of `lipschitz`.
  """
  keys = jax.vmap(lambda k: jax.random.split(k, 4))(keys)
  uniform = attacks.BALLS["linf"].uniform(
    keys[:, 0], radius, noised.x_t.shape[1:]
  )
  adversarial = lambda goal, keys: errors(
    eps_fn, noised, adversarial_w(goal, eps_fn, noised, keys, radius)
  )
  return Measured(
    radius=radius,
    random=errors(eps_fn, noised, uniform),
    least_equivariant=adversarial("residual", keys[:, 1]),
    most_moved=adversarial("J", keys[:, 2]),
    lipschitz=lipschitz(eps_fn, noised, keys[:, 3], power_iterations),
  )


def adversarial_w(
  goal: str, eps_fn: EpsFn, noised: Noised, keys: Keys, radius: Scalars
) -> Batch:
  """PGD-10's w in the linf ball, against the equivariance objective.

  Args:
    goal: a name in robustness.objectives.GOALS.
    eps_fn, noised, keys, radius: as for `measure`.

  Returns:
    [b, ...], noise units.
  """
  raised = objectives.goal(
    goal,
    objectives.OBJECTIVES["robust_adv"],
    eps_fn,
    eps_fn(noised.x_t),
    noised,
  )
  shape = noised.x_t.shape[1:]
  return attacks.maximise(attacks.ATTACKS["pgd"], raised, keys, radius, shape)


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
  """The largest singular value of each example's Jacobian of eps_hat by w.

  By power iteration on the Jacobian's transpose times itself, from a random
  direction: it comes from below, and gets closer with each iteration.

  Args:
    eps_fn, noised: as for `measure`.
    keys: one an example, [b].
    power_iterations: 0 or more; 0 is the gain along the random direction.

  Returns:
    [b], noise units out by noise units in.
  """
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
  """One level's line of the diagnosis.

  Args:
    level: with scalar fields.
    measured: of all examples, [n].

  Raises:
    FloatingPointError: a measure is not finite.
  """
  sigma_t = float(processes.unit_sigma(level))
  radius = float(np.mean(measured.radius))
  told = sigma_t * radius >= _LEAST_MOVE

  def relative(error, w) -> float | None:
    return float(np.sqrt(np.mean(error) / np.mean(w))) if told else None

  random, residual, moved = (
    measured.random,
    measured.least_equivariant,
    measured.most_moved,
  )
  found = {
    "alpha": float(level.alpha),
    "sigma": float(level.sigma),
    "sigma_t": sigma_t,
    "radius": radius,
    "equivariance_random": relative(random.equivariance, random.w),
    "equivariance_adversarial": relative(residual.equivariance, residual.w),
    "invariance_random": relative(random.invariance, random.w),
    "invariance_adversarial": relative(moved.invariance, moved.w),
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
