"""A run's folder: whose it is, and what of another run's can be taken."""

import contextlib
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import filelock
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from rad_jax import config as configs
from rad_jax import files
from rad_jax.data import training_set
from rad_jax.interop import hub, pretrained
from rad_jax.run import Run
from rad_jax.training import checkpoints, hosts, sharding
from rad_jax.training.state import State

_LOG = logging.getLogger("rad_jax")


class InUse(RuntimeError):
  """Another process trains in the folder."""


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
  """Within its `with`, no other process trains in the folder; else InUse.

  The system lets go of the lock when the process ends, in whatever way. File
  systems without locks (some FUSE mounts, NFS 3 without its lock service) have
  a file in its place; one that a dead process of another host left there must
  be removed by hand.
  """
  if not hosts.is_first():
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  lock, holder = filelock.FileLock(workdir / "lock"), workdir / "holder.json"
  try:
    acquired = lock.acquire(blocking=False)
  except filelock.Timeout as error:
    by = files.read_json(holder)
    raise InUse(
      f"process {by.get('process', '?')} on {by.get('host', '?')} trains in"
      f" {workdir}: wait until it ends, or choose another --workdir"
    ) from error
  with acquired:
    files.write_json(
      holder, {"process": os.getpid(), "host": socket.gethostname()}
    )
    try:
      yield
    finally:
      holder.unlink(missing_ok=True)


def claim(workdir: pathlib.Path, run: Run) -> None:
  """Writes config.json."""
  if hosts.is_first():
    files.write_json(workdir / "config.json", run.config)


def refuse_conflicts(
  workdir: pathlib.Path, run: Run, training: bool = True
) -> None:
  """Raises ConfigError if workdir's config.json is of another run."""
  saved = files.read_json(workdir / "config.json")
  found = saved and configs.conflicts(saved, run.config, training)
  if found:
    configs.refuse_another(f"{workdir} holds a run", found)


def refuse_other(
  workdir: pathlib.Path, saved: dict[str, Any], today: dict[str, Any]
) -> None:
  """Raises ConfigError if a checkpoint is `saved` of another run or data."""
  found = configs.conflicts(saved["config"], today["config"])
  names = {f"its data's {name}": saved["data"][name] for name in saved["data"]}
  now = {f"its data's {name}": today["data"][name] for name in today["data"]}
  if found := found + configs.differences(names, now):
    configs.refuse_another(f"{workdir} holds a checkpoint, made", found)


def newest_state(workdir: pathlib.Path, run: Run, mesh: Mesh) -> State:
  """The newest checkpoint of workdir's run, replicated over the mesh."""
  if not (workdir / "config.json").exists():
    raise checkpoints.CheckpointError(f"no run in {workdir}: train first")
  refuse_conflicts(workdir, run, training=False)
  return _restore(workdir, run, mesh)


def _restore(folder: pathlib.Path, run: Run, mesh: Mesh) -> State:
  like = jax.eval_shape(run.initial_state)
  with checkpoints.open_manager(folder) as manager:
    return checkpoints.restore(manager, like, sharding.replicated(mesh))


def start_from(
  source: pathlib.Path, state: State, run: Run, mesh: Mesh
) -> State:
  """`state` with the parameters of another run, or of `pretrained.load`.

  `source` may be hf:owner/name; raises HubError as well as what they raise.
  """
  source = hub.local(source)
  if pretrained.is_foreign(source):
    params = jax.tree.map(
      lambda array, like: jax.device_put(array, like.sharding),
      pretrained.load(source, state.params, configs.flatten(run.config)),
      state.params,
    )
  else:
    params, step = parameters_of_run(
      source, run, mesh, "train.init_from", run.train.init_weights
    )
    _LOG.info("starting from step %d of %s", step, source)
  return state._replace(
    params=params, ema_params=jax.tree.map(jax.numpy.copy, params)
  )


def parameters_of_run(
  source: pathlib.Path, run: Run, mesh: Mesh, field: str, which: str = ""
) -> tuple[PyTree, int]:
  """Another run's newest parameters, for this run's network; and their step.

  `field` named the folder; `which` is "ema", "raw", or "": its sampling.ema.
  """
  name = f"config.{field}={str(source)!r}"
  saved = files.read_json(source / "config.json")
  if not saved:
    raise checkpoints.CheckpointError(f"no run in {name}")
  found = [
    line
    for line in configs.conflicts(saved, run.config, training=False)
    if line.startswith(("model.", "diffusion."))
  ]
  if found:
    raise configs.ConfigError(
      f"{name} holds another model ({'; '.join(found)}): restore these fields"
    )
  fields = ("name", "image_size", "num_channels")
  theirs = training_set.example_shape(*(saved["data"][n] for n in fields))
  if theirs != run.example_shape:
    raise configs.ConfigError(
      f"{name} was trained on examples of shape {theirs}, and"
      f" {run.data.name}'s is {run.example_shape}"
    )
  state = _restore(source, run, mesh)
  ema = which == "ema" if which else saved["sampling"]["ema"]
  return state.ema_params if ema else state.params, int(state.step)
