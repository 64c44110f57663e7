"""Attacks against closed forms, optax's projections and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rad_jax.robustness import attacks
from rad_jax.robustness.attacks import ATTACKS, BALLS, Attack

SHAPE = (4, 2, 3, 1)
D = 6
RADIUS = jnp.array([0.1, 0.5, 1.0, 2.0])

norms = pytest.mark.parametrize("norm", BALLS)
names = pytest.mark.parametrize("name", ATTACKS)


def _normal(seed, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), shape)


def _keys(seed, b=4):
  return jax.random.split(jax.random.key(seed), b)


def _column(values):
  return np.reshape(values, (-1, 1, 1, 1))


def _sum(w):
  return jnp.sum(w, axis=(1, 2, 3))


def _rms(w):
  return np.sqrt(np.mean(np.square(np.asarray(w, np.float64)), axis=(1, 2, 3)))


def _size(norm, w):
  """The least radius of a ball that holds w, [b]."""
  return np.abs(w).max(axis=(1, 2, 3)) if norm == "linf" else _rms(w)


def _nearest(norm, w, radius):
  """optax's projection of each example, in our scale of the radius."""
  if norm == "linf":
    return jax.vmap(optax.projections.projection_linf_ball)(w, radius)
  scale = radius * np.sqrt(D, dtype=np.float32)
  return jax.vmap(optax.projections.projection_l2_ball)(w, scale)


def _best(norm, slope):
  """The maximiser of <slope, w> in the ball."""
  slope = np.asarray(slope, np.float64)
  if norm == "linf":
    return _column(RADIUS) * np.sign(slope)
  length = np.sqrt(np.sum(slope**2, axis=(1, 2, 3), keepdims=True))
  return _column(RADIUS) * np.sqrt(D) * slope / length


SLOPE = _normal(0)
linear = lambda w: _sum(SLOPE * w)
# Some of its centres lie in the ball of RADIUS, some outside.
CENTRE = _normal(1)
quadratic = lambda w: -_sum(jnp.square(w - CENTRE))


def test_the_published_attacks():
  assert ATTACKS == {
    "uniform": Attack("linf", 0, 1.0, 0.0, 1.0, True),
    "fgsm": Attack("linf", 1, 1.0, 0.0, 1.0, True),
    "n_fgsm": Attack("linf", 1, 1.0, 0.0, 2.0, False),
    "pgd": Attack("linf", 10, 0.25, 0.0, 1.0, True),
    "mi_fgsm": Attack("linf", 10, 0.1, 1.0, 1.0, True),
  }


# Balls.


@norms
def test_projection_is_the_nearest_point(norm):
  w = jnp.concatenate([0.5 * _normal(2), 3 * _normal(3)])
  radius = jnp.concatenate([RADIUS, RADIUS])
  expected = _nearest(norm, w, radius)
  inside = _size(norm, w) <= radius
  assert 0 < inside.sum() < 8
  projected = BALLS[norm].project(w, radius)
  np.testing.assert_allclose(projected, expected, rtol=1e-6)
  np.testing.assert_array_equal(projected[inside], w[inside])


@norms
def test_a_ball_of_radius_zero_is_a_point(norm):
  w = _normal(2).at[0].set(0.0)
  for moved in (
    BALLS[norm].project(w, jnp.zeros(4)),
    BALLS[norm].ascent(w, jnp.zeros(4)),
    BALLS[norm].uniform(_keys(3), jnp.zeros(4), SHAPE[1:]),
  ):
    np.testing.assert_array_equal(moved, 0)


@norms
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_ascent_at_any_scale_of_the_gradient(norm, scale):
  # The square of 1e-30 is 0 in float32, and that of 1e30 is inf.
  ascent = BALLS[norm].ascent(scale * SLOPE, RADIUS)
  np.testing.assert_allclose(ascent, _best(norm, SLOPE), rtol=1e-5)


@norms
@pytest.mark.parametrize("start", [0.0, 1.0, 2.0])
def test_start_scales_the_ball(norm, start):
  draw = lambda start: attacks.start(
    Attack(norm, start=start), _keys(4), RADIUS, SHAPE[1:]
  )
  np.testing.assert_allclose(draw(start), start * draw(1.0), rtol=1e-6)


