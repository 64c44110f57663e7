"""Draws samples from a run's newest checkpoint, over all devices.

Batches are kept as they are drawn, in samples/step_N/<key>/: a second call
reads them, and an interrupted one goes on. The key stands for the parameters
and for all that a sample depends on, so none is ever taken for another.
"""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from rad_jax.config import ConfigDict
from rad_jax.training import build, checkpoints, chips, loop, sharding
from rad_jax.training.state import State


class NonFiniteSamples(FloatingPointError):
  """A sampler ran off to NaN or infinity."""


class Model(NamedTuple):
  """A run's trained network, ready to be sampled from and measured.

  params: the parameters that sampling.ema chooses, replicated over mesh.
  step: the step of their checkpoint.
  digest: twelve characters that stand for the parameters' values.
  """

  config: ConfigDict
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  params: Any
  step: int
  digest: str

  @property
  def samples_folder(self) -> pathlib.Path:
    """Where this checkpoint's samples are."""
    return self.workdir / "samples" / f"step_{self.step}"


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


def newest_model(config: ConfigDict, workdir: pathlib.Path) -> Model:
  """The newest checkpoint's network.

  Raises: as `newest_state`.
  """
  mesh = sharding.device_mesh()
  state = newest_state(config, workdir, mesh)
  params = build.parameters_of(state, config)
  return Model(config, workdir, mesh, params, int(state.step), digest(params))


def digest(params: Any) -> str:
  """Twelve characters of a hash over the values of all leaves."""
  sha = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    sha.update(np.asarray(leaf).tobytes())
  return sha.hexdigest()[:12]


def draw(
  model: Model, count: int, sampler: str = "", num_steps: int | None = None
) -> np.ndarray:
  """Samples 0 .. count - 1, float32 [count, ...] in model units.

  Args:
    model: the network.
    count: how many.
    sampler, num_steps: in the place of the config's own.

  Raises:
    NonFiniteSamples: the sampler diverged.
  """
  config = model.config
  sampling = config.sampling.to_dict() | {
    "sampler": sampler or config.sampling.sampler,
    "num_steps": num_steps or config.sampling.num_steps,
    "num_samples": None,
  }
  folder = model.samples_folder / _key([model.digest, config.seed, sampling])
  folder.mkdir(parents=True, exist_ok=True)
  replicated = sharding.replicated(model.mesh)
  draw_batch = jax.jit(
    build.sampler(config, sampler, num_steps),
    in_shardings=(replicated, sharding.by_example(model.mesh)),
    out_shardings=replicated,
    compiler_options=chips.compiler_options(),
  )
  batch_size = config.sampling.batch_size
  batches = []
  starts = range(0, count, batch_size)
  for start in tqdm(starts, desc="sample", unit="batch", disable=None):
    path = folder / f"{start}.npy"
    if path.exists():
      batches.append(np.load(path))
      continue
    index = np.arange(start, start + batch_size, dtype=np.int32)
    batches.append(np.asarray(draw_batch(model.params, index)))
    whole = path.with_suffix(".tmp")
    with whole.open("wb") as file:
      np.save(file, batches[-1])
    whole.replace(path)
  x_0 = np.concatenate(batches)[:count]
  if not np.isfinite(x_0).all():
    raise NonFiniteSamples(
      f"samples from step {model.step} in {model.workdir} are not finite: the"
      " model has not learnt yet, or the sampler diverges; set"
      " sampling.clip_x_0 or take more sampling.num_steps"
    )
  return x_0


def sample(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Draws config.sampling.num_samples and saves them.

  Returns:
    workdir/samples/step_N: samples.npz (x_0, float32, model units) and
    sampling.json beside it.
  """
  return save_samples(newest_model(config, workdir))


def save_samples(model: Model) -> pathlib.Path:
  """Draws and saves; returns the folder, as `sample`."""
  sampling, folder = model.config.sampling, model.samples_folder
  x_0 = draw(model, sampling.num_samples)
  np.savez_compressed(folder / "samples.npz", x_0=x_0)
  (folder / "sampling.json").write_text(
    json.dumps({"step": model.step, **sampling.to_dict()}, indent=2) + "\n"
  )
  return folder


def _key(identity: Any) -> str:
  text = json.dumps(identity, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
