"""Schedules, conversions and samplers against closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax.diffusion import process, samplers, schedules

LINEAR = schedules.make("linear", 1000)
SHORT = schedules.make("linear", 100)
UPDATES = {
  "ddpm_small": samplers.ddpm("small"),
  "ddpm_large": samplers.ddpm("large"),
  "ddim_0": samplers.ddim(0.0),
  "ddim_half": samplers.ddim(0.5),
  "ddim_1": samplers.ddim(1.0),
}


def _short_alpha_bar():
  """SHORT's alpha_bar in float64, from its definition."""
  return np.cumprod(1 - np.linspace(1e-3, 0.2, 100))


def _normal(seed, shape):
  return jax.random.normal(jax.random.key(seed), shape)


# Schedules.


@pytest.mark.parametrize("num_timesteps", [21, 100, 1000])
@pytest.mark.parametrize("name", schedules.ALPHA_BAR)
def test_alpha_bar_falls_inside_the_unit_interval(name, num_timesteps):
  alpha_bar = schedules.ALPHA_BAR[name](num_timesteps)
  assert alpha_bar.dtype == np.float64
  assert alpha_bar.shape == (num_timesteps,)
  assert np.all(np.diff(np.append(1.0, alpha_bar)) < 0)
  assert alpha_bar[-1] > 0


@pytest.mark.parametrize("num_timesteps", [100, 1000])
def test_linear_schedule_is_that_of_ddpm(num_timesteps):
  scale = 1000 / num_timesteps
  betas = [
    scale * (1e-4 + (0.02 - 1e-4) * t / (num_timesteps - 1))
    for t in range(num_timesteps)
  ]
  expected = [
    math.exp(math.fsum(math.log1p(-beta) for beta in betas[: t + 1]))
    for t in range(num_timesteps)
  ]
  np.testing.assert_allclose(
    schedules.linear_alpha_bar(num_timesteps), expected, rtol=1e-11
  )


@pytest.mark.parametrize("num_timesteps", [1, 20])
def test_linear_schedule_refuses_betas_of_one(num_timesteps):
  with pytest.raises(ValueError, match=f"got {num_timesteps}"):
    schedules.linear_alpha_bar(num_timesteps)


def test_cosine_schedule_is_the_squared_cosine_until_it_is_clipped():
  alpha_bar = schedules.cosine_alpha_bar(100)
  f = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) for t in range(100)]
  np.testing.assert_allclose(
    alpha_bar[:-1], np.square(f[1:]) / f[0] ** 2, rtol=1e-11
  )
  betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
  assert betas.max() == pytest.approx(0.999, abs=1e-12)
  assert np.argmax(betas) == 99


@pytest.mark.parametrize("name", schedules.ALPHA_BAR)
def test_tables_are_rounded_once_from_float64(name):
  schedule = schedules.make(name, 1000)
  alpha_bar = schedules.ALPHA_BAR[name](1000)
  assert schedule.num_timesteps == 1000
  assert schedule.sigma.dtype == schedule.sqrt_alpha_bar.dtype == jnp.float32
  a = np.asarray(schedule.sqrt_alpha_bar, np.float64)
  s = np.asarray(schedule.sigma, np.float64)
  # Rounded before the square root, sigma_0^2 would be off by 3e-4.
  np.testing.assert_allclose(s**2, 1 - alpha_bar, rtol=1e-6)
  np.testing.assert_allclose(a**2, alpha_bar, rtol=1e-6)
  np.testing.assert_allclose(a**2 + s**2, 1, atol=2e-7)
  assert float(schedule.sigma_max) == s.max() == s[-1]


def test_at_gives_each_example_its_own_entry():
  t = jnp.array([3, 0, 99])
  entries = schedules.at(SHORT.sigma, t, 4)
  assert entries.shape == (3, 1, 1, 1)
  np.testing.assert_array_equal(entries.ravel(), np.asarray(SHORT.sigma)[t])


