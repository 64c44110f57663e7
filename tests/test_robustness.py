"""The objectives, noisings and radii against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax.diffusion.process import Level, shifted
from rad_jax.robustness import attacks, noising, objectives, radius
from rad_jax.robustness.method import Method, without_regulariser
from rad_jax.robustness.noising import Noised
from rad_jax.robustness.objectives import OBJECTIVES

# Those with a clean branch and a perturbed one, and each one's plain part.
PLAIN = {
  "invariance": "ddpm",
  "robust_ran": "ddpm",
  "robust_adv": "ddpm",
  "true_noise": "ddpm",
  "noise_aware_ran": "noise_aware",
  "noise_aware_adv": "noise_aware",
}
SHAPE = (4, 2, 3, 1)
SIGMA = jnp.array([0.05, 0.3, 0.7, 0.999])

stop_gradients = pytest.mark.parametrize("stop_gradient", [False, True])


def _normal(seed, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), shape)


def _keys(seed, b):
  return jax.random.split(jax.random.key(seed), b)


def _column(values, ndim=4):
  return jnp.reshape(values, (-1,) + (1,) * (ndim - 1))


NOISED = Noised(
  x_t=_normal(0),
  eps=_normal(1),
  weight=jnp.array([1.0, 0.25, 0.81, 0.0]),
  sigma=SIGMA,
)
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
  return objectives.loss(
    OBJECTIVES[name],
    eps_fn,
    eps_fn(noised.x_t),
    noised,
    w,
    lambda_t,
    stop_gradient,
  )


def _float64(*arrays):
  return [np.asarray(array, np.float64) for array in arrays]


# Objectives.


def test_the_table():
  table = {
    name: (
      objective.noise.__name__,
      objective.clean,
      objective.target and objective.target.__name__,
      objective.attack,
    )
    for name, objective in OBJECTIVES.items()
  }
  assert table == {
    "ddpm": ("blind", True, None, "none"),
    "invariance": ("blind", True, "invariant", "fgsm"),
    "robust_ran": ("blind", True, "equivariant", "uniform"),
    "robust_adv": ("blind", True, "equivariant", "fgsm"),
    "jacobian": ("blind", True, "equivariant", "uniform"),
    "true_noise": ("blind", True, "true_noise", "fgsm"),
    "true_noise_only": ("blind", False, "true_noise", "fgsm"),
    "input_perturbation": ("blind", False, "unshifted_noise", "gaussian"),
    "noise_aware": ("aware", True, None, "none"),
    "noise_aware_ran": ("aware", True, "equivariant", "uniform"),
    "noise_aware_adv": ("aware", True, "equivariant", "fgsm"),
  }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_left_without_the_regulariser(name):
  plain = "noise_aware" if name.startswith("noise_aware") else "ddpm"
  method = Method(OBJECTIVES[name], None, None)
  assert without_regulariser(method).objective == OBJECTIVES[plain]


def test_perturbed_state_moves_by_sigma_w_and_its_noise_by_w():
  moved = shifted(NOISED.x_t, NOISED.sigma, W) - NOISED.x_t
  np.testing.assert_allclose(moved, _column(SIGMA) * W, atol=1e-6)
  # For one clean point x_0 = 0, x_t = sigma eps.
  x_t = _column(SIGMA) * NOISED.eps
  noise = shifted(x_t, SIGMA, W) / _column(SIGMA)
  np.testing.assert_allclose(noise, NOISED.eps + W, atol=1e-5)


def test_perturbed_state_is_not_clipped():
  x_t, w = jnp.full(SHAPE, 5.0), jnp.full(SHAPE, 7.0)
  np.testing.assert_allclose(
    shifted(x_t, SIGMA, w), 5 + 7 * _column(SIGMA) * np.ones(SHAPE)
  )
  np.testing.assert_allclose(shifted(x_t, SIGMA[0], w), 5 + 7 * SIGMA[0])


def test_ideal_network_moves_by_w():
  # eps(x) = x / sigma + c: the exact predictor of data at one point.
  eps_fn = lambda x: x / _column(SIGMA) + 0.4
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
  x_t, eps, w = _float64(NOISED.x_t, NOISED.eps, W)
  for i in range(4):
    dsm = float(NOISED.weight[i]) * np.mean((2 * x_t[i] - eps[i]) ** 2)
    moved = 2 * (x_t[i] + float(SIGMA[i]) * w[i])
    regulariser = np.mean((moved - eps[i] - w[i]) ** 2)
    assert terms["dsm"][i] == pytest.approx(dsm, rel=1e-5)
    assert terms["regulariser"][i] == pytest.approx(regulariser, rel=1e-5)
    assert loss[i] == pytest.approx(
      dsm + float(LAMBDA_T[i]) * regulariser, rel=1e-5
    )
    assert only[i] == pytest.approx(regulariser, rel=1e-5)
  assert only_terms.keys() == {"regulariser"}


def test_input_perturbation_values():
  """DDPM-IP: eps from alpha x_0 + sigma (eps + gamma xi), by hand."""
  alpha, x_0 = jnp.sqrt(1 - jnp.square(SIGMA)), _normal(6)
  level = Level(alpha, SIGMA, SIGMA, SIGMA)
  noised = noising.blind(x_0, jnp.zeros(4), level, NOISED.eps)
  loss, terms = _loss("input_perturbation", lambda x: 2 * x, noised)
  x_0, eps, w, a, s = _float64(x_0, NOISED.eps, W, alpha, SIGMA)
  for i in range(4):
    error = 2 * (a[i] * x_0[i] + s[i] * (eps[i] + w[i])) - eps[i]
    assert loss[i] == pytest.approx(np.mean(error**2), rel=1e-5)
  assert terms.keys() == {"regulariser"}
  np.testing.assert_array_equal(loss, terms["regulariser"])


@pytest.mark.parametrize("name", ["true_noise_only", "input_perturbation"])
def test_without_a_clean_branch_lambda_is_not_used(name):
  eps_fn = lambda x: _mlp(PARAMS, x)
  np.testing.assert_array_equal(
    _loss(name, eps_fn)[0], _loss(name, eps_fn, lambda_t=0 * LAMBDA_T)[0]
  )


@pytest.mark.parametrize("name", ["true_noise", "true_noise_only"])
def test_true_noise_needs_the_true_noise_not_the_shift_alone(name):
  # x / sigma + c moves by w, but is c away from eps + w.
  noised = NOISED._replace(x_t=_column(SIGMA) * NOISED.eps)
  _, terms = _loss(name, lambda x: x / _column(SIGMA) + 0.4, noised)
  np.testing.assert_allclose(terms["regulariser"], 0.16, rtol=1e-4)


@stop_gradients
@pytest.mark.parametrize("name", PLAIN)
def test_lambda_zero_is_the_plain_loss_to_the_bit(name, stop_gradient):
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
    run(PLAIN[name], LAMBDA_T),
  )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_terms_are_per_example(name):
  eps_fn = lambda x: _mlp(PARAMS, x)
  noised = NOISED._replace(weight=jnp.array([1.0, 0.25, 0.81, 0.5]))
  loss, terms = _loss(name, eps_fn, noised)
  assert all(value.shape == (4,) for value in (loss, *terms.values()))
  assert len(np.unique(loss)) == 4
  changed = Noised(
    noised.x_t.at[2].add(1.0),
    noised.eps.at[2].add(-2.0),
    noised.weight.at[2].set(0.3),
    SIGMA.at[2].set(0.1),
  )
  moved, _ = _loss(
    name, eps_fn, changed, W.at[2].add(0.5), LAMBDA_T.at[2].set(9.0)
  )
  np.testing.assert_array_equal(loss != moved, [False, False, True, False])


@pytest.mark.parametrize("name", PLAIN)
def test_regulariser_has_its_weight_and_not_the_regressions(name):
  eps_fn = lambda x: _mlp(PARAMS, x)
  loss, terms = _loss(name, eps_fn)
  np.testing.assert_allclose(
    loss, terms["dsm"] + LAMBDA_T * terms["regulariser"], rtol=1e-6
  )
  unweighted = NOISED._replace(weight=jnp.ones(4))
  _, others = _loss(name, eps_fn, unweighted)
  np.testing.assert_array_equal(terms["regulariser"], others["regulariser"])
  np.testing.assert_allclose(terms["dsm"], NOISED.weight * others["dsm"])


@stop_gradients
@pytest.mark.parametrize("name", ["invariance", "robust_adv"])
def test_gradient_through_the_target_is_a_choice(name, stop_gradient):
  # One scalar, eps_hat = k x, differentiated by hand.
  k, x, eps, s, w, lam = 0.6, 1.3, -0.4, 0.7, 0.5, 2.0
  one = jnp.ones(1)
  noised = Noised(x * one[:, None], eps * one[:, None], one, s * one)

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


def _independent(*draws):
  """All signs of each of the draws, scaled to a variance of 1 exactly.

  All their mixed second moments are those of independent draws, so that
  regressions on them hit their closed forms to rounding.
  """
  signs = itertools.product((1, -1), repeat=len(draws))
  scaled = [draw / np.sqrt(np.mean(draw**2, axis=0)) for draw in draws]
  rows = [
    [sign * draw for sign, draw in zip(row, scaled, strict=True)]
    for row in signs
  ]
  return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _best_slope(name, noised, w=None, lam=0.0, stop_gradient=False):
  """The fixed point of training eps_hat = slope * x, for each column."""

  def mean_loss(slope):
    values, _ = _loss(
      name,
      lambda x: slope[None] * x,
      noised,
      w,
      jnp.full(len(noised.x_t), lam),
      stop_gradient,
    )
    return jnp.mean(values)

  # The gradient of a quadratic is affine: its root by two evaluations.
  gradient = jax.jit(jax.grad(mean_loss))
  columns = noised.x_t.shape[1]
  at_0, at_1 = gradient(jnp.zeros(columns)), gradient(jnp.ones(columns))
  return at_0 / (at_0 - at_1)


@stop_gradients
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
  a, s, rho, n = 0.8, 0.6, 0.5, 4000
  q = np.array([0.5, 2.0])
  generator = np.random.default_rng(6)
  x_0, eps, w = _independent(*generator.normal(size=(3, n, 2)))
  noised = Noised(
    x_t=jnp.asarray(a * q * x_0 + s * eps, jnp.float32),
    eps=jnp.asarray(eps, jnp.float32),
    weight=jnp.ones(len(eps)),
    sigma=jnp.full(len(eps), s),
  )
  w = jnp.asarray(rho * w, jnp.float32)
  slope = _best_slope("robust_ran", noised, w, lam, stop_gradient)
  shrunk = q**2 / (1 + lam * rho**2)
  np.testing.assert_allclose(slope, s / (a**2 * shrunk + s**2), rtol=1e-4)


# Noise-aware training. Level 0 is below the noise 0.4 of a dirty example.

ALPHA = jnp.sqrt(1 - jnp.square(SIGMA))
LEVEL = Level(ALPHA, SIGMA, jnp.arange(4.0), jnp.ones(4))


def _one_level(alpha, sigma, b):
  fields = (alpha, sigma, 0.0, 1.0)
  return Level(*(jnp.full(b, field, jnp.float32) for field in fields))


def _dirty_data(q, sigma_c, n=2000):
  """Clean x_0 of variance q^2, y = x_0 + sigma_c n, and the noise z to add.

  sigma_c is repeated over the rows; all rows have all draws.
  """
  generator = np.random.default_rng(8)
  draws = _independent(*generator.normal(size=(3, n, 1)))
  repeats = len(sigma_c)
  x_0, noise, z = (np.concatenate([draw] * repeats) for draw in draws)
  sigma_c = np.repeat(sigma_c, len(x_0) // repeats)
  y = q * x_0 + sigma_c[:, None] * noise
  return (jnp.asarray(v, jnp.float32) for v in (q * x_0, y, sigma_c, z))


def test_blind_noising_is_ddpm_whatever_is_in_the_data():
  y, z = _normal(6), _normal(7)
  noised = noising.blind(y, jnp.array([0.0, 0.4, 0.1, 3.0]), LEVEL, z)
  np.testing.assert_allclose(
    noised.x_t, _column(ALPHA) * y + _column(SIGMA) * z, rtol=1e-6
  )
  np.testing.assert_array_equal(noised.eps, z)
  np.testing.assert_array_equal(noised.weight, np.ones(4))
  np.testing.assert_array_equal(noised.sigma, SIGMA)


def test_aware_noising_of_clean_data_is_blind_to_the_bit():
  arguments = _normal(6), jnp.zeros(4), LEVEL, _normal(7)
  jax.tree.map(
    np.testing.assert_array_equal,
    noising.aware(*arguments),
    noising.blind(*arguments),
  )


@pytest.mark.parametrize(
  ("alpha", "sigma"), [(0.8, 0.6), (0.9, 0.45), (1.0, 7.0)]
)
def test_aware_states_are_those_of_clean_data(alpha, sigma):
  q, sigma_c = 0.5, 0.4
  x_0, y, sigma_c, z = _dirty_data(q, [sigma_c])
  level = _one_level(alpha, sigma, len(y))
  x_t, x_0 = _float64(noising.aware(y, sigma_c, level, z).x_t, x_0)
  variance = alpha**2 * q**2 + sigma**2
  assert np.mean(x_t**2) == pytest.approx(variance, rel=1e-5)
  # And not by another mean: given x_0 they are alpha x_0 and noise.
  assert np.mean(x_t * x_0) == pytest.approx(alpha * q**2, rel=1e-4)


@pytest.mark.parametrize("sigma_c", [[0.4], [0.0, 0.2, 0.4], [0.0, 0.4, 3.0]])
@pytest.mark.parametrize("q", [0.3, 2.0])
def test_aware_regression_has_the_optimum_of_clean_data(q, sigma_c):
  """sigma / (alpha^2 q^2 + sigma^2), whatever noise is in the examples.

  Examples of sigma_c = 3 are below their own noise and have no say.
  """
  alpha, sigma = 0.8, 0.6
  _, y, noise, z = _dirty_data(q, sigma_c)
  level = _one_level(alpha, sigma, len(y))
  optimum = lambda variance: sigma / (alpha**2 * variance + sigma**2)
  aware = _best_slope("noise_aware", noising.aware(y, noise, level, z))
  assert float(aware[0]) == pytest.approx(optimum(q**2), rel=1e-4)
  blind = _best_slope("ddpm", noising.blind(y, noise, level, z))
  dirty = optimum(q**2 + np.mean(np.square(sigma_c)))
  assert float(blind[0]) == pytest.approx(dirty, rel=1e-4)
  assert abs(blind[0] / aware[0] - 1) > 0.01


def test_aware_loss_is_that_of_ambient_tweedie():
  """(alpha / sigma)^2 |kappa x_0_hat + (1 - kappa) x_t / alpha - y|^2."""
  sigma_c = jnp.array([0.04, 0.2, 0.0, 0.9])
  y = _normal(6)
  noised = noising.aware(y, sigma_c, LEVEL, _normal(7))
  eps_fn = lambda x: _mlp(PARAMS, x)
  eps_hat = eps_fn(noised.x_t)
  loss, _ = _loss("noise_aware", eps_fn, noised)
  a, s, c, y, x_t, eps_hat = _float64(
    ALPHA, SIGMA, sigma_c, y, noised.x_t, eps_hat
  )
  for i in range(4):
    kappa = (s[i] ** 2 - a[i] ** 2 * c[i] ** 2) / s[i] ** 2
    assert 0.3 < kappa <= 1
    x_0_hat = (x_t[i] - s[i] * eps_hat[i]) / a[i]
    error = kappa * x_0_hat + (1 - kappa) * x_t[i] / a[i] - y[i]
    expected = np.mean(error**2) * (a[i] / s[i]) ** 2
    assert float(loss[i]) == pytest.approx(expected, rel=1e-3)


def test_levels_below_an_examples_noise_have_no_weight_and_no_nan():
  # kappa is negative, then 0 (to rounding), then a hair above, then fine.
  sigma_c = SIGMA / ALPHA * jnp.array([2.0, 1.0, 0.9999, 0.5])
  y, z = _normal(6), _normal(7)

  def mean_loss(params, y, sigma_c):
    noised = noising.aware(y, sigma_c, LEVEL, z)
    values, _ = _loss("noise_aware_adv", lambda x: _mlp(params, x), noised)
    return jnp.mean(values), noised

  gradients, noised = jax.grad(mean_loss, argnums=(0, 1, 2), has_aux=True)(
    PARAMS, y, sigma_c
  )
  for leaf in jax.tree.leaves((gradients, noised)):
    assert np.all(np.isfinite(leaf))
  np.testing.assert_array_equal(noised.weight[:3], 0)
  assert float(noised.weight[3]) == pytest.approx(0.75**2, rel=1e-5)
  blind = noising.blind(y, sigma_c, LEVEL, z)
  np.testing.assert_array_equal(noised.x_t[:3], blind.x_t[:3])
  loss, _ = _loss("noise_aware", lambda x: 2 * x, noised)
  np.testing.assert_array_equal(loss == 0, [True, True, True, False])


# Goals of the attacks.


def _goal(name, objective="robust_adv", eps_fn=None, noised=NOISED):
  eps_fn = eps_fn or (lambda x: _mlp(PARAMS, x))
  return objectives.goal(
    name, OBJECTIVES[objective], eps_fn, eps_fn(noised.x_t), noised
  )


def test_goals_by_hand():
  # eps_hat = 2 x: sums over elements, in float64.
  x_t, eps, w = _float64(NOISED.x_t, NOISED.eps, W)
  moved = 2 * _float64(_column(SIGMA))[0] * w
  noise = 2 * x_t + moved
  expected = {
    ("J", "robust_adv"): moved,
    ("J", "true_noise_only"): moved,
    ("residual", "robust_adv"): moved - w,
    ("residual", "invariance"): moved,
    ("residual", "true_noise_only"): noise - eps - w,
    ("residual", "input_perturbation"): noise - eps,
    ("denoising", "robust_adv"): noise - eps - w,
    ("denoising", "input_perturbation"): noise - eps - w,
  }
  for (name, objective), error in expected.items():
    np.testing.assert_allclose(
      _goal(name, objective, lambda x: 2 * x)(W),
      np.sum(error**2, axis=(1, 2, 3)),
      rtol=2e-5,
      err_msg=f"{name} of {objective}",
    )
  assert {name for name, _ in expected} == set(objectives.GOALS)


@pytest.mark.parametrize(
  "name", [n for n in OBJECTIVES if OBJECTIVES[n].target]
)
def test_residual_is_the_perturbed_branch(name):
  _, terms = _loss(name, lambda x: _mlp(PARAMS, x))
  np.testing.assert_allclose(
    _goal("residual", name)(W) / 6, terms["regulariser"], rtol=1e-6
  )


def test_the_jacobian_penalty_is_the_limit_of_small_steps():
  """|J sigma w - w|^2: of w / n it is 1 / n^2, and a step's is O(1/n) off."""
  eps_fn = lambda x: _mlp(PARAMS, x)
  _, whole = _loss("jacobian", eps_fn)
  _, scaled = _loss("jacobian", eps_fn, w=W / 100)
  _, step = _loss("robust_ran", eps_fn, w=W / 100)
  np.testing.assert_allclose(
    1e4 * scaled["regulariser"], whole["regulariser"], rtol=1e-3
  )
  np.testing.assert_allclose(
    step["regulariser"], scaled["regulariser"], rtol=0.02
  )
  jacobian = jax.vmap(jax.jacobian(lambda x: _mlp(PARAMS, x[None])[0]))
  by_hand = jnp.einsum(
    "nijkabc,nabc->nijk",
    jacobian(NOISED.x_t),
    _column(SIGMA) * W,
  )
  np.testing.assert_allclose(
    whole["regulariser"], objectives.squared_error(by_hand, W), rtol=1e-4
  )


