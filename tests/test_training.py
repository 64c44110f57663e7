"""The step, the optimiser, and whole runs: resumed, damaged, diverged."""

import functools
import itertools
import json
import math
import re
import shutil
import types

import built
import chex
import faulty
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from built import compiled_once  # noqa: F401

from rad_jax import checks
from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.diffusion import process as processes
from rad_jax.diffusion import schedules
from rad_jax.models.network import Network
from rad_jax.robustness import attacks, objectives, radius
from rad_jax.robustness import method as methods
from rad_jax.training import (
  checkpoints,
  dispatch,
  loop,
  metrics,
  optimizers,
  watch,
)
from rad_jax.training import step as steps
from rad_jax.training import workdir as folders
from rad_jax.training.state import State, initial_state

EMA_DECAY = 0.6
PROCESS = schedules.ddpm(schedules.ALPHA_BAR["linear"](50))


def tiny_config(**fields):
  """A run of seconds; fields are set at "a.b" written as a__b."""
  config = configs.default()
  config.data.update(name="oblique_plane", num_examples=40)
  config.data.corruption.update(fraction=0.9, sigma=0.2)
  config.diffusion.num_timesteps = 50
  config.model.name = "mlp"
  config.model.mlp.update(width=8, depth=1)
  config.optimizer.update(learning_rate=1e-2, warmup_steps=3, ema_decay=0.9)
  config.train.update(num_steps=12, batch_size=8, log_every_steps=3)
  config.checkpoint.update(every_steps=2, keep=2, keep_every_steps=6)
  config.sampling.num_steps = 5
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  checks.validate(config)
  return config


def assert_same_to_the_bit(a: State, b: State):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(
    jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(
      np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path)
    )


# ---- One step ----


@pytest.fixture(scope="module")
def compiled():
  """The tiny run's step as the loop has it, and what it starts from."""
  run, mesh = built.run(tiny_config()), loop.sharding.device_mesh()
  batch = next(loop.dispatched_batches(run, run.open_training_set(), 0, mesh))
  initial = jax.jit(run.initial_state)
  return loop.compile_step(run, initial(), batch, mesh), initial, batch


def test_state_keeps_its_types_and_the_step_its_one_program(compiled):
  _, initial, batch = compiled
  step = built.run(tiny_config()).train_step(True)
  once, _ = jax.eval_shape(step, jax.eval_shape(initial), batch)
  twice, _ = jax.eval_shape(step, once, batch)
  types = lambda state: [(x, x.weak_type) for x in jax.tree.leaves(state)]
  assert types(once) == types(twice) == types(jax.eval_shape(initial))


def test_step_counts_itself_and_donates_the_state(compiled):
  step, initial, batch = compiled
  state = initial()
  for done in range(1, 4):
    before = state
    state, _ = step(state, batch)
    assert int(state.step) == done
    for old, new in zip(
      jax.tree.leaves(before), jax.tree.leaves(state), strict=True
    ):
      assert old.is_deleted()
      assert not new.is_deleted()


def test_loss_falls_on_one_batch(compiled):
  step, initial, batch = compiled
  state, losses = initial(), []
  for _ in range(200):
    state, measured = step(state, batch)
    losses.append(float(measured["loss"]))
  assert losses[0] == pytest.approx(1, abs=0.5)  # the network starts at zero
  assert np.mean(losses[-50:]) < 0.75 * np.mean(losses[:20])


def test_key_and_structure_do_not_change(compiled):
  step, initial, batch = compiled
  state, _ = step(initial(), batch)
  before = initial()
  np.testing.assert_array_equal(
    jax.random.key_data(state.key), jax.random.key_data(before.key)
  )
  assert jax.tree.structure(state) == jax.tree.structure(before)


# A network whose algebra fits in a line: eps_hat = x_t @ A + c t.
LINEAR = Network(
  init=lambda key, x_t, t: {
    "A": 0.1 * jax.random.normal(key, (3, 3)),
    "c": jnp.zeros(()),
  },
  apply=lambda params, x_t, t, dropout_key=None: (
    x_t @ params["A"] + params["c"] * t[:, None]
  ),
)


