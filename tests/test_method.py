"""What the step adds to a loss: attacks, parts of batches, replays, costs."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rad_jax import run as runs
from rad_jax.diffusion import schedules
from rad_jax.diffusion.process import Level
from rad_jax.robustness import attacks, radius
from rad_jax.robustness import method as methods
from rad_jax.robustness.attacks import ATTACKS
from rad_jax.robustness.noising import Noised
from rad_jax.robustness.objectives import OBJECTIVES
from rad_jax.training import passes, replays
from rad_jax.training import step as steps
from rad_jax.training.passes import Timetable
from rad_jax.training.state import State

B = 8
LAM = 0.7
EMA_DECAY = 0.6
SGD, ADAM = optax.sgd(0.1), optax.adam(0.02)
PROCESS = schedules.ddpm(schedules.linear_alpha_bar(50))
POINTS = {
  "x_0": np.random.default_rng(0).normal(size=(B, 3)).astype(np.float32),
  "index": np.arange(B),
}

# Methods are static arguments: what they are made of is made once.
oblique_plane = partial(tiny.load, "oblique_plane")
radius_of = lambda sigma_t: 1.2 - sigma_t
unweighted = lambda level: jnp.ones_like(level.sigma)
weighted = lambda level: 2 + level.sigma
ramp = lambda step: step / 6
constant = lambda params, x_t, level, dropout_key: jnp.ones_like(x_t)


def network(params, x_t, level, dropout_key=None):
  """A smooth noise predictor that sees the level and has no dropout."""
  del dropout_key
  time = level.sigma[:, None] * params["time"][None]
  return jnp.tanh(x_t @ params["in"] + time) @ params["out"]


PARAMS = {
  name: np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  for seed, (name, shape) in enumerate(
    {"in": (3, 5), "time": (5,), "out": (5, 3)}.items(), 1
  )
}


@functools.cache
def method(name="robust_adv", attack="fgsm", lam=LAM, **fields):
  return methods.Method(
    objective=OBJECTIVES[name],
    predictor=network,
    process=PROCESS,
    radius=radius_of,
    lambda_t=partial(radius.constant_lambda, lam),
    weight=unweighted,
    perturb=partial(attacks.maximise, ATTACKS[attack]),
  )._replace(**fields)


def initial(optimizer, step=0, params=PARAMS):
  return State(
    step=np.asarray(step, np.int32),
    params=params,
    ema_params={name: 1 - 2 * x for name, x in params.items()},
    opt_state=optimizer.init(params),
    key=jax.random.key(2),
  )


@functools.cache
def program(make, *args, **fields):
  return jax.jit(make(*args, **fields))


def run(chosen, step=0, params=PARAMS, **fields):
  """One step on the points: the state after it, and its metrics."""
  one = program(steps.make_train_step, chosen, SGD, EMA_DECAY, **fields)
  return one(initial(SGD, step, params), POINTS)


def replay(chosen, attack, count, optimizer=SGD, step=0, **fields):
  """One step of free replays on the points."""
  args = chosen, attack, count, optimizer, EMA_DECAY
  one = program(replays.make_replay_step, *args, **fields)
  return one(initial(optimizer, step), POINTS)


@jax.jit
def draws_of_step(step):
  key = jax.random.split(jax.random.fold_in(jax.random.key(2), step))[1]
  return methods.draw(method(), jnp.asarray(POINTS["x_0"]), jnp.zeros(B), key)


def draws_of(step=0, lam=LAM):
  """What `run` draws."""
  draws = draws_of_step(step)
  return draws._replace(lambda_t=np.full(B, lam, np.float32))


@partial(jax.jit, static_argnums=0)
def losses_of(chosen, draws):
  return methods.losses(chosen, PARAMS, draws)


@partial(jax.jit, static_argnums=0)
def w_of(chosen, draws):
  """The perturbation that the method finds."""
  eps_hat = network(PARAMS, draws.noised.x_t, draws.level)
  return methods.find_w(chosen, PARAMS, eps_hat, draws)


@partial(jax.jit, static_argnums=(0, 1, 2))
def mean_loss_of(chosen, n, m, draws):
  return steps.mean_loss(chosen, PARAMS, steps.split(draws, n, m))


def assert_equal(a, b, **tolerance):
  """To the bit, unless there is a tolerance."""
  check = np.testing.assert_allclose
  if not tolerance:
    check = np.testing.assert_array_equal
  jax.tree.map(partial(check, **tolerance), a, b)


def key_data(keys):
  return np.asarray(jax.random.key_data(keys))


# Draws.


def test_radius_is_of_the_noise_beside_the_signal():
  """EDM's own sigma goes to 80, where no radius is."""
  chosen = method(process=schedules.edm())
  draw = jax.jit(partial(methods.draw, chosen))
  drawn = draw(POINTS["x_0"], np.zeros(B, np.float32), jax.random.key(0))
  sigma = np.asarray(drawn.level.sigma)
  assert sigma.max() > 1
  expected = 1.2 - sigma / np.sqrt(1 + sigma**2)
  np.testing.assert_allclose(drawn.radius, expected, rtol=1e-5)


