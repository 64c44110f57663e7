"""What each field of the config means, and where its value comes from.

The words are the comments of `config.default`: they stand in one place.
"""

import ast
import inspect
import io
import shlex
import tokenize
from collections.abc import Collection, Iterator

from rad_jax import config as configs
from rad_jax.config import ConfigDict


def docs() -> dict[str, str]:
  """What is said of each field and section, by its dotted path; "": nothing."""
  source = inspect.getsource(configs.default)
  lines = source.splitlines()
  comments = {
    token.start[0]: token.string.lstrip("# ")
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }
  (literal,) = (
    node.args[0]
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.Call)
  )
  found = {}
  for path, line in _fields(literal):
    first = line
    while lines[first - 2].lstrip().startswith("#"):
      first -= 1
    said = [comments[n] for n in range(first, line + 1) if n in comments]
    found[path] = " ".join(said)
  return found


def _fields(literal: ast.expr, prefix: str = "") -> Iterator[tuple[str, int]]:
  """The path and the line of each key of a literal of nested dicts."""
  if not isinstance(literal, ast.Dict):
    return
  for key, value in zip(literal.keys, literal.values, strict=True):
    assert isinstance(key, ast.Constant)
    path = f"{prefix}{key.value!s}"
    yield path, key.lineno
    yield from _fields(value, f"{path}.")


def show(
  config: ConfigDict, source: str, overridden: Collection[str] = ()
) -> str:
  """All fields as they would be given on the command line, with their docs.

  Args:
    config: the resolved config.
    source: name of the config file.
    overridden: paths that the command line sets.
  """
  values = configs.flatten(config.to_dict())
  defaults = configs.flatten(configs.default().to_dict())
  lines = []
  for path, said in docs().items():
    if path not in values:
      lines += ["", f"# {path}" + (f": {said}" if said else "")]
      continue
    value = values[path]
    origin = "default"
    if path in overridden:
      origin = "command line"
    elif value != defaults[path]:
      origin = source
    given = str(tuple(value) if isinstance(value, list) else value)
    lines.append(f"--config.{path}={shlex.quote(given)}  ({origin})")
    if said:
      lines.append(f"    {said}")
  return "\n".join(lines)