def test_a_bounded_loss_weighs_large_errors_down():
  error = jnp.array([0.0, 0.5, 2.0, 50.0])
  for c in (0.1, 1.0, 5.0):
    found = objectives.bounded(error, c)
    assert float(found.max()) <= (1 + 1e-6) / c
    weight = jax.grad(lambda e, c=c: objectives.bounded(e, c).sum())(error)
    np.testing.assert_allclose(weight, np.exp(-c * error), atol=1e-6)
  assert objectives.bounded(error, 0.0) is error
  np.testing.assert_allclose(objectives.bounded(error, 1e-4), error, rtol=0.01)


def test_movement_is_flat_at_zero_and_the_others_are_not():
  zero = jnp.zeros(SHAPE)
  slopes = {
    name: jax.grad(lambda w, name=name: jnp.sum(_goal(name)(w)))(zero)
    for name in objectives.GOALS
  }
  np.testing.assert_array_equal(slopes["J"], 0)
  # So is the equivariance residual: its square is of second order in w.
  np.testing.assert_array_equal(slopes["residual"], 0)
  assert np.all(np.abs(slopes["denoising"]) > 0)
  np.testing.assert_array_equal(_goal("J")(zero), 0)


def _attack(goal, step_size=1.0, name="fgsm"):
  attack = attacks.ATTACKS[name]._replace(step_size=step_size)
  return attacks.maximise(attack, goal, _keys(12, 4), RADIUS, SHAPE[1:])


