"""The step, the optimiser, and whole runs: resumed, damaged, diverged."""

import json
import math
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rad_jax import config as configs
from rad_jax.diffusion import schedules
from rad_jax.models.network import Network
from rad_jax.robustness import objectives, radius
from rad_jax.training import (
  build,
  checkpoints,
  loop,
  metrics,
  optimizers,
)
from rad_jax.training import step as steps
from rad_jax.training.state import State, initial_state

EMA_DECAY = 0.6
SCHEDULE = schedules.make("linear", 50)


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
  configs.validate(config)
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
def jitted():
  """The tiny run's step, which may be traced once, and its first batch."""
  config = tiny_config()
  step = build.train_step(config)
  chex.clear_trace_counter()

  @chex.assert_max_traces(n=1)
  def counted_step(state, batch):
    return step(state, batch)

  (batch,) = build.training_batches(
    tiny_config(train__num_steps=1),
    build.training_set(tiny_config()),
    0,
    slice(None),
  )
  initial = jax.jit(lambda: build.state(config))
  return jax.jit(counted_step, donate_argnums=0), initial, batch


def test_step_is_traced_once(jitted):
  step, initial, batch = jitted
  state = initial()
  for done in range(1, 4):
    state, _ = step(state, batch)
    assert int(state.step) == done


def test_loop_donates_the_state(jitted):
  _, initial, batch = jitted
  before, mesh = initial(), loop.sharding.data_mesh()
  batch = loop.sharding.place(batch, mesh)
  step = loop.compile_step(tiny_config(), before, batch, mesh)
  after, _ = step(before, batch)
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(after), strict=True
  ):
    assert old.is_deleted()
    assert not new.is_deleted()


def test_loss_falls_on_one_batch(jitted):
  step, initial, batch = jitted
  state, losses = initial(), []
  for _ in range(200):
    state, measured = step(state, batch)
    losses.append(float(measured["loss"]))
  assert losses[0] == pytest.approx(1, abs=0.5)  # the network starts at zero
  assert np.mean(losses[-50:]) < 0.75 * np.mean(losses[:20])


def test_key_and_structure_do_not_change(jitted):
  step, initial, batch = jitted
  state, _ = step(initial(), batch)
  before = initial()
  np.testing.assert_array_equal(
    jax.random.key_data(state.key), jax.random.key_data(before.key)
  )
  assert [x.dtype for x in jax.tree.leaves(state)] == (
    [x.dtype for x in jax.tree.leaves(before)]
  )


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


def linear_step(objective, optimizer, lam=0.3):
  loss, perturbation = objectives.OBJECTIVES[objective]
  return steps.make_train_step(
    LINEAR,
    SCHEDULE,
    loss,
    steps.Regulariser(
      perturbation=perturbation,
      radius=lambda sigma_t: radius.seed(
        sigma_t, SCHEDULE.sigma_max, beta=0.1, omega=2.0
      ),
      lambda_t=lambda r: radius.constant_lambda(lam, r),
    ),
    optimizer,
    EMA_DECAY,
  )


@pytest.fixture(scope="module")
def ddpm_step():
  return jax.jit(linear_step("ddpm", optax.sgd(0.1)))


def linear_state(optimizer, step=0):
  state = initial_state(
    LINEAR, optimizer, (3,), jax.random.key(1), jax.random.key(2)
  )
  return state._replace(step=jnp.asarray(step, jnp.int32))


def points(n=8):
  x_0 = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
  return {"x_0": x_0, "index": np.arange(n, dtype=np.int32)}


