"""The paper's losses, perturbations and radii against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rad_jax.robustness import objectives, perturbations, radius

REGULARISED = ["invariance", "robust_ran", "robust_adv", "true_noise"]
SHAPE = (4, 2, 3, 1)
SIGMA_T = jnp.array([0.05, 0.3, 0.7, 0.999])


def _normal(seed, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), shape)


def _keys(seed, b):
  return jax.random.split(jax.random.key(seed), b)


def _column(values, ndim=4):
  return jnp.reshape(values, (-1,) + (1,) * (ndim - 1))


NOISED = objectives.Noised(x_t=_normal(0), eps=_normal(1), sigma_t=SIGMA_T)
W = 0.3 * _normal(2)
RADIUS = jnp.array([0.1, 0.5, 1.0, 2.0])
LAMBDA_T = jnp.array([0.1, 0.5, 1.0, 3.0])
MEAN_W2 = np.mean(np.square(W), axis=(1, 2, 3))


def _mlp(params, x):
  """A smooth network without coupling between examples."""
  flat = x.reshape(len(x), -1)
  hidden = jnp.tanh(flat @ params["in"] + params["bias"][None])
  return (hidden @ params["out"]).reshape(x.shape)


PARAMS = {
  "in": _normal(3, (6, 16)),
  "bias": _normal(4, (16,)),
  "out": _normal(5, (16, 6)),
}


def _loss(
  name, eps_fn, noised=NOISED, w=W, lambda_t=LAMBDA_T, stop_gradient=False
):
  return objectives.OBJECTIVES[name].loss(
    eps_fn, eps_fn(noised.x_t), noised, w, lambda_t, stop_gradient
  )


# Objectives.


def test_each_name_has_its_loss_and_its_perturbation():
  table = {
    name: (objective.loss.__name__, objective.perturbation)
    for name, objective in objectives.OBJECTIVES.items()
  }
  assert table == {
    "ddpm": ("ddpm", "none"),
    "invariance": ("invariance", "fgsm"),
    "robust_ran": ("equivariance", "uniform"),
    "robust_adv": ("equivariance", "fgsm"),
    "true_noise": ("true_noise", "fgsm"),
    "true_noise_only": ("true_noise_only", "fgsm"),
  }


def test_perturbed_state_moves_by_sigma_w_and_its_noise_by_w():
  moved = objectives.perturbed(NOISED, W) - NOISED.x_t
  np.testing.assert_allclose(moved, _column(SIGMA_T) * W, atol=1e-6)
  # For one clean point x_0 = 0, x_t = sigma_t eps.
  noised = NOISED._replace(x_t=_column(SIGMA_T) * NOISED.eps)
  noise = objectives.perturbed(noised, W) / _column(SIGMA_T)
  np.testing.assert_allclose(noise, NOISED.eps + W, atol=1e-5)


def test_ideal_network_moves_by_w():
  # eps(x) = x / sigma_t + c: the exact predictor of data at one point.
  eps_fn = lambda x: x / _column(SIGMA_T) + 0.4
  _, terms = _loss("robust_adv", eps_fn)
  np.testing.assert_allclose(terms["regulariser"], 0, atol=1e-9)
  _, terms = _loss("invariance", eps_fn)
  np.testing.assert_allclose(terms["regulariser"], MEAN_W2, rtol=1e-4)


def test_constant_network_does_not_move():
  eps_fn = lambda x: jnp.full_like(x, 0.4)
  _, terms = _loss("robust_adv", eps_fn)
  np.testing.assert_allclose(terms["regulariser"], MEAN_W2, rtol=1e-5)
  _, terms = _loss("invariance", eps_fn)
  np.testing.assert_array_equal(terms["regulariser"], 0)


def test_true_noise_values():
  # eps_hat = 2 x by hand, element by element in float64.
  loss, terms = _loss("true_noise", lambda x: 2 * x)
  only, only_terms = _loss("true_noise_only", lambda x: 2 * x)
  x_t, eps, w = (np.asarray(v, np.float64) for v in (*NOISED[:2], W))
  for i in range(4):
    dsm = np.mean((2 * x_t[i] - eps[i]) ** 2)
    moved = 2 * (x_t[i] + float(SIGMA_T[i]) * w[i])
    regulariser = np.mean((moved - eps[i] - w[i]) ** 2)
    assert terms["dsm"][i] == pytest.approx(dsm, rel=1e-5)
    assert terms["regulariser"][i] == pytest.approx(regulariser, rel=1e-5)
    assert loss[i] == pytest.approx(
      dsm + float(LAMBDA_T[i]) * regulariser, rel=1e-5
    )
    assert only[i] == pytest.approx(regulariser, rel=1e-5)
  assert only_terms.keys() == {"regulariser"}


@pytest.mark.parametrize("name", ["true_noise", "true_noise_only"])
def test_true_noise_needs_the_true_noise_not_the_shift_alone(name):
  # x / sigma_t + c moves by w, but is c away from eps + w.
  noised = NOISED._replace(x_t=_column(SIGMA_T) * NOISED.eps)
  _, terms = _loss(name, lambda x: x / _column(SIGMA_T) + 0.4, noised)
  np.testing.assert_allclose(terms["regulariser"], 0.16, rtol=1e-4)


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("name", REGULARISED)
def test_lambda_zero_is_ddpm_to_the_bit(name, stop_gradient):
  def run(name, lambda_t):
    def mean_loss(params):
      values, _ = _loss(
        name,
        lambda x: _mlp(params, x),
        lambda_t=lambda_t,
        stop_gradient=stop_gradient,
      )
      return jnp.mean(values), values

    gradient, values = jax.grad(mean_loss, has_aux=True)(PARAMS)
    return values, gradient

  jax.tree.map(
    np.testing.assert_array_equal,
    run(name, jnp.zeros(4)),
    run("ddpm", LAMBDA_T),
  )


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_loss_and_terms_are_per_example(name):
  eps_fn = lambda x: _mlp(PARAMS, x)
  loss, terms = _loss(name, eps_fn)
  assert all(value.shape == (4,) for value in (loss, *terms.values()))
  assert len(np.unique(loss)) == 4
  changed = objectives.Noised(
    NOISED.x_t.at[2].add(1.0),
    NOISED.eps.at[2].add(-2.0),
    SIGMA_T.at[2].set(0.1),
  )
  moved, _ = _loss(
    name, eps_fn, changed, W.at[2].add(0.5), LAMBDA_T.at[2].set(9.0)
  )
  np.testing.assert_array_equal(loss != moved, [False, False, True, False])


@pytest.mark.parametrize("name", REGULARISED)
def test_regulariser_has_its_weight(name):
  loss, terms = _loss(name, lambda x: _mlp(PARAMS, x))
  np.testing.assert_allclose(
    loss, terms["dsm"] + LAMBDA_T * terms["regulariser"], rtol=1e-6
  )


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("name", ["invariance", "robust_adv"])
def test_gradient_through_the_target_is_a_choice(name, stop_gradient):
  # One scalar, eps_hat = k x, differentiated by hand.
  k, x, eps, s, w, lam = 0.6, 1.3, -0.4, 0.7, 0.5, 2.0
  noised = objectives.Noised(
    jnp.array([[x]]), jnp.array([[eps]]), jnp.array([s])
  )

  def loss(k):
    values, _ = _loss(
      name,
      lambda x: k * x,
      noised,
      jnp.array([[w]]),
      jnp.array([lam]),
      stop_gradient,
    )
    return values[0]

  residual = k * s * w - (w if name == "robust_adv" else 0)
  by_k = x + s * w if stop_gradient else s * w
  expected = 2 * x * (k * x - eps) + 2 * lam * residual * by_k
  assert float(jax.grad(loss)(k)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.5, 4.0])
def test_linear_network_shrinks_gaussian_data(lam, stop_gradient):
  """A linear network learns data of variance q^2 / (1 + lambda rho^2).

  Take eps_hat = A x along an axis, with x_t = a x_0 + s eps, x_0 ~ N(0, q^2)
  and w of mean zero and variance rho^2, independent of x_t. The residual
  A (x_t + s w) - A x_t - w = (A s - 1) w does not depend on x_t, so

    E loss = A^2 (a^2 q^2 + s^2) - 2 A s + 1 + lambda rho^2 (A s - 1)^2

  which is least at A = s / (a^2 q^2 / (1 + lambda rho^2) + s^2): the optimum
  of denoising alone for data of that smaller variance. So for the target
  that carries gradients. Under stop_gradient the regulariser's slope is
  2 lambda E[(A s - 1) w (x_t + s w)], the same because E[w x_t] = 0: the
  training's fixed point is the same for a random w, but not for an attack,
  which knows x_t. w is in noise units: the state moves by s w.
  """
  a, s, r, n = 0.8, 0.6, 0.9, 4000
  q = np.array([0.5, 2.0])
  generator = np.random.default_rng(6)
  # All signs of each draw, and scaled draws: the sample's second moments are
  # the population's, and the formula holds to rounding.
  draws = [generator.normal(size=(n, 2)), generator.normal(size=(n, 2))]
  draws = [draw / np.sqrt(np.mean(draw**2, axis=0)) for draw in draws]
  draws.append(generator.uniform(-r, r, size=(n, 2)))
  x_0, eps, w = (
    np.concatenate(parts)
    for parts in zip(
      *(
        [sign * draw for sign, draw in zip(signs, draws, strict=True)]
        for signs in np.ndindex(2, 2, 2)
        for signs in [2 * np.array(signs) - 1]
      ),
      strict=True,
    )
  )
  rho2 = np.mean(w**2, axis=0)
  np.testing.assert_allclose(rho2, r**2 / 3, rtol=0.05)
  noised = objectives.Noised(
    x_t=jnp.asarray(a * q * x_0 + s * eps, jnp.float32),
    eps=jnp.asarray(eps, jnp.float32),
    sigma_t=jnp.full(len(eps), s),
  )

  def mean_loss(slope):
    eps_fn = lambda x: slope[None] * x
    values, _ = objectives.equivariance(
      eps_fn,
      eps_fn(noised.x_t),
      noised,
      jnp.asarray(w, jnp.float32),
      jnp.full(len(eps), lam),
      stop_gradient,
    )
    return jnp.mean(values)

  # The slope of a quadratic is affine: its root by two evaluations.
  gradient = jax.jit(jax.grad(mean_loss))
  at_0, at_1 = gradient(jnp.zeros(2)), gradient(jnp.ones(2))
  optimum = at_0 / (at_0 - at_1)
  shrunk = q**2 / (1 + lam * rho2)
  np.testing.assert_allclose(optimum, s / (a**2 * shrunk + s**2), rtol=1e-4)


# Perturbations.


def test_uniform_fills_its_box():
  # Four standard errors of the standard deviation with 40,000 draws: 0.9%.
  r = jnp.array([0.1, 2.0])
  w = perturbations.uniform(_keys(7, 2), r, (40_000,))
  for i in range(2):
    draws = np.asarray(w[i], np.float64) / float(r[i])
    assert np.abs(draws).max() <= 1
    assert draws.max() > 0.999
    assert draws.min() < -0.999
    assert draws.mean() == pytest.approx(0, abs=0.012)
    assert draws.std() == pytest.approx(1 / np.sqrt(3), rel=0.009)


def test_uniform_depends_on_each_key_alone():
  order = jnp.array([2, 0, 3])
  w = perturbations.uniform(_keys(8, 4), jnp.ones(4), (2, 3))
  np.testing.assert_array_equal(
    perturbations.uniform(_keys(8, 4)[order], jnp.ones(3), (2, 3)), w[order]
  )
  assert len(np.unique(w)) == w.size


@pytest.mark.parametrize("step_size", [0.3, 1.0, 1.25, 2.0])
def test_fgsm_on_a_linear_objective(step_size):
  r = RADIUS
  slope = _normal(9).at[0, 0, 0, 0].set(0.0)
  linear = lambda w: jnp.sum(slope * w, axis=(1, 2, 3))
  w_0 = perturbations.uniform(_keys(10, 4), r, SHAPE[1:])
  w = perturbations.fgsm(linear, w_0, r, step_size)
  step = step_size * _column(r) * jnp.sign(slope)
  expected = optax.projections.projection_box(
    w_0 + step, -_column(r) * jnp.ones(SHAPE), _column(r) * jnp.ones(SHAPE)
  )
  np.testing.assert_allclose(w, expected, rtol=1e-6)
  assert np.all(np.abs(w) <= _column(r))
  assert w[0, 0, 0, 0] == w_0[0, 0, 0, 0]
  if step_size == 2.0:  # The box's width: the best corner from any start.
    best = (_column(r) * jnp.sign(slope)).at[0, 0, 0, 0].set(w_0[0, 0, 0, 0])
    np.testing.assert_array_equal(w, best)


def test_fgsm_steps_by_the_radius_unless_told_otherwise():
  slope = _normal(9)
  linear = lambda w: jnp.sum(slope * w, axis=(1, 2, 3))
  best = _column(RADIUS) * jnp.sign(slope)
  np.testing.assert_array_equal(
    perturbations.fgsm(linear, jnp.zeros(SHAPE), RADIUS), best
  )
  # From the worst corner it comes as far as the centre.
  np.testing.assert_array_equal(perturbations.fgsm(linear, -best, RADIUS), 0)


def _movement(w):
  """The paper's J, for the network at PARAMS."""
  eps_fn = lambda x: _mlp(PARAMS, x)
  moved = eps_fn(NOISED.x_t + _column(SIGMA_T) * w) - eps_fn(NOISED.x_t)
  return jnp.sum(jnp.square(moved), axis=(1, 2, 3))


