"""Docstrings as Markdown: lists of fields and formulas keep their lines.

Docstrings are written for readers of the source. There a list of fields is one
line a field, and a formula is set off by two spaces; Markdown would run both
together.
"""

import re

import griffe

_FIELD = re.compile(r"[a-z_][\w, ]*: \S")


def as_markdown(text: str) -> str:
  """A docstring, with fields as list items and formulas as code."""
  paragraphs = text.split("\n\n")
  return "\n\n".join(
    _paragraph(before, here)
    for before, here in zip(["", *paragraphs], paragraphs, strict=False)
  )


def _paragraph(before: str, here: str) -> str:
  lines = here.split("\n")
  if _FIELD.match(lines[0]):
    return "\n".join(
      re.sub(r"^([\w, ]+):", r"- `\1`:", line) if _FIELD.match(line) else line
      for line in lines
    )
  # What is indented beneath an indented paragraph belongs to a section.
  in_section = re.search(r"^\s|^\w+:$", before, re.M)
  if before and not in_section and all(x.startswith("  ") for x in lines):
    return "\n".join(f"    {line}" for line in lines)
  return here


class Docstrings(griffe.Extension):
  """Rewrites every docstring before it is parsed."""

  def on_object(self, *, obj, **kwargs) -> None:
    """Of modules, classes, functions and attributes."""
    if obj.docstring:
      obj.docstring.value = as_markdown(obj.docstring.value)