def linear_method(objective, lam=0.3, **fields):
  chosen = objectives.OBJECTIVES[objective]
  noisiest = processes.unit_sigma(PROCESS.grid(1))[0]
  return methods.Method(
    objective=chosen,
    predictor=lambda params, x_t, level, dropout_key: LINEAR.apply(
      params, x_t, level.time, dropout_key
    ),
    process=PROCESS,
    radius=lambda sigma_t: 0.1 + radius.falling(sigma_t, noisiest, 2.0),
    lambda_t=functools.partial(radius.constant_lambda, lam),
    weight=lambda level: jnp.ones_like(level.sigma),
    perturb=functools.partial(
      attacks.maximise, attacks.ATTACKS.get(chosen.attack)
    ),
  )._replace(**fields)


def linear_step(objective, optimizer, lam=0.3, **fields):
  return steps.make_train_step(
    linear_method(objective, lam), optimizer, EMA_DECAY, **fields
  )


@pytest.fixture(scope="module")
def ddpm_step():
  return jax.jit(linear_step("ddpm", optax.sgd(0.1)))


@jax.jit
def linear_state(step=0):
  """At that step of SGD."""
  state = initial_state(
    LINEAR, optax.sgd(0.1), (3,), jax.random.key(1), jax.random.key(2)
  )
  return state._replace(step=jnp.asarray(step, jnp.int32))


def points(n=8):
  x_0 = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
  return {"x_0": x_0, "index": np.arange(n, dtype=np.int32)}


def test_ddpm_step_is_plain_ddpm(ddpm_step):
  """Against DDPM's Algorithm 1 in NumPy, with the gradient by hand."""
  n, batch, rate = 8, points(), 0.1
  state = linear_state(7)
  after, measured = ddpm_step(state, batch)

  @jax.jit
  def drawn(key):
    loss_key = jax.random.split(jax.random.fold_in(key, 7))[1]
    t_key, eps_key, *_ = jax.random.split(loss_key, 5)

    def one(i):
      t = jax.random.randint(jax.random.fold_in(t_key, i), (), 0, 50)
      return t, jax.random.normal(jax.random.fold_in(eps_key, i), (3,))

    return jax.vmap(one)(jnp.arange(n))

  t, eps = jax.device_get(drawn(state.key))
  scale = 1000 / 50
  alpha_bar = np.cumprod(1 - np.linspace(1e-4 * scale, 0.02 * scale, 50))[t]
  x_t = (
    np.sqrt(alpha_bar)[:, None] * batch["x_0"]
    + np.sqrt(1 - alpha_bar)[:, None] * eps
  )
  error = x_t @ np.asarray(state.params["A"]) - eps
  grad_a = 2 * x_t.T @ error / error.size
  grad_c = 2 * np.sum(error * t[:, None]) / error.size

  assert len(set(t)) > 4
  assert measured["loss"] == pytest.approx(np.mean(error**2), rel=1e-5)
  assert measured["dsm"] == measured["loss"]
  assert not {"w_linf", "regulariser"} & measured.keys()
  assert measured["grad_norm"] == pytest.approx(
    np.sqrt(np.sum(grad_a**2) + grad_c**2), rel=1e-5
  )
  np.testing.assert_allclose(
    after.params["A"], state.params["A"] - rate * grad_a, rtol=0, atol=1e-6
  )
  np.testing.assert_allclose(after.params["c"], -rate * grad_c, rtol=1e-5)


def test_lambda_zero_is_ddpm(ddpm_step):
  sgd = optax.sgd(0.1)
  ddpm, _ = ddpm_step(linear_state(0), points())
  robust, measured = jax.jit(linear_step("robust_adv", sgd, lam=0.0))(
    linear_state(0), points()
  )
  assert measured["w_linf"] > 0
  chex.assert_trees_all_close(robust.params, ddpm.params, rtol=0, atol=1e-7)


def test_draws_come_from_step_and_place_alone():
  """An example's level, eps, radius and w are those of any batch it is in."""
  method = linear_method("robust_ran")
  params = linear_state(0).params

  @jax.jit
  def draw(x_0, key):
    draws = methods.draw(method, x_0, jnp.zeros(len(x_0)), key)
    eps_hat = method.predictor(params, draws.noised.x_t, draws.level, None)
    w = methods.find_w(method, params, eps_hat, draws)
    eps = draws.noised.eps
    return w, eps, draws.level.sigma, draws.radius

  whole = draw(points(8)["x_0"], jax.random.clone(jax.random.key(5)))
  part = draw(points(8)["x_0"][:4], jax.random.key(5))
  other = draw(points(8)["x_0"], jax.random.key(6))
  for a, b in zip(whole, part, strict=True):
    np.testing.assert_array_equal(a[:4], b)
  for a, b in zip(whole[:2], other[:2], strict=True):
    assert np.all(a != b)
    assert len(np.unique(a)) == a.size
  assert len(np.unique(whole[2])) > 4


