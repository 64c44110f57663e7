"""One self-contained HTML page of text, tables and pictures.

No script, and nothing fetched: styles and pictures stand in the file. Beside
it lie each picture as PNG, each table as CSV (values in full) and Markdown.
The same input gives the same bytes.
"""

import base64
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jinja2
from matplotlib.figure import Figure

from rad_jax import files
from rad_jax.reports import panels, tables
from rad_jax.reports.tables import Table


class Picture(NamedTuple):
  """A figure.

  name: of its file, unique on the page.
  figure: drawn, not yet saved.
  caption: one sentence of what to see, read out in the picture's place.
  """

  name: str
  figure: Figure
  caption: str


class Text(NamedTuple):
  """A paragraph, plain."""

  paragraph: str


Part: TypeAlias = Picture | Table | Text


class Section(NamedTuple):
  """A heading, and what stands under it."""

  title: str
  parts: Sequence[Part]


def write(
  title: str, lead: str, sections: Sequence[Section], folder: pathlib.Path
) -> list[pathlib.Path]:
  """Writes folder/report.html and the files beside it; returns the paths.

  `lead` is a paragraph below the title.

  Raises:
    ValueError: two parts would be the same file, or a table is ragged.
  """
  parts = [part for section in sections for part in section.parts]
  names = [file_name(p.name) for p in parts if not isinstance(p, Text)]
  twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
  if twice:
    raise ValueError(f"two parts of a page are named {', '.join(twice)}")
  beside = [path for part in parts for path in _save(part, folder)]
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("rad_jax", "reports"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )
  text = environment.get_template("page.html.jinja").render(
    title=title,
    lead=lead,
    sections=[
      {"title": s.title, "parts": [_view(part, folder) for part in s.parts]}
      for s in sections
    ],
  )
  files.write_text(folder / "report.html", text)
  return [folder / "report.html", *beside]


def file_name(name: str) -> str:
  """A name as that of a file, without an ending: letters, digits, _ . -"""
  return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.") or "part"


def _save(part: Part, folder: pathlib.Path) -> list[pathlib.Path]:
  if isinstance(part, Text):
    return []
  path = folder / file_name(part.name)
  if isinstance(part, Picture):
    return [panels.save(part.figure, path.with_name(f"{path.name}.png"))]
  paths = [path.with_name(f"{path.name}.{ending}") for ending in ("csv", "md")]
  files.write_text(paths[0], tables.in_full(part))
  files.write_text(paths[1], tables.markdown(part))
  return paths


def _view(part: Part, folder: pathlib.Path) -> dict[str, Any]:
  """What the template shows of a part whose files are written."""
  if isinstance(part, Text):
    return {"kind": "text", "paragraph": part.paragraph}
  if isinstance(part, Picture):
    pixels = (folder / f"{file_name(part.name)}.png").read_bytes()
    return {
      "kind": "picture",
      "png": base64.b64encode(pixels).decode(),
      "inches": part.figure.get_figwidth(),
      "caption": part.caption,
    }
  is_number = lambda cell: isinstance(cell, int | float | None)
  columns = range(len(part.head))
  return {
    "kind": "table",
    "caption": part.caption,
    "head": part.head,
    "numbers": [all(is_number(row[j]) for row in part.rows) for j in columns],
    "rows": [[tables.text_of(cell) for cell in row] for row in part.rows],
    "best": part.best,
  }
