"""The diagnosis: networks whose answers are known, and a run from end to end.

The linear networks are eps = A x / sigma + c, so that A is the Jacobian by w.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from begun import begin

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.diffusion import schedules
from rad_jax.diffusion.process import per_example
from rad_jax.evaluation import diagnose
from rad_jax.reports import curves
from rad_jax.robustness import noising
from rad_jax.training import checkpoints

SHAPE = (2, 4)
# Sigmas other than 1: a shift of w, not sigma w, is found out.
EDM = schedules.edm()


@jax.jit
def _noised():
  keys = jax.random.split(jax.random.key(0), 66)
  x_0, z = jax.random.normal(keys[0], (2, 64, *SHAPE))
  return noising.blind(x_0, jnp.zeros(64), EDM.draw(keys[2:]), z)


def _linear(noised, matrix, kink=0.0):
  """eps = matrix @ x / sigma + 0.3, and kink * max(w[0] - 0.2, 0)."""

  def eps_fn(x_t):
    scaled = (x_t / per_example(noised.sigma, x_t.ndim)).reshape(len(x_t), -1)
    still = noised.x_t.reshape(scaled.shape) / noised.sigma[:, None]
    bump = kink * jnp.maximum(scaled[:, :1] - still[:, :1] - 0.2, 0)
    return (scaled @ matrix.T + 0.3 + bump).reshape(x_t.shape)

  return eps_fn


@jax.jit
def _measured(noised, matrix, kink):
  keys = jax.random.split(jax.random.key(9), 64)
  eps_fn = _linear(noised, matrix, kink)
  return diagnose.measure(eps_fn, noised, keys, jnp.full(64, 0.5), 10)


def _measure(matrix, kink=0.0):
  """Of such a network, by a matrix [8, 8]."""
  found = _measured(_noised(), np.asarray(matrix, np.float32), kink)
  return jax.device_get(found)


def _ratio(error, w):
  return float(np.sqrt(np.mean(error) / np.mean(w)))


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.4, 1.0, 1.7])
def test_a_scaled_identity_has_errors_k_less_1_and_k(k):
  # Bugs: no w in the equivariance error, no eps_hat, sigma left out, RMS(w)
  # squared. c falls out of all.
  found = _measure(k * np.eye(8))
  for errors in (found.random, found.least_equivariant):
    assert _ratio(errors.equivariance, errors.w) == pytest.approx(
      abs(k - 1), abs=1e-4
    )
  for errors in (found.random, found.most_moved):
    assert _ratio(errors.invariance, errors.w) == pytest.approx(
      abs(k), abs=1e-4
    )
  np.testing.assert_allclose(found.lipschitz, abs(k), atol=1e-5)


def test_lipschitz_is_the_largest_gain_and_a_random_w_sees_the_rms():
  gains = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, -3.0])
  found = _measure(np.diag(gains))
  np.testing.assert_allclose(found.lipschitz, 3.0, rtol=1e-4)
  random = found.random
  assert _ratio(random.invariance, random.w) == pytest.approx(
    np.sqrt(np.mean(gains**2)), rel=0.1
  )
  assert _ratio(random.equivariance, random.w) == pytest.approx(
    np.sqrt(np.mean((gains - 1) ** 2)), rel=0.1
  )


def test_lipschitz_of_a_skew_network_is_its_singular_value():
  # A nilpotent Jacobian has no eigenvalue but 0; jvp in the place of vjp, or
  # one of them alone, ends at 0.
  matrix = np.zeros((8, 8))
  matrix[1, 0] = 5
  np.testing.assert_allclose(_measure(matrix).lipschitz, 5.0, rtol=1e-5)


def test_lipschitz_agrees_with_the_jacobians_of_a_curved_network():
  noised = jax.tree.map(lambda x: x[:8], _noised())
  weights = np.random.default_rng(4).normal(0, 0.3, (8, 8))
  weights = weights.astype(np.float32)

  @jax.jit
  def estimates(noised, keys):
    eps_fn = lambda x_t: jnp.tanh(_linear(noised, weights)(x_t))
    return [
      diagnose.lipschitz(eps_fn, noised, jax.random.clone(keys), iterations)
      for iterations in (0, 1, 5, 200)
    ]

  *few, many = jax.device_get(
    estimates(noised, jax.random.split(jax.random.key(5), 8))
  )
  u = np.asarray(noised.x_t).reshape(8, 8) / noised.sigma[:, None]
  slope = 1 - np.tanh(u @ weights.T + 0.3) ** 2
  exact = np.linalg.norm(slope[:, :, None] * weights, ord=2, axis=(1, 2))
  np.testing.assert_allclose(many, exact, rtol=1e-3)
  # From below, and closer with each iteration.
  for less, more in zip(few, [*few[1:], many], strict=True):
    assert np.all(less <= more * (1 + 1e-5))
  assert np.mean(few[0]) < 0.9 * np.mean(exact)


def test_adversarial_w_finds_what_a_random_one_does_not():
  # Kinked network: off by a bump that grows faster than w. Each goal's own w.
  found = _measure(np.eye(8), kink=4.0)
  for name, attacked in [
    ("equivariance", found.least_equivariant),
    ("invariance", found.most_moved),
  ]:
    by_pgd = _ratio(getattr(attacked, name), attacked.w)
    at_random = _ratio(getattr(found.random, name), found.random.w)
    assert by_pgd > 1.2 * at_random


def test_the_two_attacks_raise_their_own_error():
  # eps_hat moves by the mean of w: |moved| is largest where all of w has one
  # sign, and |moved - w| where half of it has the other.
  found = _measure(np.full((8, 8), 1 / 8))
  most = found.most_moved
  np.testing.assert_allclose(most.w, 0.25, rtol=1e-4)  # all at corners
  assert _ratio(most.invariance, most.w) == pytest.approx(1, rel=1e-4)
  assert _ratio(most.equivariance, most.w) == pytest.approx(0, abs=1e-3)
  least = found.least_equivariant
  assert 0.95 < _ratio(least.equivariance, least.w) <= 1 + 1e-5


def _summary(radius, error=1.0, sigma=1.0):
  # Means over examples: of the errors `error`, of w 4.
  parts = np.array([0.0, 0.0, 1.0, 3.0]), np.array([3.0, 1.0, 0.0, 0.0])
  w = np.array([1.0, 2.0, 6.0, 7.0])
  errors = diagnose.Errors(error * parts[0], 4 * parts[1], w)
  level = jax.tree.map(
    lambda v: v[0],
    schedules.Level(*(np.array([v]) for v in (1.0, sigma, 999.0, 1.0))),
  )
  return diagnose.summary(
    level,
    diagnose.Measured(
      radius * np.ones(4), errors, errors, errors, np.arange(4.0)
    ),
  )


def test_a_summary_is_root_mean_squares_over_examples():
  found = _summary(0.5)
  assert found["equivariance_random"] == pytest.approx(0.5)
  assert found["invariance_adversarial"] == pytest.approx(1.0)
  assert (found["lipschitz_mean"], found["lipschitz_max"]) == (1.5, 3.0)


@pytest.mark.parametrize(
  ("radius", "sigma"), [(0.0, 1.0), (1e-7, 1.0), (0.5, 1e-6)]
)
def test_no_error_is_told_where_w_is_lost(radius, sigma):
  found = _summary(radius, sigma=sigma)
  assert found["equivariance_random"] is None
  assert found["invariance_adversarial"] is None
  assert found["lipschitz_mean"] == 1.5


def test_estimates_that_are_not_finite_are_refused():
  with pytest.raises(FloatingPointError, match="equivariance_random is nan"):
    _summary(0.5, error=np.nan)


# A run.


def _run(**fields):
  own = {
    "objective__lam": 0.3,
    "diagnose__num_levels": 3,
    "diagnose__num_examples": 20,
    "diagnose__power_iterations": 3,
    "sampling__batch_size": 16,
  }
  return runs.build(tiny.plane(**(own | fields)))


class Begun(NamedTuple):
  """A run, its diagnosis, and how to measure it by hand."""

  run: runs.Run
  workdir: pathlib.Path
  ema_params: dict
  result: dict
  num_traces: int
  measure: Callable  # make_measure's, compiled


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  run, traced, measure = _run(), [], diagnose.measure
  ema_params = begin(run, workdir).ema_params
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      diagnose, "measure", lambda *args: traced.append(1) or measure(*args)
    )
    result = diagnose.diagnose(run, workdir)
  by_hand = jax.jit(diagnose.make_measure(run))
  return Begun(run, workdir, ema_params, result, len(traced), by_hand)


LEVEL = {
  "alpha",
  "sigma",
  "sigma_t",
  "radius",
  "equivariance_random",
  "equivariance_adversarial",
  "invariance_random",
  "invariance_adversarial",
  "lipschitz_mean",
  "lipschitz_max",
}


def test_a_run_is_diagnosed(begun):
  built, workdir, result = begun.run, begun.workdir, begun.result
  assert result == json.loads((workdir / "diagnosis.json").read_text())
  assert (result["step"], result["objective"]) == (20, "robust_adv")
  assert result["num_examples"] == 20  # in batches of 16, one filled up
  grid = built.process.grid(3)
  for n, level in enumerate(result["levels"]):
    assert set(level) == LEVEL
    assert level["alpha"] == pytest.approx(float(grid.alpha[n]))
    sigma = float(grid.sigma[n])
    assert level["sigma"] == pytest.approx(sigma)
    assert level["sigma_t"] == pytest.approx(sigma, rel=1e-6)
    r = (float(grid.sigma[0]) - sigma) ** 2 + 8 / 255
    assert level["radius"] == pytest.approx(r, rel=1e-4)
    assert level["lipschitz_mean"] <= level["lipschitz_max"]


def test_a_diagnosis_is_of_the_averaged_parameters_at_clean_states(begun):
  # By hand, at one level. Bugs: raw parameters, dirty examples, the filling
  # counted twice, one key for all levels.
  training_set = begun.run.open_training_set()
  assert training_set.num_examples == 64
  x_0 = training_set.fetch(np.linspace(0, 63, 20).astype(int))
  n, grid = 1, begun.run.process.grid(3)
  level = jax.tree.map(lambda v: v[n], grid)
  measured = begun.measure(begun.ema_params, x_0, np.arange(20), level, n)
  expected = diagnose.summary(level, jax.device_get(measured))
  for name, value in expected.items():
    found = begun.result["levels"][n][name]
    assert found == pytest.approx(value, rel=1e-4), name


def test_levels_and_examples_have_noise_of_their_own(begun):
  level = jax.tree.map(lambda v: v[1], begun.run.process.grid(3))
  x_0 = np.zeros((20, 3), np.float32)
  first, again, other = (
    begun.measure(begun.ema_params, x_0, np.arange(20), level, n).random.w
    for n in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert len(np.unique(np.concatenate([first, other]))) == 40


def test_one_compile_serves_all_levels(begun):
  assert len(begun.result["levels"]) == 3
  assert begun.num_traces == 1


@pytest.mark.parametrize(
  "fields",
  [
    {"objective__name": "ddpm", "diffusion__process": "edm"},
    {
      "objective__name": "noise_aware_adv",
      "diffusion__process": "flow",
      "diffusion__prediction": "velocity",
    },
    # At the noisiest level the radius is 0: no error can be told.
    {"diffusion__prediction": "v", "objective__beta_role": "multiplicative"},
  ],
)
def test_a_model_of_any_process_and_objective_is_diagnosed(fields, tmp_path):
  run = _run(**fields)
  begin(run, tmp_path)
  result = diagnose.diagnose(run, tmp_path)
  assert result["process"] == run.config["diffusion"]["process"]
  told = [level["invariance_random"] is not None for level in result["levels"]]
  assert told[1:] == [True, True]
  assert told[0] is (run.objective.beta_role == "additive")
  table, picture = curves.write_diagnosis(tmp_path)
  assert picture.read_bytes().startswith(b"\x89PNG")
  rows = table.read_text().splitlines()
  assert len(rows) == 5 and len({row.count("|") for row in rows}) == 1


def test_the_figure_shows_all_levels(begun):
  levels = begun.result["levels"]
  figure = curves.diagnosis_figure({"run": begun.result})
  assert len(figure.axes) == 3
  for axis, name in zip(
    figure.axes,
    ("equivariance_random", "invariance_random", "lipschitz_mean"),
    strict=True,
  ):
    _, first, second = axis.lines
    np.testing.assert_allclose(
      first.get_ydata(), [level[name] for level in levels]
    )
    assert len(second.get_ydata()) == 3


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(checkpoints.CheckpointError, match="train first"):
    diagnose.diagnose(_run(), tmp_path)


def test_a_run_of_another_objective_is_refused(begun):
  with pytest.raises(configs.ConfigError, match="objective.name"):
    diagnose.diagnose(_run(objective__name="ddpm"), begun.workdir)
