"""Runs trained together against each of them by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rad_jax import config as configs
from rad_jax import run as built
from rad_jax.training import loop, together


def plane(**fields):
  """A run of twenty steps on the oblique plane."""
  small = dict(train__num_steps=20, checkpoint__every_steps=10)
  return built.build(tiny.plane(**small | fields))


def train(runs, workdir):
  return together.train(runs, together.training_sets(runs), workdir)


def leaves(state):
  """All arrays of a state but its key."""
  return jax.tree.leaves(state._replace(key=()))


def assert_close(states, place, alone):
  for x, y in zip(leaves(states), leaves(alone), strict=True):
    x = x[place]
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Two runs that differ in their seed, lambda and noise; and their states."""
  own = {"seed": 1, "objective__lam": 1.0, "data__corruption__sigma": 0.5}
  other = {"objective__lam": 5.0, "data__corruption__fraction": 0.5}
  runs = [
    plane(objective__name="noise_aware_adv", **fields)
    for fields in (own, other)
  ]
  return runs, train(runs, tmp_path_factory.mktemp("together"))


def test_each_run_is_what_it_is_alone(trained, tmp_path):
  runs, states = trained
  for place, run in enumerate(runs):
    alone = loop.train(run, tmp_path / str(place))
    assert_close(states, place, alone)


def test_interrupted_runs_end_in_the_same_bits(trained, tmp_path, monkeypatch):
  runs, straight = trained
  indices = together.indices

  def dies(runs, first, end, num_examples):
    if first:
      raise KeyboardInterrupt
    return indices(runs, first, end, num_examples)

  with monkeypatch.context() as patch:
    patch.setattr(together, "indices", dies)
    with pytest.raises(KeyboardInterrupt):
      train(runs, tmp_path)
  seen = []
  monkeypatch.setattr(
    together,
    "indices",
    lambda runs, first, *rest: (
      seen.append(first) or indices(runs, first, *rest)
    ),
  )
  resumed = train(runs, tmp_path)
  assert seen == [runs[0].checkpoint.every_steps]
  for x, y in zip(leaves(straight), leaves(resumed), strict=True):
    np.testing.assert_array_equal(x, y)


def test_a_run_that_diverges_leaves_the_others_alone(trained, tmp_path):
  (sane, other), alone = trained
  mad = other._replace(objective=other.objective._replace(lam=float("inf")))
  states = train([sane, mad], tmp_path)
  finite = [bool(np.isfinite(x).all()) for x in jax.tree.leaves(states.params)]
  assert not all(finite)
  for x, y in zip(leaves(states), leaves(alone), strict=True):
    np.testing.assert_allclose(x[0], y[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "other, named",
  [
    ({"train__batch_size": 8}, "train.batch_size"),
    ({"objective__name": "ddpm"}, "objective.name"),
    ({"objective__lambda_t": "inverse_std"}, "objective.lambda_t"),
  ],
)
def test_other_programs_are_refused(other, named):
  with pytest.raises(configs.ConfigError, match=named):
    together.refuse([plane(), plane(**other)])


@pytest.mark.parametrize(
  "fields, named",
  [
    ({"regulariser__every_steps": 2}, "regulariser"),
    ({"regulariser__start": 0.5}, "regulariser"),
    ({"train__init_from": "elsewhere"}, "train.init_from"),
    ({"data__loading": "stream"}, "data.loading"),
    ({"data__name": "digits", "data__image_size": 8}, "data.flip"),
  ],
)
def test_what_cannot_be_trained_together_is_refused(fields, named):
  with pytest.raises(configs.ConfigError, match=named):
    together.refuse([plane(**fields)])


def test_programs_differ_in_numbers_alone():
  same = plane(seed=3, objective__lam=0.1, data__corruption__sigma=0.9)
  assert together.program(plane().config) == together.program(same.config)
  together.refuse([plane(), same])


def test_examples_are_corrupted_once_and_for_each_run():
  runs = [
    plane(data__corruption__fraction=p, data__corruption__kind=kind)
    for p, kind in ((0.0, "gaussian"), (1.0, "gaussian"), (0.5, "outlier"))
  ]
  sets = together.training_sets(runs)
  x_0, sigma_c = together.examples(runs, sets)
  index = np.arange(64, dtype=np.int32)
  clean = [one.fetch(index) for one in sets]
  np.testing.assert_array_equal(x_0[0], clean[0])
  for place in (1, 2):
    corrupt = jax.jit(runs[place].corrupt)
    dirty = corrupt(jnp.asarray(index), jnp.asarray(clean[place]))
    np.testing.assert_allclose(x_0[place], dirty, atol=1e-6)
  share = np.mean(np.any(x_0[2] != clean[2], axis=1))
  assert 0.2 < share < 0.8
  np.testing.assert_allclose(sigma_c[:2], [[0] * 64, [0.2] * 64])
