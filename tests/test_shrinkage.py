"""The closed-form hint: against minimisers, simulation and the sampler."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.data import synthetic
from rad_jax.diffusion import process, samplers, schedules
from rad_jax.evaluation import hint
from rad_jax.reports import curves
from rad_jax.robustness import attacks, radius, shrinkage

ROOT = pathlib.Path(__file__).parents[1]
PROCESSES = {
  "ddpm": schedules.ddpm(schedules.linear_alpha_bar(1000)),
  "edm": schedules.edm(),
  "flow": schedules.flow(),
}


def _levels(name, num_steps):
  levels = PROCESSES[name].grid(num_steps)
  return np.asarray(levels.alpha, float), np.asarray(levels.sigma, float)


def _optimum(q2, alpha, sigma):
  """c of the linear eps_hat = c x_t that is best for variance q2."""
  return sigma / (alpha**2 * q2 + sigma**2)


@pytest.mark.parametrize(
  "q2, lam, rho", [(0.3, 3, 0.6), (4, 0.2, 2), (1, 0, 1)]
)
@pytest.mark.parametrize("alpha, sigma", [(0.8, 0.6), (1.0, 7.0), (0.1, 0.9)])
def test_effective_variance_is_that_of_the_minimiser(
  q2, lam, rho, alpha, sigma
):
  # Bugs: rho for rho^2, sigma in the factor, 1 - lam for 1 + lam.
  def loss(c):
    dsm = c**2 * alpha**2 * q2 + (c * sigma - 1) ** 2
    return dsm + lam * rho**2 * (c * sigma - 1) ** 2

  best = scipy.optimize.minimize_scalar(
    loss, bracket=(0, 1 / sigma), tol=1e-12
  ).x
  learnt = shrinkage.effective_variance(q2, lam, rho)
  assert _optimum(learnt, alpha, sigma) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("law", ["uniform", "gaussian", "corner"])
def test_effective_variance_agrees_with_least_squares_on_draws(law):
  # The regularised loss as training computes it, and w as attacks draw it.
  n, q, alpha, sigma, lam, r = 400_000, 0.7, 0.8, 0.6, 3.0, 0.5
  rng = np.random.default_rng(0)
  x_0, eps = q * rng.standard_normal(n), rng.standard_normal(n)
  keys = jax.random.split(jax.random.key(0), n)
  w = {
    "uniform": lambda: attacks.BALLS["linf"].uniform(keys, jnp.full(n, r), ()),
    "gaussian": lambda: attacks.gaussian(keys, jnp.full(n, r), ()),
    "corner": lambda: r * rng.choice([-1, 1], n),
  }[law]()
  w = np.asarray(w, float)
  x_t = alpha * x_0 + sigma * eps
  # c (x_t + sigma w) - (c x_t + w) = c sigma w - w.
  features = np.concatenate([x_t, np.sqrt(lam) * sigma * w])
  targets = np.concatenate([eps, np.sqrt(lam) * w])
  c = features @ targets / (features @ features)
  rho = shrinkage.std_of_w(r, law)
  expected = _optimum(
    shrinkage.effective_variance(q**2, lam, rho), alpha, sigma
  )
  # Several standard errors of c; the laws differ by more than 0.05.
  assert c == pytest.approx(expected, abs=0.006)
  assert np.mean(np.abs(w)) == pytest.approx(
    shrinkage.mean_size_of_w(r, law), rel=0.01
  )


def test_an_unknown_law_is_named():
  with pytest.raises(ValueError, match="'normal'.*uniform, gaussian, corner"):
    shrinkage.std_of_w(1.0, "normal")


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
  ("sampler", "noise"),
  [
    (samplers.ddim(0.0), {"eta": 0.0}),
    (samplers.ddim(0.5), {"eta": 0.5}),
    (samplers.ddpm("small"), {"eta": 1.0}),
    (samplers.ddpm("large"), {"eta": 1.0, "large": True}),
  ],
  ids=["ddim", "eta 0.5", "small", "large"],
)
def test_sampled_variance_is_that_of_the_sampler(name, sampler, noise):
  # Bugs: alpha of the wrong end, the start taken as unit, eta's noise
  # forgotten, or that of the other variance.
  q2, lam, n = 0.3, 3.0, 40_000
  levels = PROCESSES[name].grid(12)
  alpha, sigma = _levels(name, 12)
  # rho differs between levels, so that their order counts.
  rho = np.linspace(0.2, 1.0, 12)
  learnt = jnp.asarray(shrinkage.effective_variance(q2, lam, rho), jnp.float32)
  table = jnp.asarray(sigma, jnp.float32)

  def eps_fn(x_t, level):
    v = learnt[jnp.argmin(jnp.abs(table - level.sigma[0]))]
    c = level.sigma / (jnp.square(level.alpha) * v + jnp.square(level.sigma))
    return process.per_example(c, x_t.ndim) * x_t

  x_0 = samplers.sample(
    eps_fn,
    levels,
    sampler,
    jax.random.key(0),
    jnp.arange(n),
    (1,),
  )
  expected = shrinkage.sampled_variance(q2, alpha, sigma, lam, rho, **noise)
  # Relative standard error of a Gaussian's variance: sqrt(2 / n) = 0.007.
  assert np.var(np.asarray(x_0)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", PROCESSES)
def test_no_regulariser_and_many_levels_give_the_data_back(name):
  alpha, sigma = _levels(name, 1000)
  for q2 in (0.04, 0.3, 1.0):
    found = shrinkage.sampled_variance(q2, alpha, sigma, 0.0, 0.5)
    assert found == pytest.approx(q2, rel=0.02)
    assert shrinkage.sampled_variance(q2, alpha, sigma, 5.0, 0.0) == found


def test_one_level_returns_its_clean_estimate():
  alpha, sigma = np.array([0.6]), np.array([0.8])
  # x_0_hat = alpha q2 / (alpha^2 q2 + sigma^2) x_t; x_t has variance sigma^2.
  expected = (0.6 * 2 / (0.36 * 2 + 0.64) * 0.8) ** 2
  assert shrinkage.sampled_variance(
    2.0, alpha, sigma, 0.0, 1.0
  ) == pytest.approx(expected)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_lambda_for_inverts(eta):
  alpha, sigma = _levels("ddpm", 100)
  rho = np.linspace(0.1, 1.0, 100)
  unit = np.linspace(2.0, 1.0, 100)
  for target in (0.3, 0.7):
    lam = shrinkage.lambda_for(target, 0.3, alpha, sigma, unit, rho, eta)
    variance = shrinkage.sampled_variance(
      0.3, alpha, sigma, lam * unit, rho, eta
    )
    assert np.sqrt(variance / 0.3) == pytest.approx(target, rel=1e-6)


@pytest.mark.parametrize("target, rho", [(1.2, 0.5), (0.5, 0.0)])
def test_an_unreachable_ratio_is_refused(target, rho):
  alpha, sigma = _levels("ddpm", 100)
  with pytest.raises(ValueError, match=f"leaves {target:g} of the standard"):
    shrinkage.lambda_for(target, 0.3, alpha, sigma, 1.0, rho)


# The hint of a config.


@pytest.fixture
def config():
  config = configs.default()
  config.data.name = "oblique_plane"
  config.model.name = "mlp"
  config.objective.lam = 2.0
  config.sampling.update(num_steps=50)
  return config.lock()


def _run(config, **fields):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  return runs.build(config)


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"objective__name": "ddpm"}, ("uniform", 1)),
    ({"objective__name": "robust_ran"}, ("uniform", 1)),
    ({"objective__name": "robust_adv"}, ("corner", 1)),
    ({"objective__name": "input_perturbation"}, ("gaussian", 1)),
    ({"attack__name": "n_fgsm"}, ("corner", 3)),
    ({"attack__name": "uniform", "attack__start": 0.5}, ("uniform", 0.5)),
    ({"attack__name": "uniform", "attack__norm": "l2"}, ("corner", 1)),
  ],
)
def test_law_of_w_is_the_attacks(config, fields, expected):
  assert hint.law_of_w(_run(config, **fields)) == expected


def test_hint_tells_what_the_closed_form_does(config, tmp_path):
  # Bugs: q for q^2, the lambda of another row, inverse_std's lambda left out.
  run = _run(config, objective__lambda_t="inverse_std")
  result = hint.hint(run, tmp_path / "new")
  assert result == json.loads((tmp_path / "new" / "hint.json").read_text())
  assert [row["lam"] for row in result["rows"]] == [0, 0.1, 0.3, 1, 2, 3, 10]
  assert [row["own"] for row in result["rows"]] == [False] * 4 + [True, 0, 0]
  assert result["applies"]
  alpha, sigma = _levels("ddpm", 50)
  # Radius "falling" with additive beta; sampler ddpm.
  r = (sigma[0] - sigma) ** 2 + 8 / 255
  variance = shrinkage.sampled_variance(
    0.04, alpha, sigma, 2 * np.sqrt(3) / r, r, eta=1.0
  )
  own = result["rows"][4]["ratios"][result["stds"].index(0.2)]
  assert own == pytest.approx(np.sqrt(variance) / 0.2, rel=1e-4)
  for row, after in zip(result["rows"], result["rows"][1:], strict=False):
    assert np.all(np.array(row["ratios"]) > after["ratios"])


def test_hint_ends_in_a_flag_to_paste(config, tmp_path):
  """The lambda that halves detail as large as the config's own dirt."""
  fields = {"fraction": 0.5, "sigma": 0.2}
  fields = {f"data__corruption__{name}": x for name, x in fields.items()}
  result = hint.hint(_run(config, **fields), tmp_path)
  halves = result["halving"][result["stds"].index(0.2)]
  assert result["advice"]["lam"] == pytest.approx(halves, rel=0.05)
  assert result["advice"]["left"] == pytest.approx(0.5, abs=0.02)
  last = curves.hint_table(result).splitlines()[-1]
  assert (
    f"--config.objective.lam={result['advice']['lam']:g}: it leaves" in last
  )
  assert "standard deviation 0.2 (the corruption's)" in last


