"""Processes, the state's algebra and samplers against closed forms."""

import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax.diffusion import process, samplers, schedules
from rad_jax.diffusion.process import Level

SHORT = schedules.ddpm(schedules.linear_alpha_bar(100))
PROCESSES = {
  "ddpm": schedules.ddpm(schedules.linear_alpha_bar(1000)),
  "edm": schedules.edm(),
  "flow": schedules.flow(),
}
UPDATES = {
  "ddpm_small": samplers.ddpm("small"),
  "ddpm_large": samplers.ddpm("large"),
  "ddim_0": samplers.ddim(0.0),
  "ddim_half": samplers.ddim(0.5),
  "ddim_1": samplers.ddim(1.0),
  "heun": samplers.heun(),
  "dpm_solver": samplers.dpm_solver(),
}
# Samplers take this many levels and examples where nothing asks for others, so
# that many tests share one program of each sampler.
NUM_LEVELS, B = 38, 8
every_process = pytest.mark.parametrize("name", PROCESSES)


def _short_alpha_bar():
  """SHORT's alpha_bar in float64, from its definition."""
  return np.cumprod(1 - np.linspace(1e-3, 0.2, 100))


def _normal(seed, shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _key_data(seed, count):
  return np.random.default_rng(seed).integers(
    2**32, size=(count, 2), dtype=np.uint32
  )


@functools.cache
def _drawer(draw):
  """Levels of key data, in one program for each process."""
  return jax.jit(lambda data: draw(jax.random.wrap_key_data(data)))


def _draw(made, seed, count):
  return _drawer(made.draw)(_key_data(seed, count))


def _level(alpha, sigma):
  """Levels of these coefficients; what the network is told does not matter."""
  alpha, sigma = (np.asarray(value, np.float32) for value in (alpha, sigma))
  return Level(alpha, sigma, np.zeros_like(sigma), np.ones_like(sigma))


def _pick(levels, which):
  return jax.tree.map(lambda column: column[which], levels)


@functools.cache
def _grid(name, num_steps):
  return jax.tree.map(np.asarray, PROCESSES[name].grid(num_steps))


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
def test_ddpm_levels_are_rounded_once_from_float64(name):
  alpha_bar = schedules.ALPHA_BAR[name](1000)
  levels = schedules.ddpm(alpha_bar).grid(1000)
  for column in levels:
    assert column.dtype == jnp.float32
    assert column.shape == (1000,)
  a = np.asarray(levels.alpha, np.float64)[::-1]
  s = np.asarray(levels.sigma, np.float64)[::-1]
  # Rounded before the square root, sigma_0^2 would be off by 3e-4.
  np.testing.assert_allclose(s**2, 1 - alpha_bar, rtol=1e-6)
  np.testing.assert_allclose(a**2, alpha_bar, rtol=1e-6)
  np.testing.assert_allclose(a**2 + s**2, 1, atol=2e-7)
  np.testing.assert_array_equal(levels.time, np.arange(1000)[::-1])
  np.testing.assert_array_equal(levels.input_scale, 1)


def test_ddpm_trains_at_every_timestep_alike():
  # Chi squared of 49 degrees of freedom: 49 with a deviation of 9.9.
  alpha_bar = schedules.cosine_alpha_bar(50)
  levels = _draw(schedules.ddpm(alpha_bar), 0, 20_000)
  t = np.asarray(levels.time, int)
  counts = np.bincount(t, minlength=50)
  assert counts.shape == (50,)
  assert np.sum(np.square(counts - 400) / 400) < 49 + 5 * 9.9
  np.testing.assert_allclose(levels.alpha, np.sqrt(alpha_bar[t]), rtol=1e-6)
  np.testing.assert_allclose(levels.sigma, np.sqrt(1 - alpha_bar[t]), rtol=1e-6)


@pytest.mark.parametrize(
  "made",
  [*PROCESSES.values(), schedules.flow("logit_normal")],
  ids=[*PROCESSES, "logit_normal"],
)
def test_an_example_draws_its_level_from_its_own_key(made):
  data = _key_data(1, 8)
  parts = ([5], [7, 5, 2])

  @jax.jit
  def draw(*data):
    return [made.draw(jax.random.wrap_key_data(some)) for some in data]

  levels, *some = draw(data, *(data[part] for part in parts))
  levels = jax.tree.map(np.asarray, levels)
  for column in levels:
    assert column.shape == (8,)
    assert column.dtype == np.float32
  assert len(np.unique(levels.sigma)) == 8
  for found, part in zip(some, parts, strict=True):
    jax.tree.map(
      lambda alone, among: np.testing.assert_allclose(alone, among, rtol=1e-6),
      found,
      _pick(levels, part),
    )


# Two sets of settings, so that no default can stand where an argument should.
EDM_SETTINGS = [
  {},
  {
    "sigma_min": 0.01,
    "sigma_max": 50.0,
    "sigma_data": 1.3,
    "log_mean": 0.4,
    "log_std": 0.7,
    "rho": 3.0,
  },
]
EDM_DEFAULTS = {
  "sigma_min": 0.002,
  "sigma_max": 80.0,
  "sigma_data": 0.5,
  "log_mean": -1.2,
  "log_std": 1.2,
  "rho": 7.0,
}


def _check_edm_columns(levels, settings):
  sigma = np.asarray(levels.sigma, np.float64)
  np.testing.assert_array_equal(levels.alpha, 1)
  np.testing.assert_allclose(
    levels.input_scale,
    1 / np.sqrt(sigma**2 + settings["sigma_data"] ** 2),
    rtol=1e-5,
  )
  span = np.log(settings["sigma_max"] / settings["sigma_min"])
  np.testing.assert_allclose(
    levels.time,
    999 * np.log(sigma / settings["sigma_min"]) / span,
    atol=2e-3,
  )


@pytest.mark.parametrize("given", EDM_SETTINGS)
def test_edm_draws_log_normal_noise(given):
  settings = EDM_DEFAULTS | given
  levels = _draw(schedules.edm(**given), 2, 20_000)
  log_sigma = np.log(np.asarray(levels.sigma, np.float64))
  # Four standard errors.
  std = settings["log_std"]
  assert log_sigma.mean() == pytest.approx(
    settings["log_mean"], abs=4 * std / math.sqrt(20_000)
  )
  assert log_sigma.std() == pytest.approx(std, rel=4 / math.sqrt(40_000))
  normal = statistics.NormalDist(settings["log_mean"], std)
  for share in (0.1, 0.5, 0.9):
    assert np.mean(log_sigma < normal.inv_cdf(share)) == pytest.approx(
      share, abs=0.015
    )
  _check_edm_columns(levels, settings)


@pytest.mark.parametrize("given", EDM_SETTINGS)
def test_edm_grid_is_that_of_karras(given):
  settings = EDM_DEFAULTS | given
  low, high, rho = (
    settings[name] for name in ("sigma_min", "sigma_max", "rho")
  )
  levels = schedules.edm(**given).grid(18)
  # Karras et al. 2022, Eq. 5.
  expected = [
    (high ** (1 / rho) + i / 17 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    for i in range(18)
  ]
  np.testing.assert_allclose(levels.sigma, expected, rtol=1e-6)
  assert float(levels.sigma[0]) == pytest.approx(high, rel=1e-6)
  assert float(levels.sigma[-1]) == pytest.approx(low, rel=1e-6)
  assert float(levels.time[0]) == pytest.approx(999, abs=1e-3)
  assert float(levels.time[-1]) == pytest.approx(0, abs=1e-3)
  _check_edm_columns(levels, settings)


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
@pytest.mark.parametrize("end", [1e-3, 0.1])
def test_flow_draws_its_stated_law(time, end):
  levels = _draw(schedules.flow(time, end), 3, 20_000)
  t = np.asarray(levels.sigma, np.float64)
  assert t.min() >= end - 1e-6
  assert t.max() <= 1 - end + 1e-6
  for share in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98):
    quantile = share
    if time == "logit_normal":
      quantile = 1 / (1 + math.exp(-statistics.NormalDist().inv_cdf(share)))
    # Four standard errors of a share of 20,000 draws.
    assert np.mean(t < end + (1 - 2 * end) * quantile) == pytest.approx(
      share, abs=4 * math.sqrt(share * (1 - share) / 20_000)
    )
  np.testing.assert_allclose(levels.alpha + t, 1, atol=1e-6)
  np.testing.assert_allclose(levels.time, 999 * t, rtol=1e-5)
  np.testing.assert_array_equal(levels.input_scale, 1)


@pytest.mark.parametrize("end", [1e-3, 0.1])
def test_flow_grid_is_even_in_time(end):
  levels = schedules.flow(end=end).grid(5)
  step = (1 - 2 * end) / 4
  expected = np.array([1 - end - i * step for i in range(5)])
  np.testing.assert_allclose(levels.sigma, expected, rtol=1e-6)
  # 1 - t taken in float32 would cost alpha of the first level 6e-5.
  np.testing.assert_allclose(levels.alpha, 1 - expected, rtol=1e-6)
  np.testing.assert_allclose(levels.time, 999 * expected, rtol=1e-6)
  np.testing.assert_array_equal(levels.input_scale, 1)


@every_process
@pytest.mark.parametrize("num_steps", [1, 2, 18])
def test_grids_fall_from_the_most_noise(name, num_steps):
  levels = _grid(name, num_steps)
  for column in levels:
    assert column.shape == (num_steps,)
    assert column.dtype == np.float32
    assert np.isfinite(column).all()
  ratio = levels.sigma / levels.alpha
  assert np.all(np.diff(ratio) < 0)
  assert np.all(np.diff(levels.time) < 0)
  assert ratio[0] == pytest.approx(
    {"ddpm": 157.4, "edm": 80, "flow": 999}[name], rel=1e-3
  )
  assert np.all(levels.time >= -1e-3)
  assert np.all(levels.time <= 1000)


@pytest.mark.parametrize("num_steps", [2, 3, 7, 333, 999, 1000])
def test_respaced_timesteps_are_even_and_hold_both_ends(num_steps):
  t = schedules.respaced_timesteps(1000, num_steps)
  gaps = -np.diff(t)
  assert t.shape == (num_steps,)
  assert (t[0], t[-1]) == (999, 0)
  assert gaps.min() >= 1
  assert gaps.max() - gaps.min() <= 1
  np.testing.assert_array_equal(_grid("ddpm", num_steps).time, t)


def test_respacing_to_every_step_and_to_one():
  np.testing.assert_array_equal(
    schedules.respaced_timesteps(50, 50), np.arange(50)[::-1]
  )
  np.testing.assert_array_equal(schedules.respaced_timesteps(50, 1), [49])


@pytest.mark.parametrize("num_steps", [-1, 0, 51])
def test_respacing_refuses_other_numbers_of_steps(num_steps):
  with pytest.raises(ValueError, match=f"got {num_steps}"):
    schedules.respaced_timesteps(50, num_steps)


@every_process
def test_stopped_keeps_the_levels_of_at_least_this_noise(name):
  levels = _grid(name, NUM_LEVELS)
  ratio = levels.sigma / levels.alpha
  # A level's own ratio keeps it; just above, it goes.
  for sigma, count in [
    (float(ratio[7]), 8),
    (float(ratio[7]) * 1.001, 7),
    (0.0, NUM_LEVELS),
    (float(ratio[0]), 1),
  ]:
    kept = schedules.stopped(levels, sigma)
    jax.tree.map(
      np.testing.assert_array_equal, kept, _pick(levels, slice(count))
    )
  with pytest.raises(ValueError, match="reaches sigma"):
    schedules.stopped(levels, float(ratio[0]) * 1.001)


def test_processes_are_made_of_their_own_settings_by_name():
  settings = EDM_SETTINGS[1] | {
    "schedule": "cosine",
    "num_timesteps": 50,
    "time": "logit_normal",
  }
  expected = {
    "ddpm": schedules.ddpm(schedules.cosine_alpha_bar(50)),
    "edm": schedules.edm(**EDM_SETTINGS[1]),
    "flow": schedules.flow("logit_normal"),
  }
  assert schedules.PROCESSES.keys() == expected.keys()

  @jax.jit
  def draws(data):
    return [
      (
        schedules.PROCESSES[name](settings).draw(
          jax.random.wrap_key_data(data)
        ),
        made.draw(jax.random.wrap_key_data(data)),
      )
      for name, made in expected.items()
    ]

  for level, other in draws(_key_data(1, 8)):
    jax.tree.map(np.testing.assert_array_equal, level, other)
  for name, made in expected.items():
    found = schedules.PROCESSES[name](settings)
    jax.tree.map(np.testing.assert_array_equal, found.grid(5), made.grid(5))


# The process.

_unit_sigma = jax.jit(process.unit_sigma)
_diffuse = jax.jit(process.diffuse)
_eps_to_x_0 = jax.jit(process.eps_to_x_0)
_x_0_to_eps = jax.jit(process.x_0_to_eps)
_transition = jax.jit(process.transition)


def _ends(name):
  """Six levels from the least to the most noise, and float64 coefficients."""
  if name == "ddpm":
    alpha_bar = _short_alpha_bar()[[0, 1, 10, 50, 90, 99]]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
  elif name == "edm":
    sigma = np.array([0.02, 0.05, 0.5, 2.0, 20.0, 80.0])
    alpha = np.ones(6)
  else:
    sigma = np.array([0.02, 0.05, 0.3, 0.6, 0.9, 0.99])
    alpha = 1 - sigma
  return _level(alpha, sigma), alpha, sigma


def _broadcast(column):
  return column.reshape(-1, 1, 1, 1)


def test_per_example_gives_each_example_its_own_entry():
  entries = process.per_example(jnp.array([3.0, 0.0, 99.0]), 4)
  assert entries.shape == (3, 1, 1, 1)
  np.testing.assert_array_equal(entries.ravel(), [3, 0, 99])


def test_unit_sigma_depends_on_the_ratio_alone():
  level, _, sigma = _ends("ddpm")
  np.testing.assert_allclose(_unit_sigma(level), sigma, rtol=1e-6)
  for name in PROCESSES:
    level, alpha, sigma = _ends(name)
    unit = _unit_sigma(level)
    np.testing.assert_allclose(
      unit, np.sqrt(1 / (1 + (alpha / sigma) ** 2)), rtol=1e-6
    )
    # The same ratio with alpha 1, and with alpha^2 + sigma^2 = 1.
    ratio = sigma / alpha
    np.testing.assert_allclose(
      _unit_sigma(_level(np.ones(6), ratio)), unit, rtol=1e-6
    )


def test_diffuse_has_the_stated_moments():
  # 40,000 draws of two points: standard errors 0.005 sigma_t and less.
  n = 40_000
  for alpha, sigma in [(0.8, 0.6), (1.0, 1.7), (0.3, 0.7)]:
    x_0 = np.tile(np.float32([[2.0, -1.0]]), (n, 1))
    level = _level(np.full(n, alpha), np.full(n, sigma))
    x_t = _diffuse(level, x_0, _normal(2, (n, 2)))
    np.testing.assert_allclose(
      np.mean(x_t, 0), alpha * np.array([2.0, -1.0]), atol=0.02 * sigma
    )
    np.testing.assert_allclose(
      np.cov(x_t, rowvar=False), sigma**2 * np.eye(2), atol=0.03 * sigma**2
    )


@pytest.fixture(scope="module")
def clean():
  return _normal(0, (6, 2, 3, 1)), _normal(1, (6, 2, 3, 1))


@every_process
def test_diffuse_takes_each_example_at_its_own_level(name, clean):
  level, alpha, sigma = _ends(name)
  x_0, eps = clean
  np.testing.assert_allclose(
    _diffuse(level, x_0, eps),
    _broadcast(alpha) * np.asarray(x_0, np.float64)
    + _broadcast(sigma) * np.asarray(eps, np.float64),
    rtol=1e-6,
    atol=1e-6,
  )


@every_process
def test_conversions_recover_what_the_state_was_made_of(name, clean):
  level, _, _ = _ends(name)
  x_0, eps = clean
  x_t = _diffuse(level, x_0, eps)
  # Divisions by a_99 = 0.005 and by s_0 = 0.02 amplify the rounding.
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=3e-4)
  close(_eps_to_x_0(level, x_t, eps), x_0)
  close(_x_0_to_eps(level, x_t, x_0), eps)