# The process.


@pytest.fixture(scope="module")
def noised():
  """x_0, eps, t and x_t of six examples over the whole of SHORT."""
  x_0, eps = _normal(0, (6, 2, 3, 1)), _normal(1, (6, 2, 3, 1))
  t = jnp.array([0, 1, 10, 50, 90, 99])
  return x_0, eps, t, process.diffuse(SHORT, x_0, t, eps)


def test_diffuse_has_the_stated_moments():
  # 40,000 draws of two points: standard errors 0.005 sigma_t and less.
  n, t = 40_000, 30
  alpha_bar = _short_alpha_bar()[t]
  x_0 = jnp.tile(jnp.array([[2.0, -1.0]]), (n, 1))
  x_t = process.diffuse(SHORT, x_0, jnp.full(n, t), _normal(2, (n, 2)))
  np.testing.assert_allclose(
    np.mean(x_t, 0), np.sqrt(alpha_bar) * np.array([2.0, -1.0]), atol=0.02
  )
  np.testing.assert_allclose(
    np.cov(x_t, rowvar=False), (1 - alpha_bar) * np.eye(2), atol=0.02
  )


def test_diffuse_takes_each_example_at_its_own_time(noised):
  x_0, eps, t, x_t = noised
  alpha_bar = _short_alpha_bar()[t]
  for i in range(6):
    np.testing.assert_allclose(
      x_t[i],
      np.sqrt(alpha_bar[i]) * np.asarray(x_0[i], np.float64)
      + np.sqrt(1 - alpha_bar[i]) * np.asarray(eps[i], np.float64),
      atol=1e-6,
    )


def test_conversions_recover_what_the_state_was_made_of(noised):
  x_0, eps, t, x_t = noised
  s = schedules.at(SHORT.sigma, t, 4)
  a = schedules.at(SHORT.sqrt_alpha_bar, t, 4)
  v = a * eps - s * x_0
  # Divisions by a_99 = 0.005 and by s_0 = 0.03 amplify the rounding.
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=3e-4)
  close(process.eps_to_x_0(SHORT, x_t, t, eps), x_0)
  close(process.x_0_to_eps(SHORT, x_t, t, x_0), eps)
  close(process.eps_to_v(SHORT, x_t, t, eps), v)
  close(process.v_to_eps(SHORT, x_t, t, v), eps)
  close(process.v_to_x_0(SHORT, x_t, t, v), x_0)


def test_conversions_invert_each_other_for_any_estimate(noised):
  _, _, t, x_t = noised
  guess = _normal(3, x_t.shape)
  # x_0 of a wrong eps is as large as 1 / a_99 = 200: the error is relative.
  close = lambda x: np.testing.assert_allclose(x, guess, atol=3e-4)
  x_0 = process.eps_to_x_0(SHORT, x_t, t, guess)
  v = process.eps_to_v(SHORT, x_t, t, guess)
  close(process.x_0_to_eps(SHORT, x_t, t, x_0))
  close(process.v_to_eps(SHORT, x_t, t, v))
  close(
    process.score_to_eps(SHORT, t, process.eps_to_score(SHORT, t, guess)),
  )
  np.testing.assert_allclose(
    process.v_to_x_0(SHORT, x_t, t, v), x_0, rtol=1e-3, atol=3e-4
  )


def test_score_is_the_gradient_of_the_log_density(noised):
  x_0, eps, t, x_t = noised
  mean = schedules.at(SHORT.sqrt_alpha_bar, t, 4) * x_0
  variance = 1 - jnp.asarray(_short_alpha_bar()[t], jnp.float32)

  def log_density(x):
    squares = jnp.sum(jnp.square(x - mean), axis=(1, 2, 3))
    return jnp.sum(-squares / (2 * variance))

  np.testing.assert_allclose(
    process.eps_to_score(SHORT, t, eps),
    jax.grad(log_density)(x_t),
    rtol=1e-3,
    atol=3e-3,  # (x_t - mean) / s_0^2 magnifies rounding a thousandfold.
  )


