"""What holds over whole ranges: `hypothesis` looks for a counterexample.

Ten examples each, the same at every run; `--hypothesis-profile=many` tries new
ones, a thousand each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rad_jax.data import corruptions
from rad_jax.diffusion import parametrisation, process, schedules
from rad_jax.diffusion.process import Level
from rad_jax.robustness import attacks, radius, shrinkage

B, D = 4, 3


def floats(low, high):
  return st.floats(low, high, allow_subnormal=False)


def batches(size=10.0):
  elements = st.floats(-size, size, width=32, allow_subnormal=False)
  return hnp.arrays(np.float32, (B, D), elements=elements).map(jnp.asarray)


def scalars(low, high):
  elements = st.floats(low, high, width=32)
  return hnp.arrays(np.float32, B, elements=elements).map(jnp.asarray)


@st.composite
def levels(draw):
  """One level an example: alpha and sigma from 1/16 to 16, by themselves."""
  alpha, sigma = (draw(scalars(0.0625, 16.0)) for _ in range(2))
  return Level(alpha, sigma, jnp.zeros(B), jnp.ones(B))


def assert_close(a, b, size=1.0):
  """Up to float32's rounding of terms as large as `size`."""
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * size)


# ---- Processes ----


@given(st.sampled_from(sorted(schedules.ALPHA_BAR)), st.integers(21, 2000))
def test_alpha_bar_falls_within_0_and_1(name, num_timesteps):
  alpha_bar = schedules.ALPHA_BAR[name](num_timesteps)
  assert len(alpha_bar) == num_timesteps
  assert 0 < alpha_bar[-1] and alpha_bar[0] < 1
  assert (np.diff(alpha_bar) < 0).all()


@given(st.data(), st.integers(2, 1000))
def test_any_number_of_steps_goes_from_end_to_end(data, num_timesteps):
  num_steps = data.draw(st.integers(2, num_timesteps))
  found = schedules.respaced_timesteps(num_timesteps, num_steps)
  assert (found[0], found[-1], len(found)) == (num_timesteps - 1, 0, num_steps)
  gaps = -np.diff(found)
  assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@given(
  st.sampled_from(["ddpm", "edm", "flow"]), st.integers(2, 50), st.integers(0)
)
def test_drawn_levels_are_within_those_of_the_grid(name, num_steps, seed):
  made = {
    "ddpm": schedules.ddpm(schedules.linear_alpha_bar(50)),
    "edm": schedules.edm(log_std=0.5),
    "flow": schedules.flow(),
  }[name]
  grid = made.grid(num_steps)
  assert (np.diff(grid.sigma / grid.alpha) < 0).all()
  drawn = made.draw(jax.random.split(jax.random.key(seed % 2**32), 64))
  for field in ("alpha", "sigma", "time"):
    ends = getattr(grid, field)[jnp.array([0, -1])]
    found = getattr(drawn, field)
    assert np.min(ends) * 0.9999 <= np.min(found)
    assert np.max(found) <= np.max(ends) * 1.0001


@given(levels(), batches(), batches(), batches())
def test_shift_by_w_changes_the_noise_by_w_and_leaves_x_0(level, x_0, eps, w):
  x_t = process.shifted(process.diffuse(level, x_0, eps), level.sigma, w)
  moved = process.diffuse(level, x_0, eps + w)
  assert_close(x_t, moved, size=500)
  ratio = float(jnp.max(level.sigma / level.alpha))
  back = process.eps_to_x_0(level, moved, eps + w)
  assert_close(back, x_0, size=10 + 20 * ratio)


@given(floats(0.05, 0.95), floats(0.05, 0.95), batches(), batches())
def test_two_steps_of_noising_are_one(a, b, x_0, x_t):
  """Var x_t = ratio^2 var x_s + added; the posterior has less than either."""
  low, high = sorted((a, b))
  at = lambda t: Level(*map(jnp.float32, (1 - t, t, 0.0, 1.0)))
  earlier, later = at(low), at(high)
  mean, small, added = process.transition(later, earlier, x_0, x_t)
  ratio = later.alpha / earlier.alpha
  total = jnp.square(ratio * earlier.sigma) + added
  assert_close(total, jnp.square(later.sigma))
  assert 0 <= small <= min(added, jnp.square(earlier.sigma)) * 1.0001
  # The mean of x_s given the mean of x_t is that of x_s.
  mean, *_ = process.transition(later, earlier, x_0, later.alpha * x_0)
  assert_close(mean, earlier.alpha * x_0, size=10)


# ---- Predictions ----