@every_process
def test_conversions_invert_each_other_for_any_estimate(name, clean):
  level, alpha, sigma = _ends(name)
  x_t, guess = _diffuse(level, *clean), _normal(3, (6, 2, 3, 1))
  x_0 = _eps_to_x_0(level, x_t, guess)
  np.testing.assert_allclose(
    x_0,
    (np.asarray(x_t, np.float64) - _broadcast(sigma) * np.asarray(guess))
    / _broadcast(alpha),
    rtol=1e-4,
    atol=1e-4,
  )
  # x_0 of a wrong eps is as large as 1 / a_99 = 200: the error is relative.
  np.testing.assert_allclose(_x_0_to_eps(level, x_t, x_0), guess, atol=3e-4)


def _bayes(x_0, x_t, a_t, s_t, a_s, s_s):
  """q(x_s | x_t, x_0) as prior times likelihood, both scalar Gaussians."""
  ratio = a_t / a_s
  added = s_t**2 - ratio**2 * s_s**2
  variance = 1 / (1 / s_s**2 + ratio**2 / added)
  mean = variance * (a_s * x_0 / s_s**2 + ratio * x_t / added)
  return mean, variance, added


@every_process
def test_transition_over_several_steps_is_bayes_rule(name):
  _, alpha, sigma = _ends(name)
  t, s = np.transpose([(5, 4), (4, 2), (3, 2), (2, 0), (1, 0)])
  x_0, x_t = np.full((2, 5), [[0.7], [-1.3]], np.float32)
  actual = _transition(
    _level(alpha[t], sigma[t]), _level(alpha[s], sigma[s]), x_0, x_t
  )
  expected = _bayes(0.7, -1.3, alpha[t], sigma[t], alpha[s], sigma[s])
  np.testing.assert_allclose(actual, expected, rtol=2e-5)


