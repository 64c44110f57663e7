"""Draws samples from a run's newest checkpoint, over all devices."""

import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from rad_jax.config import ConfigDict
from rad_jax.training import build, checkpoints, loop, sharding
from rad_jax.training.state import State


class NonFiniteSamples(FloatingPointError):
  """A sampler ran off to NaN or infinity."""


class Samples(NamedTuple):
  """Samples in model units, [n, ...], and the step of their checkpoint."""

  x_0: np.ndarray
  step: int


def newest_state(
  config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> State:
  """The newest checkpoint of workdir's run, replicated over the mesh.

  Raises:
    CheckpointError: there is none, or it is damaged.
    ConfigError: the run was of another model, data or objective.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise checkpoints.CheckpointError(f"no run in {workdir}: train first")
  loop.refuse_conflicts(path, config, training=False)
  like = jax.eval_shape(lambda: build.state(config))
  with checkpoints.open_manager(workdir) as manager:
    return checkpoints.restore(manager, like, sharding.replicated(mesh))


def draw(
  config: ConfigDict, workdir: pathlib.Path, num_samples: int
) -> Samples:
  """Samples 0 .. num_samples-1 of the newest checkpoint in workdir.

  Raises:
    CheckpointError: workdir has no checkpoint, or a damaged one.
    ConfigError: workdir's run was of another model, data or objective.
    NonFiniteSamples: the sampler diverged.
  """
  mesh = sharding.data_mesh()
  everywhere = sharding.replicated(mesh)
  state = newest_state(config, workdir, mesh)
  params = build.parameters_of(state, config)
  sampler = jax.jit(
    build.sampler(config),
    in_shardings=(everywhere, sharding.by_example(mesh)),
    out_shardings=everywhere,
  )
  batch_size = config.sampling.batch_size
  batches = []
  for start in tqdm(
    range(0, num_samples, batch_size), desc="sample", unit="batch"
  ):
    index = np.arange(start, start + batch_size, dtype=np.int32)
    batches.append(np.asarray(sampler(params, index)))
  x_0 = np.concatenate(batches)[:num_samples]
  if not np.isfinite(x_0).all():
    raise NonFiniteSamples(
      f"samples from step {state.step} in {workdir} are not finite: the model"
      " has not learnt yet, or the sampler diverges; set sampling.clip_x_0 or"
      " take more sampling.num_steps"
    )
  return Samples(x_0, int(state.step))


def sample(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Draws config.sampling.num_samples and saves them.

  Returns:
    workdir/samples/step_N: samples.npz (x_0, float32, model units) and
    sampling.json beside it.
  """
  samples = draw(config, workdir, config.sampling.num_samples)
  folder = workdir / "samples" / f"step_{samples.step}"
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(folder / "samples.npz", x_0=samples.x_0)
  (folder / "sampling.json").write_text(
    json.dumps({"step": samples.step, **config.sampling.to_dict()}, indent=2)
    + "\n"
  )
  return folder