def test_lambda_rises_with_the_ramp():
  """At the step's own place on the ramp, and on the regulariser alone."""
  step = linear_step("robust_adv", optax.sgd(0.1), ramp=lambda step: step / 10)
  _, measured = jax.jit(step)(linear_state(7), points())
  measured = {name: float(value) for name, value in measured.items()}
  assert measured["regulariser"] > 1e-5
  assert measured["loss"] == pytest.approx(
    measured["dsm"] + 0.7 * 0.3 * measured["regulariser"], rel=1e-5
  )


@pytest.mark.parametrize(
  "warmup_steps, expected", [(0, [1, 1, 1, 1]), (4, [0, 0.25, 0.75, 1])]
)
def test_ramp_starts_with_the_regulariser(warmup_steps, expected):
  """It is first on at step 6 of 12, and full four steps on."""
  ramp = functools.partial(radius.ramp, first_step=6, warmup_steps=warmup_steps)
  assert [float(ramp(step)) for step in (5, 6, 8, 11)] == expected


def test_each_step_draws_anew(ddpm_step):
  first, _ = ddpm_step(linear_state(0), points())
  state = linear_state(1)
  second, _ = ddpm_step(state, points())
  assert np.all(first.params["A"] != second.params["A"])


@pytest.mark.parametrize(
  "done, decay, expected",
  [(0, 0.9, 0.1), (8, 0.9, 0.5), (8, 0.4, 0.4), (10**6, 0.9, 0.9)],
)
def test_young_average_forgets_its_start(done, decay, expected):
  found = steps.ema_decay_at(jnp.asarray(done, jnp.int32), decay)
  assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("done, decay", [(0, 0.1), (30, EMA_DECAY)])
def test_moving_average(ddpm_step, done, decay):
  """ema <- d ema + (1 - d) params, with the parameters after the update."""
  state = linear_state(done)
  state = state._replace(ema_params=jax.tree.map(lambda x: x + 1, state.params))
  after, _ = ddpm_step(state, points())
  for new, old, params in zip(
    jax.tree.leaves(after.ema_params),
    jax.tree.leaves(state.ema_params),
    jax.tree.leaves(after.params),
    strict=True,
  ):
    np.testing.assert_allclose(
      new, decay * old + (1 - decay) * params, rtol=1e-5
    )


# ---- The optimiser ----


@pytest.mark.parametrize(
  "decay, warmup_steps, step, expected",
  [
    ("constant", 10, 0, 0.0),
    ("constant", 10, 5, 0.5),
    ("constant", 10, 10, 1.0),
    ("constant", 10, 99, 1.0),
    ("constant", 0, 0, 1.0),
    ("cosine", 10, 5, 0.5),
    ("cosine", 10, 10, 1.0),
    ("cosine", 10, 55, 0.5),
    ("cosine", 10, 32.5, 0.5 + math.sqrt(2) / 4),
    ("cosine", 10, 100, 0.0),
    ("cosine", 0, 0, 1.0),
    ("cosine", 0, 50, 0.5),
    ("linear", 10, 5, 0.5),
    ("linear", 10, 55, 0.5),
    ("linear", 10, 91, 0.1),
    ("linear", 10, 100, 0.0),
    ("linear", 0, 25, 0.75),
    ("linear", 200, 50, 0.25),  # the run ends inside the warm-up
  ],
)
def test_learning_rate(decay, warmup_steps, step, expected):
  schedule = optimizers.learning_rate_schedule(2e-4, warmup_steps, decay, 100)
  assert schedule(step) == pytest.approx(2e-4 * expected, rel=1e-5, abs=1e-10)


@pytest.mark.parametrize(
  "max_grad_norm, expected", [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)]
)
def test_clipping_limits_what_adam_sees(max_grad_norm, expected):
  adam = optimizers.adam(optax.constant_schedule(1.0), 0.9, 0.9, max_grad_norm)
  params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
  gradient = {"a": jnp.asarray(3.0), "b": jnp.asarray(4.0)}
  _, state = adam.update(gradient, adam.init(params), params)
  (moment,) = [
    x.mu
    for x in jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    if isinstance(x, optax.ScaleByAdamState)
  ]
  assert optax.global_norm(moment) == pytest.approx(0.1 * expected, rel=1e-5)


