"""Writers of metrics: JSON lines, TensorBoard and Weights & Biases."""

import contextlib
import json
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
  """Yields write(step, {name: value}), which appends to all logs.

  What an earlier, interrupted run wrote past first_step is dropped, so each
  step stands in the logs once. Only the first process writes.

  Args:
    workdir: the run's folder: metrics.jsonl and tensorboard/ lie there.
    first_step: steps already done by the state the run goes on from.
    wandb_project: of Weights & Biases; "" does without.
    config: the run's, for Weights & Biases.

  Raises:
    ValueError: wandb is asked for and not installed.
  """
  if not hosts.is_first():
    yield lambda step, values: None
    return
  with contextlib.ExitStack() as stack:
    logs = [
      stack.enter_context(_json_lines(workdir, first_step)),
      stack.enter_context(_tensorboard(workdir, first_step)),
    ]
    if wandb_project:
      logs.append(stack.enter_context(_wandb(workdir, wandb_project, config)))

    def write(step: int, values: dict[str, float]) -> None:
      for log in logs:
        log(step, values)

    yield write


@contextlib.contextmanager
def _json_lines(workdir: pathlib.Path, first_step: int) -> Iterator[Writer]:
  path = workdir / "metrics.jsonl"
  _drop_after(path, first_step)
  with path.open("a") as lines:

    def write(step: int, values: dict[str, float]) -> None:
      lines.write(json.dumps({"step": step, **values}) + "\n")
      lines.flush()

    yield write


@contextlib.contextmanager
def _tensorboard(workdir: pathlib.Path, first_step: int) -> Iterator[Writer]:
  import tensorboardX  # It imports PyTorch, where there is one: seconds.

  board = tensorboardX.SummaryWriter(
    str(workdir / "tensorboard"), purge_step=first_step + 1
  )

  def write(step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      board.add_scalar(name, value, step)

  try:
    yield write
  finally:
    board.close()


@contextlib.contextmanager
def _wandb(
  workdir: pathlib.Path, project: str, config: dict[str, Any] | None
) -> Iterator[Writer]:
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
  with wandb.init(
    project=project,
    id=path.read_text(),
    name=workdir.name,
    dir=workdir,
    config=config,
    resume="allow",
  ) as run:
    yield lambda step, values: run.log(values, step=step)


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, oldest first."""
  return files.read_rows(workdir / "metrics.jsonl")


def _drop_after(path: pathlib.Path, step: int) -> None:
  kept = [row for row in files.read_rows(path) if row["step"] <= step]
  files.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
