"""A run's folder: whose it is, and what of another run's can be taken."""

import logging
import pathlib
from typing import Any

import jax
from jaxtyping import PyTree

from rad_jax import config as configs
from rad_jax import files
from rad_jax.data import training_set
from rad_jax.interop import pretrained
from rad_jax.run import Run
from rad_jax.training import checkpoints, hosts, sharding
from rad_jax.training.state import State

_LOG = logging.getLogger("rad_jax")


def claim(workdir: pathlib.Path, run: Run, resuming: bool) -> None:
  """Writes config.json into workdir, unless another run is there.

  Raises:
    ConfigError: it is there, with checkpoints.
  """
  if resuming:
    refuse_conflicts(workdir, run)
  if hosts.is_first():
    files.write_json(workdir / "config.json", run.config)


def refuse_conflicts(
  workdir: pathlib.Path, run: Run, training: bool = True
) -> None:
  """Raises ConfigError if workdir's config.json is of another run."""
  saved = files.read_json(workdir / "config.json")
  found = saved and configs.conflicts(saved, run.config, training)
  if found:
    raise configs.ConfigError(
      f"{workdir} holds a run with another config ({'; '.join(found)}):"
      " restore these fields, or choose another --workdir"
    )


def newest_state(
  workdir: pathlib.Path, run: Run, mesh: jax.sharding.Mesh
) -> State:
  """The newest checkpoint of workdir's run, replicated over the mesh.

  Raises:
    CheckpointError: there is none, or it is damaged.
    ConfigError: the run was of another model, data or objective.
  """
  if not (workdir / "config.json").exists():
    raise checkpoints.CheckpointError(f"no run in {workdir}: train first")
  refuse_conflicts(workdir, run, training=False)
  like = jax.eval_shape(run.initial_state)
  with checkpoints.open_manager(workdir) as manager:
    return checkpoints.restore(manager, like, sharding.replicated(mesh))


def start_from(
  source: pathlib.Path, state: State, run: Run, mesh: jax.sharding.Mesh
) -> State:
  """`state` with the parameters of another network, for fine-tuning.

  Step, optimiser and randomness stay those of `state`. A single set of
  parameters starts both the raw ones and their moving average.

  Args:
    source: another run's folder, whose newest parameters are taken, or what
      `pretrained.load` reads.
    state: a new run's.
    run: today's; train.init_weights chooses the parameters.
    mesh: over which another run's are replicated.

  Raises: as `parameters_of_run` and `pretrained.load`.
  """
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
  source: pathlib.Path,
  run: Run,
  mesh: jax.sharding.Mesh,
  field: str,
  which: str = "",
) -> tuple[PyTree, int]:
  """Another run's newest parameters, for today's network; and their step.

  Args:
    source: the other run's folder, from the config's field `field`.
    run: today's.
    mesh: over which they are replicated.
    field: named in errors.
    which: "ema", the moving average; "raw"; or "", as the other run's
      sampling.ema says.

  Raises:
    CheckpointError: source has no run or no whole checkpoint.
    ConfigError: its network or noise process is another.
  """
  saved = files.read_json(source / "config.json")
  if not saved:
    raise checkpoints.CheckpointError(
      f"no run in config.{field}={str(source)!r}"
    )
  found = [
    line
    for line in configs.conflicts(saved, run.config, training=False)
    if line.startswith(("model.", "diffusion."))
  ]
  if found:
    raise configs.ConfigError(
      f"config.{field}={str(source)!r} holds another model"
      f" ({'; '.join(found)}): restore these fields"
    )
  theirs = _example_shape(saved)
  if theirs != run.example_shape:
    raise configs.ConfigError(
      f"config.{field}={str(source)!r} was trained on examples of shape"
      f" {theirs}, and {run.data.name}'s is {run.example_shape}"
    )
  like = jax.eval_shape(run.initial_state)
  with checkpoints.open_manager(source) as manager:
    state = checkpoints.restore(manager, like, sharding.replicated(mesh))
  ema = which == "ema" if which else saved["sampling"]["ema"]
  return state.ema_params if ema else state.params, int(state.step)


def _example_shape(saved: dict[str, Any]) -> tuple[int, ...]:
  data = saved["data"]
  return training_set.example_shape(
    data["name"], data["image_size"], data["num_channels"]
  )