def _bayes(x_0, x_t, alpha_bar_t, alpha_bar_s):
  """q(x_s | x_t, x_0) as prior times likelihood, both scalar Gaussians."""
  alpha = alpha_bar_t / alpha_bar_s
  prior_precision = 1 / (1 - alpha_bar_s)
  likelihood_precision = alpha / (1 - alpha)
  variance = 1 / (prior_precision + likelihood_precision)
  mean = variance * (
    prior_precision * np.sqrt(alpha_bar_s) * x_0
    + likelihood_precision * x_t / np.sqrt(alpha)
  )
  return mean, variance


def test_posterior_is_bayes_rule(noised):
  x_0, _, t, x_t = noised
  mean, variance = process.posterior(SHORT, x_0, x_t, t)
  alpha_bar = _short_alpha_bar()
  for i in range(1, 6):
    expected_mean, expected_variance = _bayes(
      np.asarray(x_0[i], np.float64),
      np.asarray(x_t[i], np.float64),
      alpha_bar[t[i]],
      alpha_bar[t[i] - 1],
    )
    np.testing.assert_allclose(mean[i], expected_mean, atol=5e-4)
    np.testing.assert_allclose(variance[i], expected_variance, rtol=1e-3)


def test_transition_over_several_steps_is_bayes_rule():
  alpha_bar = _short_alpha_bar()
  for t, s in [(99, 40), (40, 12), (12, 0)]:
    actual = process.transition(
      jnp.float32(0.7),
      jnp.float32(-1.3),
      jnp.float32(alpha_bar[t]),
      jnp.float32(alpha_bar[s]),
    )
    expected = _bayes(0.7, -1.3, alpha_bar[t], alpha_bar[s])
    np.testing.assert_allclose(actual, expected, rtol=5e-4)


def test_posterior_at_time_zero_is_the_clean_example(noised):
  x_0, _, _, x_t = noised
  mean, variance = process.posterior(SHORT, x_0, x_t, jnp.zeros(6, jnp.int32))
  np.testing.assert_allclose(mean, x_0, atol=1e-6)
  np.testing.assert_array_equal(variance, 0)


# Samplers.


@pytest.mark.parametrize("num_steps", [2, 3, 7, 333, 999, 1000])
def test_respaced_timesteps_are_even_and_hold_both_ends(num_steps):
  t = samplers.respaced_timesteps(1000, num_steps)
  gaps = -np.diff(t)
  assert t.shape == (num_steps,)
  assert (t[0], t[-1]) == (999, 0)
  assert gaps.min() >= 1
  assert gaps.max() - gaps.min() <= 1


def test_respacing_to_every_step_and_to_one():
  np.testing.assert_array_equal(
    samplers.respaced_timesteps(50, 50), np.arange(50)[::-1]
  )
  np.testing.assert_array_equal(samplers.respaced_timesteps(50, 1), [49])


@pytest.mark.parametrize("num_steps", [-1, 0, 51])
def test_respacing_refuses_other_numbers_of_steps(num_steps):
  with pytest.raises(ValueError, match=f"got {num_steps}"):
    samplers.respaced_timesteps(50, num_steps)


def _transition(t, s):
  alpha_bar = _short_alpha_bar()
  alpha_bar_s = 1.0 if s is None else alpha_bar[s]
  return samplers.Transition(
    jnp.int32(t), jnp.float32(alpha_bar[t]), jnp.float32(alpha_bar_s)
  )


def _parts(update, transition, x_0_hat_of):
  """The update's value at x_t = 0, its slope by x_t and its noise's scale."""

  def apply(x_t, z):
    x_t = jnp.float32(x_t)
    return float(update(transition, x_t, x_0_hat_of(x_t), jnp.float32(z)))

  value = apply(0, 0)
  return value, apply(1, 0) - value, apply(0, 1) - value


