"""Writers of metrics: JSON lines, TensorBoard and Weights & Biases."""

import contextlib
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from rad_jax import files
from rad_jax.training import hosts

# (step, {name: value}, a picture's file or nothing) -> appended to all logs.
Writer = Callable[..., None]


@contextlib.contextmanager
def writer(
  workdir: pathlib.Path,
  first_step: int,
  wandb_project: str = "",
  config: dict[str, Any] | None = None,
) -> Iterator[Writer]:
  """Yields the Writer of workdir's logs.

  metrics.jsonl is only ever added to; what an interrupted run wrote there past
  first_step counts no more (files.read_log). Only the first process writes.
  ValueError: wandb is missing.
  """
  if not hosts.is_first():
    yield lambda step, values, picture=None: None
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

    def write(
      step: int,
      values: Mapping[str, float],
      picture: pathlib.Path | None = None,
    ) -> None:
      if values:
        files.append_row(path, {"step": step, **values})
      for name, value in values.items():
        board.add_scalar(name, value, step)
      if picture:
        with Image.open(picture) as opened:
          pixels = np.asarray(opened.convert("RGB"))
        board.add_image("samples", pixels, step, dataformats="HWC")
      if remote and picture:
        import wandb  # type: ignore[import-not-found,unused-ignore]

        remote.log({**values, "samples": wandb.Image(str(picture))}, step=step)
      elif remote:
        remote.log({**values}, step=step)

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
