"""Purification in front of a small digits classifier, clean and attacked.

Trains DDPM and Robust_adv (lam 3) on one half of scikit-learn's digits, 90% of
it noised at sigma 0.2, and a small classifier on the same half, clean. Of the
other half, which none of them has seen, it prints the share that is classified
rightly

  clean               as the images are;
  attack on classifier  after linf PGD on the classifier alone;
  adaptive attack     after linf PGD through purification and classifier, with
                      the gradient's mean over draws of the noise (EOT).

Behind a purifier it is the mean over draws of its noise, other ones than the
attack's. The digits are taken as they are (no linear_rank): a projection on
principal components would itself remove most of a perturbation, whatever the
model. Writes purification.md and purification.png. Trained models are kept:
a second call goes on from them.
"""

import argparse
import os
import pathlib
from typing import NamedTuple

from demo import load_config, small_networks_on_cpu

OBJECTIVES = ("ddpm", "robust_adv")
# The two halves, in scikit-learn's order: the writers differ.
NUM_TRAIN = 898
# Of the linf ball, in [-1, 1] units.
RADIUS = 0.2
# Up to which the images are noised: a unit_sigma. Some 10 levels of 100.
T_STAR = 0.3
NUM_LEVELS = 100
WAYS = ("deterministic", "stochastic")


class Effort(NamedTuple):
  """What the numbers are taken from.

  images: test images. attack_steps, attack_draws: PGD's steps, and the draws
  of each. draws: of the noise, over which accuracy is averaged.
  classifier_steps: of the classifier's training.
  """

  images: int = 256
  attack_steps: int = 20
  attack_draws: int = 8
  draws: int = 8
  classifier_steps: int = 500


SMOKE = Effort(16, 2, 2, 2, 50)


def runs_on_half(workdir: pathlib.Path, smoke: bool) -> list:
  """The two trainings."""
  from rad_jax.experiments import sweep

  config = load_config("digits", "smoke" if smoke else "")
  config.data.update(
    data_dir=str(workdir / "data"),
    split=f"train[:{NUM_TRAIN}]",
    linear_rank=0,
  )
  config.sweep.objective = OBJECTIVES
  return sweep.grid(config)


def halves() -> tuple:
  """Clean digits in [-1, 1] and their labels: ((x, y), (x, y)) of the halves.

  These are the images of data.builders.Digits, in its order.
  """
  import numpy as np
  from sklearn import datasets

  digits = datasets.load_digits()
  x = np.rint(digits.images * (255 / 16)) / 127.5 - 1
  x = x[..., None].astype(np.float32)
  y = digits.target.astype(np.int32)
  return (x[:NUM_TRAIN], y[:NUM_TRAIN]), (x[NUM_TRAIN:], y[NUM_TRAIN:])


def train_classifier(x, y, num_steps: int):
  """A network of one hidden layer: images [b, ...] -> logits [b, 10]."""
  import jax
  import jax.numpy as jnp
  import optax

  def logits(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["in"] + params["b"])
    return hidden @ params["out"]

  def loss(params):
    values = logits(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(values, y).mean()

  @jax.jit
  def step(params, state):
    changes, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, changes), state

  keys = jax.random.split(jax.random.key(0))
  params = {
    "in": jax.random.normal(keys[0], (x[0].size, 128)) / x[0].size ** 0.5,
    "b": jnp.zeros((1, 128)),
    "out": jax.random.normal(keys[1], (128, 10)) / 128**0.5,
  }
  optimizer = optax.adamw(3e-3, weight_decay=1e-2)
  state = optimizer.init(params)
  for _ in range(num_steps):
    params, state = step(params, state)
  return lambda x: logits(params, x)


def purifiers(runs: list, workdir: pathlib.Path) -> dict:
  """(objective, way back) -> (x [b, ...], keys [b]) -> x purified."""
  from rad_jax.diffusion import samplers
  from rad_jax.evaluation import sampling
  from rad_jax.robustness import purification
  from rad_jax.training import build

  updates = dict(zip(WAYS, (samplers.ddim(), samplers.ddpm()), strict=True))
  made = {}
  for run in runs:
    folder = workdir / "runs" / run.name
    params = sampling.newest_model(run.config, folder).params
    predict = build.predictor(run.config)
    grid = build.process(run.config).grid(NUM_LEVELS)
    levels = purification.from_level(grid, T_STAR)
    for way, update in updates.items():

      def purify(
        x, keys, predict=predict, params=params, levels=levels, update=update
      ):
        eps_fn = lambda x_t, level: predict(params, x_t, level)
        return purification.purify(eps_fn, levels, update, x, keys, remat=True)

      made[run.labels["objective"], way] = purify
  return made