# Parts of a batch.


@partial(jax.jit, static_argnums=(0, 1))
def split_counted(n, m):
  """Draws of which every row tells its number, and their parts."""
  rows = np.arange(8, dtype=np.float32)
  grid = rows[:, None] + np.array([[0.0, 0.1, 0.2]], np.float32)
  draws = methods.Draws(
    level=Level(rows, rows + 100, rows + 200, rows + 300),
    noised=Noised(grid, grid + 400, rows + 500, rows + 600),
    radius=rows + 700,
    lambda_t=rows + 800,
    w_keys=jax.random.split(jax.random.key(3), 8),
    dropout_key=jax.random.key(4),
  )
  copy = draws._replace(
    w_keys=jax.random.clone(draws.w_keys),
    dropout_key=jax.random.clone(draws.dropout_key),
  )
  return copy, steps.split(draws, n, m)


@pytest.mark.parametrize(
  ("n", "m", "first", "others"),
  [
    (3, 4, [0, 1, 2, 4, 5, 6], [3, 7]),
    (1, 2, [0, 2, 4, 6], [1, 3, 5, 7]),
  ],
)
def test_split_takes_the_first_n_of_every_m(n, m, first, others):
  whole, parts = split_counted(n, m)
  keys = key_data(whole.w_keys)
  arrays = jax.device_get(whole._replace(w_keys=None, dropout_key=None))
  for part, rows in zip(parts, (first, others), strict=True):
    np.testing.assert_array_equal(key_data(part.w_keys), keys[rows])
    assert_equal(
      part._replace(w_keys=None, dropout_key=None),
      jax.tree.map(lambda x: x[rows], arrays),  # noqa: B023
    )
  # Dropout keys are their own.
  keys = [key_data(part.dropout_key) for part in (whole, *parts)]
  assert len({tuple(key) for key in keys}) == 3


def test_whole_batch_is_not_split():
  whole = methods.Draws(*range(6))
  assert steps.split(whole, 1, 1) == (whole, None)


@pytest.mark.parametrize(
  ("name", "n", "m"),
  [("robust_adv", 1, 1), ("robust_adv", 3, 4), ("true_noise_only", 1, 2)],
)
def test_mean_loss_of_a_part(name, n, m):
  """(sum of the first part's losses + sum of DDPM's elsewhere) / b."""
  chosen = method(name)
  rows = np.arange(B) % m < n
  value, terms = mean_loss_of(chosen, n, m, draws_of())
  robust, parts = losses_of(chosen, draws_of())
  plain, _ = losses_of(method("ddpm"), draws_of())
  expected = np.mean(np.where(rows, robust, plain))
  assert float(value) == pytest.approx(expected, rel=1e-6)
  over = {"w_linf": np.max}
  expected_terms = {
    name: over.get(name, np.mean)(np.asarray(term)[rows])
    for name, term in parts.items()
  }
  if n < m:
    expected_terms["dsm_plain"] = np.mean(np.asarray(plain)[~rows])
  assert terms.keys() == expected_terms.keys()
  for term, mean in expected_terms.items():
    assert float(terms[term]) == pytest.approx(mean, rel=1e-6)