@pytest.mark.parametrize("name", sorted(set(UPDATES) - {"ddpm_large"}))
def test_updates_are_exact_where_the_data_is_one_point(name):
  # x_t ~ N(a_t c, s_t^2) must go to x_s ~ N(a_s c, s_s^2), at any spacing.
  for t, s in [(99, 98), (60, 20), (5, 4)]:
    transition = _transition(t, s)
    value, slope, noise = _parts(
      UPDATES[name], transition, lambda _: jnp.float32(0.8)
    )
    alpha_bar_t, alpha_bar_s = map(float, transition[1:])
    assert value + slope * math.sqrt(alpha_bar_t) * 0.8 == pytest.approx(
      math.sqrt(alpha_bar_s) * 0.8, abs=1e-4
    )
    assert slope**2 * (1 - alpha_bar_t) + noise**2 == pytest.approx(
      1 - alpha_bar_s, rel=1e-3
    )


def test_large_variance_is_exact_for_unit_gaussian_data():
  # x_t ~ N(0, 1) at every t, and E[x_0 | x_t] = a_t x_t.
  for t, s in [(99, 98), (60, 20), (5, 4)]:
    transition = _transition(t, s)
    a_t = jnp.sqrt(transition.alpha_bar_t)
    value, slope, noise = _parts(
      UPDATES["ddpm_large"], transition, lambda x_t, a=a_t: a * x_t
    )
    assert value == 0
    assert slope**2 + noise**2 == pytest.approx(1, abs=1e-4)


def test_eta_scales_the_noise_of_ddim():
  transition = _transition(60, 20)
  noise = [
    _parts(samplers.ddim(eta), transition, lambda _: jnp.float32(0))[2]
    for eta in (0.0, 0.5, 1.0)
  ]
  assert noise[0] == 0
  assert noise[2] > 0.1
  assert noise[1] == pytest.approx(noise[2] / 2, rel=1e-5)


@pytest.mark.parametrize("name", UPDATES)
def test_last_transition_is_the_clean_estimate_without_noise(name):
  x_0_hat = _normal(4, (5,))
  x_s = UPDATES[name](
    _transition(0, None), _normal(5, (5,)), x_0_hat, 100 * _normal(6, (5,))
  )
  np.testing.assert_allclose(x_s, x_0_hat, atol=1e-6)


def _gaussian_eps(schedule, mean, covariance):
  """The exact noise predictor of data N(mean, covariance)."""
  values, vectors = np.linalg.eigh(covariance)
  values = jnp.asarray(values, jnp.float32)[None]
  vectors = jnp.asarray(vectors, jnp.float32)
  mean = jnp.asarray(mean, jnp.float32)[None]

  def eps_fn(x_t, t):
    a = schedules.at(schedule.sqrt_alpha_bar, t, 2)
    s = schedules.at(schedule.sigma, t, 2)
    coordinates = (x_t - a * mean) @ vectors
    return (s * coordinates / (a**2 * values + s**2)) @ vectors.T

  return eps_fn