def test_linf_draw_fills_its_ball():
  # Four standard errors of the standard deviation with 40,000 draws: 0.9%.
  radius = jnp.array([0.1, 2.0])
  w = attacks.start(Attack("linf"), _keys(5, 2), radius, (40_000,))
  for i in range(2):
    draws = np.asarray(w[i], np.float64) / float(radius[i])
    assert np.abs(draws).max() <= 1
    assert draws.max() > 0.999
    assert draws.min() < -0.999
    assert draws.mean() == pytest.approx(0, abs=0.012)
    assert draws.std() == pytest.approx(1 / np.sqrt(3), rel=0.009)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_l2_draw_fills_its_ball(shape):
  """|w| / R = U^(1/d), and the direction is uniform on the sphere.

  A direction u has E u_i = 0, E u_i u_j = [i = j] / d and E u_i^4 =
  3 / (d (d + 2)); a cube's corners would be seen in the last. Tolerances are
  four standard errors or more.
  """
  b, r, d = 40_000, 0.7, np.prod(shape)
  w = attacks.start(Attack("l2"), _keys(6, b), jnp.full(b, r), shape)
  w = np.asarray(w, np.float64).reshape(b, d) / (r * np.sqrt(d))
  norm = np.sqrt(np.sum(w**2, axis=1))
  assert 0.999 < norm.max() <= 1 + 1e-6
  assert np.mean(norm**2) == pytest.approx(d / (d + 2), abs=0.006)
  assert np.mean(norm**d) == pytest.approx(0.5, abs=0.006)
  u = w / norm[:, None]
  np.testing.assert_allclose(u.mean(axis=0), 0, atol=0.012)
  np.testing.assert_allclose(u.T @ u / b, np.eye(d) / d, atol=0.008)
  fourth = np.mean(u**4, axis=0)
  np.testing.assert_allclose(fourth, 3 / (d * (d + 2)), atol=0.006)
  # Direction and norm are independent.
  np.testing.assert_allclose(np.mean(w, axis=0), 0, atol=0.012)


def test_gaussian_has_the_radius_as_its_standard_deviation():
  # Four standard errors with 40,000 draws: 1.4%.
  radius = jnp.array([0.1, 2.0])
  w = attacks.gaussian(_keys(7, 2), radius, (40_000,))
  draws = np.asarray(w, np.float64) / np.asarray(radius)[:, None]
  np.testing.assert_allclose(draws.mean(axis=1), 0, atol=0.02)
  np.testing.assert_allclose(draws.std(axis=1), 1, rtol=0.015)
  np.testing.assert_allclose(np.mean(draws**4, axis=1), 3, rtol=0.07)


@pytest.mark.parametrize("norm", ["gaussian", *BALLS])
def test_draw_depends_on_each_key_alone(norm):
  if norm == "gaussian":
    draw = attacks.gaussian
  else:
    draw = lambda *arguments: attacks.start(Attack(norm), *arguments)
  order = jnp.array([2, 0, 3])
  w = draw(_keys(8), jnp.ones(4), (2, 3))
  np.testing.assert_array_equal(
    draw(_keys(8)[order], jnp.ones(3), (2, 3)), w[order]
  )
  assert len(np.unique(w)) == w.size


# Steps.


@norms
@pytest.mark.parametrize(
  "attack",
  [
    # From zero one step of the radius is enough. From elsewhere the l2 ball
    # takes some long ones: each brings the angle down by the step.
    ATTACKS["fgsm"]._replace(start=0.0),
    ATTACKS["pgd"]._replace(step_size=4.0),
    ATTACKS["mi_fgsm"]._replace(step_size=4.0),
  ],
)
def test_attacks_reach_the_best_of_a_linear_goal(norm, attack):
  w = attacks.maximise(
    attack._replace(norm=norm), linear, _keys(9), RADIUS, SHAPE[1:]
  )
  np.testing.assert_allclose(w, _best(norm, SLOPE), rtol=1e-5, atol=1e-6)


def test_pgd_as_published_reaches_every_corner():
  # Its ten steps are 2.5 radii, the box is 2 radii wide.
  w = attacks.maximise(ATTACKS["pgd"], linear, _keys(9), RADIUS, SHAPE[1:])
  np.testing.assert_array_equal(w, _column(RADIUS) * np.sign(SLOPE))


