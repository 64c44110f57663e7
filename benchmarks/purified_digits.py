"""python -m benchmarks.purified_digits [--workdir=DIR] [--smoke]

Purification in front of a small digits classifier, clean and attacked.

DDPM and Robust_adv are trained on one half of scikit-learn's digits, noised, a
small classifier on the same half, clean. The share of the other half that is
classified rightly is measured on the images as they are (clean), after linf
PGD on the classifier alone (attacked), and after linf PGD through purification
and classifier, with the gradient's mean over draws of the noise (adaptive).

The digits are taken as they are (no linear_rank): a projection on principal
components would itself remove most of a perturbation, whatever the model.
"""

import argparse
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from benchmarks import settings
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.evaluation import sampling
from rad_jax.experiments import schemes
from rad_jax.experiments.table import Entry, Row
from rad_jax.robustness import attacks, purification

NUM_TRAIN = 898  # the first half: the writers of the other are others
RADIUS = 0.2  # of the linf ball, in [-1, 1] units
DRAWS = 8  # of the noise: in each step of the attack, and others to measure it

_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def run(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """Rows of method, way (back), clean, attacked and adaptive.

  Of config.purify come t_star, num_steps and num_examples, of
  config.evaluation attack_steps. The first row is without purification.
  """
  found = entries(config, workdir)
  schemes.run_all(config, found, workdir)
  train, (x, y) = halves()
  classify = classifier(*train)
  count = min(config.purify.num_examples, len(x))
  chosen = np.arange(count) * len(x) // count  # evenly over the writers
  x, y = x[chosen], y[chosen]
  num_steps, radius = config.evaluation.attack_steps, jnp.full(count, RADIUS)
  pgd = attacks.ATTACKS["pgd"]._replace(
    num_steps=num_steps, step_size=2.5 / num_steps
  )
  keys_of = lambda seed: jax.random.split(seed, count)
  draws = jax.random.split(jax.random.key(2), DRAWS)
  attack = jax.jit(purification.eot_attack, static_argnums=(0, 4, 5))
  rows: list[Row] = []
  x_adv = None
  for (method, way), purify in purifiers(found, workdir).items():

    def loss(x, keys, purify=purify):
      return _cross_entropy(classify(purify(x, keys)), y)

    @jax.jit
    def right(x, key, purify=purify):
      return jnp.argmax(classify(purify(x, keys_of(key))), axis=-1) == y

    adaptive = attack(loss, x, keys_of(jax.random.key(1)), radius, pgd, DRAWS)
    x_adv = adaptive if x_adv is None else x_adv
    sets = {"clean": x, "attacked": x_adv, "adaptive": adaptive}
    rows.append({"method": method, "way": way})
    for name, images in sets.items():
      rows[-1][name] = float(np.mean([right(images, key) for key in draws]))
  return rows


def entries(config: ConfigDict, workdir: pathlib.Path) -> list[Entry]:
  """The two trainings, on the first half."""
  config = config.copy_and_resolve_references()
  config.study.update(data=("digits",), seeds=1)
  half = {"data.split": f"train[:{NUM_TRAIN}]", "data.linear_rank": 0}
  changes = {
    f"{name}, half": half | {"objective.name": name}
    for name in ("ddpm", "robust_adv")
  }
  return schemes.entries(config, changes, workdir)


def halves() -> list[tuple[np.ndarray, np.ndarray]]:
  """Clean digits in [-1, 1] and labels of the halves, as data.builders's."""
  digits = datasets.load_digits()
  x = np.rint(digits.images[..., None] * (255 / 16)) / 127.5 - 1
  x, y = x.astype(np.float32), digits.target.astype(np.int32)
  return [(x[s], y[s]) for s in (slice(NUM_TRAIN), slice(NUM_TRAIN, None))]


def classifier(x: np.ndarray, y: np.ndarray) -> Callable[..., jax.Array]:
  """A trained network of one hidden layer: [b, ...] -> logits [b, 10]."""

  def logits(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["in"] + params["b"])
    return hidden @ params["out"]

  def step(carry, _):
    params, state = carry
    loss = lambda params: _cross_entropy(logits(params, x), y).mean()
    changes, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, changes), state), None

  keys = jax.random.split(jax.random.key(0))
  params = {
    "in": jax.random.normal(keys[0], (x[0].size, 128)) / x[0].size ** 0.5,
    "b": jnp.zeros((1, 128)),
    "out": jax.random.normal(keys[1], (128, 10)) / 128**0.5,
  }
  optimizer = optax.adamw(3e-3, weight_decay=1e-2)
  carry = params, optimizer.init(params)
  (params, _), _ = jax.lax.scan(step, carry, length=500)
  return partial(logits, params)


def purifiers(
  found: list[Entry], workdir: pathlib.Path
) -> dict[tuple[str, str], Callable[..., Any]]:
  """(method, way back) -> (x [b, ...], keys [b]) -> x purified."""
  made: dict[tuple[str, str], Any] = {("none", ""): lambda x, keys: x}
  for one in found:
    run = runs.build(one.config)
    model = sampling.newest_model(run, workdir / "runs" / one.name)
    grid = run.process.grid(run.purify.num_steps)
    for way, sampler in (("deterministic", "ddim"), ("stochastic", "ddpm")):
      made[run.objective.name, way] = partial(
        purification.purify,
        partial(run.method.predictor, model.params),
        purification.from_level(grid, run.purify.t_star),
        sampling.update(sampling.changed(run, sampler=sampler)),
        remat=True,
      )
  return made


def main() -> None:
  """Prints the rows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--workdir", type=pathlib.Path, default="runs/purified_digits"
  )
  parser.add_argument("--smoke", action="store_true", help="no result")
  given = parser.parse_args()
  config = settings.config_of("demo", "smoke" if given.smoke else "")
  for row in run(config, given.workdir):
    shares = [f"{name} {row[name]:.3f}" for name in list(row)[2:]]
    print(f"{row['method']} {row['way']}: {', '.join(shares)}")


if __name__ == "__main__":
  main()