def test_ddpm_step_is_plain_ddpm(ddpm_step):
  """Against DDPM's Algorithm 1 in NumPy, with the gradient by hand."""
  n, batch, rate = 8, points(), 0.1
  state = linear_state(optax.sgd(rate), step=7)
  after, measured = ddpm_step(state, batch)

  loss_key = jax.random.split(jax.random.fold_in(state.key, 7))[1]
  t_key, eps_key, *_ = jax.random.split(loss_key, 4)
  t = np.array(
    [
      jax.random.randint(jax.random.fold_in(t_key, i), (), 0, 50)
      for i in range(n)
    ]
  )
  eps = np.array(
    [jax.random.normal(jax.random.fold_in(eps_key, i), (3,)) for i in range(n)]
  )
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
  assert measured["w_linf"] == 0
  assert measured["grad_norm"] == pytest.approx(
    np.sqrt(np.sum(grad_a**2) + grad_c**2), rel=1e-5
  )
  np.testing.assert_allclose(
    after.params["A"], state.params["A"] - rate * grad_a, rtol=0, atol=1e-6
  )
  np.testing.assert_allclose(after.params["c"], -rate * grad_c, rtol=1e-5)


def test_lambda_zero_is_ddpm(ddpm_step):
  sgd = optax.sgd(0.1)
  ddpm, _ = ddpm_step(linear_state(sgd), points())
  robust, measured = jax.jit(linear_step("robust_adv", sgd, lam=0.0))(
    linear_state(sgd), points()
  )
  assert measured["w_linf"] > 0
  chex.assert_trees_all_close(robust.params, ddpm.params, rtol=0, atol=1e-7)


def test_draws_come_from_step_and_place_alone():
  """An example's t, eps and w do not depend on the batch it stands in."""
  gradients = steps.make_gradients(
    LINEAR,
    SCHEDULE,
    objectives.equivariance,
    steps.Regulariser(
      "uniform", radius=lambda s: s, lambda_t=lambda r: jnp.ones_like(r)
    ),
  )
  params = linear_state(optax.sgd(0.1)).params
  key = jax.random.key(5)
  draw = jax.jit(lambda x_0, key: gradients(params, x_0, key)[1][2])
  whole = draw(points(8)["x_0"], jax.random.clone(key))
  np.testing.assert_array_equal(whole[:4], draw(points(8)["x_0"][:4], key))
  assert np.all(whole != draw(points(8)["x_0"], jax.random.key(6)))
  assert len(np.unique(whole)) == whole.size


def test_each_step_draws_anew(ddpm_step):
  first, _ = ddpm_step(linear_state(optax.sgd(0.1)), points())
  state = linear_state(optax.sgd(0.1), step=1)
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
  state = linear_state(optax.sgd(0.1), step=done)
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


