"""What a network predicts: five forms of one denoiser, written by hand here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax.diffusion import parametrisation, process, schedules
from rad_jax.diffusion.process import Level

SIGMA_DATA = 0.5
PREDICTIONS = parametrisation.predictions(SIGMA_DATA)
SHAPE = (4, 2, 3, 1)


def _levels(name):
  """Four levels, with sigma / alpha within 0.05 .. 20, in float64."""
  if name == "ddpm":
    alpha = np.sqrt([0.995, 0.7, 0.2, 0.004])
    sigma = np.sqrt(1 - alpha**2)
  elif name == "edm":
    alpha, sigma = np.ones(4), np.array([0.05, 0.4, 3.0, 20.0])
  else:
    sigma = np.array([0.05, 0.3, 0.6, 0.95])
    alpha = 1 - sigma
  return alpha, sigma


LEVELS = {name: _levels(name) for name in ("ddpm", "edm", "flow")}


def _level(name):
  """As the module takes them; the times and scales are as odd as they can."""
  columns = (*LEVELS[name], [7.0, 1.0, 2.5, 990.0], [0.5, 2.0, 1.0, 3.0])
  return Level(*(jnp.asarray(column, jnp.float32) for column in columns))


def _columns(name):
  return (column.reshape(4, 1, 1, 1) for column in LEVELS[name])


def _output(name, prediction, x_0, eps):
  """y, from each paper's own formula; x_0 and eps may be estimates."""
  a, s = _columns(name)
  if prediction == "eps":
    return eps
  if prediction == "x_0":
    return x_0
  if prediction == "v":
    return (a * eps - s * x_0) / np.sqrt(a**2 + s**2)
  if prediction == "velocity":
    return eps - x_0
  # Karras et al. 2022, table 1, for the unscaled state x_t / a.
  x, ratio = x_0 + s / a * eps, s / a
  c_skip = SIGMA_DATA**2 / (ratio**2 + SIGMA_DATA**2)
  c_out = ratio * SIGMA_DATA / np.sqrt(ratio**2 + SIGMA_DATA**2)
  return (x_0 - c_skip * x) / c_out


def _shift(name, prediction, w):
  """What the output must move by at x_t + sigma w, while x_0_hat stays."""
  a, s = _columns(name)
  if prediction == "x_0":
    return 0 * w
  if prediction == "v":
    return a * w / np.sqrt(a**2 + s**2)
  if prediction == "edm":
    return -w * SIGMA_DATA / np.sqrt((s / a) ** 2 + SIGMA_DATA**2)
  return w


def _draw(seed):
  return np.random.default_rng(seed).normal(size=SHAPE)


def _denoised(name, x_t):
  """The posterior mean of data N(0.3, 0.6^2), and the noise it implies."""
  a, s = _columns(name)
  x_0_hat = 0.3 + a * 0.36 / (a**2 * 0.36 + s**2) * (x_t - a * 0.3)
  return x_0_hat, (x_t - a * x_0_hat) / s


def _squares(x):
  return np.square(x).sum(axis=(1, 2, 3))


def _float32(x):
  return jnp.asarray(x, jnp.float32)


every_form = pytest.mark.parametrize("prediction", PREDICTIONS)
every_process = pytest.mark.parametrize("name", LEVELS)


def test_the_tables_hold_every_name():
  assert parametrisation.PREDICTIONS == (
    "eps",
    "x_0",
    "v",
    "velocity",
    "edm",
  )
  assert parametrisation.WEIGHTINGS == ("own", "eps", "min_snr")


@every_form
@every_process
def test_one_denoiser_in_every_form_is_one_noise_estimate(name, prediction):
  x_t = 2 * _draw(0)
  x_0_hat, eps_hat = _denoised(name, x_t)
  y = _float32(_output(name, prediction, x_0_hat, eps_hat))
  predict = parametrisation.eps_fn(lambda *_: y, PREDICTIONS[prediction])
  # The conversions divide by 0.05, and estimates reach 20.
  np.testing.assert_allclose(
    predict(_float32(x_t), _level(name)), eps_hat, rtol=3e-5, atol=3e-5
  )