def test_a_zero_start_does_not_attack_but_a_random_one_does():
  r = jnp.full(4, 0.5)
  w = perturbations.fgsm(_movement, jnp.zeros(SHAPE), r)
  np.testing.assert_array_equal(w, 0)
  w_0 = perturbations.uniform(_keys(11, 4), r, SHAPE[1:])
  moved = jnp.abs(perturbations.fgsm(_movement, w_0, r) - w_0)
  assert np.all(np.mean(moved, axis=(1, 2, 3)) > 0.1)


def _attack(
  name="fgsm",
  eps_fn=lambda x: _mlp(PARAMS, x),
  noised=NOISED,
  r=RADIUS,
  step_size=1.0,
):
  return objectives.perturbation(
    name, eps_fn, eps_fn(noised.x_t), noised, _keys(12, 4), r, step_size
  )


def test_perturbation_starts_from_the_uniform_draw_of_its_keys():
  start = perturbations.uniform(_keys(12, 4), RADIUS, SHAPE[1:])
  np.testing.assert_array_equal(_attack("none"), jnp.zeros(SHAPE))
  np.testing.assert_array_equal(_attack("uniform"), start)
  np.testing.assert_array_equal(_attack("fgsm", step_size=0.0), start)


def test_attack_on_a_linear_network_leaves_from_the_centre():
  # J = |k sigma_t w|^2 grows with every |w_i|: w = r sign(w_0).
  w = _attack(eps_fn=lambda x: 1.7 * x)
  r = _column(RADIUS)
  np.testing.assert_array_equal(w, r * jnp.sign(_attack("uniform")))