def _start():
  fgsm = attacks.ATTACKS["fgsm"]
  return attacks.start(fgsm, _keys(12, 4), RADIUS, SHAPE[1:])


@pytest.mark.parametrize("name", objectives.GOALS)
def test_attack_raises_its_goal(name):
  # A small step, of first order: for every example.
  goal, start = _goal(name), _start()
  assert np.all(goal(_attack(goal, step_size=0.02)) > goal(start))
  # Ten whole ones: by far.
  assert np.mean(goal(_attack(goal, 0.25, "pgd"))) > 1.2 * np.mean(goal(start))


def test_a_zero_start_does_not_attack_but_a_random_one_does():
  r, goal = jnp.full(4, 0.5), _goal("J")
  fgsm = attacks.ATTACKS["fgsm"]
  zero = fgsm._replace(start=0.0)
  w = attacks.maximise(zero, goal, _keys(11, 4), r, SHAPE[1:])
  np.testing.assert_array_equal(w, 0)
  w_0 = attacks.start(fgsm, _keys(11, 4), r, SHAPE[1:])
  moved = jnp.abs(attacks.ascend(fgsm, goal, w_0, r) - w_0)
  assert np.all(np.mean(moved, axis=(1, 2, 3)) > 0.1)


def test_attack_on_a_linear_network_leaves_from_the_centre():
  # J = |k sigma w|^2 grows with every |w_i|: w = r sign(w_0).
  w = _attack(_goal("J", eps_fn=lambda x: 1.7 * x))
  start = _start()
  np.testing.assert_array_equal(w, _column(RADIUS) * jnp.sign(start))