# With 8,000 samples the standard error is 0.8% of a standard deviation, and
# at most 0.017 of a mean. The discretisation's own error on these two axes,
# from the samplers' linear recursion: at all 400 steps 1.9% of a standard
# deviation, at 200 of 1,000 steps 3.5% (both for the small variance), and
# 0.01 of a mean (eta = 0, because the start has mean zero). Tolerances are
# that plus four standard errors.
@pytest.mark.parametrize(
  ("num_timesteps", "num_steps", "std_tolerance"),
  [(400, 400, 0.051), (1000, 200, 0.067)],
)
@pytest.mark.parametrize("name", UPDATES)
def test_exact_gaussian_scores_give_its_moments(
  name, num_timesteps, num_steps, std_tolerance
):
  mean = np.array([1.5, -1.0])
  axes = np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
  std = np.array([0.5, 1.5])
  schedule = schedules.make("linear", num_timesteps)
  eps_fn = _gaussian_eps(schedule, mean, axes.T * std**2 @ axes)
  x = samplers.sample(
    eps_fn,
    schedule,
    UPDATES[name],
    jax.random.key(7),
    jnp.arange(8000),
    (2,),
    num_steps,
  )
  coordinates = (np.asarray(x, np.float64) - mean) @ axes.T
  np.testing.assert_allclose(coordinates.mean(0), 0, atol=0.078)
  np.testing.assert_allclose(
    coordinates.std(0), std, rtol=std_tolerance, atol=0
  )
  assert abs(np.corrcoef(coordinates.T)[0, 1]) < 4 / np.sqrt(8000)


def _mixture_eps(schedule, weights, means, std):
  """The exact noise predictor of scalar data, a mixture of N(m_k, std^2)."""
  weights = jnp.asarray(weights, jnp.float32)[None]
  means = jnp.asarray(means, jnp.float32)[None]

  def eps_fn(x_t, t):
    a = schedules.at(schedule.sqrt_alpha_bar, t, 2)
    s = schedules.at(schedule.sigma, t, 2)
    variance = jnp.square(a * std) + jnp.square(s)
    offset = x_t - a * means
    logits = jnp.log(weights) - jnp.square(offset) / (2 * variance)
    share = jax.nn.softmax(logits)
    return s * jnp.sum(share * offset, axis=1, keepdims=True) / variance

  return eps_fn


MIXTURE = _mixture_eps(LINEAR, [0.3, 0.7], [-1.0, 1.0], 0.2)


@functools.cache
def _mixture_sampler(update, num_steps):
  return jax.jit(
    lambda key, index: samplers.sample(
      MIXTURE, LINEAR, update, key, index, (1,), num_steps
    )
  )


def _sample_mixture(update, index, num_steps, seed=8):
  sampler = _mixture_sampler(update, num_steps)
  return sampler(jax.random.key(seed), jnp.asarray(index))


@pytest.mark.parametrize("name", ["ddpm_small", "ddim_0"])
def test_exact_mixture_scores_give_its_modes(name):
  # Four standard errors with 8,000 samples: 0.021 of the weight, and for
  # each mode 0.016 of its mean and 6% of its spread. At 250 steps the spread
  # of 0.2 is up to 6% wrong by itself.
  x = _sample_mixture(UPDATES[name], np.arange(8000), 250)[:, 0]
  low = np.asarray(x[x < 0], np.float64)
  high = np.asarray(x[x > 0], np.float64)
  assert len(low) / 8000 == pytest.approx(0.3, abs=0.021)
  for mode, mean in [(low, -1.0), (high, 1.0)]:
    assert mode.mean() == pytest.approx(mean, abs=0.02)
    assert mode.std() == pytest.approx(0.2, rel=0.12)


def test_ddim_at_eta_one_is_ddpm():
  np.testing.assert_allclose(
    _sample_mixture(UPDATES["ddim_1"], np.arange(8), 50),
    _sample_mixture(UPDATES["ddpm_small"], np.arange(8), 50),
    atol=1e-3,
  )


def test_ddim_at_eta_zero_depends_on_its_start_alone():
  quiet = UPDATES["ddim_0"]
  loud = lambda transition, x_t, x_0_hat, z: quiet(
    transition, x_t, x_0_hat, 1 + 10 * z
  )
  np.testing.assert_array_equal(
    _sample_mixture(quiet, np.arange(8), 50),
    _sample_mixture(loud, np.arange(8), 50),
  )


