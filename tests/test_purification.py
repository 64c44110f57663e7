"""Purification against closed forms of Gaussian data, attacks through it."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import purified_digits
from rad_jax import run as runs
from rad_jax.data import builders, examples
from rad_jax.diffusion import process, samplers, schedules
from rad_jax.robustness import attacks, purification
from rad_jax.robustness.attacks import ATTACKS, Attack

PROCESSES = {
  "ddpm": schedules.ddpm(schedules.linear_alpha_bar(1000)),
  "edm": schedules.edm(),
  "flow": schedules.flow(),
}
UPDATES = {
  "ddim": samplers.ddim(),
  "ddpm": samplers.ddpm(),
  "heun": samplers.heun(),
  "dpm_solver": samplers.dpm_solver(),
}
VARIANCE = 0.25
every_process = pytest.mark.parametrize("name", PROCESSES)


def _keys(seed, count):
  data = np.random.default_rng(seed).integers(
    2**32, size=(count, 2), dtype=np.uint32
  )
  return jax.random.wrap_key_data(data)


def _normal(seed, shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _columns(level):
  return (process.per_example(v, 2) for v in (level.alpha, level.sigma))


def _gaussian(x_t, level):
  """The exact noise predictor of data N(0, VARIANCE)."""
  a, s = _columns(level)
  return s * x_t / (a**2 * VARIANCE + s**2)


def _point(x_t, level):
  """That of data which is 0.7 alone."""
  a, s = _columns(level)
  return (x_t - a * 0.7) / s


# Grids of which this many levels are left at t* = 0.5.
GRIDS = {
  20: {"ddpm": 117, "edm": 56, "flow": 53},
  60: {"ddpm": 360, "edm": 169, "flow": 163},
}


@functools.cache
def _levels(name="ddpm", count=20):
  levels = purification.from_level(
    PROCESSES[name].grid(GRIDS[count][name]), 0.5
  )
  assert len(levels.sigma) == count
  return jax.tree.map(np.asarray, levels)


@functools.cache
def _purifier(eps_fn, update, clip_x_0):
  """One program for all levels of one number."""
  return jax.jit(
    lambda levels, x, keys: purification.purify(
      eps_fn, levels, UPDATES[update], x, keys, clip_x_0
    )
  )


def _purify(eps_fn, levels, update, x, keys, clip_x_0=None):
  found = _purifier(eps_fn, update, clip_x_0)(levels, x, keys)
  return np.asarray(found, np.float64)


# The levels.


@every_process
def test_levels_are_those_up_to_t_star(name):
  grid = PROCESSES[name].grid(50)
  sigma = np.asarray(process.unit_sigma(grid))
  for t_star in (float(sigma[20]), float(sigma[20]) + 1e-4):
    levels = purification.from_level(grid, t_star)
    for column, whole in zip(levels, grid, strict=True):
      np.testing.assert_array_equal(column, whole[20:])
  with pytest.raises(ValueError, match="unit_sigma"):
    purification.from_level(grid, float(sigma[-1]) / 2)


def test_t_star_is_that_of_diffpure():
  # Of its VP-SDE, beta from 0.1 to 20: alpha^2 = exp(-0.1 t - 19.9 t^2 / 2).
  grid = PROCESSES["ddpm"].grid(1000)
  for t, t_star in ((0.1, 0.32), (0.15, 0.46)):
    sigma = np.sqrt(1 - np.exp(-0.1 * t - 19.9 * t**2 / 2))
    assert round(float(sigma), 2) == t_star
    steps = len(purification.from_level(grid, float(sigma)).sigma)
    assert steps == pytest.approx(1000 * t, rel=0.01)


# Closed forms.


@every_process
@pytest.mark.parametrize("update", ["ddim", "ddpm"])
def test_gaussian_data_has_the_moments_of_its_posterior(name, update):
  """The mean pulled to the data's and the spread left, in closed form.

  With v = alpha^2 q^2 + sigma^2 at t*, the probability flow takes x_t to
  q x_t / sqrt(v), and the stochastic way draws from p(x_0 | x_t), which is
  N(alpha q^2 x_t / v, q^2 sigma^2 / v).
  """
  # 20,000 inputs: the elements of an example have their own noise.
  levels, x = _levels(name, 60), 1.3
  inputs = np.full((2500, 8), x, np.float32)
  found = _purify(_gaussian, levels, update, inputs, _keys(0, 2500))
  a, s = (float(column[0]) for column in (levels.alpha, levels.sigma))
  v = a**2 * VARIANCE + s**2
  if update == "ddim":
    slope, own = np.sqrt(VARIANCE / v), 0.0
  else:
    slope, own = a * VARIANCE / v, VARIANCE * s**2 / v
  variance = slope**2 * s**2 + own
  # Five standard errors, and the discretisation.
  assert found.mean() == pytest.approx(slope * a * x, abs=0.02)
  assert found.var() == pytest.approx(variance, rel=0.07)


def test_deterministic_way_back_is_ddims_recursion():
  """Example by example; its noise is the input's and not the way's."""
  levels = _levels()
  x, keys = _normal(1, (4, 2)), _keys(2, 4)
  a, s = (np.asarray(v, np.float64) for v in (levels.alpha, levels.sigma))
  noise = jax.jit(samplers.noise, static_argnums=2)(levels, keys, (2,))
  x_t = a[0] * x + np.asarray(noise)
  v = a**2 * VARIANCE + s**2
  steps = (a[1:] * a[:-1] * VARIANCE + s[1:] * s[:-1]) / v[:-1]
  expected = np.prod(steps) * a[-1] * VARIANCE / v[-1] * x_t
  found = _purify(_gaussian, levels, "ddim", x, keys)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
  # Along the stochastic way there is noise of its own.
  other = _purify(_gaussian, levels, "ddpm", x, keys)
  assert np.all(np.abs(other - found) > 1e-4)


@every_process
def test_data_of_one_point_is_purified_to_the_point(name):
  levels = _levels(name)
  for update in UPDATES:
    found = _purify(_point, levels, update, _normal(1, (4, 2)), _keys(2, 4))
    np.testing.assert_allclose(found, 0.7, atol=2e-3)


@every_process
def test_without_noise_the_input_comes_back(name):
  x = _normal(1, (4, 2))
  grid = jax.tree.map(np.asarray, PROCESSES[name].grid(1000))
  moved = []
  for ratio in (1e-1, 1e-2, 1e-3):
    # One level of this sigma / alpha, whatever the process.
    levels = jax.tree.map(lambda column: column[-1:], grid)
    levels = levels._replace(sigma=levels.alpha * ratio)
    found = _purify(_gaussian, levels, "ddim", x, _keys(2, 4))
    moved.append(np.max(np.abs(found - x)))
  assert moved[2] < 5e-3
  assert moved[0] > 5 * moved[1] > 25 * moved[2]


@pytest.mark.parametrize("update", ["ddim", "ddpm"])
def test_an_example_depends_on_itself_and_its_key_alone(update):
  levels = _levels()
  x, data = _normal(1, (4, 2)), np.array(jax.random.key_data(_keys(2, 4)))
  purify = lambda x, data: _purify(
    _gaussian, levels, update, x, jax.random.wrap_key_data(data)
  )
  whole = purify(x, data)
  # Two of the examples elsewhere in the batch, among others.
  place, was = np.array([3, 1]), np.array([2, 0])
  others, other_data = 1 - x, data ^ np.uint32(1)
  others[place], other_data[place] = x[was], data[was]
  part = purify(others, other_data)
  np.testing.assert_allclose(part[place], whole[was], rtol=1e-5)
  assert np.all(part[[0, 2]] != whole[[0, 2]])
  assert len(np.unique(purify(0 * x, data))) == 8


def test_estimates_are_clipped():
  levels = _levels()
  x = np.full((4, 2), 5.0, np.float32)
  found = _purify(_gaussian, levels, "ddim", x, _keys(2, 4), clip_x_0=0.5)
  np.testing.assert_array_equal(found, 0.5)


# Gradients.


WEIGHTS = _normal(5, (2, 1, 2048))


def _wide(x_t, level):
  del level
  return jnp.tanh(x_t @ WEIGHTS[0]) @ WEIGHTS[1].T / 2048


@pytest.mark.parametrize("update", ["ddim", "ddpm"])
def test_gradients_are_the_same_with_remat(update):
  levels = jax.tree.map(jnp.asarray, _levels())
  x, keys = _normal(1, (4, 1)), _keys(2, 4)

  def gradient(remat, eps_fn):
    def loss(x):
      purified = purification.purify(
        eps_fn, levels, UPDATES[update], x, keys, remat=remat
      )
      return jnp.sum(purified**2), purified

    return jax.jit(jax.grad(loss, has_aux=True))

  np.testing.assert_allclose(
    gradient(True, _wide)(x)[0], gradient(False, _wide)(x)[0], rtol=1e-4
  )
  # Linear: x_0 = c x + ..., so d x_0^2 / dx = 2 c x_0.
  run = gradient(True, _gaussian)
  (found, x_0), (_, ahead) = (map(np.asarray, run(x)) for x in (x, x + 1))
  np.testing.assert_allclose(
    found, 2 * (ahead - x_0) * x_0, rtol=1e-3, atol=1e-5
  )


def test_memory_of_an_attack_does_not_grow_with_levels_nor_draws(optimised):
  x, keys = jnp.ones((8, 1)), _keys(2, 8)

  def memory(num_draws):
    levels = jax.tree.map(jnp.asarray, _levels(count=60))

    def loss(x, keys):
      purified = purification.purify(
        _wide, levels, UPDATES["ddim"], x, keys, remat=True
      )
      return jnp.sum(purified**2, axis=1)

    attack = lambda x: purification.eot_attack(
      loss, x, keys, jnp.ones(8), ATTACKS["pgd"], num_draws
    )
    compiled = jax.jit(attack).lower(x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # Against the activations of all examples at all levels, float32.
  one = memory(1)
  assert one < 60 * 8 * 2048 * 4 / 5
  assert memory(8) < 1.5 * one


# Attacks.

X = np.random.default_rng(3).uniform(-0.9, 0.9, (4, 6)).astype(np.float32)
RADIUS = np.float32([0.0, 0.1, 0.3, 0.5])
SLOPE = _normal(4, (4, 6))


@functools.cache
def _attacker(loss, attack, num_draws, **kwargs):
  return jax.jit(
    lambda x, keys, radius: purification.eot_attack(
      loss, x, keys, radius, attack, num_draws, **kwargs
    )
  )


def _attack(loss, attack, num_draws=1, x=X, radius=RADIUS, **kwargs):
  find = _attacker(loss, attack, num_draws, **kwargs)
  return np.asarray(find(x, _keys(6, len(x)), radius))


def _linear(x, keys):
  del keys
  return jnp.sum(SLOPE * x, axis=1)


def test_linear_loss_is_raised_as_far_as_ball_and_range_allow():
  found = _attack(_linear, ATTACKS["pgd"])
  best = np.clip(X + RADIUS[:, None] * np.sign(SLOPE), -1, 1)
  assert np.any(np.abs(best) == 1)
  np.testing.assert_allclose(found, best, atol=1e-6)
  found = _attack(_linear, ATTACKS["pgd"], low=-0.5, high=2.0, x=abs(X))
  best = np.clip(abs(X) + RADIUS[:, None] * np.sign(SLOPE), -0.5, 2)
  np.testing.assert_allclose(found, best, atol=1e-6)


@pytest.mark.parametrize("norm", attacks.BALLS)
@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_inputs_stay_in_the_ball_and_in_the_range(norm, num_steps):
  found = _attack(_linear, Attack(norm, num_steps, 0.7))
  moved = np.abs(found - X)
  size = moved.max(1) if norm == "linf" else np.sqrt(np.mean(moved**2, 1))
  assert np.all(size <= RADIUS + 1e-6)
  assert np.all(np.abs(found) <= 1)
  np.testing.assert_allclose(found[0], X[0], atol=1e-7)
  assert np.all(size[1:] > 0)


def _noisy(scale):
  def loss(x, keys):
    draw = lambda key: jax.random.normal(key, x.shape[1:])
    return jnp.sum((SLOPE + scale * jax.vmap(draw)(keys)) * x, axis=1)

  return loss


def test_many_draws_find_the_slope_under_the_noise():
  # From zero, one l2 step is along the mean of the draws' gradients.
  step = Attack("l2", 1, 1.0, start=0.0)
  x, radius = np.zeros_like(X), np.full(4, 0.1, np.float32)

  def cosine(num_draws):
    found = _attack(_noisy(3.0), step, num_draws, x, radius)
    size = np.linalg.norm(found, axis=1) * np.linalg.norm(SLOPE, axis=1)
    return np.sum(found * SLOPE, axis=1) / size

  assert np.all(cosine(2000) > 0.98)
  assert np.mean(cosine(1)) < 0.8


def test_each_step_and_draw_has_noise_of_its_own():
  # Of noise alone, k steps on one direction would be k long.
  walk = Attack("l2", 50, 0.01, start=0.0)
  found = _attack(_noisy(1e4), walk, 1, 0 * X, np.ones(4, np.float32))
  length = np.sqrt(np.mean(found**2, axis=1))
  assert np.all(length < 0.3)
  assert len(np.unique(found)) == found.size


def test_no_momentum():
  with pytest.raises(ValueError, match="momentum"):
    _attack(_linear, ATTACKS["mi_fgsm"])


# Of attacked digits.


def demo_config(tmp_path):
  path = pathlib.Path(__file__).parents[1] / "configs" / "demo.py"
  config = runpy.run_path(str(path))["get_config"]("smoke")
  config.data.data_dir = str(tmp_path / "data")
  config.study.processes = 1
  return config


@pytest.mark.slow
def test_digits_experiment_from_end_to_end(tmp_path):
  config = demo_config(tmp_path)
  rows = purified_digits.run(config, tmp_path)
  assert [(row["method"], row["way"]) for row in rows] == [
    ("none", ""),
    ("ddpm", "deterministic"),
    ("ddpm", "stochastic"),
    ("robust_adv", "deterministic"),
    ("robust_adv", "stochastic"),
  ]
  for row in rows:
    assert {"clean", "attacked", "adaptive"} < row.keys()
  assert rows[0]["clean"] > 0.6 > rows[0]["attacked"]
  assert rows[0]["adaptive"] == rows[0]["attacked"]
  # What is trained is kept.
  assert purified_digits.run(config, tmp_path) == rows


def test_digits_halves_are_those_of_the_training(tmp_path):
  builders.prepare("digits", str(tmp_path / "data"))
  config = purified_digits.entries(demo_config(tmp_path), tmp_path)[0].config
  seen = runs.build(config).open_training_set()
  (x, y), (other, _) = purified_digits.halves()
  assert seen.num_examples == len(x) == len(y) == 898
  assert len(other) == 899
  fetched = examples.to_model_range(seen.fetch(np.arange(898)))
  np.testing.assert_allclose(fetched, x, atol=1e-6)