def test_attack_raises_the_movement():
  # A small step, of first order: J grows for every example.
  assert np.all(
    _movement(_attack(step_size=0.02)) > _movement(_attack("uniform"))
  )
  # A whole step: on average.
  assert np.mean(_movement(_attack())) > 1.2 * np.mean(
    _movement(_attack("uniform"))
  )


def test_attack_moves_the_state_by_sigma_w():
  # The network bends at |x| = 1: where J is flat beyond it, the sign of its
  # gradient tells how far the attack has moved the state.
  noised = NOISED._replace(x_t=jnp.zeros(SHAPE), sigma_t=jnp.full(4, 0.1))
  inside = _attack(eps_fn=lambda x: jnp.clip(x, -1, 1), noised=noised)
  start = _attack("uniform")
  np.testing.assert_array_equal(inside, _column(RADIUS) * jnp.sign(start))


def test_attack_on_an_example_does_not_see_the_others():
  changed = NOISED._replace(
    x_t=NOISED.x_t.at[2].multiply(-3.0), sigma_t=SIGMA_T.at[2].set(0.01)
  )
  same = np.all(_attack() == _attack(noised=changed), axis=(1, 2, 3))
  np.testing.assert_array_equal(same, [True, True, False, True])


def test_attack_carries_no_gradient():
  r = RADIUS

  def total(params, x_t, r):
    w = _attack(
      eps_fn=lambda x: _mlp(params, x), noised=NOISED._replace(x_t=x_t), r=r
    )
    return jnp.sum(w * _normal(13))

  gradients = jax.grad(total, argnums=(0, 1, 2))(PARAMS, NOISED.x_t, r)
  for leaf in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(leaf, 0)


