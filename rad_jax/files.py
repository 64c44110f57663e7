"""Small files of a run: written whole or not at all, read with clear errors."""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

_LOG = logging.getLogger("rad_jax")


def write(path: pathlib.Path, fill: Callable[[BinaryIO], Any]) -> None:
  """Replaces `path` by what fill(file) writes; a reader never sees a part."""
  path.parent.mkdir(parents=True, exist_ok=True)
  whole = path.with_name(f"{path.name}.tmp")
  with whole.open("wb") as file:
    fill(file)
  os.replace(whole, path)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces `path` by the text, in UTF-8."""
  write(path, lambda file: file.write(text.encode()))


def write_json(path: pathlib.Path, tree: Any) -> None:
  """Replaces `path` by the tree as indented JSON."""
  write_text(path, json.dumps(tree, indent=2) + "\n")


def write_npz(path: pathlib.Path, /, **arrays: Any) -> None:
  """Replaces `path` by the named arrays, compressed."""
  write(path, lambda file: np.savez_compressed(file, **arrays))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON file's content, {} without a file; ValueError if it is damaged."""
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a JSON lines file, or []; damaged lines are left out, told."""
  text = path.read_text(errors="replace") if path.exists() else ""
  rows: list[dict[str, Any]] = []
  damaged = []
  for number, line in enumerate(text.split("\n"), 1):
    try:
      row = json.loads(line) if line else {}
    except ValueError:
      row = None
    if not isinstance(row, dict):
      damaged.append(number)
    elif row:
      rows.append(row)
  if damaged:
    of = ", ".join(map(str, damaged[:5])) + ", ..." * (len(damaged) > 5)
    _LOG.warning("%s is damaged: left out of it are lines %s", path, of)
  return rows


def append_row(path: pathlib.Path, row: Mapping[str, Any]) -> None:
  """Adds a row, on a line of its own, to a JSON lines file."""
  with path.open("ab+") as file:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    torn = file.read(1) not in (b"", b"\n")
    file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl by rising step, or [].

  A row of a step alone tells that a run went on from there: what had been
  written past that step by the run before is dropped.
  """
  rows: list[dict[str, Any]] = []
  for row in read_rows(path):
    if not isinstance(row.get("step"), int):
      continue
    if len(row) > 1:
      rows.append(row)
    else:
      rows = [kept for kept in rows if kept["step"] <= row["step"]]
  return rows


def digest(tree: Any) -> str:
  """Twelve characters of a hash of what JSON can hold, in any order of keys."""
  text = json.dumps(tree, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