def test_hint_is_cautious_with_a_unet(config, tmp_path):
  result = hint.hint(_run(config, model__name="unet"), tmp_path)
  last = curves.hint_table(result).splitlines()[-1]
  assert "--config.objective.lam=0.3" in last
  assert "collapse a U-Net" in last


def test_halving_is_none_where_no_lambda_halves(config, tmp_path):
  result = hint.hint(_run(config, sampling__num_steps=5), tmp_path)
  halved = [lam is not None for lam in result["halving"]]
  plain = np.array(result["rows"][0]["ratios"])
  np.testing.assert_array_equal(halved, plain >= 0.5)
  assert not all(halved)


def test_hint_says_where_it_does_not_apply(config, tmp_path):
  for name, applies in [("invariance", False), ("robust_ran", True)]:
    result = hint.hint(_run(config, objective__name=name), tmp_path)
    assert result["applies"] is applies
    assert ("does not ask" in curves.hint_table(result)) is not applies


def test_curves_hold_every_reading_once(config):
  run = runs.build(config)
  found = hint.curves(run, hint.law_of_w(run))
  readings = found["readings"]
  assert len(readings) == 10
  own = [one for one in readings if one["own"]]
  assert [(one["radius"], one["lambda_t"]) for one in own] == [
    ("falling", "constant")
  ]
  sigma = np.array(found["sigma_t"])  # DDPM's sigma, too
  for one in readings:
    r = {
      "falling": (sigma[0] - sigma) ** 2,
      "rising": sigma**2,
      "constant": 1.0 if one["beta_role"] == "multiplicative" else 0.0,
    }[one["radius"]]
    r = r * 8 / 255 if one["beta_role"] == "multiplicative" else r + 8 / 255
    r = np.broadcast_to(r, sigma.shape)
    np.testing.assert_allclose(one["r"], r, rtol=1e-4, atol=1e-9)
    lam = 2 * np.sqrt(3) / np.maximum(r, 1e-6)
    lam = lam if one["lambda_t"] == "inverse_std" else np.full_like(r, 2)
    np.testing.assert_allclose(one["lam_t"], lam, rtol=1e-3)
    np.testing.assert_allclose(
      one["mean_shift"], sigma * r, rtol=1e-4, atol=1e-9
    )


