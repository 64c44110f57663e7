"""Writers of metrics: JSON lines and TensorBoard, safe to resume."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorboardX

Writer = Callable[[int, dict[str, float]], None]


@contextlib.contextmanager
def writer(workdir: pathlib.Path, first_step: int) -> Iterator[Writer]:
  """Yields write(step, {name: value}), which appends to both logs.

  What an earlier, interrupted run wrote past first_step is dropped, so each
  step stands in the logs once.

  Args:
    workdir: the run's folder: metrics.jsonl and tensorboard/ lie there.
    first_step: steps already done by the state the run goes on from.
  """
  path = workdir / "metrics.jsonl"
  _drop_after(path, first_step)
  board = tensorboardX.SummaryWriter(
    str(workdir / "tensorboard"), purge_step=first_step + 1
  )
  with path.open("a") as lines:

    def write(step: int, values: dict[str, float]) -> None:
      lines.write(json.dumps({"step": step, **values}) + "\n")
      lines.flush()
      for name, value in values.items():
        board.add_scalar(name, value, step)

    try:
      yield write
    finally:
      board.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, oldest first. A torn last line is left out."""
  path = workdir / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


def _drop_after(path: pathlib.Path, step: int) -> None:
  kept = [row for row in read(path.parent) if row["step"] <= step]
  path.write_text("".join(json.dumps(row) + "\n" for row in kept))