def test_attack_moves_the_state_by_sigma_w():
  # The network bends at |x| = 1: where J is flat beyond it, the sign of its
  # gradient tells how far the attack has moved the state.
  noised = NOISED._replace(x_t=jnp.zeros(SHAPE), sigma=jnp.full(4, 0.1))
  goal = _goal("J", eps_fn=lambda x: jnp.clip(x, -1, 1), noised=noised)
  start = _start()
  np.testing.assert_array_equal(
    _attack(goal), _column(RADIUS) * jnp.sign(start)
  )


@pytest.mark.parametrize("name", objectives.GOALS)
def test_attack_on_an_example_does_not_see_the_others(name):
  changed = NOISED._replace(
    x_t=NOISED.x_t.at[2].multiply(-3.0), sigma=SIGMA.at[2].set(0.01)
  )
  w, other = _attack(_goal(name)), _attack(_goal(name, noised=changed))
  same = np.all(w == other, axis=(1, 2, 3))
  np.testing.assert_array_equal(same, [True, True, False, True])


# Radius and lambda.


def _radius(sigma_t, sigma_max, beta, shape, omega, *flags):
  sigma_t = jnp.asarray(sigma_t, jnp.float32)
  return radius.radius(
    sigma_t, jnp.float32(sigma_max), shape, omega, beta, *flags
  )