@pytest.mark.parametrize("num_timesteps", [100, 1000])
def test_transition_is_the_posterior_of_ddpm(num_timesteps):
  # Ho et al. 2020, Eqs. 6 and 7, whose beta_t is alone of order 1e-4 at first.
  alpha_bar = schedules.linear_alpha_bar(num_timesteps)
  levels = schedules.ddpm(alpha_bar).grid(num_timesteps)
  levels = jax.tree.map(lambda column: np.asarray(column)[::-1], levels)
  x_0, x_t = np.full(num_timesteps - 1, 0.7), np.full(num_timesteps - 1, -1.3)
  mean, small, large = _transition(
    _pick(levels, slice(1, None)),
    _pick(levels, slice(-1)),
    np.float32(x_0),
    np.float32(x_t),
  )
  before, after = alpha_bar[:-1], alpha_bar[1:]
  beta = 1 - after / before
  expected = (np.sqrt(before) * beta * x_0) / (1 - after) + (
    np.sqrt(1 - beta) * (1 - before) * x_t
  ) / (1 - after)
  np.testing.assert_allclose(mean, expected, rtol=2e-5, atol=1e-6)
  variance = (1 - before) / (1 - after) * beta
  early = slice(num_timesteps // 50)
  for actual, exact in [(small, variance), (large, beta)]:
    np.testing.assert_allclose(actual[early], exact[early], rtol=1e-5)
    np.testing.assert_allclose(actual, exact, rtol=1e-4)


@every_process
def test_transitions_compose(name):
  # q(x_r | x_t, x_0) is q(x_r | x_s, x_0) averaged over q(x_s | x_t, x_0).
  _, alpha, sigma = _ends(name)
  t, s, r = (
    _level(alpha[i], sigma[i])
    for i in np.transpose(
      [(5, 3, 2), (3, 2, 1), (4, 2, 0), (5, 1, 0), (4, 3, 1)]
    )
  )
  x_0, x_t = np.full((2, 5), [[0.7], [-1.3]], np.float32)
  mean_s, var_s, added_s = map(np.asarray, _transition(t, s, x_0, x_t))
  mean, var_r, added_r = map(np.asarray, _transition(s, r, x_0, mean_s))
  one = _transition(s, r, x_0, mean_s + 1)[0]
  actual = (
    mean,
    var_r + np.square(one - mean) * var_s,
    added_s + np.square(t.alpha / s.alpha) * added_r,
  )
  np.testing.assert_allclose(actual, _transition(t, r, x_0, x_t), rtol=1e-4)


# Samplers.


def _estimates(data, x, a, s):
  """A clean estimate of three terms, and the noise that it implies.

  A point, a linear one of unit Gaussian data, and one that is no line.
  """
  point, linear, curved = data
  curve = jnp.tanh(x / jnp.sqrt(a**2 + s**2)) + 0.1 * a * s
  x_0_hat = point + linear * a * x + curved * curve
  return x_0_hat, (x - a * x_0_hat) / s


def _point(c):
  return c, 0.0, 0.0


UNIT_GAUSSIAN, CURVED = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


@functools.cache
def _stepper(update):
  def run(data, step, x_t, last_x_0, z):
    denoise = lambda x, level: _estimates(data, x, level.alpha, level.sigma)
    return update(denoise, step, x_t, last_x_0, z)

  return jax.jit(run)


def _one_step(
  update, data, level_t, level_s, x_t, z, number=1, before=None, last_x_0=0.0
):
  """x_s and x_0_hat at t of one step, for levels and states [m, 3] or so."""
  levels = [before or level_t, level_t, level_s]
  *columns, x_t, z, last_x_0 = np.broadcast_arrays(
    *(column for level in levels for column in level), x_t, z, last_x_0
  )
  columns = np.float32(columns).reshape(3, 4, *x_t.shape)
  step = samplers.Step(np.int32(number), *(Level(*some) for some in columns))
  x_s, x_0_hat = _stepper(update)(
    tuple(map(np.float32, data)),
    step,
    np.float32(x_t),
    np.float32(last_x_0),
    np.float32(z),
  )
  return np.asarray(x_s, np.float64), np.asarray(x_0_hat, np.float64)


def _column(values):
  """Four steps' coefficients, to broadcast against three states."""
  return np.reshape(values, (4, 1))


def _pairs(alpha, sigma, pairs):
  """The levels of steps (t, s), each [4, 1]."""
  return [
    _level(_column(alpha[some]), _column(sigma[some]))
    for some in np.transpose(pairs)
  ]


def _parts(update, level_t, level_s, data):
  """The update's value at x_t = 0, its slope by x_t and its noise's scale."""
  x_s, _ = _one_step(update, data, level_t, level_s, [0, 1, 0], [0, 0, 1])
  value, slope, noise = x_s.T
  return value, slope - value, noise - value


@every_process
@pytest.mark.parametrize("update", sorted(set(UPDATES) - {"ddpm_large"}))
def test_updates_are_exact_where_the_data_is_one_point(update, name):
  # x_t ~ N(a_t c, s_t^2) must go to x_s ~ N(a_s c, s_s^2), at any spacing.
  _, alpha, sigma = _ends(name)
  pairs = [(5, 4), (3, 2), (4, 1), (1, 0)]
  value, slope, noise = _parts(
    UPDATES[update], *_pairs(alpha, sigma, pairs), _point(0.8)
  )
  t, s = np.transpose(pairs)
  np.testing.assert_allclose(
    value + slope * alpha[t] * 0.8, alpha[s] * 0.8, atol=1e-4
  )
  np.testing.assert_allclose(
    slope**2 * sigma[t] ** 2 + noise**2, sigma[s] ** 2, rtol=1e-3
  )


def test_large_variance_is_exact_for_unit_gaussian_data():
  # DDPM: x_t ~ N(0, 1) at every t, and E[x_0 | x_t] = a_t x_t.
  _, alpha, sigma = _ends("ddpm")
  levels = _pairs(alpha, sigma, [(5, 4), (3, 2), (4, 1), (1, 0)])
  value, slope, noise = _parts(UPDATES["ddpm_large"], *levels, UNIT_GAUSSIAN)
  np.testing.assert_array_equal(value, 0)
  np.testing.assert_allclose(slope**2 + noise**2, 1, atol=1e-4)


@every_process
def test_eta_scales_the_noise_of_ddim(name):
  _, alpha, sigma = _ends(name)
  levels = _pairs(alpha, sigma, [(4, 2)] * 4)
  none, half, whole = (
    _parts(UPDATES[update], *levels, _point(0.0))[2]
    for update in ("ddim_0", "ddim_half", "ddim_1")
  )
  assert np.all(none == 0)
  assert np.all(whole > 0.1)
  np.testing.assert_allclose(half, whole / 2, rtol=1e-5)


@every_process
def test_temperature_scales_the_noise_alone(name):
  _, alpha, sigma = _ends(name)
  levels = _pairs(alpha, sigma, [(4, 2)] * 4)
  update = UPDATES["ddpm_small"]
  cold = samplers.tempered(update, 0.25)
  value, slope, noise = _parts(update, *levels, _point(0.0))
  cooled = _parts(cold, *levels, _point(0.0))
  np.testing.assert_array_equal(cooled[0], value)
  np.testing.assert_array_equal(cooled[1], slope)
  np.testing.assert_allclose(cooled[2], noise / 4, rtol=1e-5)
  assert np.all(noise > 0.1)


def _curved(x, a, s):
  """What CURVED estimates, in float64."""
  x_0_hat = np.tanh(x / np.sqrt(a**2 + s**2)) + 0.1 * a * s
  return x_0_hat, (x - a * x_0_hat) / s


@pytest.mark.parametrize("update", ["ddim_0", "heun"])
def test_steps_are_the_textbooks_for_edm(update):
  # Karras et al. 2022, Algorithm 1: lines 4 to 8.
  x = np.array([1.7, -0.4, 3.0])
  t, s = map(_column, ([80.0, 3.0, 0.9, 0.4], [50.0, 1.0, 0.8, 0.1]))
  d = (x - _curved(x, 1.0, t)[0]) / t
  expected = x + (s - t) * d
  if update == "heun":
    d_s = (expected - _curved(expected, 1.0, s)[0]) / s
    expected = x + (s - t) * (d / 2 + d_s / 2)
  actual, _ = _one_step(
    UPDATES[update],
    CURVED,
    _level(np.ones((4, 1)), t),
    _level(np.ones((4, 1)), s),
    x,
    np.nan if update == "heun" else 100.0,
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("update", ["ddim_0", "heun"])
def test_steps_are_the_textbooks_for_flow(update):
  # dx/dt = u = eps_hat - x_0_hat, and its Euler and Heun steps.
  x = np.array([1.7, -0.4, 3.0])
  t, s = map(_column, ([0.95, 0.6, 0.5, 0.2], [0.7, 0.2, 0.45, 0.05]))

  def velocity(x, t):
    x_0_hat, eps_hat = _curved(x, 1 - t, t)
    return eps_hat - x_0_hat

  expected = x + (s - t) * velocity(x, t)
  if update == "heun":
    u = (velocity(x, t) + velocity(expected, s)) / 2
    expected = x + (s - t) * u
  actual, _ = _one_step(
    UPDATES[update], CURVED, _level(1 - t, t), _level(1 - s, s), x, 100.0
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@every_process
def test_dpm_solver_is_exact_for_linear_clean_estimates(name):
  # With x_0_hat = p + q lambda, lambda = ln(alpha / sigma), the flow's
  # integral alpha_s e^-lambda_s (p + q lambda) e^lambda has a closed form, of
  # which the second order method leaves out no term in p, and none in q but
  # that of h^3 (Lu et al. 2022, Eq. 12 with n = 1 in place of n = 2).
  _, alpha, sigma = _ends(name)
  log_snr = np.log(alpha / sigma)
  r, t, s = 5, 4, 3
  h_before, h = log_snr[t] - log_snr[r], log_snr[s] - log_snr[t]
  p, q, x_t = 0.3, 0.8, 1.4
  x_0 = p + q * log_snr
  carried = x_0[t] + h / (2 * h_before) * (x_0[t] - x_0[r])
  expected = sigma[s] / sigma[t] * x_t + alpha[s] * (1 - np.exp(-h)) * carried
  before, level_t, level_s = (
    _level(_column([alpha[i]] * 4), _column([sigma[i]] * 4)) for i in (r, t, s)
  )
  x_s, x_0_t = _one_step(
    UPDATES["dpm_solver"],
    _point(x_0[t]),
    level_t,
    level_s,
    [x_t] * 3,
    np.nan,
    number=2,
    before=before,
    last_x_0=x_0[r],
  )
  np.testing.assert_allclose(x_s, expected, rtol=1e-3)
  np.testing.assert_allclose(x_0_t, x_0[t], rtol=1e-6)


def test_steps_are_the_papers_for_ddpm_and_ddim():
  # Ho et al. 2020, Algorithm 2; Song et al. 2020, Eqs. 12 and 16.
  x, z = np.array([1.7, -0.4, 3.0]), np.array([-0.5, 2.0, 0.1])
  t = np.array([99, 70, 40, 1])
  bar_t, bar_s = (_column(_short_alpha_bar()[some]) for some in (t, t - 1))
  x_0_hat, eps_hat = _curved(x, np.sqrt(bar_t), np.sqrt(1 - bar_t))
  beta = 1 - bar_t / bar_s
  mean = (x - beta / np.sqrt(1 - bar_t) * eps_hat) / np.sqrt(1 - beta)
  std = np.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
  expected = {
    "ddpm_small": mean + std * z,
    "ddpm_large": mean + np.sqrt(beta) * z,
    "ddim_half": np.sqrt(bar_s) * x_0_hat
    + np.sqrt(1 - bar_s - (0.5 * std) ** 2) * eps_hat
    + 0.5 * std * z,
  }
  levels = [_level(np.sqrt(b), np.sqrt(1 - b)) for b in (bar_t, bar_s)]
  for name, value in expected.items():
    actual, _ = _one_step(UPDATES[name], CURVED, *levels, x, z)
    np.testing.assert_allclose(actual, value, rtol=2e-4, atol=2e-5)


def _any_step(update, z):
  """Steps with a step before them, of a denoiser that is no line."""
  level_t, level_s = _pairs(
    *_ends("flow")[1:], [(4, 3), (3, 2), (2, 1), (4, 1)]
  )
  before = _level(np.full((4, 1), 0.02), np.full((4, 1), 0.98))
  return _one_step(
    update,
    CURVED,
    level_t,
    level_s,
    [1.7, -0.4, 3.0],
    z,
    number=2,
    before=before,
    last_x_0=0.3,
  )


@pytest.mark.parametrize(
  ("name", "same"),
  [
    ("ddpm", "ddpm_large"),
    ("ddim", "ddim_half"),
    ("euler", "ddim_0"),
    ("heun", "heun"),
    ("dpm_solver", "dpm_solver"),
  ],
)
def test_samplers_by_name(name, same):
  z = [-0.5, 2.0, 0.1]
  made = samplers.SAMPLERS[name]("large", 0.5)
  expected = _any_step(UPDATES[same], z)
  np.testing.assert_array_equal(_any_step(made, z), expected)
  for other in set(UPDATES) - {same}:
    assert np.any(_any_step(UPDATES[other], z)[0] != expected[0])


@pytest.mark.parametrize("update", ["ddim_0", "heun", "dpm_solver"])
def test_deterministic_samplers_depend_on_their_start_alone(update):
  quiet, loud = (
    _any_step(UPDATES[update], z) for z in ([0, 0, 0], [1.0, -20.0, 7.0])
  )
  np.testing.assert_array_equal(quiet, loud)


def _exact_eps(weights, means, std):
  """The exact noise predictor of a mixture of N(m_k, diag(std^2)).

  means is [k, d] and std [d]: Gaussian data has one mean, and a point no std.
  """

  def eps_fn(x_t, level):
    a, s = (process.per_example(v, 3) for v in (level.alpha, level.sigma))
    variance = jnp.square(a * std[None, None]) + jnp.square(s)
    offset = x_t[:, None] - a * means[None]
    logits = jnp.log(weights)[None] - jnp.sum(
      jnp.square(offset) / (2 * variance), axis=2
    )
    share = jax.nn.softmax(logits, axis=1)[..., None]
    return s[:, 0] * jnp.sum(share * offset, axis=1) / variance[:, 0]

  return eps_fn


def _data(weights, means, std):
  """Arrays of two means in two dimensions: one program for all data."""
  return (
    np.float32(weights),
    np.broadcast_to(np.float32(means), (2, 2)),
    np.broadcast_to(np.float32(std), (2,)),
  )


MEAN, STD = np.array([1.5, -1.0]), np.array([0.5, 1.5])
GAUSSIAN = _data([0.5, 0.5], MEAN, STD)
MODES = np.array([[-1.0, 0.5], [1.0, -0.5]])
MIXTURE = _data([0.3, 0.7], MODES, 0.3)
POINT = np.array([0.3, -0.6])
AT_POINT = _data([0.5, 0.5], POINT, 0.0)


@functools.cache
def _sampler(update):
  """One program for all data and for all levels of one number."""

  def sample(data, levels, seed, index):
    return samplers.sample(
      _exact_eps(*data),
      levels,
      UPDATES[update],
      jax.random.key(seed),
      index,
      (2,),
    )

  return jax.jit(sample)


def _sample(update, data, levels, index=range(B), seed=7):
  found = _sampler(update)(data, levels, np.uint32(seed), np.array(index))
  return np.asarray(found, np.float64)


def _still(denoise, step, x_t, last, z):
  return x_t, last


def _silent(x_t, level):
  return jnp.zeros_like(x_t)


def _start(levels, key, index, shape):
  """The state that a sampler starts from. Jit-able."""
  x_0_hat = samplers.sample(_silent, levels, _still, key, index, shape)
  return levels.alpha[-1] * x_0_hat


@jax.jit
def _starts(levels):
  return _start(levels, jax.random.key(7), jnp.arange(8000), (2,))


@every_process
def test_samples_start_from_the_noise_of_the_first_level(name):
  levels = _grid(name, 3)
  x_T = np.asarray(_starts(levels), np.float64)
  sigma = levels.sigma[0]
  # Four standard errors.
  np.testing.assert_allclose(x_T.mean(0) / sigma, 0, atol=0.045)
  np.testing.assert_allclose(x_T.std(0) / sigma, 1, atol=0.032)


# With 8,000 samples the standard error is 0.8% of a standard deviation, and
# at most 0.017 of a mean. Tolerances are four of them plus the
# discretisation's own error on these two axes at 100 steps, from the
# samplers' linear recursion (test_second_order_steps holds its order).
@pytest.mark.parametrize(
  ("name", "update"),
  [
    (name, update)
    for name in PROCESSES
    for update in UPDATES
    # ddim_1 is ddpm_small: test_ddim_at_eta_one_is_ddpm.
    if update != "ddim_1" and (name == "ddpm" or update != "ddpm_large")
  ],
)
def test_exact_gaussian_scores_give_its_moments(name, update):
  x = _sample(update, GAUSSIAN, _grid(name, 100), range(8000))
  np.testing.assert_allclose(x.mean(0), MEAN, atol=0.078)
  np.testing.assert_allclose(x.std(0), STD, rtol=0.08)
  assert abs(np.corrcoef(x.T)[0, 1]) < 4 / np.sqrt(8000)


@every_process
@pytest.mark.parametrize("update", ["ddim_0", "heun", "dpm_solver"])
def test_second_order_steps(update, name):
  # On data N(0, q^2) the flow keeps x_t / sqrt(a^2 q^2 + s^2): for EDM,
  # sqrt(sigma^2 + q^2). The clean estimate at the end is linear in x_t.
  q = 0.7
  edm = _grid("edm", 3)
  unit_start = np.asarray(_starts(edm), np.float64)[:B] / edm.sigma[0]

  def error(num_steps):
    levels = _grid(name, num_steps + 1)
    x = _sample(update, _data([0.5, 0.5], 0.0, q), levels)
    a, s = (np.asarray(v, np.float64) for v in (levels.alpha, levels.sigma))
    spread = np.sqrt((a * q) ** 2 + s**2)
    x_T = s[0] * unit_start
    exact = x_T * spread[-1] / spread[0] * a[-1] * q**2 / spread[-1] ** 2
    return np.abs(x / exact - 1).max()

  # DDPM's steps are whole timesteps, alike where their number divides 999.
  few, many = NUM_LEVELS - 1, 111
  coarse, fine = error(few), error(many)
  order = math.log(coarse / fine) / math.log(many / few)
  assert order == pytest.approx(1 if update == "ddim_0" else 2, abs=0.3)
  assert fine < (0.1 if update == "ddim_0" else 0.01)


@pytest.mark.parametrize(
  ("name", "update"),
  [
    ("ddpm", "ddpm_small"),
    ("ddpm", "ddim_0"),
    ("edm", "ddpm_small"),
    ("edm", "heun"),
    ("flow", "ddim_0"),
    ("flow", "ddpm_small"),
  ],
)
def test_exact_mixture_scores_give_its_modes(update, name):
  # Four standard errors with 8,000 samples: 0.021 of the weight, and for
  # each mode 0.025 of its mean and 6% of its spread. At 100 steps the spread
  # is up to 8% wrong by itself.
  x = _sample(update, MIXTURE, _grid(name, 100), range(8000), seed=8)
  low, high = x[x[:, 0] < 0], x[x[:, 0] > 0]
  assert len(low) / 8000 == pytest.approx(0.3, abs=0.021)
  for mode, mean in zip((low, high), MODES, strict=True):
    np.testing.assert_allclose(mode.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(mode.std(0), 0.3, rtol=0.12)


@every_process
def test_ddim_at_eta_one_is_ddpm(name):
  levels = _grid(name, NUM_LEVELS)
  np.testing.assert_allclose(
    _sample("ddim_1", MIXTURE, levels),
    _sample("ddpm_small", MIXTURE, levels),
    atol=1e-3,
  )


@pytest.mark.parametrize("name", ["ddpm", "edm"])
def test_a_sample_does_not_depend_on_its_batch(name):
  # Within rounding: vectorised code may differ by the batch size.
  levels = _grid(name, NUM_LEVELS)
  rows = _sample("ddpm_small", MIXTURE, levels)
  some = _sample("ddpm_small", MIXTURE, levels, [7, 5, 2])
  np.testing.assert_allclose(some, rows[[7, 5, 2]], atol=1e-5)
  assert len(np.unique(rows)) == rows.size
  other_key = _sample("ddpm_small", MIXTURE, levels, seed=9)
  assert not np.any(np.isclose(rows, other_key, atol=1e-5))


# Three steps of DDPM, at t = 99, 50 and 0.
THREE = jax.tree.map(np.asarray, SHORT.grid(3))


def _probe(update, eps_fn=_silent, shape=(2,)):
  """Samples THREE levels; by default, the last state over its alpha."""
  return samplers.sample(
    eps_fn,
    jax.tree.map(jnp.asarray, THREE),
    update,
    jax.random.key(10),
    jnp.arange(1000),
    shape,
  )


def _kept_from(t, value_of):
  """An update that leaves x_t alone, but for the value it takes at t."""

  def update(denoise, step, x_t, last, z):
    value = value_of(denoise, step, x_t, z)
    return jnp.where(step.t.time == t, value, x_t), last

  return update


def test_start_steps_and_elements_draw_their_own_noise():
  noise_of = lambda t: _kept_from(t, lambda *args: args[-1])
  updates = (_still, noise_of(99), noise_of(50))
  draws = np.asarray(jax.jit(lambda: [_probe(one) for one in updates])())
  np.testing.assert_allclose(
    np.corrcoef(np.concatenate(draws, axis=1), rowvar=False),
    np.eye(6),
    atol=4 / np.sqrt(1000),
  )
  for draw in draws:
    np.testing.assert_allclose(np.std(draw), 1, atol=4 / np.sqrt(4000))


def test_each_step_is_taken_at_its_own_levels():
  assert THREE.time.tolist() == [99, 50, 0]

  def tells(x_t, level):
    return x_t + level.time[:, None]

  def estimate(denoise, step, x_t, z):
    return denoise(x_t, step.t)[0]

  def both(denoise, step, x_t, z):
    return jnp.stack([*step.t, *step.s])[None] + jnp.zeros_like(x_t)

  @jax.jit
  def run():
    return (
      THREE.alpha[-1] * _probe(_still),
      [_probe(_kept_from(t, estimate), tells) for t in (99, 50)],
      [_probe(_kept_from(t, both), shape=(8,))[0] for t in (99, 50)],
    )

  start, estimates, told = jax.tree.map(np.asarray, run())
  a, s = THREE.alpha, THREE.sigma
  clean = lambda x, i: (x - s[i] * (x + THREE.time[i])) / a[i]
  for i in range(2):
    # The last step's own estimate is taken of the state so found.
    np.testing.assert_allclose(
      estimates[i], clean(clean(start, i), 2), rtol=1e-4, atol=2e-3
    )
    expected = [column[j] for j in (i, i + 1) for column in THREE]
    np.testing.assert_allclose(a[-1] * told[i], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "update", "num_steps"),
  [
    *((name, "ddpm_small", 1) for name in PROCESSES),
    *(("ddpm", update, NUM_LEVELS) for update in UPDATES),
  ],
)
def test_one_point_of_data_is_sampled_to_the_point(name, update, num_steps):
  x = _sample(update, AT_POINT, _grid(name, num_steps))
  # One step divides by alpha: 0.006 for DDPM, 0.001 for flow matching.
  atol = 1e-3 if num_steps == 1 else 2e-4
  np.testing.assert_allclose(x, np.tile(POINT, (B, 1)), atol=atol)


@every_process
@pytest.mark.parametrize("update", ["ddpm_small", "heun"])
def test_a_stopped_sampler_ends_with_the_last_clean_estimate(update, name):
  # Of so many levels, as many as in other tests are left.
  num_steps = {"ddpm": 43, "edm": 56, "flow": 53}[name]
  levels = schedules.stopped(PROCESSES[name].grid(num_steps), 0.4)
  assert len(levels.sigma) == NUM_LEVELS
  x = _sample(update, AT_POINT, levels)
  np.testing.assert_allclose(x, np.tile(POINT, (B, 1)), atol=2e-4)


def test_clipping_keeps_both_estimates_of_one_state():
  # By hand: DDIM over two levels, each clean estimate clipped to 0.5 and the
  # noise estimate such that both still make up the state.
  levels = _pick(_ends("flow")[0], np.array([3, 2]))

  @jax.jit
  def run(levels):
    sample = lambda *clip: samplers.sample(
      lambda x_t, level: -x_t - 1,
      levels,
      UPDATES["ddim_0"],
      jax.random.key(7),
      jnp.arange(64),
      (3,),
      *clip,
    )
    start = _start(levels, jax.random.key(7), jnp.arange(64), (3,))
    return start, sample(), sample(0.5)

  x, free, clipped = (np.asarray(v, np.float64) for v in run(levels))
  a, s = (np.asarray(v, np.float64) for v in (levels.alpha, levels.sigma))
  clean = lambda x, i: (x + s[i] * (x + 1)) / a[i]
  assert np.mean(np.abs(clean(x, 0)) > 0.5) > 0.5
  x_0_hat = np.clip(clean(x, 0), -0.5, 0.5)
  x_s = a[1] * x_0_hat + s[1] * (x - a[0] * x_0_hat) / s[0]
  expected = np.clip(clean(x_s, 1), -0.5, 0.5)
  assert 0.05 < np.mean(np.abs(expected) < 0.5)
  np.testing.assert_allclose(clipped, expected, atol=1e-5)
  assert np.max(np.abs(free)) > 1


# The process from any state, and all of its states.

GRID = jax.tree.map(np.asarray, SHORT.grid(6))
X_T = GRID.sigma[0] * _normal(3, (4, 2))


def _bent(x_t, level):
  return jnp.tanh(x_t + level.time[:, None] / 100)


def _reverse(x_t, eps_fn=_bent, update="ddpm_small", **kwargs):
  return samplers.reverse(
    eps_fn,
    jax.tree.map(jnp.asarray, GRID),
    UPDATES[update],
    x_t,
    samplers.sample_keys(jax.random.key(3), jnp.arange(4)),
    **kwargs,
  )


@functools.cache
def _processes(update):
  """The path from X_T, its end alone, and its end with a perturbation of 0."""

  @jax.jit
  def run(x_t):
    path = samplers.path(
      _bent,
      jax.tree.map(jnp.asarray, GRID),
      UPDATES[update],
      x_t,
      samplers.sample_keys(jax.random.key(3), jnp.arange(4)),
    )
    plain = _reverse(x_t, update=update)
    return path, plain, _reverse(x_t, update=update, w=jnp.zeros((6, 4, 2)))

  return jax.tree.map(np.asarray, run(X_T))


@pytest.mark.parametrize("update", UPDATES)
def test_a_path_goes_through_the_sampler_s_states(update):
  path, plain, _ = _processes(update)
  assert path.x_t.shape == path.x_0_hat.shape == (6, 4, 2)
  np.testing.assert_array_equal(path.x_t[0], X_T)
  np.testing.assert_allclose(path.x_0_hat[-1], plain, rtol=1e-5)
  a, s, time = (
    np.reshape(v, (6, 1, 1)) for v in (GRID.alpha, GRID.sigma, GRID.time)
  )
  x_t = np.asarray(path.x_t, np.float64)
  clean = (x_t - s * np.tanh(x_t + time / 100)) / a
  np.testing.assert_allclose(path.x_0_hat, clean, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("update", UPDATES)
def test_no_perturbation_is_plain_sampling(update):
  _, plain, perturbed = _processes(update)
  np.testing.assert_allclose(perturbed, plain, rtol=1e-5)


@jax.jit
def _perturbed(w):
  """DDIM's samples under w: of an equivariant network, and of a silent one."""
  equivariant = lambda x_t, level: x_t / process.per_example(level.sigma, 2) + 1
  return [
    _reverse(jnp.asarray(X_T), eps_fn, "ddim_0", w=w)
    for eps_fn in (equivariant, _silent)
  ]


@pytest.mark.parametrize("n", [0, 3, 5])
def test_a_perturbation_moves_the_whole_step(n):
  # Of an equivariant network, eps_fn(x) = x / sigma + c, the clean estimate
  # depends on the state nowhere: -sigma c / alpha at the last level. A state
  # that only the network saw would leave (x_t - sigma eps_hat) / alpha moved.
  w = np.zeros((6, 4, 2), np.float32)
  _, plain = map(np.asarray, _perturbed(w))
  w[n] = 2.0
  x_0, moved = map(np.asarray, _perturbed(w))
  expected = -GRID.sigma[-1] / GRID.alpha[-1]
  np.testing.assert_allclose(x_0, np.full((4, 2), expected), atol=2e-3)
  # Of a constant network, DDIM's state over alpha moves by sigma w / alpha.
  np.testing.assert_allclose(
    moved - plain,
    np.full((4, 2), 2 * GRID.sigma[n] / GRID.alpha[n]),
    rtol=1e-3,
  )


def test_gradients_through_the_process_are_the_same_with_remat():
  def loss(x_t, remat):
    losses = jnp.sum(_reverse(x_t, remat=remat) ** 2, axis=1)
    return jnp.sum(losses), losses

  slope_of = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  gradient, _ = slope_of(X_T, True)
  np.testing.assert_allclose(gradient, slope_of(X_T, False)[0], rtol=1e-4)
  # The slope is right: a central difference in the first example.
  shift = np.zeros((4, 2), np.float32)
  shift[0, 0] = 1e-2
  ahead, behind = (slope_of(X_T + d, True)[1] for d in (shift, -shift))
  slope = float(ahead[0] - behind[0]) / 2e-2
  assert gradient[0, 0] == pytest.approx(slope, rel=0.02)


def test_remat_bounds_the_memory_of_a_gradient():
  # 60 levels of a network with 4,096 activations an example: with remat the
  # states are kept, and the activations of one level at a time.
  width, levels = 4096, SHORT.grid(60)
  weights = _normal(0, (1, width))
  keys = samplers.sample_keys(jax.random.key(3), jnp.arange(8))

  def network(x_t, level):
    return jnp.tanh(x_t @ weights) @ weights.T / width

  def memory(remat):
    def loss(x_t):
      x_0 = samplers.reverse(
        network, levels, samplers.ddim(), x_t, keys, remat=remat
      )
      return jnp.sum(x_0**2)

    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((8, 1))).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert memory(True) < memory(False) / 10
