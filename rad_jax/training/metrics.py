"""Writers of metrics: JSON lines, TensorBoard and Weights & Biases."""

import contextlib
import pathlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from rad_jax import files
from rad_jax.training import hosts

Writer = Callable[[int, dict[str, float]], None]


@contextlib.contextmanager
def writer(
  workdir: pathlib.Path,
  first_step: int,
  wandb_project: str = "",
  config: dict[str, Any] | None = None,
) -> Iterator[Writer]:
  """Yields write(step, {name: value}), which appends to all logs of workdir.

  metrics.jsonl is only ever added to; what an interrupted run wrote there past
  first_step counts no more (files.read_log). Only the first process writes.
  ValueError: wandb is missing.
  """
  if not hosts.is_first():
    yield lambda step, values: None
    return
  import tensorboardX  # It imports PyTorch, where there is one: seconds.

  path = workdir / "metrics.jsonl"
  if path.exists():
    files.append_row(path, {"step": first_step})
  with contextlib.ExitStack() as stack:
    board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=first_step + 1
    )
    stack.callback(board.close)
    remote = wandb_project and stack.enter_context(
      _wandb(workdir, wandb_project, config)
    )

    def write(step: int, values: dict[str, float]) -> None:
      files.append_row(path, {"step": step, **values})
      for name, value in values.items():
        board.add_scalar(name, value, step)
      if remote:
        remote.log(values, step=step)

    yield write


def _wandb(workdir: pathlib.Path, project: str, config: dict[str, Any] | None):
  """The run of this workdir, which a resumed one goes on with."""
  try:
    import wandb  # type: ignore[import-not-found,unused-ignore]
  except ImportError as error:
    raise ValueError(
      f"train.wandb_project={project!r} needs a package: pip install wandb"
    ) from error
  path = workdir / "wandb_id"
  if not path.exists():
    path.write_text(uuid.uuid4().hex[:12])
  return wandb.init(
    project=project,
    id=path.read_text(),
    name=workdir.name,
    dir=workdir,
    config=config,
    resume="allow",
  )


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, oldest first."""
  return files.read_log(workdir / "metrics.jsonl")
