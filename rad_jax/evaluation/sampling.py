"""Draws samples from a run's newest checkpoint, over all devices.

Each batch is kept in samples/step_N/<key>/, where an interrupted call goes on.
The key is a hash of the parameters and of all else that samples depend on.
"""

import hashlib
import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from tqdm import tqdm

from rad_jax import files, saved
from rad_jax import run as runs
from rad_jax.data import examples, images
from rad_jax.diffusion import samplers, schedules
from rad_jax.diffusion.parametrisation import EpsFn
from rad_jax.diffusion.process import Level
from rad_jax.robustness import trajectory
from rad_jax.run import Run
from rad_jax.training import chips, sharding
from rad_jax.training import workdir as workdirs

_LOG = logging.getLogger("rad_jax")


class NonFiniteSamples(FloatingPointError):
  """A sampler ran off to NaN or infinity."""


class Model(NamedTuple):
  """A run's trained network, ready to be sampled from and measured."""

  run: Run
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  params: Any  # those that sampling.ema chooses, replicated over mesh
  step: int  # of their checkpoint
  digest: str  # stands for their values

  @property
  def samples_folder(self) -> pathlib.Path:
    """Where this checkpoint's samples are."""
    return self.workdir / "samples" / f"step_{self.step}"


def load(workdir: str | pathlib.Path) -> Model:
  """The newest network of a run's folder, by its own config.json.

  Raises ConfigError or CheckpointError if the folder has no run that can be
  read. To sample from it, and to call its noise predictor:

    model = rad_jax.load("runs/plane")
    x_0 = rad_jax.sampling.draw(model, count=16)
    eps_fn = rad_jax.sampling.eps_fn(model.run, model.params)
    eps_hat = eps_fn(x_t, level)
  """
  folder = pathlib.Path(workdir)
  return newest_model(runs.build(saved.get_config(workdir)), folder)


def newest_model(run: Run, workdir: pathlib.Path) -> Model:
  """The newest checkpoint's network."""
  mesh = sharding.device_mesh()
  state = workdirs.newest_state(workdir, run, mesh)
  params = state.ema_params if run.sampling.ema else state.params
  return Model(run, workdir, mesh, params, int(state.step), digest(params))


def digest(params: Any) -> str:
  """Twelve characters of a hash over the values of all leaves."""
  sha = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    sha.update(np.asarray(leaf).tobytes())
  return sha.hexdigest()[:12]


def changed(run: Run, **fields: Any) -> Run:
  """The run with other fields of run.sampling."""
  return run._replace(sampling=run.sampling._replace(**fields))


def levels(run: Run) -> Level:
  """The sampler's noise levels, falling: constants, also where JAX traces."""
  chosen = run.sampling
  with jax.ensure_compile_time_eval():
    grid = run.process.grid(chosen.num_steps)
    return schedules.stopped(grid, chosen.stop_sigma)


def update(run: Run) -> samplers.Update:
  """The sampler's step."""
  chosen = run.sampling
  own = samplers.SAMPLERS[chosen.sampler](chosen.variance, chosen.eta)
  return samplers.tempered(own, chosen.temperature)


def evaluations(run: Run) -> int:
  """Evaluations of the network for one sample."""
  return samplers.evaluations(run.sampling.sampler, len(levels(run).sigma))


def eps_fn(run: Run, params: Any) -> EpsFn:
  """The noise predictor at some parameters."""
  return lambda x_t, level: run.method.predictor(params, x_t, level)


def chain(
  run: Run, params: Any, index: Array, key: PRNGKeyArray | None = None
) -> trajectory.Chain:
  """The reverse process of samples `index` [b], with all the noise it takes.

  It is drawn from `key`, or else the run's own.
  """
  root = run.keys.sampling if key is None else key
  grid, keys = levels(run), samplers.sample_keys(root, index)
  return trajectory.Chain(
    eps_fn(run, params),
    grid,
    update(run),
    samplers.noise(grid, keys, run.example_shape),
    keys,
    run.sampling.clip_x_0 or None,
  )


