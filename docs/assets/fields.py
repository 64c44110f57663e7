"""Writes docs/fields.md: every flag, and every field of a config.

python docs/assets/fields.py
"""

import pathlib

from absl import flags

import rad_jax.main  # noqa: F401 (defines the flags)
from rad_jax import config

PAGE = pathlib.Path(__file__).parent.parent / "fields.md"


def page() -> str:
  """The page, from the flags of rad_jax.main and the table config.FIELDS."""
  lines = [
    "# Flags and fields",
    "",
    "All of them, made from the code by `python docs/assets/fields.py`.",
    "`--mode=show_config` prints what a run has. Where *allowed* is empty, any",
    "value of the default's type is.",
    "",
    "## Flags",
    "",
    "| flag | meaning | default | allowed |",
    "|---|---|---|---|",
  ]
  for flag in flags.FLAGS.flags_by_module_dict()["rad_jax.main"]:
    if not flag.name.startswith("config."):
      lines.append(_row(f"--{flag.name}", *_of_flag(flag)))
  section = None
  for path, field in config.FIELDS.items():
    parent = path.rpartition(".")[0]
    if parent != section:
      section = parent
      title = f"`{parent}`" if parent else "The run"
      lines += ["", f"## {title}", ""]
      lines += ["| `--config.` | meaning | default | allowed |"]
      lines += ["|---|---|---|---|"]
    default = field.default
    if path == "data.cache":  # an environment's may be another
      default = "~/.cache/rad_jax/data"
    allowed = field.rule.words if field.rule else ""
    lines.append(_row(path, repr(default), allowed, field.doc))
  return "\n".join(lines) + "\n"


def _of_flag(flag: flags.Flag) -> tuple[str, str, str]:
  """A flag's default, what it may be, and what it means."""
  default = "" if flag.default is None else repr(flag.default)
  if flag.name == "compile_cache":
    default = "'~/.cache/rad_jax'"  # Whatever the environment says here.
  if isinstance(flag, flags.EnumFlag):
    # What it may be stands before its meaning.
    names = flag.parser.enum_values
    return default, f"one of {', '.join(names)}", flag.help.split(">: ", 1)[1]
  allowed = "True or False" if flag.boolean else flag.parser.syntactic_help
  return default, allowed, flag.help


def _row(name: str, default: str, allowed: str, meaning: str) -> str:
  code = f"`{default}`" if default else ""
  return f"| `{name}` | {_cell(meaning)} | {code} | {_cell(allowed)} |"


def _cell(text: str) -> str:
  return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
  PAGE.write_text(page())