@norms
@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_steps_add_up_along_a_line(norm, num_steps, momentum):
  attack = Attack(norm, num_steps, step_size=0.1, momentum=momentum)
  w = attacks.ascend(attack, linear, jnp.zeros(SHAPE), RADIUS)
  expected = 0.1 * num_steps * _best(norm, SLOPE)
  np.testing.assert_allclose(w, expected, rtol=1e-5)


@names
@norms
def test_maximise_is_start_and_ascend(name, norm):
  attack = ATTACKS[name]._replace(norm=norm)
  w = attacks.maximise(attack, quadratic, _keys(9), RADIUS, SHAPE[1:])
  w_0 = attacks.start(attack, _keys(9), RADIUS, SHAPE[1:])
  expected = attacks.ascend(attack, quadratic, w_0, RADIUS)
  np.testing.assert_allclose(w, expected, rtol=1e-6)
  if name == "uniform":
    np.testing.assert_array_equal(w, w_0)


@norms
def test_n_fgsm_is_within_three_radii_and_not_one(norm):
  attack = ATTACKS["n_fgsm"]._replace(norm=norm)
  w_0 = attacks.start(attack, _keys(10), RADIUS, SHAPE[1:])
  assert np.all(_size(norm, w_0) > RADIUS)
  assert np.all(_size(norm, w_0) <= 2 * RADIUS * (1 + 1e-6))
  w = attacks.ascend(attack, linear, w_0, RADIUS)
  np.testing.assert_allclose(w, w_0 + _best(norm, SLOPE), rtol=1e-5, atol=1e-6)
  # Uphill of the start, the third radius is used too.
  w = attacks.ascend(attack, lambda w: _sum(w * w_0), w_0, RADIUS)
  expected = _size(norm, w_0) + np.asarray(RADIUS)
  np.testing.assert_allclose(_size(norm, w), expected, rtol=1e-6)


@norms
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_pgd_stays_in_its_ball(norm, num_steps):
  attack = Attack(norm, num_steps, step_size=0.9)
  for goal in (linear, quadratic):
    w = attacks.maximise(attack, goal, _keys(11), RADIUS, SHAPE[1:])
    assert np.all(_size(norm, w) <= RADIUS * (1 + 1e-6))


@norms
def test_pgd_finds_the_optimum_of_a_concave_goal(norm):
  # The best of -|w - c|^2 in the ball is c's projection; a step of constant
  # length ends within that length of it.
  best = _nearest(norm, CENTRE, RADIUS)
  outside = _size(norm, CENTRE) > RADIUS
  assert 0 < outside.sum() < 4
  attack = ATTACKS["pgd"]._replace(norm=norm, num_steps=2000, step_size=0.01)
  w = attacks.maximise(attack, quadratic, _keys(12), RADIUS, SHAPE[1:])
  assert np.all(_size(norm, w - best) <= 0.011 * RADIUS)


@norms
def test_pgd_finds_more_than_fgsm(norm):
  # The optimum is on the surface: inside, a long step may be the lucky one.
  centre = 4 * CENTRE
  goal = lambda w: -_sum(jnp.square(w - centre))
  fgsm, pgd = (
    attacks.maximise(
      ATTACKS[name]._replace(norm=norm), goal, _keys(12), RADIUS, SHAPE[1:]
    )
    for name in ("fgsm", "pgd")
  )
  assert np.all(goal(pgd) > goal(fgsm))
  best = goal(_nearest(norm, centre, RADIUS))
  assert np.all(goal(pgd) <= best + 1e-5 * np.abs(best))


@norms
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("project", [True, False])
def test_three_steps_against_numpy(norm, momentum, project):
  """A bent goal, so that gradients change in size and direction."""
  curvature = jnp.exp(_normal(13))
  goal = lambda w: -_sum(curvature * jnp.square(w - CENTRE))
  attack = Attack(norm, 3, 0.6, momentum, project=project)
  w_0 = attacks.start(attack, _keys(14), RADIUS, SHAPE[1:])

  w = np.asarray(w_0, np.float64)
  r = np.asarray(RADIUS, np.float64)
  c, h = (np.asarray(v, np.float64) for v in (CENTRE, curvature))
  for i in range(4):
    g = np.zeros(SHAPE[1:])
    for _ in range(3):
      gradient = -2 * h[i] * (w[i] - c[i])
      g = momentum * g + gradient / np.abs(gradient).sum()
      if norm == "linf":
        w[i] += 0.6 * r[i] * np.sign(g)
        if project:
          w[i] = np.clip(w[i], -r[i], r[i])
      else:
        w[i] += 0.6 * r[i] * np.sqrt(D) * g / np.linalg.norm(g)
        length = np.linalg.norm(w[i]) / np.sqrt(D)
        if project and length > r[i]:
          w[i] *= r[i] / length
  actual = attacks.ascend(attack, goal, w_0, RADIUS)
  np.testing.assert_allclose(actual, w, rtol=1e-4, atol=1e-5)