# ---- Whole runs ----


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """12 steps in one go: the state and the folder. Tests copy the folder."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  return loop.train(tiny_config(), workdir), workdir


@pytest.fixture
def copied(straight, tmp_path):
  return shutil.copytree(straight[1], tmp_path / "run")


def kept_steps(workdir):
  with checkpoints.open_manager(workdir, keep=100) as manager:
    return sorted(manager.all_steps())


def saved_state(workdir):
  config = tiny_config()
  with checkpoints.open_manager(workdir, keep=100) as manager:
    like = jax.eval_shape(lambda: build.state(config))
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
  loop.train(first, tmp_path)
  assert kept_steps(tmp_path) == [4, 6]  # the last step is saved off the beat
  # As if a longer run had died after its last checkpoint, inside a line.
  with (tmp_path / "metrics.jsonl").open("a") as lines:
    lines.write('{"step": 7, "train/loss": 9.9}\n{"step": 9, "train/lo')
  resumed = loop.train(tiny_config(), tmp_path)

  assert int(resumed.step) == 12
  assert_same_to_the_bit(resumed, state)
  assert_same_to_the_bit(saved_state(tmp_path), state)
  rows, expected = metrics.read(tmp_path), metrics.read(workdir)
  for row in [*rows, *expected]:
    del row["train/images_per_second"]
  assert rows == expected
  assert [row["step"] for row in rows] == [3, 6, 9, 12]


def test_finished_run_is_returned_as_it_is(straight, copied):
  before = (copied / "metrics.jsonl").read_bytes()
  assert_same_to_the_bit(loop.train(tiny_config(), copied), straight[0])
  assert (copied / "metrics.jsonl").read_bytes() == before


def test_newest_and_every_mth_checkpoints_are_kept(straight):
  # Saved at 2, 4, .. 12: the newest two, and the multiples of 6.
  assert kept_steps(straight[1]) == [6, 10, 12]


def test_truncated_checkpoint_is_named(copied):
  newest = copied / "checkpoints" / "12"
  files = [path for path in newest.rglob("*") if path.is_file()]
  assert files
  for path in files:
    path.write_bytes(path.read_bytes()[:10])
  with pytest.raises(checkpoints.CheckpointError) as error:
    loop.train(tiny_config(train__num_steps=14), copied)
  assert f"checkpoint {newest} cannot be read" in str(error.value)
  assert "\n" not in str(error.value)
  # The advice in the message helps.
  newest.rename(copied / "moved_away")
  assert int(saved_state(copied).step) == 10


def test_no_checkpoint_to_restore(tmp_path):
  with checkpoints.open_manager(tmp_path) as manager:
    with pytest.raises(checkpoints.CheckpointError, match="train first"):
      checkpoints.restore(manager, {"x": jnp.zeros(())}, None)


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
  with pytest.raises(loop.NonFiniteLoss) as error:
    loop.train(wild, copied)
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


def test_first_bad_step_is_named():
  window = [
    (step, {"loss": jnp.asarray(loss), "grad_norm": jnp.asarray(1.0)})
    for step, loss in [(4, 1.0), (5, math.inf), (6, math.nan)]
  ]
  with pytest.raises(loop.NonFiniteLoss, match="loss is inf at step 5; no ch"):
    loop.check_finite(window, 0, pathlib.Path("checkpoints"))
  assert loop.mean_of(window[:1] * 2, 0, pathlib.Path("checkpoints")) == (
    {"loss": 1.0, "grad_norm": 1.0}
  )


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
    "train/images_per_second",
  }
  assert [row["step"] for row in rows] == [3, 6, 9, 12]
  for row in rows:
    assert row.keys() == names
    assert row["train/loss"] == pytest.approx(
      row["train/dsm"] + 0.3 * row["train/regulariser"], rel=1e-5
    )
    assert 0 < row["train/w_linf"] <= 1 + 8 / 255
  # What the last update of the window used: step 3 was update 2 of warm-up 3.
  assert rows[0]["train/learning_rate"] == pytest.approx(1e-2 * 2 / 3)
  assert rows[1]["train/learning_rate"] == pytest.approx(1e-2)
  (events,) = (workdir / "tensorboard").glob("events.out.tfevents.*")
  assert b"train/loss" in events.read_bytes()


def test_row_is_the_mean_of_its_window(straight, jitted):
  """Row 3 against three steps taken by hand."""
  step, initial, _ = jitted
  state, losses = initial(), []
  for batch in build.training_batches(
    tiny_config(train__num_steps=3),
    build.training_set(tiny_config()),
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
    loop.train(tiny_config(**{field: value}), workdir)
  assert f"({differs})" in str(error.value)
  assert str(workdir) in str(error.value)
  assert (workdir / "config.json").read_bytes() == before


def test_all_differing_fields_are_named(straight):
  with pytest.raises(configs.ConfigError) as error:
    loop.claim(
      straight[1], tiny_config(seed=1, objective__lam=0.0), resuming=True
    )
  assert "objective.lam: 0.3 -> 0.0; seed: 0 -> 1" in str(error.value)


def test_a_run_without_checkpoints_may_become_another(copied):
  loop.claim(copied, tiny_config(seed=1), resuming=False)
  assert json.loads((copied / "config.json").read_text())["seed"] == 1


def test_the_rest_may_change(copied):
  config = tiny_config(
    train__num_steps=30,
    optimizer__learning_rate=0.5,
    data__data_dir="/elsewhere",
    data__loading="stream",
    sampling__num_steps=7,
  )
  loop.claim(copied, config, resuming=True)
  saved = json.loads((copied / "config.json").read_text())
  assert saved["train"]["num_steps"] == 30
  assert saved["data"]["loading"] == "stream"