@pytest.mark.parametrize(
  ("shape", "additive", "multiplicative"),
  [
    # (1 - 0.1)^2, (1 - 0.5)^2, 0; then plus 0.1, or times 0.1.
    ("falling", [0.91, 0.35, 0.1], [0.081, 0.025, 0.0]),
    # 0.1^2, 0.5^2, 1.
    ("rising", [0.11, 0.35, 1.1], [0.001, 0.025, 0.1]),
    ("constant", [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]),
  ],
)
def test_radius_at_three_points(shape, additive, multiplicative):
  at = lambda role: _radius([0.1, 0.5, 1.0], 1.0, 0.1, shape, 2.0, role)
  np.testing.assert_allclose(at(False), additive, rtol=1e-6)
  np.testing.assert_allclose(at(True), multiplicative, rtol=1e-6)


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("shape", radius.RADII)
def test_radius_in_state_units_bounds_the_shift(shape, multiplicative):
  sigma_t = jnp.array([0.1, 0.5, 1.0])
  r, w = (
    _radius(sigma_t, 1.0, 0.1, shape, 2.0, multiplicative, in_state_units)
    for in_state_units in (True, False)
  )
  np.testing.assert_allclose(sigma_t * r, w, rtol=1e-6)


def test_default_radius():
  sigma_t = jnp.array([0.1, 0.5, 1.0])
  expected = [0.81 + 8 / 255, 0.25 + 8 / 255, 8 / 255]
  np.testing.assert_allclose(radius.radius(sigma_t), expected, rtol=1e-6)


