"""Robust diffusion training in JAX: adversarial training that is equivariant.

After "Why Adversarially Train Diffusion Models?" (Briglia et al., ICLR 2026,
arXiv 2505.21742).

`import rad_jax` is enough to call the pure functions, without a config or a
file. They come in modules, and what most programs use has its name here too:

  schedules, process, parametrisation, samplers   the diffusion
  objectives, radius, attacks, noising, shrinkage the robust objective
  trajectory, purification                        attacks on sampling, defence
  synthetic, corruptions, examples, subspace, batches   the data
  optimizers, budget                              training
  measures, truth                                 evaluation
  Level, Network, mlp, unet                       levels and networks
  Method, as_predictor, make_train_step, State, initial_state, state_of

A module is imported when it is first named.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
  "parametrisation": "rad_jax.diffusion.parametrisation",
  "process": "rad_jax.diffusion.process",
  "samplers": "rad_jax.diffusion.samplers",
  "schedules": "rad_jax.diffusion.schedules",
  "attacks": "rad_jax.robustness.attacks",
  "noising": "rad_jax.robustness.noising",
  "objectives": "rad_jax.robustness.objectives",
  "purification": "rad_jax.robustness.purification",
  "radius": "rad_jax.robustness.radius",
  "shrinkage": "rad_jax.robustness.shrinkage",
  "trajectory": "rad_jax.robustness.trajectory",
  "batches": "rad_jax.data.batches",
  "corruptions": "rad_jax.data.corruptions",
  "examples": "rad_jax.data.examples",
  "subspace": "rad_jax.data.subspace",
  "synthetic": "rad_jax.data.synthetic",
  "budget": "rad_jax.training.budget",
  "optimizers": "rad_jax.training.optimizers",
  "measures": "rad_jax.evaluation.measures",
  "truth": "rad_jax.evaluation.truth",
}
# Classes and functions, by their module.
_MEMBERS = {
  "Level": "rad_jax.diffusion.process",
  "Network": "rad_jax.models.network",
  "mlp": "rad_jax.models.mlp",
  "unet": "rad_jax.models.unet",
  "Method": "rad_jax.training.step",
  "as_predictor": "rad_jax.training.step",
  "make_train_step": "rad_jax.training.step",
  "State": "rad_jax.training.state",
  "initial_state": "rad_jax.training.state",
  "state_of": "rad_jax.training.state",
}
__all__ = [*_MODULES, *_MEMBERS]

if TYPE_CHECKING:
  from rad_jax.data import batches as batches
  from rad_jax.data import corruptions as corruptions
  from rad_jax.data import examples as examples
  from rad_jax.data import subspace as subspace
  from rad_jax.data import synthetic as synthetic
  from rad_jax.diffusion import parametrisation as parametrisation
  from rad_jax.diffusion import process as process
  from rad_jax.diffusion import samplers as samplers
  from rad_jax.diffusion import schedules as schedules
  from rad_jax.diffusion.process import Level as Level
  from rad_jax.evaluation import measures as measures
  from rad_jax.evaluation import truth as truth
  from rad_jax.models.mlp import mlp as mlp
  from rad_jax.models.network import Network as Network
  from rad_jax.models.unet import unet as unet
  from rad_jax.robustness import attacks as attacks
  from rad_jax.robustness import noising as noising
  from rad_jax.robustness import objectives as objectives
  from rad_jax.robustness import purification as purification
  from rad_jax.robustness import radius as radius
  from rad_jax.robustness import shrinkage as shrinkage
  from rad_jax.robustness import trajectory as trajectory
  from rad_jax.training import budget as budget
  from rad_jax.training import optimizers as optimizers
  from rad_jax.training.state import State as State
  from rad_jax.training.state import initial_state as initial_state
  from rad_jax.training.state import state_of as state_of
  from rad_jax.training.step import Method as Method
  from rad_jax.training.step import as_predictor as as_predictor
  from rad_jax.training.step import make_train_step as make_train_step
else:

  def __getattr__(name: str) -> Any:
    """Imports what is named, once (PEP 562)."""
    if name in _MODULES:
      found = importlib.import_module(_MODULES[name])
    elif name in _MEMBERS:
      found = getattr(importlib.import_module(_MEMBERS[name]), name)
    else:
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found

  def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