@every_form
@every_process
def test_target_is_the_papers_formula(name, prediction):
  x_0, eps = _draw(1), _draw(2)
  np.testing.assert_allclose(
    parametrisation.target(
      PREDICTIONS[prediction], _level(name), _float32(x_0), _float32(eps)
    ),
    _output(name, prediction, x_0, eps),
    rtol=1e-5,
    atol=1e-5,
  )


@every_form
@every_process
def test_moved_output_is_the_target_plus_its_shift(name, prediction):
  a, s = _columns(name)
  x_t, w = 2 * _draw(3), _draw(4)
  x_0_hat, eps_hat = _denoised(name, x_t)
  moved = x_t + s * w
  # The same clean estimate at the moved state, in the output's own form.
  y = _output(name, prediction, x_0_hat, eps_hat)
  y_moved = _output(name, prediction, x_0_hat, (moved - a * x_0_hat) / s)
  np.testing.assert_allclose(
    y_moved, y + _shift(name, prediction, w), rtol=1e-9, atol=1e-9
  )
  np.testing.assert_allclose(
    parametrisation.target(
      PREDICTIONS[prediction],
      _level(name),
      _float32(x_0_hat),
      _float32(eps_hat + w),
    ),
    y_moved,
    rtol=1e-5,
    atol=1e-5,
  )
  predict = parametrisation.eps_fn(
    lambda *_: _float32(y_moved), PREDICTIONS[prediction]
  )
  np.testing.assert_allclose(
    predict(_float32(moved), _level(name)),
    eps_hat + w,
    rtol=1e-4,
    atol=5e-5,
  )


def test_shift_is_the_coefficient_of_the_noise():
  # The stated special cases: alpha w for v of DDPM, and EDM's own.
  w = _draw(5)
  alpha, sigma = LEVELS["ddpm"][0], LEVELS["edm"][1]
  for name, prediction, factor in [
    ("ddpm", "v", alpha),
    ("ddpm", "eps", np.ones(4)),
    ("flow", "velocity", np.ones(4)),
    ("edm", "x_0", np.zeros(4)),
    ("edm", "edm", -SIGMA_DATA / np.sqrt(sigma**2 + SIGMA_DATA**2)),
  ]:
    _, c_eps = PREDICTIONS[prediction](_level(name))
    np.testing.assert_allclose(c_eps, factor, rtol=1e-6)
    np.testing.assert_allclose(
      factor.reshape(4, 1, 1, 1) * w, _shift(name, prediction, w), rtol=1e-12
    )


@every_form
@every_process
def test_own_weight_turns_noise_residuals_into_the_outputs_own(
  name, prediction
):
  a, s = _columns(name)
  x_t, x_0, w = 2 * _draw(6), _draw(7), _draw(8)
  x_0_hat, eps_hat = _denoised(name, x_t)
  eps = (x_t - a * x_0) / s
  moved_eps = (x_t + s * w - a * x_0_hat) / s
  weight = parametrisation.own_weight(PREDICTIONS[prediction])(_level(name))
  pairs = [
    # Training: at x_t, against the truth.
    (x_0, eps),
    # Robust training: at x_t + sigma w, against the equivariant target.
    (x_0 + 0.1 * _draw(9), None),
  ]
  for x_0_hat_there, eps_there in pairs:
    if eps_there is None:
      # A network whose clean estimate did move; its target's did not.
      eps_there = (x_t + s * w - a * x_0_hat_there) / s
      target = _output(name, prediction, x_0_hat, eps_hat) + _shift(
        name, prediction, w
      )
      eps_target, x_0_target = moved_eps, x_0_hat
    else:
      target = _output(name, prediction, x_0_hat, eps_hat)
      eps_target, x_0_target = eps_hat, x_0_hat
    y = _output(name, prediction, x_0_hat_there, eps_there)
    squares = _squares(eps_there - eps_target)
    np.testing.assert_allclose(
      _squares(y - target), weight * squares, rtol=2e-5
    )
    # |eps residual|^2 = SNR |x_0 residual|^2.
    snr = np.square(LEVELS[name][0] / LEVELS[name][1])
    np.testing.assert_allclose(
      squares, snr * _squares(x_0_hat_there - x_0_target), rtol=1e-9
    )