def test_the_rest_of_a_noise_aware_batch_is_noise_aware():
  @partial(jax.jit, static_argnums=(0, 1))
  def value(chosen, m, seed):
    sigma_c, key = jnp.full(B, 0.3), jax.random.key(seed)
    x_0 = jnp.asarray(POINTS["x_0"])
    draws = methods.draw(chosen, x_0, sigma_c, key)
    return steps.mean_loss(chosen, PARAMS, steps.split(draws, 1, m))[0]

  whole, part, blind = (
    float(value(method(name, lam=0.0), m, 5))
    for name, m in (("noise_aware", 1), ("noise_aware_adv", 2), ("ddpm", 1))
  )
  assert part == pytest.approx(whole, rel=1e-6)
  assert abs(part / blind - 1) > 1e-3


def test_step_in_pieces_is_that_of_the_whole_batch():
  """Up to rounding, for parts of 2 and of 6 examples: one and three a piece."""
  whole, measured = run(method(), regularised=(1, 4))
  after, found = run(method(), regularised=(1, 4), micro_batches=2)
  assert_equal(after.params, whole.params, rtol=1e-5, atol=1e-6)
  assert found.keys() == measured.keys()
  assert_equal(found, measured, rtol=1e-5)
  assert np.abs(whole.params["in"] - PARAMS["in"]).max() > 1e-3


def test_finite_loss_with_a_gradient_that_is_not_is_skipped():
  """The slope of a root is infinite at 0."""
  root = method("ddpm", predictor=rooted)
  at = lambda x: {"a": np.full(3, x, np.float32)}
  after, measured = run(root, params=at(0.0), skip_non_finite=True)
  assert np.isfinite(measured["loss"])
  assert not np.isfinite(measured["grad_norm"])
  assert measured["skipped"] == 1
  assert_equal(after.params, at(0.0))
  after, measured = run(root, params=at(1.0), skip_non_finite=True)
  assert measured["skipped"] == 0
  assert np.all(after.params["a"] != 1)


def rooted(params, x_t, level, dropout_key):
  return x_t + jnp.sqrt(params["a"])[None]


# Weights.


@pytest.mark.parametrize(
  ("name", "regularised"), [("robust_adv", (1, 1)), ("true_noise", (1, 2))]
)
def test_gradient_at_lambda_zero_is_ddpms(name, regularised):
  @partial(jax.jit, static_argnums=(0, 1, 2))
  def gradient(chosen, n, m, draws):
    parts = steps.split(draws, n, m)
    loss = lambda params: steps.mean_loss(chosen, params, parts)[0]
    return jax.grad(loss)(PARAMS)

  tolerance = {} if regularised == (1, 1) else {"rtol": 1e-5, "atol": 1e-6}
  found = gradient(method(name), *regularised, draws_of(lam=0.0))
  expected = gradient(method("ddpm"), 1, 1, draws_of())
  assert_equal(found, expected, **tolerance)


@pytest.mark.parametrize("name", ["robust_adv", "true_noise_only"])
def test_weight_multiplies_the_whole_loss(name):
  values, terms = losses_of(method(name), draws_of())
  heavier, same = losses_of(method(name, weight=weighted), draws_of())
  sigma = np.asarray(draws_of().level.sigma)
  assert len(np.unique(sigma)) > 4
  np.testing.assert_allclose(heavier, (2 + sigma) * values, rtol=1e-6)
  assert_equal(same, terms)