def test_adam_follows_schedule_and_betas():
  schedule = optax.linear_schedule(0.0, 1.0, 2)
  adam = optimizers.adam(schedule, b1=0.5, b2=0.75, max_grad_norm=0.0)
  params, state = jnp.zeros(()), None
  state = adam.init(params)
  mu = nu = 0.0
  for n, g in enumerate([2.0, -1.0, 3.0]):
    update, state = adam.update(jnp.asarray(g), state, params)
    mu, nu = 0.5 * mu + 0.5 * g, 0.75 * nu + 0.25 * g**2
    unbiased = (mu / (1 - 0.5 ** (n + 1)), nu / (1 - 0.75 ** (n + 1)))
    expected = -min(n / 2, 1) * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
    assert update == pytest.approx(expected, rel=1e-5)


def rates_of(optimizer, num_updates):
  """The rate of each update: Adam without memory steps by it."""
  params = jnp.zeros(())
  state, rates = optimizer.init(params), []
  for _ in range(num_updates):
    update, state = optimizer.update(jnp.ones(()), state, params)
    rates.append(-float(update))
  return rates


MEMORYLESS = dict(
  optimizer__b1=0.0, optimizer__b2=0.0, optimizer__max_grad_norm=0.0
)


def test_updates_on_one_batch_share_their_steps_rate():
  config = tiny_config(
    **MEMORYLESS, regulariser__free_replays=3, optimizer__decay="linear"
  )
  # Warm-up over steps 0, 1, 2, then down from 3 to 12.
  expected = np.repeat([0, 1 / 3, 2 / 3, 1, 8 / 9], 3)
  np.testing.assert_allclose(
    rates_of(runs.build(config).optimizer, 15), 1e-2 * expected, rtol=1e-5
  )


