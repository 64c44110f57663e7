"""The diagnosis: networks whose answers are known, and a run from end to end.

The linear networks are eps = A x / sigma + c, so that A is the Jacobian by w.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax import config as configs
from rad_jax.diffusion import schedules
from rad_jax.diffusion.process import per_example
from rad_jax.evaluation import diagnose
from rad_jax.reports import curves
from rad_jax.robustness import noising
from rad_jax.training import build, checkpoints, loop

SHAPE = (2, 4)
# Sigmas other than 1: a shift of w, not sigma w, is found out.
EDM = schedules.edm()


def _noised(b=64, seed=0):
  level = EDM.draw(jax.random.split(jax.random.key(seed), b))
  x_0 = jax.random.normal(jax.random.key(seed + 1), (b, *SHAPE))
  z = jax.random.normal(jax.random.key(seed + 2), (b, *SHAPE))
  return noising.blind(x_0, jnp.zeros(b), level, z)


def _linear(noised, gains, c=0.3):
  """eps = gains * x / sigma + c; gains broadcasts against an example."""
  gains = jnp.broadcast_to(jnp.asarray(gains, jnp.float32), SHAPE)

  def eps_fn(x_t):
    sigma = per_example(noised.sigma, x_t.ndim)
    return gains[None] * x_t / sigma + c

  return eps_fn


def _measure(noised, eps_fn, iterations=10, radius=0.5):
  b = len(noised.sigma)
  keys = jax.random.split(jax.random.key(9), b)
  return diagnose.measure(eps_fn, noised, keys, jnp.full(b, radius), iterations)


def _ratio(error, w):
  return float(jnp.sqrt(jnp.mean(error) / jnp.mean(w)))


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.4, 1.0, 1.7])
def test_a_scaled_identity_has_errors_k_less_1_and_k(k):
  # Bugs: no w in the equivariance error, no eps_hat, sigma left out, RMS(w)
  # squared. c falls out of all.
  noised = _noised()
  found = _measure(noised, _linear(noised, k))
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
  noised = _noised()
  gains = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, -3.0]])
  found = _measure(noised, _linear(noised, gains))
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
  noised = _noised()

  def eps_fn(x_t):
    flat = x_t.reshape(len(x_t), -1) / noised.sigma[:, None]
    moved = jnp.zeros_like(flat).at[:, 1].set(5 * flat[:, 0])
    return moved.reshape(x_t.shape)

  np.testing.assert_allclose(
    diagnose.lipschitz(
      eps_fn, noised, jax.random.split(jax.random.key(0), 64), 5
    ),
    5.0,
    rtol=1e-5,
  )


def test_lipschitz_agrees_with_the_jacobians_of_a_curved_network():
  noised = _noised(b=8)
  weights = jax.random.normal(jax.random.key(4), (8, 8))

  def one(x, sigma):
    return jnp.tanh(weights @ (x.reshape(-1) / sigma)).reshape(x.shape)

  eps_fn = lambda x_t: jax.vmap(one)(x_t, noised.sigma)
  jacobian = lambda x, sigma: sigma * jax.jacobian(one)(x, sigma).reshape(8, 8)
  exact = jnp.linalg.norm(
    jax.vmap(jacobian)(noised.x_t, noised.sigma), ord=2, axis=(1, 2)
  )
  keys = jax.random.split(jax.random.key(5), 8)
  many = diagnose.lipschitz(eps_fn, noised, keys, 200)
  np.testing.assert_allclose(many, exact, rtol=1e-3)
  # From below, and closer with each iteration.
  few = [
    diagnose.lipschitz(eps_fn, noised, jax.random.clone(keys), n)
    for n in (0, 1, 5)
  ]
  for less, more in zip(few, [*few[1:], many], strict=True):
    assert np.all(np.asarray(less) <= np.asarray(more) * (1 + 1e-5))
  assert np.mean(few[0]) < 0.9 * np.mean(exact)


def test_adversarial_w_finds_what_a_random_one_does_not():
  # Kinked network: off by a bump that grows faster than w. Each goal's own w.
  noised = _noised()

  def eps_fn(x_t):
    w = (x_t - noised.x_t) / per_example(noised.sigma, x_t.ndim)
    return w + 4 * jnp.maximum(w[:, :1, :1] - 0.2, 0)

  found = _measure(noised, eps_fn)
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
  noised = _noised()

  def eps_fn(x_t):
    scaled = x_t / per_example(noised.sigma, x_t.ndim)
    mean = jnp.mean(scaled, axis=(1, 2), keepdims=True)
    return jnp.broadcast_to(mean, x_t.shape)

  found = _measure(noised, eps_fn)
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
    schedules.Level(*(jnp.array([v]) for v in (1.0, sigma, 999.0, 1.0))),
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


def _config(**fields):
  config = configs.default()
  config.data.name = "oblique_plane"
  config.model.name = "mlp"
  config = configs.variant(config, "smoke")
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  config.diagnose.update(num_levels=3, num_examples=20, power_iterations=3)
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  config = _config()
  loop.train(config, workdir)
  return config, workdir, diagnose.diagnose(config, workdir)


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


def test_a_run_is_diagnosed(run):
  config, workdir, result = run
  assert result == json.loads((workdir / "diagnosis.json").read_text())
  assert (result["step"], result["objective"]) == (20, "robust_adv")
  assert result["num_examples"] == 20  # in batches of 16, one filled up
  grid = build.process(config).grid(3)
  for n, level in enumerate(result["levels"]):
    assert set(level) == LEVEL
    assert level["alpha"] == pytest.approx(float(grid.alpha[n]))
    sigma = float(grid.sigma[n])
    assert level["sigma"] == pytest.approx(sigma)
    assert level["sigma_t"] == pytest.approx(sigma, rel=1e-6)
    r = (float(grid.sigma[0]) - sigma) ** 2 + 8 / 255
    assert level["radius"] == pytest.approx(r, rel=1e-4)
    assert level["lipschitz_mean"] <= level["lipschitz_max"]


def test_a_diagnosis_is_of_the_averaged_parameters_at_clean_states(run):
  # By hand, at one level. Bugs: raw parameters, dirty examples, the filling
  # counted twice, one key for all levels.
  config, workdir, result = run
  with checkpoints.open_manager(workdir) as manager:
    state = checkpoints.restore(
      manager,
      jax.eval_shape(lambda: build.state(config)),
      jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )
  training_set = build.training_set(config)
  place = np.arange(20)
  x_0 = training_set.fetch(np.linspace(0, 511, 20).astype(int))
  n, grid = 1, build.process(config).grid(3)
  measured = jax.jit(diagnose.make_measure(config))(
    state.ema_params, x_0, place, jax.tree.map(lambda v: v[n], grid), n
  )
  expected = diagnose.summary(
    jax.tree.map(lambda v: v[n], grid), jax.device_get(measured)
  )
  for name, value in expected.items():
    assert result["levels"][n][name] == pytest.approx(value, rel=1e-4), name


def test_levels_and_examples_have_noise_of_their_own(run):
  config, _, _ = run
  grid = build.process(config).grid(3)
  params = build.state(config).params
  x_0 = np.zeros((6, 3), np.float32)
  level = jax.tree.map(lambda v: v[1], grid)
  measure = jax.jit(diagnose.make_measure(config))
  first, again, other = (
    measure(params, x_0, np.arange(6), level, n).random.w for n in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert len(np.unique(np.concatenate([first, other]))) == 12


def test_one_compile_serves_all_levels(run, monkeypatch):
  config, workdir, _ = run
  traced = []
  measure = diagnose.measure
  monkeypatch.setattr(
    diagnose, "measure", lambda *args: traced.append(1) or measure(*args)
  )
  diagnose.diagnose(config, workdir)
  assert len(traced) == 1


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
def test_a_model_trained_in_any_way_is_diagnosed(fields, tmp_path):
  config = _config(**fields, train__num_steps=2)
  loop.train(config, tmp_path)
  result = diagnose.diagnose(config, tmp_path)
  assert result["process"] == config.diffusion.process
  told = [level["invariance_random"] is not None for level in result["levels"]]
  assert told[1:] == [True, True]
  assert told[0] is (config.objective.beta_role == "additive")
  table, picture = curves.write_diagnosis(tmp_path)
  assert picture.read_bytes().startswith(b"\x89PNG")
  rows = table.read_text().splitlines()
  assert len(rows) == 5 and len({row.count("|") for row in rows}) == 1


def test_the_figure_shows_all_levels(run):
  _, _, result = run
  figure = curves.diagnosis_figure(result)
  assert len(figure.axes) == 3
  for axis, name in zip(
    figure.axes,
    ("equivariance_random", "invariance_random", "lipschitz_mean"),
    strict=True,
  ):
    _, first, second = axis.lines
    np.testing.assert_allclose(
      first.get_ydata(), [level[name] for level in result["levels"]]
    )
    assert len(second.get_ydata()) == 3


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(checkpoints.CheckpointError, match="train first"):
    diagnose.diagnose(_config(), tmp_path)


def test_a_run_of_another_objective_is_refused(run):
  _, workdir, _ = run
  with pytest.raises(configs.ConfigError, match="objective.name"):
    diagnose.diagnose(_config(objective__name="ddpm"), workdir)