def test_mean_shift_is_in_state_units(config):
  edm = _run(
    config,
    diffusion__process="edm",
    objective__name="robust_ran",
    objective__radius="constant",
  )
  found = hint.curves(edm, hint.law_of_w(edm))
  own = next(one for one in found["readings"] if one["own"])
  # Half of r, times EDM's sigma of 80.
  assert own["mean_shift"][0] == pytest.approx(80 * 8 / 255 / 2, rel=1e-4)
  assert found["sigma_t"][0] < 1


@pytest.mark.parametrize("process_name", ["ddpm", "edm", "flow"])
def test_hint_is_written_for_people(config, tmp_path, process_name):
  hint.hint(_run(config, diffusion__process=process_name), tmp_path)
  table, picture = curves.write_hint(tmp_path)
  text = table.read_text()
  assert (table.name, picture.name) == ("hint.md", "radius.png")
  assert picture.read_bytes().startswith(b"\x89PNG")
  assert "| 2 (config) |" in text and "w at corners" in text
  # Lines of one table have one number of cells.
  assert (
    len({line.count("|") for line in text.splitlines() if "|" in line}) == 1
  )


def test_radius_figure_has_a_line_for_each_reading(config, tmp_path):
  figure = curves.radius_figure(hint.hint(runs.build(config), tmp_path))
  # Constant lambda once, and five radii: all of inverse_std's.
  assert [len(axis.lines) for axis in figure.axes] == [5, 6, 5]
  for axis in figure.axes:
    assert sum(line.get_linewidth() == 3 for line in axis.lines) == 1
  (legend,) = figure.legends
  assert len(legend.texts) == 6


