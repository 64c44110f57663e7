"""Runs trained together against each of them by itself."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax import checks
from rad_jax import config as configs
from rad_jax import run as built
from rad_jax.training import loop, together

ROOT = pathlib.Path(__file__).parent.parent


def plane(**fields):
  """The oblique plane's smoke config; "a.b" written as a__b."""
  path = ROOT / "configs" / "oblique_plane.py"
  spec = importlib.util.spec_from_file_location("oblique_plane", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config("smoke")
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  checks.validate(config)
  return built.build(config)


def train(runs, workdir):
  return together.train(runs, together.training_sets(runs), workdir)


def leaves(state):
  """All arrays of a state but its key."""
  return jax.tree.leaves(state._replace(key=()))


def assert_close(states, place, alone):
  for x, y in zip(leaves(states), leaves(alone), strict=True):
    x = x[place]
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "runs",
  [
    [
      {"seed": 1, "objective__lam": 1.0},
      {"objective__lam": 5.0, "data__corruption__kind": "outlier"},
    ],
    [
      {"objective__name": "noise_aware", "data__corruption__sigma": 0.5},
      {"objective__name": "noise_aware", "data__corruption__fraction": 0.5},
    ],
  ],
  ids=["seed, lambda and kind", "known sigma"],
)
def test_each_run_is_what_it_is_alone(tmp_path, runs):
  runs = [plane(**fields) for fields in runs]
  states = train(runs, tmp_path / "together")
  for place, run in enumerate(runs):
    alone = loop.train(run, tmp_path / str(place))
    assert_close(states, place, alone)


def test_interrupted_runs_end_in_the_same_bits(tmp_path, monkeypatch):
  runs = [plane(objective__name="ddpm", seed=seed) for seed in (0, 1)]
  straight = train(runs, tmp_path / "straight")
  indices = together.indices

  def dies(runs, first, end, num_examples):
    if first:
      raise KeyboardInterrupt
    return indices(runs, first, end, num_examples)

  with monkeypatch.context() as patch:
    patch.setattr(together, "indices", dies)
    with pytest.raises(KeyboardInterrupt):
      train(runs, tmp_path / "died")
  seen = []
  monkeypatch.setattr(
    together,
    "indices",
    lambda runs, first, *rest: (
      seen.append(first) or indices(runs, first, *rest)
    ),
  )
  resumed = train(runs, tmp_path / "died")
  assert seen == [runs[0].checkpoint.every_steps]
  for x, y in zip(leaves(straight), leaves(resumed), strict=True):
    np.testing.assert_array_equal(x, y)


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path):
  fields = {"optimizer__max_grad_norm": 0.0}
  sane = plane(**fields)
  mad = sane._replace(objective=sane.objective._replace(lam=float("inf")))
  states = train([sane, mad], tmp_path / "with")
  alone = train([sane], tmp_path / "without")
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
  runs = [plane(data__corruption__fraction=p) for p in (0.0, 1.0)]
  sets = together.training_sets(runs)
  x_0, sigma_c = together.examples(runs, sets)
  clean = sets[0].fetch(np.arange(sets[0].num_examples))
  np.testing.assert_array_equal(x_0[0], clean)
  index = np.arange(sets[1].num_examples, dtype=np.int32)
  clean = jnp.asarray(sets[1].fetch(index))
  dirty = runs[1].corrupt(jnp.asarray(index), clean)
  np.testing.assert_allclose(x_0[1], dirty, atol=1e-6)
  np.testing.assert_allclose(sigma_c, [[0] * 512, [0.2] * 512])
