"""What the step adds to a loss: attacks, parts of batches, replays, costs."""

import importlib.util
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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

ROOT = pathlib.Path(__file__).parent.parent
B = 8
LAM = 0.7


def oblique_plane(**fields):
  """Its config; fields are set at "a.b" written as a__b."""
  path = ROOT / "configs" / "oblique_plane.py"
  spec = importlib.util.spec_from_file_location("oblique_plane", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  return config


def network(params, x_t, level, dropout_key=None):
  """A smooth noise predictor that sees the level and has no dropout."""
  del dropout_key
  time = level.sigma[:, None] * params["time"][None]
  return jnp.tanh(x_t @ params["in"] + time) @ params["out"]


def params_of(seed):
  keys = jax.random.split(jax.random.key(seed), 3)
  return {
    "in": jax.random.normal(keys[0], (3, 5)),
    "time": jax.random.normal(keys[1], (5,)),
    "out": jax.random.normal(keys[2], (5, 3)),
  }


PARAMS = params_of(0)


def method(name="robust_adv", attack="fgsm", lam=LAM, **fields):
  return methods.Method(
    objective=OBJECTIVES[name],
    predictor=network,
    process=schedules.ddpm(schedules.linear_alpha_bar(50)),
    radius=lambda sigma_t: 1.2 - sigma_t,
    lambda_t=partial(radius.constant_lambda, lam),
    weight=lambda level: jnp.ones_like(level.sigma),
    perturb=partial(attacks.maximise, ATTACKS[attack]),
  )._replace(**fields)


def points(n=B):
  x_0 = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
  return {"x_0": jnp.asarray(x_0), "index": jnp.arange(n)}


def initial(optimizer, step=0):
  return State(
    step=jnp.asarray(step, jnp.int32),
    params=PARAMS,
    ema_params=params_of(1),
    opt_state=optimizer.init(PARAMS),
    key=jax.random.key(2),
  )


def run(chosen, optimizer=None, step=0, ema_decay=0.6, **fields):
  """One step on the points: the state after it, and its metrics."""
  optimizer = optimizer or optax.sgd(0.1)
  step_fn = steps.make_train_step(chosen, optimizer, ema_decay, **fields)
  return jax.jit(step_fn)(initial(optimizer, step), points())


def replay(chosen, attack, count, optimizer=None, step=0, **fields):
  """One step of free replays on the points."""
  optimizer = optimizer or optax.sgd(0.1)
  step_fn = replays.make_replay_step(
    chosen, attack, count, optimizer, 0.6, **fields
  )
  return jax.jit(step_fn)(initial(optimizer, step), points())


def draws_of(chosen, step=0):
  """What `run` draws."""
  key = jax.random.fold_in(jax.random.key(2), step)
  draw = jax.jit(partial(methods.draw, chosen))
  return draw(points()["x_0"], jnp.zeros(B), jax.random.split(key)[1])


def losses_of(chosen, draws):
  return jax.jit(partial(methods.losses, chosen))(PARAMS, draws)


def w_of(chosen, draws):
  """The perturbation that the method finds."""

  @jax.jit
  def find(draws):
    eps_hat = network(PARAMS, draws.noised.x_t, draws.level)
    return methods.find_w(chosen, PARAMS, eps_hat, draws)

  return find(draws)


def assert_equal(a, b, **tolerance):
  """To the bit, unless there is a tolerance."""
  check = np.testing.assert_allclose
  if not tolerance:
    check = np.testing.assert_array_equal
  jax.tree.map(partial(check, **tolerance), a, b)


def key_data(keys):
  return np.asarray(jax.random.key_data(keys))


# Parts of a batch.


def counted_draws(b):
  """Draws of which every row tells its number."""
  rows = jnp.arange(b, dtype=jnp.float32)
  grid = rows[:, None] + jnp.array([[0.0, 0.1, 0.2]])
  return methods.Draws(
    level=Level(rows, rows + 100, rows + 200, rows + 300),
    noised=Noised(grid, grid + 400, rows + 500, rows + 600),
    radius=rows + 700,
    lambda_t=rows + 800,
    w_keys=jax.random.split(jax.random.key(3), b),
    dropout_key=jax.random.key(4),
  )


@pytest.mark.parametrize(
  ("n", "m", "first", "others"),
  [
    (3, 4, [0, 1, 2, 4, 5, 6], [3, 7]),
    (1, 4, [0, 4], [1, 2, 3, 5, 6, 7]),
    (1, 2, [0, 2, 4, 6], [1, 3, 5, 7]),
    (5, 8, [0, 1, 2, 3, 4], [5, 6, 7]),
  ],
)
def test_split_takes_the_first_n_of_every_m(n, m, first, others):
  whole = counted_draws(8)
  keys, arrays = key_data(whole.w_keys), whole._replace(w_keys=0, dropout_key=0)
  for part, rows in zip(steps.split(whole, n, m), (first, others), strict=True):
    np.testing.assert_array_equal(key_data(part.w_keys), keys[np.array(rows)])
    assert_equal(
      part._replace(w_keys=0, dropout_key=0),
      jax.tree.map(lambda x: x[np.array(rows)] if np.ndim(x) else x, arrays),  # noqa: B023
    )


def test_parts_of_a_batch_have_dropout_keys_of_their_own():
  whole = counted_draws(8)
  before = key_data(whole.dropout_key)
  parts = steps.split(whole, 1, 2)
  keys = [before, *(key_data(part.dropout_key) for part in parts)]
  assert len({tuple(key) for key in keys}) == 3


def test_whole_batch_is_not_split():
  whole = counted_draws(8)
  assert steps.split(whole, 1, 1) == (whole, None)


@pytest.mark.parametrize("name", ["robust_adv", "true_noise_only"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (3, 4)])
def test_mean_loss_of_a_part(name, n, m):
  """(sum of the first part's losses + sum of DDPM's elsewhere) / b."""
  chosen = method(name)
  rows = np.arange(B) % m < n
  value, terms = jax.jit(partial(steps.mean_loss, chosen))(
    PARAMS, steps.split(draws_of(chosen), n, m)
  )
  robust, parts = losses_of(chosen, draws_of(chosen))
  plain, _ = losses_of(method("ddpm"), draws_of(chosen))
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
  chosen = method("noise_aware_adv", lam=0.0)
  key, sigma_c = jax.random.key(5), jnp.full(B, 0.3)

  def value(chosen, parts, key):
    draws = methods.draw(chosen, points()["x_0"], sigma_c, key)
    return steps.mean_loss(chosen, PARAMS, steps.split(draws, *parts))[0]

  whole, part, blind = (
    float(jax.jit(partial(value, *each))(jax.random.clone(key)))
    for each in (
      (chosen, (1, 1)),
      (chosen, (1, 2)),
      (method("ddpm"), (1, 1)),
    )
  )
  assert part == pytest.approx(whole, rel=1e-6)
  assert abs(part / blind - 1) > 1e-3


# Weights.


@pytest.mark.parametrize("regularised", [(1, 1), (1, 2)])
@pytest.mark.parametrize("name", ["robust_adv", "true_noise", "invariance"])
def test_gradient_at_lambda_zero_is_ddpms(name, regularised):

  def gradient(chosen, n, m):
    parts = steps.split(draws_of(chosen), n, m)
    loss = lambda params: steps.mean_loss(chosen, params, parts)[0]
    return jax.jit(jax.grad(loss))(PARAMS)

  tolerance = {} if regularised == (1, 1) else {"rtol": 1e-5, "atol": 1e-6}
  found = gradient(method(name, lam=0.0), *regularised)
  assert_equal(found, gradient(method("ddpm"), 1, 1), **tolerance)


@pytest.mark.parametrize("name", ["robust_adv", "true_noise_only"])
def test_weight_multiplies_the_whole_loss(name):
  plain = method(name)
  weighted = plain._replace(weight=lambda level: 2 + level.sigma)
  values, terms = losses_of(plain, draws_of(plain))
  heavier, same = losses_of(weighted, draws_of(plain))
  assert len(np.unique(draws_of(plain).level.sigma)) > 4
  np.testing.assert_allclose(
    heavier, (2 + draws_of(plain).level.sigma) * values, rtol=1e-6
  )
  assert_equal(same, terms)


@pytest.mark.parametrize("step", [0, 3])
def test_ramp_is_read_at_the_step_and_multiplies_lambda(step):
  ramp = lambda step: step / 6
  ramped, _ = run(method(lam=2.0), step=step, ramp=ramp)
  constant, _ = run(method(lam=2.0 * step / 6), step=step)
  assert_equal(ramped.params, constant.params, rtol=1e-6)


# The attack in the step.


def test_a_method_with_an_own_network_attacks_that_one_alone():
  """A constant network cannot be attacked: w stays its random start."""
  constant = lambda params, x_t, level, dropout_key: jnp.ones_like(x_t)
  random, expected = run(method("robust_ran", "uniform"))
  attacked, measured = run(method(attacked=constant))
  assert_equal(attacked.params, random.params, rtol=1e-6)
  assert measured["w_linf"] == expected["w_linf"]
  _, own = run(method())
  assert own["regulariser"] > 1.05 * measured["regulariser"]


def climb(goal, keys, radius, shape):
  """A step of gradient ascent: it moves with the network's parameters."""
  start = jnp.full((len(radius), *shape), 0.1)
  return jax.grad(lambda w: jnp.sum(goal(w)))(start)


@pytest.mark.parametrize(
  "perturb",
  [climb, partial(attacks.maximise, ATTACKS["fgsm"]._replace(norm="l2"))],
)
def test_no_gradient_flows_through_the_attack(perturb):
  """w is a constant of the loss, whatever attack finds it."""
  chosen = method(perturb=perturb)
  w = w_of(chosen, draws_of(chosen))

  @partial(jax.jit, static_argnums=0)
  def gradient(perturb, draws):
    fixed = chosen._replace(perturb=perturb)
    total = lambda params: jnp.sum(methods.losses(fixed, params, draws)[0])
    return jax.grad(total)(PARAMS)

  found, expected = (
    gradient(each, draws_of(chosen)) for each in (perturb, lambda *_: w)
  )
  assert_equal(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("goal", ["J", "residual", "denoising"])
def test_the_attack_raises_the_methods_goal(goal):
  """At w of the named goal it is higher than at w of the others."""

  def found(name):
    chosen = method("true_noise", "pgd", goal=name)
    return w_of(chosen, draws_of(chosen))

  noised = draws_of(method()).noised
  sigma = noised.sigma[:, None]
  predict = lambda x: network(PARAMS, x, draws_of(method()).level)

  def height(w):
    error = predict(noised.x_t + sigma * w)
    if goal == "J":
      error -= predict(noised.x_t)
    else:  # Of true_noise these two are the same.
      error -= noised.eps + w
    return float(jnp.mean(error**2))

  other = "residual" if goal == "J" else "J"
  assert height(found(goal)) > 1.02 * height(found(other))


def test_step_without_a_target_perturbs_nothing():
  def perturb(*_):
    raise AssertionError

  _, measured = run(method("ddpm", perturb=perturb))
  assert measured.keys() == {"loss", "grad_norm", "param_norm", "dsm"}


@pytest.mark.parametrize(
  ("robust", "plain"),
  [
    ("robust_adv", "ddpm"),
    ("input_perturbation", "ddpm"),
    ("noise_aware_adv", "noise_aware"),
  ],
)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_step_off_the_timetable_is_the_plain_one_to_the_bit(
  robust, plain, fraction
):
  fields = dict(
    train__batch_size=16,
    optimizer__warmup_steps=0,
    optimizer__decay="constant",
    model__mlp__width=8,
    model__mlp__depth=1,
  )
  off = runs.build(
    oblique_plane(
      objective__name=robust,
      regulariser__batch_fraction=fraction,
      **fields,
    )
  ).train_step(False)
  config = oblique_plane(objective__name=plain, **fields)
  state, batch = jax.jit(runs.build(config).initial_state)(), points(16)

  def two_steps(step):
    step = jax.jit(step)
    return step(step(state, batch)[0], batch)

  (after, measured), (expected, metrics) = (
    two_steps(step) for step in (off, runs.build(config).train_step(True))
  )
  for name in ("params", "ema_params"):
    assert_equal(getattr(after, name), getattr(expected, name))
  assert_equal(measured, metrics)
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), state.params, after.params
  )
  assert max(jax.tree.leaves(moved)) > 1e-4