def test_a_sample_does_not_depend_on_its_batch():
  # Within rounding: vectorised code may differ by the batch size.
  update = UPDATES["ddpm_small"]
  rows = _sample_mixture(update, np.arange(8), 50)
  for index in ([5], [7, 5, 2]):
    np.testing.assert_allclose(
      _sample_mixture(update, index, 50), rows[jnp.array(index)], atol=1e-5
    )
  assert len(np.unique(rows)) == 8
  other_key = _sample_mixture(update, np.arange(8), 50, seed=9)
  assert not np.any(np.isclose(rows, other_key, atol=1e-5))


def _probe(update):
  """Three steps, at t = 99, 50 and 0, of an eps_fn that tells x_t and t."""
  return samplers.sample(
    lambda x_t, t: x_t + t[:, None],
    SHORT,
    update,
    jax.random.key(10),
    jnp.arange(1000),
    (2,),
    3,
  )


def _kept_from(t, value_of):
  """An update that leaves x_t alone, but for the value it takes at t."""
  return lambda transition, x_t, x_0_hat, z: jnp.where(
    transition.t == t, value_of(transition, x_0_hat, z), x_t
  )


def test_start_steps_and_elements_draw_their_own_noise():
  draws = [_probe(lambda transition, x_t, x_0_hat, z: x_t)]
  draws += [_probe(_kept_from(t, lambda *args: args[-1])) for t in (99, 50)]
  np.testing.assert_allclose(
    np.corrcoef(np.concatenate(draws, axis=1), rowvar=False),
    np.eye(6),
    atol=4 / np.sqrt(1000),
  )


def test_each_step_is_taken_at_its_own_time():
  start = _probe(lambda transition, x_t, x_0_hat, z: x_t)
  a, s = SHORT.sqrt_alpha_bar, SHORT.sigma
  np.testing.assert_allclose(
    _probe(_kept_from(50, lambda transition, x_0_hat, z: x_0_hat)),
    (start - s[50] * (start + 50)) / a[50],
    rtol=1e-5,
    atol=1e-4,
  )
  for t, alpha_bar_s in [(99, a[50] ** 2), (50, a[0] ** 2), (0, 1)]:
    pair = lambda transition, x_0_hat, z: jnp.stack(transition[1:])[None]
    np.testing.assert_allclose(
      _probe(_kept_from(t, pair))[0], [a[t] ** 2, alpha_bar_s], rtol=1e-6
    )


@pytest.mark.parametrize(
  ("name", "num_steps"), [("ddpm_small", 1), *((name, 10) for name in UPDATES)]
)
def test_one_point_of_data_is_sampled_to_the_point(name, num_steps):
  point = jnp.array([[0.3, -0.6, 1.2]])

  def eps_fn(x_t, t):
    a = schedules.at(SHORT.sqrt_alpha_bar, t, 2)
    return (x_t - a * point) / schedules.at(SHORT.sigma, t, 2)

  x = samplers.sample(
    eps_fn,
    SHORT,
    UPDATES[name],
    jax.random.key(11),
    jnp.arange(4),
    (3,),
    num_steps,
  )
  # One step divides by a_99 = 0.005.
  np.testing.assert_allclose(x, jnp.tile(point, (4, 1)), atol=2e-4)


def test_clipping_keeps_every_clean_estimate_in_range():
  def largest(transition, x_t, x_0_hat, z):
    """Carries the largest |x_0_hat| so far in the place of the state."""
    size = jnp.abs(x_0_hat)
    return jnp.where(transition.t == 99, size, jnp.maximum(x_t, size))

  def run(update, clip_x_0):
    return samplers.sample(
      lambda x_t, t: -x_t - 1,
      SHORT,
      update,
      jax.random.key(12),
      jnp.arange(16),
      (3,),
      20,
      clip_x_0=clip_x_0,
    )

  assert np.min(run(largest, None)) > 1
  np.testing.assert_array_equal(run(largest, 0.5), 0.5)
  assert np.max(np.abs(run(UPDATES["ddpm_small"], 0.5))) <= 0.5