# ---- Whole runs ----


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """12 steps in one go: the state and the folder. Tests copy the folder."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  return loop.train(built.run(tiny_config()), workdir), workdir


@pytest.fixture
def copied(straight, tmp_path):
  return shutil.copytree(straight[1], tmp_path / "run")


def kept_steps(workdir):
  with checkpoints.open_manager(workdir, keep=100) as manager:
    return sorted(manager.all_steps())


def saved_state(workdir):
  config = tiny_config()
  with checkpoints.open_manager(workdir, keep=100) as manager:
    like = jax.eval_shape(built.run(config).initial_state)
    return checkpoints.restore(
      manager, like, jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )


def test_interrupted_run_equals_the_straight_one_to_the_bit(straight, tmp_path):
  state, workdir = straight
  first = tiny_config(
    train__num_steps=6,
    checkpoint__every_steps=4,
    checkpoint__keep_every_steps=0,
  )
  loop.train(built.run(first), tmp_path)
  assert kept_steps(tmp_path) == [4, 6]  # the last step is saved off the beat
  # As if a longer run had died after its last checkpoint, inside a line.
  with (tmp_path / "metrics.jsonl").open("a") as lines:
    lines.write('{"step": 7, "train/loss": 9.9}\n{"step": 9, "train/lo')
  resumed = loop.train(built.run(tiny_config()), tmp_path)

  assert int(resumed.step) == 12
  assert_same_to_the_bit(resumed, state)
  assert_same_to_the_bit(saved_state(tmp_path), state)
  assert faulty.values_of(tmp_path) == faulty.values_of(workdir)
  assert [row["step"] for row in metrics.read(tmp_path)] == [3, 6, 9, 12]


def test_finished_run_is_returned_as_it_is(straight, copied):
  before = (copied / "metrics.jsonl").read_bytes()
  assert_same_to_the_bit(
    loop.train(built.run(tiny_config()), copied), straight[0]
  )
  assert (copied / "metrics.jsonl").read_bytes() == before


def test_newest_and_every_mth_checkpoints_are_kept(straight):
  # Saved at 2, 4, .. 12: the newest two, and the multiples of 6.
  assert kept_steps(straight[1]) == [6, 10, 12]


def test_no_checkpoint_to_restore(tmp_path):
  with checkpoints.open_manager(tmp_path) as manager:
    with pytest.raises(checkpoints.CheckpointError, match="train first"):
      checkpoints.restore(manager, {"x": jnp.zeros(())}, None)


def test_failed_save_is_told_at_the_end(monkeypatch, tmp_path):
  """orbax writes in the background: what it raises may come with the close."""
  broken_close(monkeypatch)
  with pytest.raises(checkpoints.CheckpointError, match="No space left"):
    with checkpoints.open_manager(tmp_path):
      pass


def test_error_of_the_run_comes_before_that_of_a_save(monkeypatch, tmp_path):
  broken_close(monkeypatch)
  with pytest.raises(watch.NonFiniteLoss):
    with checkpoints.open_manager(tmp_path):
      raise watch.NonFiniteLoss


def broken_close(monkeypatch):
  def close(manager):
    raise ValueError("No space left on device")

  monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "close", close)


def test_divergence_stops_and_keeps_the_last_good_state(copied):
  wild = tiny_config(
    train__num_steps=20,
    optimizer__learning_rate=1e30,
    optimizer__warmup_steps=0,
    optimizer__max_grad_norm=0.0,
    # A checkpoint is due at the very step that shows it.
    checkpoint__every_steps=1,
    checkpoint__keep_every_steps=0,
  )
  with pytest.raises(watch.NonFiniteLoss) as error:
    loop.train(built.run(wild), copied)
  # The loss of step 13 is fine, the parameters that it leaves are not.
  assert "param_norm is inf at step 13" in str(error.value)
  assert "the last good checkpoint is step 12 in " in str(error.value)
  assert kept_steps(copied)[-1] == 12
  for leaf in jax.tree.leaves(saved_state(copied).params):
    assert np.all(np.isfinite(leaf))
  assert all(
    math.isfinite(value)
    for row in metrics.read(copied)
    for value in row.values()
  )


def rows_of(losses):
  return [
    {"loss": np.asarray(loss), "grad_norm": np.asarray(1.0)} for loss in losses
  ]


def test_first_bad_step_is_named():
  rows = rows_of([1.0, math.inf, math.nan])
  with pytest.raises(watch.NonFiniteLoss, match="loss is inf at step 5; none"):
    watch.refuse_non_finite([4, 5, 6], rows, "none", skipped=0, limit=0)
  assert watch.means(rows[:1] * 2) == {"loss": 1.0, "grad_norm": 1.0}


def test_skipped_steps_are_counted_up_to_their_limit():
  rows = [
    row | {"skipped": np.asarray(float(not math.isfinite(row["loss"])))}
    for row in rows_of([1.0, math.nan, 3.0, math.nan])
  ]
  check = lambda skipped, limit: watch.refuse_non_finite(
    [1, 2, 3, 4], rows, "none", skipped, limit
  )
  assert check(0, 2) == 2
  with pytest.raises(watch.NonFiniteLoss, match="at step 4 after 2 others"):
    check(1, 2)
  assert watch.means(rows) == ({"loss": 2.0, "grad_norm": 1.0, "skipped": 2.0})


@pytest.mark.parametrize(
  "loss, before, factor, spiked",
  [
    (3.1, [1.0] * 3, 3.0, True),
    (2.9, [1.0] * 3, 3.0, False),
    (99.0, [1.0] * 2, 3.0, False),  # too young to tell
    (99.0, [1.0] * 3, 0.0, False),
  ],
)
def test_spike_is_told_from_the_median_before(loss, before, factor, spiked):
  assert watch.has_spiked(loss, before, factor) is spiked


def watched(losses, history=None, **fields):
  """What a watch says of windows of one step each; None as loss is a skip."""
  said, chosen = [], dict(max_skipped=9, rollback_above=3.0) | fields
  seen = watch.Watch(
    0, types.SimpleNamespace(**chosen), str, lambda *_: None, history
  )
  for step, loss in enumerate(losses, 1):
    measured = {
      "loss": np.float32(np.nan if loss is None else loss),
      "skipped": np.float32(loss is None),
    }
    part = dispatch.Dispatch(range(step, step + 1), True)
    seen.window.append((part, measured, {}))
    said.append(seen.is_well(report=True))
  return said, seen.history


@pytest.mark.parametrize(
  "losses, well",
  [
    ([9.0] * 30 + [1.0] * 20 + [3.1], False),  # the old is forgotten
    ([9.0] * 11 + [1.0] * 9 + [3.1], True),
    ([1.0, None, 1.0, None, 1.0, 3.1], False),  # a step skipped is no loss
    ([1.0, None, 1.0, None, 3.1], True),
  ],
)
def test_windows_before_are_known_to_a_run_that_goes_on(losses, well):
  said, history = watched(losses)
  assert said == [True] * (len(losses) - 1) + [well]
  assert history["skipped"] == losses.count(None)
  for place in range(1, len(losses)):
    _, found = watched(losses[:place])
    found = json.loads(json.dumps(found))
    assert watched(losses[place:], found)[0][-1] is well
  _, found = watched(losses[:-1])
  with pytest.raises(watch.NonFiniteLoss, match="step 1 after 9 others"):
    watched([None], found | {"skipped": 9}, rollback_above=0.0)


def test_metrics_are_json_rows_and_tensorboard_events(straight):
  workdir = straight[1]
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
  names = {
    "step",
    "train/loss",
    "train/dsm",
    "train/regulariser",
    "train/param_norm",
    "train/w_linf",
    "train/grad_norm",
    "train/learning_rate",
    "train/passes",
  }
  speed = {
    "speed/images_per_second",
    "speed/step_seconds",
    "speed/data_wait",
    "speed/tflops_per_second",
  }
  assert [row["step"] for row in rows] == [3, 6, 9, 12]
  for row in rows:
    assert row.keys() - {"speed/checkpoint_seconds"} == names | speed
    assert 0 <= row["speed/data_wait"] < 1
    assert row["train/loss"] == pytest.approx(
      row["train/dsm"] + 0.3 * row["train/regulariser"], rel=1e-5
    )
    assert 0 < row["train/w_linf"] <= 1 + 8 / 255
    assert row["train/passes"] == 8 * row["step"]
  # What the last update of the window used: step 3 was update 2 of warm-up 3.
  assert rows[0]["train/learning_rate"] == pytest.approx(1e-2 * 2 / 3)
  assert rows[1]["train/learning_rate"] == pytest.approx(1e-2)
  (events,) = (workdir / "tensorboard").glob("events.out.tfevents.*")
  assert b"train/loss" in events.read_bytes()


def test_row_is_the_mean_of_its_window(straight, compiled):
  """Row 3 against three steps taken by hand."""
  step, initial, _ = compiled
  state, losses = initial(), []
  for batch in loop.training_batches(
    runs.build(tiny_config(train__num_steps=3)),
    runs.build(tiny_config()).open_training_set(),
    0,
    slice(None),
  ):
    state, measured = step(state, batch)
    losses.append(measured["loss"])
  row = metrics.read(straight[1])[0]
  assert row["train/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_writer_drops_what_lies_ahead_and_torn(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 2, "a": 1.0}\n{"step": 4, "a": 2.0}\n{"step": 6, "a"'
  )
  assert metrics.read(tmp_path) == [
    {"step": 2, "a": 1.0},
    {"step": 4, "a": 2.0},
  ]
  with metrics.writer(tmp_path, 2) as write:
    write(4, {"a": 3.0})
  assert metrics.read(tmp_path) == [
    {"step": 2, "a": 1.0},
    {"step": 4, "a": 3.0},
  ]


def test_no_metrics_yet(tmp_path):
  assert metrics.read(tmp_path) == []


@pytest.mark.parametrize(
  "field, value, differs",
  [
    ("seed", 1, "seed: 0 -> 1"),
    ("model__mlp", {"width": 16, "depth": 1}, "model.mlp.width: 8 -> 16"),
    ("data__num_examples", 41, "data.num_examples: 40 -> 41"),
    ("objective__name", "ddpm", "objective.name: robust_adv -> ddpm"),
    ("train__batch_size", 16, "train.batch_size: 8 -> 16"),
  ],
)
def test_another_run_is_refused(straight, field, value, differs):
  workdir = straight[1]
  before = (workdir / "config.json").read_bytes()
  with pytest.raises(configs.ConfigError) as error:
    loop.train(built.run(tiny_config(**{field: value})), workdir)
  assert f"({differs})" in str(error.value)
  assert str(workdir) in str(error.value)
  assert (workdir / "config.json").read_bytes() == before


def test_all_differing_fields_are_named(straight):
  with pytest.raises(configs.ConfigError) as error:
    folders.refuse_conflicts(
      straight[1], runs.build(tiny_config(seed=1, objective__lam=0.0))
    )
  assert "objective.lam: 0.3 -> 0.0; seed: 0 -> 1" in str(error.value)


def test_a_run_without_checkpoints_may_become_another(copied):
  shutil.rmtree(copied / "checkpoints")
  config = tiny_config(seed=1, train__num_steps=2)
  assert int(loop.train(built.run(config), copied).step) == 2
  assert json.loads((copied / "config.json").read_text())["seed"] == 1


def test_the_rest_may_change(copied):
  config = tiny_config(
    train__num_steps=30,
    optimizer__learning_rate=0.5,
    data__data_dir="/elsewhere",
    data__loading="stream",
    sampling__num_steps=7,
  )
  folders.refuse_conflicts(copied, runs.build(config))
  folders.claim(copied, runs.build(config))
  saved = json.loads((copied / "config.json").read_text())
  assert saved["train"]["num_steps"] == 30
  assert saved["data"]["loading"] == "stream"


# ---- Runs of every method: their cost, their rows, and their resumption ----

# Of each: the fields, the network passes done by steps 2, 4, 6 and 8, and at
# which of these the row has a regulariser.
METHODS = {
  # On from step round(0.2 * 8) = 2, counted from 0, so at 2 and 5, where a
  # quarter of the batch costs 8 passes and the rest 3.
  "every_steps, batch_fraction, flow": (
    dict(
      regulariser__every_steps=3,
      regulariser__start=0.2,
      regulariser__batch_fraction=0.25,
      diffusion__process="flow",
      diffusion__prediction="velocity",
    ),
    [6, 13.25, 20.5, 26.5],
    [4, 6],
  ),
  "free_replays, edm": (
    dict(
      regulariser__free_replays=3,
      diffusion__process="edm",
      diffusion__prediction="edm",
    ),
    [36, 72, 108, 144],
    [2, 4, 6, 8],
  ),
}


@pytest.fixture(scope="module", params=METHODS)
def eight_steps(request, tmp_path_factory):
  """Eight steps of a method in one go."""
  fields, passes, regularised = METHODS[request.param]
  config = tiny_config(
    train__num_steps=8,
    train__log_every_steps=2,
    checkpoint__keep_every_steps=0,
    **fields,
  )
  workdir = tmp_path_factory.mktemp("eight_steps")
  return (
    config,
    loop.train(built.run(config), workdir),
    workdir,
    passes,
    regularised,
  )


class Died(Exception):
  pass


def dying_after(step):
  """loop.training_batches of a machine that dies after this step."""
  real = loop.training_batches

  def batches(config, training_set, first_step, rows):
    yield from itertools.islice(
      real(config, training_set, first_step, rows), step - first_step
    )
    raise Died

  return batches


def test_died_run_equals_the_straight_one_to_the_bit(
  eight_steps, tmp_path, monkeypatch
):
  config, state, workdir, *_ = eight_steps
  with monkeypatch.context() as patch:
    patch.setattr(loop, "training_batches", dying_after(5))
    with pytest.raises(Died):
      loop.train(built.run(config), tmp_path)
  assert kept_steps(tmp_path) == [2, 4]
  assert_same_to_the_bit(loop.train(built.run(config), tmp_path), state)
  assert faulty.values_of(tmp_path) == faulty.values_of(workdir)


def test_rows_hold_the_passes_so_far(eight_steps):
  _, _, workdir, expected, _ = eight_steps
  rows = metrics.read(workdir)
  assert [row["step"] for row in rows] == [2, 4, 6, 8]
  assert [row["train/passes"] for row in rows] == expected


def test_regulariser_is_in_the_rows_of_its_steps(eight_steps):
  _, state, workdir, _, regularised = eight_steps
  rows = metrics.read(workdir)
  for name in ("train/regulariser", "train/w_linf"):
    assert [row["step"] for row in rows if name in row] == regularised
  for row in rows:
    assert {"train/loss", "train/dsm"} <= row.keys()
    assert all(math.isfinite(value) for value in row.values())
  for leaf in jax.tree.leaves((state.params, state.ema_params)):
    assert np.all(np.isfinite(leaf))


MONITORED = {"goal_attack", "goal_pgd", "pgd_gain", "regulariser_pgd"}


def test_monitor_watches_and_changes_nothing(straight, tmp_path):
  state, workdir = straight
  watched = loop.train(
    runs.build(tiny_config(attack__monitor_every_steps=4)), tmp_path
  )
  assert_same_to_the_bit(watched, state)
  rows = metrics.read(tmp_path)
  names = {f"train/{name}" for name in MONITORED}
  assert [row["step"] for row in rows if names <= row.keys()] == [6, 9, 12]
  assert not names & rows[0].keys()
  for row in rows[1:]:  # one look in each window: 4, 8 and 12
    assert 0 < row["train/pgd_gain"] < math.inf
    assert row["train/pgd_gain"] == pytest.approx(
      row["train/goal_pgd"] / row["train/goal_attack"], rel=1e-5
    )
  for row, expected in zip(rows, faulty.values_of(workdir), strict=True):
    for name in expected:
      assert row[name] == expected[name], name


# ---- Fine-tuning ----


def started(config, workdir):
  """The state that a new run in workdir would start from."""
  with checkpoints.open_manager(workdir) as manager:
    return loop.resume_or_start(
      built.run(config), manager, loop.sharding.device_mesh()
    )


@pytest.mark.parametrize("ema", [True, False])
def test_fine_tuning_starts_from_what_the_source_samples_with(
  straight, copied, tmp_path, ema
):
  path = copied / "config.json"
  saved = json.loads(path.read_text())
  saved["sampling"]["ema"] = ema
  path.write_text(json.dumps(saved))
  # Our own sampling.ema says nothing about the source.
  config = tiny_config(
    train__init_from=str(copied),
    seed=1,
    objective__name="robust_ran",
    sampling__ema=not ema,
  )
  state = started(config, tmp_path / "new")
  new = jax.jit(built.run(config).initial_state)()
  source = straight[0]
  assert np.any(
    source.params["output"]["kernel"] != source.ema_params["output"]["kernel"]
  )
  params = source.ema_params if ema else source.params
  assert_same_to_the_bit(state.params, params)
  assert_same_to_the_bit(state.ema_params, params)
  assert int(state.step) == 0
  assert_same_to_the_bit(state.opt_state, new.opt_state)
  assert_same_to_the_bit(state.key, new.key)


def test_fine_tuned_run_resumes_without_its_source(
  copied, tmp_path, monkeypatch, caplog
):
  caplog.set_level("INFO", logger="rad_jax")
  config = tiny_config(train__init_from=str(copied), train__num_steps=4)
  with monkeypatch.context() as patch:
    patch.setattr(loop, "training_batches", dying_after(2))
    with pytest.raises(Died):
      loop.train(built.run(config), tmp_path / "new")
  assert kept_steps(copied) == [6, 10, 12]  # the source is left as it was
  shutil.rmtree(copied)
  state = loop.train(built.run(config), tmp_path / "new")
  assert int(state.step) == 4
  # Two steps more, and not from the start again.
  assert re.findall(r"step (\d) of 4", caplog.text) == ["0", "2"]


def test_source_of_fine_tuning_is_missing(tmp_path):
  source = tmp_path / "nowhere"
  config = tiny_config(train__init_from=str(source))
  with pytest.raises(checkpoints.CheckpointError) as error:
    loop.train(built.run(config), tmp_path / "new")
  assert f"train.init_from={str(source)!r}" in str(error.value)
  assert "\n" not in str(error.value)
  assert not source.exists()


def test_source_of_fine_tuning_has_no_checkpoint(copied, tmp_path):
  shutil.rmtree(copied / "checkpoints")
  config = tiny_config(train__init_from=str(copied))
  with pytest.raises(checkpoints.CheckpointError) as error:
    loop.train(built.run(config), tmp_path / "new")
  assert str(copied) in str(error.value)


@pytest.mark.parametrize(
  "field, value, differs",
  [
    ("model__mlp", {"width": 16, "depth": 1}, "model.mlp.width: 8 -> 16"),
    ("diffusion__prediction", "v", "diffusion.prediction: eps -> v"),
    ("diffusion__num_timesteps", 60, "diffusion.num_timesteps: 50 -> 60"),
  ],
)
def test_source_of_fine_tuning_is_another_model(
  straight, field, value, differs
):
  source = straight[1]
  config = tiny_config(
    train__init_from=str(source), seed=1, objective__lam=1.0, **{field: value}
  )
  with pytest.raises(configs.ConfigError) as error:
    mesh = loop.sharding.device_mesh()
    folders.start_from(source, straight[0], runs.build(config), mesh)
  assert f"train.init_from={str(source)!r}" in str(error.value)
  assert f"({differs})" in str(error.value)
  assert "\n" not in str(error.value)
