"""The loss scale of float16: what it saves, how it is found, who stops it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rad_jax import config as configs
from rad_jax import validation
from rad_jax.diffusion import parametrisation, schedules
from rad_jax.robustness import objectives
from rad_jax.training import (
  health,
  loop,
  loss_scale,
  metrics,
  state,
)
from rad_jax.training import step as steps

BATCH = {"x_0": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)}
PARAMS = jnp.array([0.5, -0.25, 1.5])


def trained(optimizer, dtype="float32", weight=1.0, count=1, **options):
  """The state after some steps, and the metrics of each.

  The network multiplies; the loss is `weight` times as large as it should be.
  """

  def predict(params, x_t, t):
    return (params[None].astype(dtype) * x_t.astype(dtype)).astype(jnp.float32)

  method = steps.Method(
    objectives.OBJECTIVES["robust_adv"],
    steps.as_predictor(predict),
    schedules.flow(),
    weight=lambda level: weight * parametrisation.eps_weight(level),
  )
  step = jax.jit(steps.make_train_step(method, optimizer, 0.5, **options))
  now, rows = state.state_of(PARAMS, optimizer, jax.random.key(0)), []
  for _ in range(count):
    now, row = step(now, BATCH)
    rows.append(jax.device_get(row))
  return now, rows


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_scale_rounds_nothing(micro_batches):
  plain, scaled = (
    trained(
      optimizer, micro_batches=micro_batches, count=3, skip_non_finite=True
    )
    for optimizer in (
      optax.adam(0.1),
      loss_scale.with_loss_scale(optax.adam(0.1)),
    )
  )
  np.testing.assert_array_equal(plain[0].params, scaled[0].params)
  np.testing.assert_array_equal(plain[0].ema_params, scaled[0].ema_params)
  for before, after in zip(plain[1], scaled[1], strict=True):
    assert after.pop("loss_scale") == 2.0**15
    assert before == after


def test_small_gradients_are_saved():
  """Of a loss that small, float16 keeps no gradient without the scale."""
  of = lambda optimizer, dtype: np.asarray(
    trained(optimizer, dtype, weight=1e-8)[0].params - PARAMS
  )
  sgd = optax.sgd(1e7)
  expected = of(sgd, "float32")
  assert np.all(np.abs(expected) > 1e-3)
  assert not np.any(of(sgd, "float16"))
  found = of(loss_scale.with_loss_scale(sgd, 2.0**20), "float16")
  np.testing.assert_allclose(found, expected, rtol=0.03)


def test_scale_falls_at_each_overflow_and_rises_after_a_time_without():
  patience = 2
  optimizer = loss_scale.with_loss_scale(optax.sgd(0.1), 2.0**20, patience)
  after, rows = trained(optimizer, "float16", count=20)
  expected, good, rises = 2.0**20, 0, 0
  for row in rows:
    assert row["loss_scale"] == expected
    assert row["skipped"] == (not np.isfinite(row["grad_norm"]))
    good = 0 if row["skipped"] else good + 1
    if row["skipped"]:
      expected /= 2
    elif good == patience:
      expected, good, rises = 2 * expected, 0, rises + 1
  assert rises > 0
  assert rows[0]["skipped"] == 1
  assert np.all(np.isfinite(after.params))


def test_overflow_changes_no_parameters():
  optimizer = loss_scale.with_loss_scale(optax.adam(0.1), 2.0**20)
  after, (row,) = trained(optimizer, "float16")
  assert row["skipped"] == 1
  assert np.isfinite(row["loss"])
  np.testing.assert_array_equal(after.params, PARAMS)
  np.testing.assert_array_equal(after.ema_params, PARAMS)
  assert after.opt_state.scale == 2.0**19
  for left in jax.tree.leaves(after.opt_state.inner):
    assert not np.any(left)


def test_scale_is_never_below_1():
  assert loss_scale.of(loss_scale.lowered(loss_scale.Scaled(1.0, 3, ()))) == 1
  assert loss_scale.of(optax.EmptyState()) == 1
  assert loss_scale.lowered(optax.EmptyState()) == optax.EmptyState()


def refused(**row: float) -> int:
  rows = [
    {name: np.asarray(value) for name, value in row.items()}
    | {"skipped": np.asarray(1.0)}
  ]
  return health.refuse_non_finite([7], rows, "kept", skipped=0, limit=0)


def test_overflow_is_no_fault_until_the_scale_is_1():
  assert refused(loss=1, grad_norm=np.inf, loss_scale=2) == 0
  with pytest.raises(health.NonFiniteLoss, match="grad_norm is inf at step 7"):
    refused(loss=1, grad_norm=np.inf, loss_scale=1)


def test_loss_that_is_not_finite_is_a_fault_at_any_scale():
  with pytest.raises(health.NonFiniteLoss, match="loss is nan"):
    refused(loss=np.nan, loss_scale=1024)


def config_of(name: str):
  config = configs.default()
  config.data.update(name="oblique_plane", num_examples=40)
  config.diffusion.num_timesteps = config.sampling.num_steps = 50
  config.objective.name = "robust_adv"
  config.model.update(name=name, dtype="float16")
  config.model.mlp.update(width=8, depth=1)
  config.train.update(num_steps=6, batch_size=8, log_every_steps=3)
  validation.validate(config)
  return config


def test_run_in_float16(tmp_path):
  after = loop.train(config_of("mlp"), tmp_path)
  rows = metrics.read(tmp_path)
  assert [row["train/loss_scale"] for row in rows] == [2.0**15] * 2
  assert all(np.isfinite(value) for row in rows for value in row.values())
  assert [row["train/skipped"] for row in rows] == [0, 0]
  assert {x.dtype for x in jax.tree.leaves(after.params)} == {
    jnp.dtype("float32")
  }
  # And resumed, with its scale.
  config = config_of("mlp")
  config.train.num_steps = 9
  assert int(loop.train(config, tmp_path).opt_state.good_steps) == 9