@norms
@pytest.mark.parametrize("project", [True, False])
def test_step_is_ascend_with_the_gradient_at_hand(norm, project):
  attack = Attack(norm, step_size=0.8, project=project)
  w_0 = attacks.start(attack, _keys(15), RADIUS, SHAPE[1:])
  gradient = 1e-3 * -2 * (w_0 - CENTRE)  # A training step's has another scale.
  np.testing.assert_allclose(
    attacks.step(attack, w_0, gradient, RADIUS),
    attacks.ascend(attack, quadratic, w_0, RADIUS),
    rtol=1e-5,
    atol=1e-6,
  )


@names
@norms
def test_zero_gradient_does_not_move(name, norm):
  attack = ATTACKS[name]._replace(norm=norm, start=0.9)
  w_0 = attacks.start(attack, _keys(16), RADIUS, SHAPE[1:])
  w_0 = w_0.at[1].set(0.0)
  # Flat for the first two examples alone.
  slope = SLOPE.at[:2].set(0.0)
  w = attacks.ascend(attack, lambda w: _sum(slope * w), w_0, RADIUS)
  np.testing.assert_array_equal(w[:2], w_0[:2])
  assert np.all(np.isfinite(w))
  assert np.all(np.any(w != w_0, axis=(1, 2, 3))[2:]) == (name != "uniform")


@names
@norms
def test_attack_carries_no_gradient(name, norm):
  attack = ATTACKS[name]._replace(norm=norm)

  def total(centre, radius, w_0):
    goal = lambda w: -_sum(jnp.square(w - centre))
    climbed = attacks.ascend(attack, goal, w_0, radius)
    w = attacks.maximise(attack, goal, _keys(17), radius, SHAPE[1:])
    return jnp.sum((w + climbed) * SLOPE)

  gradients = jax.grad(total, argnums=(0, 1, 2))(CENTRE, RADIUS, _normal(18))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@names
@norms
def test_attack_on_an_example_does_not_see_the_others(name, norm):
  attack = ATTACKS[name]._replace(norm=norm)

  def run(centre, radius, keys):
    # The fourth power: a gradient's size depends on where it is taken.
    goal = lambda w: -_sum((w - centre) ** 4)
    return attacks.maximise(attack, goal, keys, radius, SHAPE[1:])

  w = run(CENTRE, RADIUS, _keys(19))
  keys = jnp.concatenate([_keys(19)[:2], _keys(20, 1), _keys(19)[3:]])
  changed = run(CENTRE.at[2].multiply(-30.0), RADIUS.at[2].set(5.0), keys)
  same = np.all(w == changed, axis=(1, 2, 3))
  np.testing.assert_array_equal(same, [True, True, False, True])


@pytest.mark.parametrize(
  ("num_steps", "calls", "loops"), [(0, 0, 0), (1, 1, 0), (2, 1, 1), (50, 1, 1)]
)
def test_one_step_is_no_loop_and_many_are_one(num_steps, calls, loops):
  # XLA counts a loop's FLOPs once; an unrolled loop is compiled many times.
  called = []

  def goal(w):
    called.append(w)
    return linear(w)

  attack = ATTACKS["mi_fgsm"]._replace(num_steps=num_steps)
  ascend = lambda w: attacks.ascend(attack, goal, w, RADIUS)
  jaxpr = str(jax.make_jaxpr(ascend)(CENTRE))
  assert len(called) == calls
  assert jaxpr.count("scan[") + jaxpr.count("while[") == loops


def test_unknown_norm():
  with pytest.raises(KeyError, match="l1"):
    attacks.start(Attack("l1"), _keys(21), RADIUS, SHAPE[1:])
  with pytest.raises(KeyError, match="l1"):
    attacks.ascend(Attack("l1"), linear, CENTRE, RADIUS)