def test_ramp_is_read_at_the_step_and_multiplies_lambda():
  ramped, _ = run(method(lam=2 * LAM), step=3, ramp=ramp)
  full, _ = run(method(), step=3)
  assert_equal(ramped.params, full.params, rtol=1e-6)


# The attack in the step.


def test_a_method_with_an_own_network_attacks_that_one_alone():
  """A constant network cannot be attacked: w stays its random start."""
  random, expected = run(method("robust_adv", "uniform"))
  attacked, measured = run(method(attacked=constant))
  assert_equal(attacked.params, random.params, rtol=1e-6)
  assert measured["w_linf"] == expected["w_linf"]
  _, own = run(method())
  assert own["regulariser"] > 1.05 * measured["regulariser"]


def climb(goal, keys, radius, shape):
  """A step of gradient ascent: it moves with the network's parameters."""
  start = jnp.full((len(radius), *shape), 0.1)
  return jax.grad(lambda w: jnp.sum(goal(w)))(start)


def test_no_gradient_flows_through_the_attack():
  """w is a constant of the loss, whatever attack finds it."""
  chosen = method(perturb=climb)
  w = w_of(chosen, draws_of())

  @partial(jax.jit, static_argnums=0)
  def gradient(is_given, draws, w):
    fixed = chosen._replace(perturb=lambda *_: w) if is_given else chosen
    total = lambda params: jnp.sum(methods.losses(fixed, params, draws)[0])
    return jax.grad(total)(PARAMS)

  found, expected = (gradient(given, draws_of(), w) for given in (False, True))
  assert_equal(found, expected, rtol=1e-4, atol=1e-5)


@jax.jit
def predicted(x_t, level):
  return network(PARAMS, x_t, level)


@pytest.mark.parametrize("goal", ["J", "residual", "denoising"])
def test_the_attack_raises_the_methods_goal(goal):
  """At w of the named goal it is higher than at w of the others."""

  def found(name):
    return w_of(method("true_noise", "pgd", goal=name), draws_of())

  draws = draws_of()
  x_t, eps = np.asarray(draws.noised.x_t), np.asarray(draws.noised.eps)
  sigma = np.asarray(draws.noised.sigma)[:, None]
  predict = lambda x: np.asarray(predicted(x, draws.level))

  def height(w):
    error = predict(x_t + sigma * w)
    if goal == "J":
      error = error - predict(x_t)
    else:  # Of true_noise these two are the same.
      error = error - eps - w
    return np.mean(error**2)

  other = "residual" if goal == "J" else "J"
  assert height(found(goal)) > 1.02 * height(found(other))


def test_step_without_a_target_perturbs_nothing():
  def perturb(*_):
    raise AssertionError

  _, measured = run(method("ddpm", perturb=perturb))
  assert measured.keys() == {"loss", "grad_norm", "param_norm", "dsm"}


@pytest.mark.parametrize(
  ("robust", "plain"),
  [("input_perturbation", "ddpm"), ("noise_aware_adv", "noise_aware")],
)
def test_step_off_the_timetable_is_the_plain_ones_program(robust, plain):
  off = tiny.plane(objective__name=robust, regulariser__batch_fraction=0.5)
  off, plain = (
    runs.build(off).train_step(False),
    runs.build(tiny.plane(objective__name=plain)).train_step(True),
  )
  state = jax.eval_shape(runs.build(tiny.plane()).initial_state)
  program, expected = (
    jax.jit(step).lower(state, POINTS).as_text() for step in (off, plain)
  )
  assert program == expected


# Free replays.


@partial(jax.jit, static_argnums=0)
def slopes_by_hand(name, params, w, noised, level, rows):
  """The batch's loss at w, written out, and its gradients by params and w.

  w counts in `rows` alone.
  """

  def loss(params, w):
    predict = lambda x: network(params, x, level)
    eps_hat = predict(noised.x_t)
    dsm = jnp.mean((eps_hat - noised.eps) ** 2, axis=1)
    moved = predict(noised.x_t + noised.sigma[:, None] * w)
    if name == "robust_adv":
      robust = dsm + LAM * jnp.mean((moved - eps_hat - w) ** 2, axis=1)
    else:
      robust = jnp.mean((moved - noised.eps - w) ** 2, axis=1)
    return jnp.mean(jnp.where(rows, robust, dsm))

  return jax.value_and_grad(loss, argnums=(0, 1))(params, w)