@every_process
def test_weights_have_their_closed_forms(name):
  alpha, sigma = LEVELS[name]
  level, ratio = _level(name), sigma / alpha
  own = {
    "eps": np.ones(4),
    "x_0": ratio**2,
    "v": 1 + ratio**2 if name == "edm" else (alpha**2 + sigma**2) / alpha**2,
    "velocity": ((alpha + sigma) / alpha) ** 2,
    # EDM's (sigma^2 + sd^2) / (sigma sd)^2 |x_0_hat - x_0|^2.
    "edm": (ratio**2 + SIGMA_DATA**2) / SIGMA_DATA**2,
  }
  if name == "flow":
    # Flow matching's |u_hat - u|^2 is |x_0_hat - x_0|^2 / t^2.
    np.testing.assert_allclose(own["velocity"], ratio**2 / sigma**2)
  for prediction, expected in own.items():
    weights = parametrisation.weightings(PREDICTIONS[prediction])
    np.testing.assert_allclose(weights["own"](level), expected, rtol=1e-5)
    np.testing.assert_array_equal(weights["eps"](level), 1)
    # min(SNR, 5) |x_0_hat - x_0|^2, and |d eps|^2 = SNR |d x_0|^2.
    np.testing.assert_allclose(
      weights["min_snr"](level),
      np.minimum(ratio**-2.0, 5) * ratio**2,
      rtol=1e-5,
    )


def test_edm_output_has_unit_variance_at_every_level():
  # Data of standard deviation sigma_data: c_x_0^2 sd^2 + c_eps^2 = 1.
  for sigma_data in (0.5, 1.7):
    for name in LEVELS:
      c_x_0, c_eps = parametrisation.predictions(sigma_data)["edm"](
        _level(name)
      )
      np.testing.assert_allclose(
        (c_x_0 * sigma_data) ** 2 + c_eps**2, 1, rtol=1e-5
      )


def test_the_network_is_told_its_scaled_input_and_time():
  level = _level("edm")
  x_t = _float32(_draw(10))
  told = []

  def output(x, time):
    told.append((x, time))
    return x

  eps_hat = parametrisation.eps_fn(output, PREDICTIONS["eps"])(x_t, level)
  scaled = np.array([0.5, 2.0, 1.0, 3.0]).reshape(4, 1, 1, 1) * x_t
  (x, time), *_ = told
  np.testing.assert_allclose(x, scaled, rtol=1e-6)
  np.testing.assert_array_equal(time, level.time)
  # The output is converted with the state itself, not with the scaled one.
  np.testing.assert_allclose(eps_hat, scaled, rtol=1e-6)
  clean = parametrisation.eps_fn(output, PREDICTIONS["x_0"])(x_t, level)
  np.testing.assert_allclose(
    clean, process.x_0_to_eps(level, x_t, scaled), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  "made",
  [
    schedules.ddpm(schedules.linear_alpha_bar(1000)),
    schedules.edm(),
    schedules.flow(),
  ],
  ids=["ddpm", "edm", "flow"],
)
def test_every_form_keeps_its_precision_at_every_drawn_level(made):
  levels = made.draw(jax.random.split(jax.random.key(11), 4096))
  x_0, eps = _float32(np.random.default_rng(12).normal(size=(2, 4096, 1)))
  x_t = process.diffuse(levels, x_0, eps)
  alpha, sigma = (
    np.asarray(v, np.float64) for v in (levels.alpha, levels.sigma)
  )
  for form in PREDICTIONS.values():
    y = parametrisation.target(form, levels, x_0, eps)
    eps_hat = parametrisation.to_eps(form, levels, x_t, y)
    assert np.isfinite(parametrisation.own_weight(form)(levels)).all()
    # What is lost is the rounding of the state, seen through alpha / sigma.
    error = np.abs(np.asarray(eps_hat - eps, np.float64))[:, 0]
    assert (error / (1 + alpha / sigma)).max() < 5e-6