def sampler(run: Run) -> Callable[..., Array]:
  """(params, index [b], key=None) -> samples [b, ...], as `chain`. Jit-able."""
  return lambda *args: samplers.reverse(*chain(run, *args))


def over_devices(
  function: Callable[..., Any],
  mesh: jax.sharding.Mesh,
  num_split: int = 1,
  num_shared: int = 0,
) -> Callable[..., Any]:
  """Compiles function(params, *split [b, ...], *shared); devices divide b."""
  everywhere, split = sharding.replicated(mesh), sharding.by_example(mesh)
  inputs = [everywhere, *[split] * num_split, *[everywhere] * num_shared]
  return jax.jit(
    function,
    in_shardings=tuple(inputs),
    out_shardings=everywhere,
    compiler_options=chips.compiler_options(),
  )


def draw(model: Model, count: int, **fields: Any) -> np.ndarray:
  """Samples 0 .. count - 1, float32 [count, ...] in model units.

  `fields` replace those of run.sampling. Raises NonFiniteSamples.
  """
  run = changed(model.run, **fields)
  settings = run.sampling._asdict() | {"num_samples": None}
  key = files.digest([model.digest, run.config["seed"], settings])
  folder = model.samples_folder / key
  # The key is an input, so that runs of other seeds share the program.
  draw_batch = over_devices(sampler(run), model.mesh, num_shared=1)
  batches = []
  starts = range(0, count, run.sampling.batch_size)
  for start in tqdm(starts, desc="sample", unit="batch", disable=None):
    path = folder / f"{start}.npy"
    x_0 = _kept(path)
    if x_0 is None:
      index = np.arange(start, start + run.sampling.batch_size, dtype=np.int32)
      x_0 = np.asarray(draw_batch(model.params, index, run.keys.sampling))
      _save(path, x_0)
    batches.append(x_0)
  x_0 = np.concatenate(batches)[:count]
  if not np.isfinite(x_0).all():
    raise NonFiniteSamples(
      f"samples from step {model.step} in {model.workdir} are not finite: the"
      " model has not learnt yet, or the sampler diverges; set"
      " sampling.clip_x_0 or take more sampling.num_steps"
    )
  return x_0


def sample(run: Run, workdir: pathlib.Path) -> pathlib.Path:
  """`save_samples` of the newest checkpoint, and a folder of images."""
  folder = save_samples(newest_model(run, workdir))
  if not run.is_synthetic:
    with np.load(folder / "samples.npz") as saved:
      x_0 = saved["x_0"]
    write_images(folder / "images", x_0, [f"{i:06}" for i in range(len(x_0))])
  return folder


def write_images(
  folder: pathlib.Path, x_0: np.ndarray, names: Sequence[str]
) -> None:
  """Replaces a folder by PNG files of x_0 [n, h, w, c], clipped to [-1, 1]."""
  shutil.rmtree(folder, ignore_errors=True)
  for x, name in zip(examples.to_uint8(x_0), names, strict=True):
    save = partial(images.to_picture(x).save, format="png")
    files.write(folder / f"{name}.png", save)


def save_samples(model: Model) -> pathlib.Path:
  """Writes samples.npz (x_0) and sampling.json; returns their folder."""
  settings, folder = model.run.sampling, model.samples_folder
  files.write_npz(folder / "samples.npz", x_0=draw(model, settings.num_samples))
  files.write_json(
    folder / "sampling.json", {"step": model.step, **settings._asdict()}
  )
  return folder


def _kept(path: pathlib.Path) -> np.ndarray | None:
  """A batch that was drawn before; None if there is none, or a torn one."""
  try:
    return np.load(path) if path.exists() else None
  except (ValueError, EOFError):
    _LOG.warning("%s is damaged: its samples are drawn anew", path)
    return None


def _save(path: pathlib.Path, x_0: np.ndarray) -> None:
  files.write(path, lambda file: np.save(file, x_0))