# What the regulariser is: docs/mathematics.md.


def test_the_residual_is_the_posterior_covariance():
  """-SNR Cov[x_0 | x_t] w to first order, of an exact denoiser."""
  world, std = synthetic.three_gaussians(), 0.05
  alpha, sigma = 0.8, 0.6
  generator = np.random.default_rng(0)
  x_t = alpha * world.sample(generator, 50) + sigma * generator.normal(
    size=(50, 2)
  )
  w = 1e-4 * generator.normal(size=(50, 2))
  eps = lambda x: (x - alpha * world.denoise(x, alpha, sigma)) / sigma
  residual = eps(x_t + sigma * w) - eps(x_t) - w
  # The posterior is a mixture: each mode's own, and their spread.
  variance = (alpha * std) ** 2 + sigma**2
  offset = x_t[:, None] - alpha * world.modes
  share = scipy.special.softmax(
    -np.sum(offset**2, axis=-1) / (2 * variance), axis=1
  )
  means = world.modes + alpha * std**2 / variance * offset
  spread = means - world.denoise(x_t, alpha, sigma)[:, None]
  covariance = np.einsum("nk,nki,nkj->nij", share, spread, spread)
  covariance += np.eye(2) * (std * sigma) ** 2 / variance
  expected = -((alpha / sigma) ** 2) * np.einsum("nij,nj->ni", covariance, w)
  np.testing.assert_allclose(residual, expected, atol=2e-7)
  assert np.abs(expected).max() > 1e-5


def test_the_page_of_neighbours_says_what_the_formulas_say():
  text = (ROOT / "docs/mathematics.md").read_text()
  text = text.partition("## What the regulariser is")[2]
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in text.splitlines()
    if line.startswith(("| equivariance", "| stopped"))
  ]
  assert len(rows) == 5
  levels = PROCESSES["ddpm"].grid(1000)
  alpha, sigma = _levels("ddpm", 1000)
  stds = 0.1, 0.2, 0.4, 0.577, 1.0
  for name, *cells in rows:
    value = float(name.split()[-1])
    if name.startswith("stopped"):
      expected = [1 / math.sqrt(1 + (value / q) ** 2) for q in stds]
    else:
      shape = name.split(",")[1].split()[0]
      r = radius.radius(
        process.unit_sigma(levels), sigma_max=sigma[0], shape=shape
      )
      rho = shrinkage.std_of_w(np.asarray(r), "corner")
      expected = [
        math.sqrt(
          shrinkage.sampled_variance(q**2, alpha, sigma, value, rho) / q**2
        )
        for q in stds
      ]
    np.testing.assert_allclose(np.array(cells, float), expected, atol=6e-4)


@pytest.mark.parametrize("stop", [0.2, 0.3])
def test_stopping_leaves_wieners_gain(stop):
  """The page's formula is what a sampler without regulariser does."""
  levels = schedules.stopped(PROCESSES["ddpm"].grid(1000), stop)
  alpha, sigma = (np.asarray(x, np.float64) for x in levels[:2])
  last = sigma[-1] / alpha[-1]
  for q in (0.1, 0.4, 1.0):
    found = shrinkage.sampled_variance(q**2, alpha, sigma, 0.0, 0.0) / q**2
    assert found == pytest.approx(1 / (1 + (last / q) ** 2), rel=0.02)
  assert last == pytest.approx(stop, rel=0.02)
