"""Attacks on sampling: samples against the truth, by attack and by budget.

The states at levels in evaluation.attack_between are moved by sigma_t w, |w| <=
budget: `random`, on the ball's border; `greedy`, for the level's own estimate;
the others through the whole process. `moved`, `error` and `frechet` know its
noise, and raise what they are named after; `expected` raises the error over two
other draws of noise, `transfer` that of evaluation.transfer_from's network.
Curves: attack, budget, queries (evaluations of the attacked network a sample),
moved (rms of an element's change), support_rms, frechet: the worst of the
restarts, by sample or, of frechet, by set. Measures are at the largest budget.
"""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from rad_jax.diffusion import process, samplers
from rad_jax.evaluation import aims, sampling
from rad_jax.evaluation.protocols import truth
from rad_jax.evaluation.subject import Result, Subject, columns
from rad_jax.robustness import attacks, trajectory
from rad_jax.run import Run
from rad_jax.training import workdir as workdirs

# What attacks through the process raise: a name in aims.AIMS; "": the move.
_AIMS = {
  "moved": "",
  "error": "error",
  "frechet": "frechet",
  "expected": "error",
  "transfer": "error",
}
_DRAWS = 2


def measure(subject: Subject) -> Result:
  """Every attack at every budget."""
  fields = subject.run.evaluation
  kinds = ["random", "greedy", *_AIMS]
  if not fields.transfer_from:
    kinds.remove("transfer")
  plain = sampler(subject, None)(0.0, 0)
  rows = []
  for kind in kinds:
    attacked = sampler(subject, kind)
    for budget in fields.attack_budgets:
      drawn = [plain]
      if budget:
        drawn = [attacked(budget, i) for i in range(fields.attack_restarts)]
      queries = _num_queries(_run(subject), kind) if budget else 0
      rows.append(
        {"attack": kind, "budget": budget, "queries": queries * len(drawn)}
        | worst(subject, plain, drawn)
      )
  largest = [r for r in rows if r["budget"] == max(fields.attack_budgets)]
  return Result(
    {
      "attacked_support_rms": max(row["support_rms"] for row in largest),
      "attacked_frechet": max(row["frechet"] for row in largest),
      "random_support_rms": largest[0]["support_rms"],
      "random_frechet": largest[0]["frechet"],
    },
    columns(rows),
    {},
  )


def worst(
  subject: Subject, plain: np.ndarray, drawn: list[np.ndarray]
) -> dict[str, float]:
  """The worst of restarts [n, ...]: by sample or, of frechet, by set."""
  project = subject.reference.project
  flat = [x.reshape(len(x), -1).astype(np.float64) for x in drawn]
  offsets = [np.linalg.norm(x - project(x), axis=1) for x in flat]
  moves = [x - plain.reshape(len(x), -1) for x in flat]
  rms = lambda by_sample: float(
    np.sqrt(np.mean(np.max(by_sample, axis=0) ** 2))
  )
  found = [truth.compare(x, subject.reference, False)["frechet"] for x in drawn]
  return {
    "moved": rms([np.sqrt(np.mean(move**2, axis=1)) for move in moves]),
    "support_rms": rms(offsets),
    "frechet": max(found),
  }


def sampler(
  subject: Subject, kind: str | None
) -> Callable[[float, int], np.ndarray]:
  """(budget, restart) -> samples [n, ...] attacked so, or plain for None."""
  run, places = _run(subject), _places(_run(subject))
  surrogate = _surrogate_params(subject) if kind == "transfer" else None
  index = np.arange(run.evaluation.num_attack_samples, dtype=np.int32)
  aim = _AIMS.get(kind or "")
  goal = aims.goal(aim, subject.reference) if aim else None

  def sample(params, index, radius, restart):
    chain = sampling.chain(run, params, index)
    if kind is None:
      return samplers.reverse(*chain)
    budget = trajectory.budget_at(radius, places, len(chain.levels.sigma))
    victim = chain
    if surrogate is not None:
      victim = chain._replace(eps_fn=sampling.eps_fn(run, surrogate))
    w = _craft(run, kind, victim, _keys(run, index, restart), budget, goal)
    return samplers.reverse(*chain, w=w)

  def attacked(budget: float, restart: int) -> np.ndarray:
    radius = np.full(len(index), budget, np.float32)
    return subject.over_devices(
      sample, index, radius, np.full(len(index), restart, np.int32)
    )

  return attacked


def _keys(run: Run, index: Array, restart: Array) -> attacks.Keys:
  """The attack's own, by sample and by restart."""
  root = jax.random.fold_in(run.keys.sampling, 2**31 - 1)
  keys = samplers.sample_keys(root, index)
  return jax.vmap(jax.random.fold_in)(keys, restart)


def _craft(
  run: Run,
  kind: str,
  chain: trajectory.Chain,
  keys: attacks.Keys,
  budget: Array,
  goal: Callable[[Array], Array] | None,
) -> Array:
  """The attack's w [n, b, ...] within budget [n, b]."""
  if kind == "random":
    return trajectory.random(run.evaluation.attack_norm, chain, keys, budget)
  if kind == "greedy":
    return trajectory.greedy(_attack(run), chain, keys, budget)
  draws = None
  if kind == "expected":
    draws = jax.vmap(partial(jax.random.split, num=_DRAWS))(keys).T
  return trajectory.joint(_attack(run), chain, keys, budget, goal, draws)


def _num_queries(run: Run, kind: str) -> int:
  """Forward and backward evaluations that an attack takes for a sample."""
  if kind in ("random", "transfer"):
    return 0
  attack = _attack(run)
  evaluations = sampling.evaluations(run)
  if kind == "greedy":
    num_attacked = len(_places(run))
    queries = trajectory.greedy_queries(attack, evaluations, num_attacked)
  else:
    draws = _DRAWS if kind == "expected" else 1
    queries = trajectory.joint_queries(
      attack, evaluations, draws, own_goal=bool(_AIMS[kind])
    )
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


def _run(subject: Subject) -> Run:
  """The run, sampled in evaluation.attack_levels steps."""
  run = subject.run
  return sampling.changed(run, num_steps=run.evaluation.attack_levels)


def _places(run: Run) -> list[int]:
  low, high = run.evaluation.attack_between
  sigma_t = process.unit_sigma(sampling.levels(run))
  return [n for n, sigma in enumerate(sigma_t) if low <= sigma <= high]