def attacked(classify, purify, x, y, effort: Effort):
  """The images after PGD through purify, (x, keys) -> x, and classifier."""
  import jax
  import jax.numpy as jnp
  import optax

  from rad_jax.robustness import attacks, purification

  def loss(x, keys):
    logits = classify(purify(x, keys))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)

  pgd = attacks.ATTACKS["pgd"]._replace(
    num_steps=effort.attack_steps, step_size=2.5 / effort.attack_steps
  )
  find = lambda x: purification.eot_attack(
    loss,
    x,
    jax.random.split(jax.random.key(1), len(x)),
    jnp.full(len(x), RADIUS),
    pgd,
    effort.attack_draws,
  )
  return jax.jit(find)(x)


def accuracy(classify, purify, y, draws: int):
  """x -> share of right answers behind purify, mean over draws of its noise."""
  import jax
  import jax.numpy as jnp

  @jax.jit
  def right(x, key):
    keys = jax.random.split(key, len(x))
    return jnp.mean(jnp.argmax(classify(purify(x, keys)), axis=-1) == y)

  keys = jax.random.split(jax.random.key(2), draws)
  return lambda x: float(sum(right(x, key) for key in keys)) / draws


def compare(classify, purify_by: dict, x, y, effort: Effort) -> tuple:
  """The table's rows, and the images on which the classifier was attacked."""
  as_it_is = lambda x, keys: x
  # Without noise, one draw is enough.
  x_adv = attacked(classify, as_it_is, x, y, effort._replace(attack_draws=1))
  share = accuracy(classify, as_it_is, y, 1)
  rows = [("none", "", share(x), share(x_adv), None)]
  for (objective, way), purify in purify_by.items():
    x_adaptive = attacked(classify, purify, x, y, effort)
    share = accuracy(classify, purify, y, effort.draws)
    shares = [share(images) for images in (x, x_adv, x_adaptive)]
    rows.append((objective, way, *shares))
    print(objective, way, *(f"{value:.3f}" for value in shares), flush=True)
  return rows, x_adv


def markdown(rows: list, effort: Effort) -> str:
  """The rows as a Markdown table, and what they were taken from."""
  from rad_jax.reports import looks

  lines = [
    "| purifier | way back | clean | attack on classifier | adaptive attack |",
    "|---|---|---|---|---|",
  ]
  for objective, way, *shares in rows:
    cells = ["" if share is None else f"{share:.3f}" for share in shares]
    name = looks.of(objective).label
    lines.append("| " + " | ".join([name, way, *cells]) + " |")
  lines += [
    "",
    f"Accuracy on {effort.images} test images, mean over {effort.draws} draws"
    f" of the noise. linf radius {RADIUS} in [-1, 1] units, PGD of"
    f" {effort.attack_steps} steps, {effort.attack_draws} draws a step through"
    f" the purifier; t* at unit sigma {T_STAR}.",
  ]
  return "\n".join(lines) + "\n"


def draw_images(purify_by: dict, x, x_adv, path: pathlib.Path) -> None:
  """Rows: clean; attacked; then those, purified by each model, stochastic."""
  import jax
  import numpy as np

  from rad_jax.reports import figures

  x, x_adv = x[:12], x_adv[:12]
  keys = jax.random.split(jax.random.key(3), len(x))
  rows = [x, x_adv]
  for name in OBJECTIVES:
    rows.append(jax.jit(purify_by[name, "stochastic"])(x_adv, keys))
  grid = figures.image_grid(np.concatenate(rows), columns=len(x))
  figures.save_image(grid, path, min_side=300)


def main() -> None:
  """Trains what is missing, then attacks, purifies and writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--smoke", action="store_true", help="seconds, no result")
  parser.add_argument("--processes", type=int, default=os.cpu_count())
  arguments = parser.parse_args()
  folder = "runs/purify_digits" + "_smoke" * arguments.smoke
  workdir = (arguments.workdir or pathlib.Path(folder)).absolute()
  effort = SMOKE if arguments.smoke else Effort()
  small_networks_on_cpu(workdir)

  import jax.numpy as jnp

  from rad_jax.data import builders
  from rad_jax.experiments import sweep

  builders.prepare("digits", str(workdir / "data"))
  runs = runs_on_half(workdir, arguments.smoke)
  sweep.run_all(runs, workdir, arguments.processes)
  train, (x, y) = halves()
  # Evenly spaced over the writers.
  chosen = [i * len(x) // effort.images for i in range(effort.images)]
  x, y = jnp.asarray(x[chosen]), jnp.asarray(y[chosen])
  classify = train_classifier(*train, effort.classifier_steps)
  purify_by = purifiers(runs, workdir)
  rows, x_adv = compare(classify, purify_by, x, y, effort)
  table, figure = workdir / "purification.md", workdir / "purification.png"
  table.write_text(markdown(rows, effort))
  draw_images(purify_by, x, x_adv, figure)
  print(f"\n{table.read_text()}\n{table}\n{figure}")


if __name__ == "__main__":
  main()
