"""One self-contained HTML page of text, tables and pictures, without scripts.

Beside it lie each picture as PNG, each table as CSV (values in full) and
Markdown. The same input gives the same bytes.
"""

import base64
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jinja2
from matplotlib.figure import Figure

from rad_jax import files
from rad_jax.reports import panels, tables
from rad_jax.reports.tables import Table


class Picture(NamedTuple):
  """A figure; its name is that of its file, unique on the page."""

  name: str
  figure: Figure
  caption: str


Part: TypeAlias = Picture | Table | str  # str: a paragraph, plain.


def write(
  title: str,
  lead: str,
  sections: Mapping[str, Sequence[Part]],
  folder: pathlib.Path,
) -> list[pathlib.Path]:
  """Writes folder/report.html and the files beside it; returns the paths.

  Raises ValueError if two parts would be the same file, or a table is ragged.
  """
  parts = [part for section in sections.values() for part in section]
  named = [part for part in parts if not isinstance(part, str)]
  names = [file_name(part.name) for part in named]
  twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
  if twice:
    raise ValueError(f"two parts of a page are named {', '.join(twice)}")
  beside = []
  for name, part in zip(names, named, strict=True):
    if isinstance(part, Picture):
      beside.append(panels.save(part.figure, folder / f"{name}.png"))
    else:
      beside += [folder / f"{name}.csv", folder / f"{name}.md"]
      files.write_text(beside[-2], tables.in_full(part))
      files.write_text(beside[-1], tables.markdown(part))
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("rad_jax", "reports"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )
  pixels = lambda part: (folder / f"{file_name(part.name)}.png").read_bytes()
  text = environment.get_template("page.html.jinja").render(
    title=title,
    lead=lead,
    sections=sections,
    base64=lambda part: base64.b64encode(pixels(part)).decode(),
    text_of=tables.text_of,
  )
  files.write_text(folder / "report.html", text)
  return [folder / "report.html", *beside]


def file_name(name: str) -> str:
  """A name as that of a file, without an ending: letters, digits, _ . -"""
  return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.") or "part"
