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
    "Made from the code by `python docs/assets/fields.py`. What a run has is",
    "printed by `--mode=show_config`.",
    "",
    "## Flags",
    "",
    "| flag | default | meaning |",
    "|---|---|---|",
  ]
  for flag in flags.FLAGS.flags_by_module_dict()["rad_jax.main"]:
    if flag.name != "config" and not flag.name.startswith("config."):
      default = "" if flag.default in (None, "") else f"`{flag.default}`"
      if flag.name == "compile_cache":
        default = "`~/.cache/rad_jax`"
      lines.append(f"| `--{flag.name}` | {default} | {_cell(flag.help)} |")
    elif flag.name == "config":
      lines.append(f"| `--config` | | {_cell(flag.help)} |")
  section = None
  for path, field in config.FIELDS.items():
    parent = path.rpartition(".")[0]
    if parent != section:
      section = parent
      title = f"`{parent}`" if parent else "The run"
      lines += ["", f"## {title}", "", "| `--config.` | default | meaning |"]
      lines.append("|---|---|---|")
    default = f"`{field.default!r}`"
    if path == "data.cache":  # an environment's may be another
      default = "`'~/.cache/rad_jax/data'`"
    lines.append(f"| `{path}` | {default} | {_cell(config.meaning(field))} |")
  return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
  return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
  PAGE.write_text(page())
