"""--mode=show_config: every field, its words and where its value is from."""

import shlex

import pytest

from rad_jax import config as configs
from rad_jax import fields

LEAVES = configs.flatten(configs.default().to_dict())


def shown(config, source="x.py", overridden=()):
  """Path -> (value as given on a command line, origin)."""
  found = {}
  for line in fields.show(config, source, overridden).splitlines():
    if line.startswith("--config."):
      given, _, origin = line.rpartition("  (")
      (flag,) = shlex.split(given)
      path, _, value = flag.removeprefix("--config.").partition("=")
      found[path] = value, origin.removesuffix(")")
  return found


@pytest.mark.parametrize("path", LEAVES)
def test_every_field_is_explained(path):
  assert fields.docs()[path]


def test_words_are_those_beside_the_field():
  said = fields.docs()
  assert said["data.corruption.fraction"] == (
    "Share p of dirty training examples, in [0, 1]."
  )
  assert said["optimizer.b2"] == "of its square"
  assert said["sweep"].startswith("--mode=sweep: a tuple of values")
  assert said["model.dtype"] == (
    "Compute type; parameters and statistics stay float32."
    ' or "bfloat16"; "float16" with a loss scale'
  )


def test_order_is_that_of_the_config():
  assert list(fields.docs())[:4] == ["seed", "data", "data.name", "data.path"]
  assert list(shown(configs.default())) == [
    path for path in fields.docs() if path in LEAVES
  ]


def test_origin_of_a_value():
  config = configs.default()
  config.train.num_steps = 7  # by the file
  config.seed = 3  # by the command line
  config.objective.lam = configs.default().objective.lam  # and that in vain
  found = shown(config, "x.py", ["seed", "objective.lam"])
  assert found["train.num_steps"] == ("7", "x.py")
  assert found["seed"] == ("3", "command line")
  assert found["objective.lam"] == ("0.3", "command line")
  assert found["train.batch_size"] == ("128", "default")
  assert found["train.init_from"] == ("", "default")
  assert found["model.unet.channel_multipliers"][0] == "(1, 2, 2, 2)"