def never(*_):
  raise AssertionError("free replays do not attack besides")


@pytest.mark.parametrize(
  ("name", "regularised"), [("robust_adv", (1, 2)), ("true_noise_only", (1, 1))]
)
def test_free_replays_are_the_loop_written_out(name, regularised):
  """w climbs by the gradient of the very update, at its own parameters."""
  step, count = 4, 3
  attack = ATTACKS["fgsm"]._replace(step_size=0.4)
  chosen = method(name, perturb=never)
  after, measured = replay(
    chosen, attack, count, ADAM, step, regularised=regularised
  )

  n, m = regularised
  rows = np.arange(B) % m < n
  draws, state = draws_of(step), initial(ADAM, step)
  r = 1.2 - np.asarray(draws.level.sigma)[:, None]
  w = started(draws.w_keys, draws.radius)
  params, ema = state.params, state.ema_params
  mu = nu = jax.tree.map(np.zeros_like, params)
  losses, sizes = [], []
  for i in range(count):
    value, (gradient, up) = jax.device_get(
      slopes_by_hand(name, params, w, draws.noised, draws.level, rows)
    )
    losses.append(value)
    sizes.append(np.abs(w[rows]).max())
    mu = {k: 0.9 * mu[k] + 0.1 * gradient[k] for k in params}
    nu = {k: 0.999 * nu[k] + 0.001 * gradient[k] ** 2 for k in params}
    one, two = 1 - 0.9 ** (i + 1), 1 - 0.999 ** (i + 1)
    params = {
      k: params[k] - 0.02 * (mu[k] / one) / (np.sqrt(nu[k] / two) + 1e-8)
      for k in params
    }
    done = step * count + i
    decay = min(EMA_DECAY, (1 + done) / (10 + done))
    ema = {k: decay * ema[k] + (1 - decay) * params[k] for k in params}
    w = np.clip(w + 0.4 * r * np.sign(up), -r, r)

  assert_equal(after.params, params, rtol=0, atol=1e-5)
  assert_equal(after.ema_params, ema, rtol=0, atol=1e-5)
  assert int(after.opt_state[0].count) == count
  assert int(after.step) == step + 1
  assert float(measured["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
  assert float(measured["w_linf"]) == pytest.approx(np.mean(sizes), rel=1e-4)


@jax.jit
def started(keys, radius):
  """FGSM's random start."""
  return attacks.start(ATTACKS["fgsm"], keys, radius, (3,))


def test_one_replay_is_a_plain_step():
  """Whose w is the random start."""
  plain, _ = run(method("robust_adv", "uniform"))
  single, _ = replay(method(), ATTACKS["fgsm"], 1)
  assert_equal(single.params, plain.params, rtol=1e-6)


# The monitor. For eps_hat = k x the movement is J = |k sigma w|^2.


def diagonal(params, x_t, level, dropout_key=None):
  return x_t * params["k"][None]


def still(params, x_t, level, dropout_key=None):
  return 0 * x_t


def half(goal, keys, r, shape):
  return r[:, None] / 2 * jnp.ones((1, *shape))


def monitor(chosen, k=(), **fields):
  watch = program(steps.make_monitor, chosen, steps.as_it_is, **fields)
  params = {"k": np.array(k, np.float32)} if k else PARAMS
  measured = watch(initial(SGD, 3, params), POINTS)
  assert measured.keys() == {
    "goal_attack",
    "goal_pgd",
    "pgd_gain",
    "regulariser_pgd",
  }
  return {name: float(value) for name, value in measured.items()}


def _scales():
  """r^2 and sigma^2 of each example that the monitor sees."""
  sigma = np.asarray(draws_of(3).level.sigma)
  return np.square(1.2 - sigma), np.square(sigma)


def test_monitor_of_a_linear_network_that_fgsm_solves():
  measured = monitor(method(predictor=diagonal), k=(2, 2, 2))
  r2, sigma2 = _scales()
  best = np.mean(4 * sigma2 * r2)
  residual = np.mean((2 * np.sqrt(sigma2) - 1) ** 2 * r2)
  assert measured["pgd_gain"] == pytest.approx(1, rel=1e-6)
  assert measured["goal_attack"] == pytest.approx(best, rel=1e-5)
  assert measured["goal_pgd"] == pytest.approx(best, rel=1e-5)
  assert measured["regulariser_pgd"] == pytest.approx(residual, rel=1e-5)


def test_monitor_tells_a_weak_attack():
  weak = method(predictor=diagonal, perturb=half)
  assert monitor(weak, k=(2, 2, 2))["pgd_gain"] == pytest.approx(4, rel=1e-5)


def test_monitor_holds_the_attack_on_another_network_against_the_true_one():
  measured = monitor(method(predictor=diagonal, attacked=still), k=(2, 2, 2))
  r2, sigma2 = _scales()
  draws = draws_of(3)
  w = started(draws.w_keys, draws.radius)
  start = np.mean(4 * sigma2[:, None] * np.square(w))
  assert measured["goal_attack"] == pytest.approx(start, rel=1e-5)
  assert measured["goal_pgd"] == pytest.approx(np.mean(4 * sigma2 * r2))


def test_monitor_starts_where_the_attack_does():
  chosen = method("robust_adv", "uniform")
  assert monitor(chosen, strong=ATTACKS["uniform"])["pgd_gain"] == 1


def test_monitor_stays_in_the_attacks_ball():
  # J's best is 9 sigma^2 d r^2 in the l2 ball, along one axis, and
  # 11 sigma^2 r^2 at a corner of the linf ball.
  r2, sigma2 = _scales()
  scale = np.mean(sigma2 * r2)
  corner = monitor(method(predictor=diagonal), k=(3, 1, 1))["goal_pgd"]
  assert corner == pytest.approx(11 / 3 * scale, rel=1e-5)
  l2 = ATTACKS["fgsm"]._replace(norm="l2")
  axis = monitor(
    method(predictor=diagonal, perturb=partial(attacks.maximise, l2)),
    k=(3, 1, 1),
    strong=ATTACKS["pgd"]._replace(norm="l2"),
  )
  assert axis["goal_pgd"] == pytest.approx(9 * scale, rel=0.05)
  assert axis["pgd_gain"] > 1.02


@pytest.mark.parametrize("goal", ["J", "residual", "denoising"])
def test_pgd_finds_more_than_fgsm(goal):
  measured = monitor(method(goal=goal))
  assert measured["pgd_gain"] > 1.01
  assert measured["pgd_gain"] == pytest.approx(
    measured["goal_pgd"] / measured["goal_attack"], rel=1e-5
  )


def test_monitor_sees_what_the_step_sees():
  """The state's own batch, keys and attack: the step's own regulariser."""
  chosen = method(goal="residual")
  _, measured = run(chosen, step=3)
  watched = monitor(chosen)
  assert watched["goal_attack"] == pytest.approx(
    float(measured["regulariser"]), rel=1e-5
  )
  assert watched["regulariser_pgd"] == pytest.approx(
    watched["goal_pgd"], rel=1e-6
  )


# The passes.

PASSES = [
  (3, {"objective__name": "ddpm"}),
  (3, {"objective__name": "noise_aware"}),
  (3, {"objective__name": "input_perturbation"}),
  (3, {"objective__name": "ddpm", "regulariser__batch_fraction": 0.5}),
  (6, {"objective__name": "robust_ran"}),
  (6, {"attack__name": "gaussian"}),
  (6, {"attack__name": "none"}),
  (6, {"objective__name": "noise_aware_ran"}),
  (9, {"objective__name": "jacobian"}),
  (8, {"objective__name": "robust_adv"}),
  (8, {"objective__name": "invariance", "attack__goal": "residual"}),
  (8, {"objective__name": "true_noise", "attack__goal": "denoising"}),
  (8, {"attack__name": "n_fgsm"}),
  (26, {"attack__name": "pgd"}),
  (12, {"attack__name": "pgd", "attack__num_steps": 3}),
  (6, {"objective__name": "true_noise_only"}),
  (5, {"objective__name": "true_noise_only", "attack__goal": "denoising"}),
  (5, {"objective__name": "true_noise_only", "attack__goal": "residual"}),
  (3, {"objective__name": "true_noise_only", "attack__name": "uniform"}),
  (3 + 5 * 0.25, {"regulariser__batch_fraction": 0.25}),
  (3 + 5 * 0.5, {"regulariser__batch_fraction": 0.5}),
  (24, {"regulariser__free_replays": 4}),
  (
    12,
    {"objective__name": "true_noise_only", "regulariser__free_replays": 4},
  ),
  (
    2 * (3 + 3 * 0.25),
    {"regulariser__free_replays": 2, "regulariser__batch_fraction": 0.25},
  ),
]


@pytest.mark.parametrize(("expected", "fields"), PASSES)
def test_passes_of_a_step(expected, fields):
  assert runs.build(oblique_plane(**fields)).step_passes == expected


@pytest.mark.parametrize("first", [0, 1, 5, 12, 40])
@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_timetable_by_enumeration(first, every):
  timetable = Timetable(first, every)
  on = set(range(first, 100, every))
  assert {s for s in range(100) if passes.is_on(timetable, s)} == on
  for num_steps in range(31):
    count = sum(step < num_steps for step in on)
    assert passes.steps_on(timetable, num_steps) == count
    costs = [8.0 if step in on else 2.5 for step in range(num_steps)]
    total = passes.total_passes(timetable, num_steps, 8.0, 2.5)
    assert total == sum(costs)


def test_passes_of_a_run():
  config = oblique_plane(
    train__num_steps=100, regulariser__start=0.3, regulariser__every_steps=4
  )
  run = runs.build(config)
  assert run.timetable == Timetable(30, 4)
  total = lambda n: passes.total_passes(run.timetable, n, run.step_passes)
  # 70 steps from the 30th on, each fourth: 18.
  assert total(100) == 18 * 8 + 82 * 3
  assert total(31) == 8 + 30 * 3
  assert total(30) == 30 * 3


def step_flops(**fields):
  """FLOPs of a step as XLA counts them; matrix products dominate."""
  run = runs.build(oblique_plane(model__mlp__width=512, **fields))
  batch = {
    "x_0": jax.ShapeDtypeStruct((256, 3), jnp.float32),
    "index": jax.ShapeDtypeStruct((256,), jnp.int32),
  }
  lowered = jax.jit(run.train_step(True)).lower(
    jax.eval_shape(run.initial_state), batch
  )
  return lowered.cost_analysis()["flops"]


@pytest.fixture(scope="module")
def ddpm_flops():
  return step_flops(objective__name="ddpm")


@pytest.mark.parametrize(
  "fields",
  [
    {"objective__name": "robust_ran"},
    {"objective__name": "robust_adv"},
    {"objective__name": "jacobian"},
    {"objective__name": "input_perturbation"},
    {"objective__name": "noise_aware_adv"},
    {"objective__name": "true_noise_only"},
    {"objective__name": "true_noise_only", "attack__goal": "denoising"},
    {"regulariser__batch_fraction": 0.5},
  ],
)
def test_passes_are_what_xla_counts(ddpm_flops, fields):
  counted = 3 * step_flops(**fields) / ddpm_flops
  assert counted == pytest.approx(
    runs.build(oblique_plane(**fields)).step_passes, rel=0.12
  )
