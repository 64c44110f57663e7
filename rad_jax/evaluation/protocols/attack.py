"""Attacks on sampling: samples against the truth, by attack and by budget.

The states of every evaluation.attack_every-th level are moved by sigma_t w,
|w| <= budget in noise units (robustness.trajectory): `random` on the border of
the ball, the control; `greedy` for each level's own estimate; `joint` through
the whole process, knowing its noise; `expected` the same, over two other draws
of it; and, where evaluation.transfer_from names a run, `transfer`: joint, with
that run's network in the place of this one's.

Curves, one row for each attack and each of evaluation.attack_budgets: attack,
budget, queries (forward and backward evaluations of the attacked network on
each sample, the sampling itself left out), moved (root mean square of the
change of a sample's element), support_rms and frechet (protocol truth's).
Budget 0 is plain sampling, to the bit.
"""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rad_jax.config import is_synthetic
from rad_jax.diffusion import samplers
from rad_jax.evaluation.protocols import truth
from rad_jax.evaluation.subject import Result, Subject, whole_batches
from rad_jax.robustness import attacks, trajectory
from rad_jax.training import build, loop

_DRAWS = 2


def measure(subject: Subject) -> Result:
  """Every attack at every budget."""
  fields = subject.config.evaluation
  kinds = ["random", "greedy", "joint", "expected"]
  if fields.transfer_from:
    kinds.append("transfer")
  plain = sampler(subject, None)(0.0)
  rows = []
  for kind in kinds:
    attacked = sampler(subject, kind)
    for budget in fields.attack_budgets:
      x_0 = attacked(budget) if budget else plain
      rows.append(
        {
          "attack": kind,
          "budget": budget,
          "queries": num_queries(subject, kind) if budget else 0,
          **row(subject, x_0, plain),
        }
      )
  return Result({}, {name: [row[name] for row in rows] for name in rows[0]})


def row(
  subject: Subject, x_0: np.ndarray, plain: np.ndarray
) -> dict[str, float]:
  """Attacked samples against the truth, and against the plain ones."""
  images = not is_synthetic(subject.config)
  found = truth.compare(x_0, subject.truth, images)
  return {
    "moved": float(np.sqrt(np.mean(np.square(x_0 - plain, dtype=np.float64)))),
    "support_rms": found["support_rms"],
    "frechet": found["frechet"],
  }


def sampler(
  subject: Subject, kind: str | None
) -> Callable[[float], np.ndarray]:
  """budget -> samples under an attack, or plain ones for None.

  evaluation.num_attack_samples of them, [n, ...]. One compilation.
  """
  config = subject.config
  levels, places = _levels(subject), _places(subject)
  shape = build.example_shape(config)
  count = config.evaluation.num_attack_samples
  index = np.arange(whole_batches(count), dtype=np.int32)
  surrogate = surrogate_params(subject) if kind == "transfer" else None
  root = build.keys(config).sampling

  def run(params, index, radius):
    keys = samplers.sample_keys(root, index)
    chain = trajectory.Chain(
      subject.eps_fn(params),
      levels,
      build.update(config),
      samplers.noise(levels, keys, shape),
      keys,
      config.sampling.clip_x_0 or None,
    )
    if kind is None:
      return samplers.reverse(*chain)
    budget = trajectory.budget_at(radius, places, len(levels.sigma))
    victim = chain
    if surrogate is not None:
      victim = chain._replace(eps_fn=subject.eps_fn(surrogate))
    w = craft(subject, kind)(victim, budget)
    return samplers.reverse(*chain, w=w)

  def attacked(budget: float) -> np.ndarray:
    radius = np.full(len(index), budget, np.float32)
    return subject.run(run, index, radius)[:count]

  return attacked


def craft(subject: Subject, kind: str) -> Callable[..., jax.Array]:
  """(chain, radius) -> w."""
  fields = subject.config.evaluation
  attack = _attack(subject)
  key = jax.random.fold_in(build.keys(subject.config).sampling, 2**31 - 1)

  def find(chain, radius):
    keys = samplers.sample_keys(key, jnp.arange(len(chain.keys)))
    if kind == "random":
      return trajectory.random(fields.attack_norm, chain, keys, radius)
    if kind == "greedy":
      return trajectory.greedy(attack, chain, keys, radius)
    draws = None
    if kind == "expected":
      draws = jax.vmap(partial(jax.random.split, num=_DRAWS))(keys).T
    return trajectory.joint(attack, chain, keys, radius, draws=draws)

  return find


def num_queries(subject: Subject, kind: str) -> int:
  """Forward and backward evaluations that an attack takes for a sample."""
  if kind in ("random", "transfer"):
    return 0
  levels = len(_levels(subject).sigma)
  evaluations = build.evaluations(subject.config, levels)
  attack = _attack(subject)
  if kind == "greedy":
    queries = trajectory.greedy_queries(
      attack, evaluations, len(_places(subject))
    )
  else:
    draws = _DRAWS if kind == "expected" else 1
    queries = trajectory.joint_queries(attack, evaluations, draws)
  return queries.forward + queries.backward


def surrogate_params(subject: Subject) -> Any:
  """The newest parameters of evaluation.transfer_from's run.

  Raises:
    CheckpointError: there is none.
    ConfigError: its network or noise process is another.
  """
  params, _ = loop.parameters_of_run(
    pathlib.Path(subject.config.evaluation.transfer_from),
    subject.config,
    subject.model.mesh,
    "evaluation.transfer_from",
  )
  return params


def _attack(subject: Subject) -> attacks.Attack:
  fields = subject.config.evaluation
  steps = fields.attack_steps
  return attacks.ATTACKS["pgd"]._replace(
    norm=fields.attack_norm, num_steps=steps, step_size=min(1.0, 2.5 / steps)
  )


def _levels(subject: Subject):
  fields = subject.config.evaluation
  return build.sampler_levels(subject.config, fields.attack_levels)


def _places(subject: Subject) -> list[int]:
  every = subject.config.evaluation.attack_every
  return list(range(0, len(_levels(subject).sigma), every))
