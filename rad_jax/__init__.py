"""Robust diffusion training in JAX: adversarial training that is equivariant.

After "Why Adversarially Train Diffusion Models?" (Briglia et al., ICLR 2026,
arXiv 2505.21742).

`import rad_jax` is enough to call the pure functions, without a config or a
file. They come in modules, and what most programs use has its name here too:

  schedules, process, parametrisation, samplers   the diffusion
  objectives, radius, attacks, noising, shrinkage the robust objective
  trajectory, purification                        attacks on sampling, defence
  synthetic, corruptions, examples, subspace, batches   the data
  optimizers, passes                              training
  measures, reference                             evaluation
  Level, Network, mlp, unet, load_diffusers       levels and networks
  load, sampling                                  a trained run, and samples
  Method, as_predictor, make_train_step, State, initial_state, state_of

A module is imported when it is first named.
"""

from etils import epy

from rad_jax.version import __version__ as __version__

with epy.lazy_api_imports(globals()):
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
  from rad_jax.evaluation import reference as reference
  from rad_jax.evaluation import sampling as sampling
  from rad_jax.evaluation.sampling import load as load
  from rad_jax.interop.pretrained import load_diffusers as load_diffusers
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
  from rad_jax.robustness.method import Method as Method
  from rad_jax.robustness.method import as_predictor as as_predictor
  from rad_jax.training import optimizers as optimizers
  from rad_jax.training import passes as passes
  from rad_jax.training.state import State as State
  from rad_jax.training.state import initial_state as initial_state
  from rad_jax.training.state import state_of as state_of
  from rad_jax.training.step import make_train_step as make_train_step
