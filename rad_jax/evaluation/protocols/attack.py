"""Attacks on sampling: samples against the truth, by attack and by budget.

Every evaluation.attack_every-th level's state is moved by sigma_t w, |w| <=
budget: `random`, on the ball's border; `greedy`, for the level's own estimate;
`joint`, through the whole process, its noise known; `expected`, joint over two
other draws of noise; `transfer`, joint on evaluation.transfer_from's network.
Curves: attack, budget, queries (evaluations of the attacked network a sample),
moved (rms of an element's change), support_rms, frechet.
"""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from rad_jax.diffusion import samplers
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import sampling
from rad_jax.evaluation.protocols import truth
from rad_jax.evaluation.subject import Result, Subject, columns
from rad_jax.robustness import attacks, trajectory
from rad_jax.run import Run
from rad_jax.training import workdir as workdirs

_DRAWS = 2


def measure(subject: Subject) -> Result:
  """Every attack at every budget."""
  fields = subject.run.evaluation
  kinds = ["random", "greedy", "joint", "expected"]
  if fields.transfer_from:
    kinds.append("transfer")
  plain = sampler(subject, None)(0.0)
  rows = []
  for kind in kinds:
    attacked = sampler(subject, kind)
    for budget in fields.attack_budgets:
      x_0 = attacked(budget) if budget else plain
      moved = np.sqrt(np.mean(np.square(x_0 - plain, dtype=np.float64)))
      rows.append(
        {
          "attack": kind,
          "budget": budget,
          "queries": _num_queries(subject.run, kind) if budget else 0,
          "moved": float(moved),
          **truth.distances(subject, x_0),
        }
      )
  return Result({}, columns(rows), {})


def sampler(
  subject: Subject, kind: str | None
) -> Callable[[float], np.ndarray]:
  """budget -> samples [n, ...] under an attack, or plain ones for None."""
  run = subject.run
  grid, places = _levels(run), _places(run)
  surrogate = _surrogate_params(subject) if kind == "transfer" else None
  index = np.arange(run.evaluation.num_attack_samples, dtype=np.int32)

  def sample(params, index, radius):
    chain = sampling.chain(run, params, index, grid, sampling.update(run))
    if kind is None:
      return samplers.reverse(*chain)
    budget = trajectory.budget_at(radius, places, len(grid.sigma))
    victim = chain
    if surrogate is not None:
      victim = chain._replace(eps_fn=sampling.eps_fn(run, surrogate))
    w = _craft(run, kind, victim, index, budget)
    return samplers.reverse(*chain, w=w)

  def attacked(budget: float) -> np.ndarray:
    radius = np.full(len(index), budget, np.float32)
    return subject.over_devices(sample, index, radius)

  return attacked


def _craft(
  run: Run, kind: str, chain: trajectory.Chain, index: Array, budget: Array
) -> Array:
  """The attack's w [n, b, ...] within budget [n, b]."""
  root = jax.random.fold_in(run.keys.sampling, 2**31 - 1)
  keys = samplers.sample_keys(root, index)
  if kind == "random":
    return trajectory.random(run.evaluation.attack_norm, chain, keys, budget)
  if kind == "greedy":
    return trajectory.greedy(_attack(run), chain, keys, budget)
  draws = None
  if kind == "expected":
    draws = jax.vmap(partial(jax.random.split, num=_DRAWS))(keys).T
  return trajectory.joint(_attack(run), chain, keys, budget, draws=draws)


def _num_queries(run: Run, kind: str) -> int:
  """Forward and backward evaluations that an attack takes for a sample."""
  if kind in ("random", "transfer"):
    return 0
  attack = _attack(run)
  evaluations = sampling.evaluations(run, len(_levels(run).sigma))
  if kind == "greedy":
    num_attacked = len(_places(run))
    queries = trajectory.greedy_queries(attack, evaluations, num_attacked)
  else:
    draws = _DRAWS if kind == "expected" else 1
    queries = trajectory.joint_queries(attack, evaluations, draws)
  return queries.forward + queries.backward


def _surrogate_params(subject: Subject) -> Any:
  field = "evaluation.transfer_from"
  source = pathlib.Path(subject.run.evaluation.transfer_from)
  return workdirs.parameters_of_run(
    source, subject.run, subject.model.mesh, field
  )[0]


def _attack(run: Run) -> attacks.Attack:
  steps = run.evaluation.attack_steps
  return attacks.ATTACKS["pgd"]._replace(
    norm=run.evaluation.attack_norm,
    num_steps=steps,
    step_size=min(1.0, 2.5 / steps),
  )


def _levels(run: Run) -> Level:
  return sampling.levels(run, run.evaluation.attack_levels)


def _places(run: Run) -> list[int]:
  return list(range(0, len(_levels(run).sigma), run.evaluation.attack_every))
