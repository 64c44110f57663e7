"""Small files of a run: written whole or not at all, read with clear errors."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np


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
  """The rows of a JSON lines file, or []; a last line cut short is left out."""
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  try:
    return [json.loads(line) for line in lines if line.endswith("\n")]
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def digest(tree: Any) -> str:
  """Twelve characters of a hash of what JSON can hold, in any order of keys."""
  text = json.dumps(tree, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