# Radius and lambda.


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("seed", [0.91, 0.35, 0.1]),  # (1 - 0.1)^2, (1 - 0.5)^2, 0; + 0.1
    ("noise_scale", [0.11, 0.35, 1.1]),  # 0.1^2, 0.5^2, 1; + 0.1
    ("constant", [0.1, 0.1, 0.1]),
  ],
)
def test_radius_at_three_points(name, expected):
  r = radius.RADII[name](
    jnp.array([0.1, 0.5, 1.0]), jnp.float32(1.0), beta=0.1, omega=2.0
  )
  np.testing.assert_allclose(r, expected, rtol=1e-6)


@pytest.mark.parametrize("omega", [1.0, 1.5, 2.0])
def test_radius_is_monotone_and_bounded(omega):
  sigma_t, sigma_max, beta = jnp.linspace(0.01, 0.98, 200), 0.98, 8 / 255
  r = {
    name: np.asarray(f(sigma_t, jnp.float32(sigma_max), beta, omega))
    for name, f in radius.RADII.items()
  }
  assert np.all(np.diff(r["seed"]) < 0)
  assert np.all(np.diff(r["noise_scale"]) > 0)
  for values in r.values():
    assert values.shape == (200,)
    assert values.min() >= np.float32(beta)
    assert values.max() <= (sigma_max**omega + beta) * (1 + 1e-6)


def test_seed_radius_bears_rounding_above_sigma_max():
  # A negative base under a broken exponent would be NaN.
  above = jnp.nextafter(jnp.float32(0.98), jnp.float32(1))[None]
  r = radius.seed(above, jnp.float32(0.98), beta=0.1, omega=1.5)
  assert float(r[0]) == np.float32(0.1)


def test_inverse_std_lambda_undoes_the_spread_of_w():
  r = jnp.array([0.05, 0.4, 1.5])
  w = perturbations.uniform(_keys(14, 3), r, (40_000,))
  lambda_t = radius.LAMBDAS["inverse_std"](0.3, r)
  np.testing.assert_allclose(lambda_t * r / np.sqrt(3), 0.3, rtol=1e-6)
  np.testing.assert_allclose(lambda_t * np.std(w, axis=1), 0.3, rtol=0.009)


def test_constant_lambda():
  lambda_t = radius.LAMBDAS["constant"](0.3, jnp.array([0.05, 0.4]))
  np.testing.assert_array_equal(lambda_t, np.full(2, 0.3, np.float32))