@pytest.mark.parametrize("omega", [1.0, 1.5, 2.0])
def test_radius_is_monotone_and_bounded(omega):
  sigma_t, sigma_max, beta = np.linspace(0.01, 0.98, 200), 0.98, 8 / 255
  r = {
    shape: np.asarray(_radius(sigma_t, sigma_max, beta, shape, omega))
    for shape in radius.RADII
  }
  assert np.all(np.diff(r["falling"]) < 0)
  assert np.all(np.diff(r["rising"]) > 0)
  largest = {
    "falling": (0.98 - 0.01) ** omega + beta,
    "rising": 0.98**omega + beta,
    "constant": beta,
  }
  for shape, values in r.items():
    assert values.shape == (200,)
    assert values.min() >= np.float32(beta)
    assert values.max() == pytest.approx(largest[shape], rel=1e-5)


def test_falling_radius_bears_rounding_above_sigma_max():
  # A negative base under a broken exponent would be NaN.
  above = jnp.nextafter(jnp.float32(0.98), jnp.float32(1))[None]
  r = _radius(above, 0.98, 0.1, "falling", 1.5)
  assert float(r[0]) == np.float32(0.1)


def test_inverse_std_lambda_undoes_the_spread_of_w():
  r = jnp.array([0.05, 0.4, 1.5])
  uniform = attacks.ATTACKS["uniform"]
  w = attacks.start(uniform, _keys(14, 3), r, (40_000,))
  lambda_t = radius.LAMBDAS["inverse_std"](0.3, r)
  np.testing.assert_allclose(lambda_t * r / np.sqrt(3), 0.3, rtol=1e-6)
  np.testing.assert_allclose(lambda_t * np.std(w, axis=1), 0.3, rtol=0.009)


def test_inverse_std_lambda_of_no_radius_is_finite():
  # The falling multiplicative radius is 0 at the noisiest level.
  assert np.isfinite(radius.LAMBDAS["inverse_std"](0.3, jnp.zeros(1)))[0]


def test_constant_lambda():
  lambda_t = radius.LAMBDAS["constant"](0.3, jnp.array([0.05, 0.4]))
  np.testing.assert_array_equal(lambda_t, np.full(2, 0.3, np.float32))


def test_ramp_rises_to_one():
  found = [float(radius.ramp(jnp.int32(n), 3, 4)) for n in range(9)]
  assert found == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
  assert radius.ramp(jnp.int32(0), 3, 0) == 1