@pytest.mark.parametrize("name", parametrisation.PREDICTIONS)
@given(levels(), batches(), batches(), batches(1.0))
def test_target_and_noise_are_each_other_s_inverse(name, level, x_0, eps, w):
  prediction = parametrisation.predictions(0.5)[name]
  y = parametrisation.target(prediction, level, x_0, eps)
  x_t = process.diffuse(level, x_0, eps)
  # x_0 hides in x_t where sigma is large, and eps where it is small.
  size = 10 * float(jnp.max(level.alpha / level.sigma)) + 10
  found = parametrisation.to_eps(prediction, level, x_t, y)
  assert_close(found, eps, size=10 * size)
  # An error w of eps_hat is one of y, by the square root of the own weight.
  moved = parametrisation.to_eps(prediction, level, x_t, y + w)
  weight = parametrisation.own_weight(prediction)(level)
  of_eps = jnp.sqrt(weight)[:, None] * jnp.abs(moved - found)
  assert_close(of_eps, jnp.abs(w), size=20 * size)


# ---- Perturbations ----

norms = pytest.mark.parametrize("norm", attacks.BALLS)


def length(norm, w):
  if norm == "linf":
    return jnp.max(jnp.abs(w), axis=1)
  return jnp.sqrt(jnp.mean(jnp.square(w), axis=1))


def uniform(norm, radius, seed):
  """A point of each example's ball, to hold the best one against."""
  keys = jax.random.split(jax.random.key(seed), B)
  return attacks.BALLS[norm].uniform(keys, radius, (D,))


@norms
@given(batches(), scalars(0.0, 4.0), st.integers(0, 2**32 - 1))
def test_projection_is_the_nearest_point_of_the_ball(norm, w, radius, seed):
  ball = attacks.BALLS[norm]
  near = ball.project(w, radius)
  assert (length(norm, near) <= radius * 1.0001).all()
  assert_close(ball.project(near, radius), near)
  inside = length(norm, w) < radius * 0.9999
  np.testing.assert_array_equal(near[inside], w[inside])
  other = uniform(norm, radius, seed)
  assert (length(norm, other) <= radius * 1.0001).all()
  distance = lambda y: jnp.linalg.norm(w - y, axis=1)
  assert (distance(near) <= distance(other) * 1.0001 + 1e-5).all()


@norms
@given(batches(), scalars(0.0, 4.0), st.integers(0, 2**32 - 1))
def test_no_step_in_the_ball_climbs_more(norm, gradient, radius, seed):
  best = attacks.BALLS[norm].ascent(gradient, radius)
  assert (length(norm, best) <= radius * 1.0001).all()
  other = uniform(norm, radius, seed)
  climbed = lambda w: jnp.sum(w * gradient, axis=1)
  assert (climbed(best) >= climbed(other) * 0.9999 - 1e-5).all()


@given(
  st.sampled_from(sorted(radius.SHAPES)),
  floats(1.0, 4.0),
  floats(0.001, 1.0),
  st.booleans(),
)
def test_radius_goes_one_way_and_beta_is_its_scale(name, omega, beta, product):
  sigma_t = jnp.linspace(0.01, 0.99, 20)
  found = radius.radius(sigma_t, 1.0, name, omega, beta, multiplicative=product)
  way = {"falling": -1, "rising": 1}[name]
  assert (way * np.diff(found) >= 0).all() and (found > 0).all()
  low, high = (0, beta) if product else (beta, 1 + beta)
  assert low < np.min(found) and np.max(found) <= high * 1.0001


# ---- Dirt ----


@pytest.mark.parametrize("kind", ["gaussian", "outlier", "salt_and_pepper"])
@given(st.integers(0, 2**32 - 1), floats(0.0, 1.0), st.permutations(range(8)))
def test_dirt_is_that_of_the_example_in_any_order(kind, seed, fraction, order):
  key, index, order = jax.random.key(seed), jnp.arange(8), np.array(order)
  x_0 = jnp.asarray(
    np.random.default_rng(seed).normal(size=(8, D)), jnp.float32
  )
  dirt = lambda index, x: corruptions.corrupt(
    key, index, x, kind, fraction, 0.5
  )
  found = dirt(index, x_0)
  np.testing.assert_array_equal(dirt(index[order], x_0[order]), found[order])
  dirty = np.asarray(corruptions.is_dirty(key, index, fraction))
  np.testing.assert_array_equal(found[~dirty], x_0[~dirty])
  # More dirt: the same examples, and others.
  more = np.asarray(corruptions.is_dirty(key, index, min(fraction + 0.1, 1.0)))
  assert (more >= dirty).all()


# ---- Shrinkage ----


@given(
  floats(0.01, 4.0), floats(0.01, 10.0), floats(0.1, 2.0), floats(0.0, 1.0)
)
def test_more_lambda_shrinks_more_and_lambda_for_inverts_it(q2, lam, rho, eta):
  grid = schedules.ddpm(schedules.linear_alpha_bar(100)).grid(20)
  alpha, sigma = (np.asarray(x, np.float64) for x in (grid.alpha, grid.sigma))
  variance = lambda lam: shrinkage.sampled_variance(
    q2, alpha, sigma, lam, rho, eta
  )
  assert 0 < variance(2 * lam) < variance(lam) < variance(0.0)
  ratio = np.sqrt(variance(lam) / q2)
  found = shrinkage.lambda_for(ratio, q2, alpha, sigma, 1.0, rho, eta)
  assert found == pytest.approx(lam, rel=1e-6)