# Free replays.


def by_hand(name, params, w, draws, rows):
  """The batch's loss at w, written out; w counts in `rows` alone."""
  predict = lambda x: network(params, x, draws.level)
  noised = draws.noised
  eps_hat = predict(noised.x_t)
  dsm = jnp.mean((eps_hat - noised.eps) ** 2, axis=1)
  moved = predict(noised.x_t + noised.sigma[:, None] * w)
  if name == "robust_adv":
    robust = dsm + LAM * jnp.mean((moved - eps_hat - w) ** 2, axis=1)
  else:
    robust = jnp.mean((moved - noised.eps - w) ** 2, axis=1)
  return jnp.mean(jnp.where(rows, robust, dsm))


@pytest.mark.parametrize("regularised", [(1, 1), (1, 2)])
@pytest.mark.parametrize("name", ["robust_adv", "true_noise_only"])
def test_free_replays_are_the_loop_written_out(name, regularised):
  """w climbs by the gradient of the very update, at its own parameters."""

  def perturb(*_):
    raise AssertionError("free replays do not attack besides")

  step, count, ema_decay = 4, 3, 0.6
  attack = ATTACKS["fgsm"]._replace(step_size=0.4)
  chosen = method(name, perturb=perturb)
  optimizer = optax.adam(0.02)
  after, measured = replay(
    chosen, attack, count, optimizer, step, regularised=regularised
  )

  n, m = regularised
  rows = jnp.arange(B) % m < n
  draws, state = draws_of(chosen, step), initial(optimizer, step)
  r = 1.2 - draws.level.sigma
  w = attacks.start(attack, draws.w_keys, r, (3,))
  params, ema, opt_state = state.params, state.ema_params, state.opt_state
  loss = jax.jit(jax.value_and_grad(partial(by_hand, name), argnums=(0, 1)))
  losses, sizes = [], []
  for i in range(count):
    value, (gradient, climb) = loss(
      params, w, draws._replace(w_keys=0, dropout_key=0), rows
    )
    losses.append(float(value))
    sizes.append(float(jnp.abs(w[rows]).max()))
    updates, opt_state = optimizer.update(gradient, opt_state)
    params = optax.apply_updates(params, updates)
    done = step * count + i
    decay = min(ema_decay, (1 + done) / (10 + done))
    ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)  # noqa: B023
    w = attacks.step(attack, w, climb, r)

  assert_equal(after.params, params, rtol=0, atol=1e-5)
  assert_equal(after.ema_params, ema, rtol=0, atol=1e-5)
  assert int(after.opt_state[0].count) == count
  assert int(after.step) == step + 1
  assert float(measured["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
  assert float(measured["w_linf"]) == pytest.approx(np.mean(sizes), rel=1e-4)


def test_one_replay_is_a_plain_step():
  """Whose w is the random start."""
  plain, _ = run(method("robust_adv", "uniform"))
  single, _ = replay(method(), ATTACKS["fgsm"], 1)
  assert_equal(single.params, plain.params, rtol=1e-6)
  replayed, _ = replay(method(), ATTACKS["fgsm"], 2)
  assert np.abs(replayed.params["in"] - plain.params["in"]).max() > 1e-4


# The monitor. For eps_hat = k x the movement is J = |k sigma w|^2.


def diagonal(*k):
  return lambda params, x_t, level, dropout_key=None: x_t * jnp.array([k])


def monitor(chosen, **fields):
  watch = steps.make_monitor(chosen, steps.as_it_is, **fields)
  measured = jax.jit(watch)(initial(optax.sgd(0.1), 3), points())
  assert measured.keys() == {
    "goal_attack",
    "goal_pgd",
    "pgd_gain",
    "regulariser_pgd",
  }
  return {name: float(value) for name, value in measured.items()}


def _scales():
  """r^2 and sigma^2 of each example that the monitor sees."""
  level = draws_of(method(), 3).level
  return np.square(1.2 - level.sigma), np.square(level.sigma)


def test_monitor_of_a_linear_network_that_fgsm_solves():
  measured = monitor(method(predictor=diagonal(2.0, 2.0, 2.0)))
  r2, sigma2 = _scales()
  best = np.mean(4 * sigma2 * r2)
  residual = np.mean((2 * np.sqrt(sigma2) - 1) ** 2 * r2)
  assert measured["pgd_gain"] == pytest.approx(1, rel=1e-6)
  assert measured["goal_attack"] == pytest.approx(best, rel=1e-5)
  assert measured["goal_pgd"] == pytest.approx(best, rel=1e-5)
  assert measured["regulariser_pgd"] == pytest.approx(residual, rel=1e-5)


def test_monitor_tells_a_weak_attack():
  half = lambda goal, keys, r, shape: r[:, None] / 2 * jnp.ones((1, *shape))
  chosen = method(predictor=diagonal(2.0, 2.0, 2.0), perturb=half)
  assert monitor(chosen)["pgd_gain"] == pytest.approx(4, rel=1e-5)


def test_monitor_holds_the_attack_on_another_network_against_the_true_one():
  chosen = method(
    predictor=diagonal(2.0, 2.0, 2.0), attacked=diagonal(0.0, 0.0, 0.0)
  )
  measured = monitor(chosen)
  r2, sigma2 = _scales()
  draws = draws_of(chosen, 3)
  w = attacks.start(ATTACKS["fgsm"], draws.w_keys, draws.radius, (3,))
  start = np.mean(4 * sigma2[:, None] * np.square(w))
  assert measured["goal_attack"] == pytest.approx(start, rel=1e-5)
  assert measured["goal_pgd"] == pytest.approx(np.mean(4 * sigma2 * r2))


def test_monitor_starts_where_the_attack_does():
  chosen = method("robust_ran", "uniform")
  assert monitor(chosen, strong=ATTACKS["uniform"])["pgd_gain"] == 1


def test_monitor_stays_in_the_attacks_ball():
  # J's best is 9 sigma^2 d r^2 in the l2 ball, along one axis, and
  # 11 sigma^2 r^2 at a corner of the linf ball.
  chosen = method(predictor=diagonal(3.0, 1.0, 1.0))
  r2, sigma2 = _scales()
  scale = np.mean(sigma2 * r2)
  corner = monitor(chosen)["goal_pgd"]
  assert corner == pytest.approx(11 / 3 * scale, rel=1e-5)
  l2 = ATTACKS["fgsm"]._replace(norm="l2")
  axis = monitor(
    chosen._replace(perturb=partial(attacks.maximise, l2)),
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
  config = oblique_plane(model__mlp__width=512, **fields)
  state = jax.eval_shape(runs.build(config).initial_state)
  batch = {
    "x_0": jax.ShapeDtypeStruct((256, 3), jnp.float32),
    "index": jax.ShapeDtypeStruct((256,), jnp.int32),
  }
  compiled = (
    jax.jit(runs.build(config).train_step(True)).lower(state, batch).compile()
  )
  return compiled.cost_analysis()["flops"]


@pytest.fixture(scope="module")
def ddpm_flops():
  return step_flops(objective__name="ddpm")


@pytest.mark.parametrize(
  "fields",
  [
    {"objective__name": "robust_ran"},
    {"objective__name": "robust_adv"},
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
