"""One self-contained HTML page of text, tables and pictures.

No script, and nothing fetched: styles and pictures stand in the file, pictures
as SVG. Beside it lie each picture as PNG, each table as CSV (values in full)
and Markdown. The same input gives the same bytes.

  page.write(
    "Two runs",
    "What they have in common.",
    [page.Section("Error", [page.Picture("error", figure, "It falls.")])],
    pathlib.Path("report"),
  )
"""

import csv
import io
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias
from xml.etree import ElementTree

import jinja2
import markupsafe
import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

Cell: TypeAlias = str | int | float | None

_DPI = 150
_NAMESPACE = re.compile(r"^\{[^}]*\}")
_REFERENCE = re.compile(r"^#|(?<=url\(#)")
_LONG = re.compile(r"(\.\d\d)\d+")  # a path needs no more than 1/100 point


class Picture(NamedTuple):
  """A figure.

  name: of its file, unique on the page.
  figure: drawn, not yet saved.
  caption: one sentence of what to see, read out in the picture's place.
  """

  name: str
  figure: Figure
  caption: str


class Table(NamedTuple):
  """Rows of cells, whose first one names the row; None is an empty cell.

  name: of its files, unique on the page.
  head: names of the columns.
  best: (row, column) of cells to be bold, from 0, the head not counted.
  """

  name: str
  head: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  caption: str
  best: Collection[tuple[int, int]] = ()


class Text(NamedTuple):
  """A paragraph, plain."""

  paragraph: str


Part: TypeAlias = Picture | Table | Text


class Section(NamedTuple):
  """A heading, and what stands under it."""

  title: str
  parts: Sequence[Part]


def write(
  title: str,
  lead: str,
  sections: Sequence[Section],
  folder: pathlib.Path,
  name: str = "report.html",
) -> list[pathlib.Path]:
  """Writes the page and the files beside it.

  Args:
    title: of the page.
    lead: the paragraph under it.
    sections: in order; each is in the table of contents.
    folder: made if missing.
    name: of the HTML file.

  Returns:
    The paths, the page's first.

  Raises:
    ValueError: two parts would have the same file, or a row of a table is not
      as long as its head.
  """
  text = html(title, lead, sections)
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / name]
  paths[0].write_text(text)
  for section in sections:
    for part in section.parts:
      paths += _save(part, folder)
  return paths


def html(title: str, lead: str, sections: Sequence[Section]) -> str:
  """The page as text.

  Raises:
    ValueError: as `write`.
  """
  _refuse_same_names(part for section in sections for part in section.parts)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("rad_jax", "reports"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  return environment.get_template("page.html.jinja").render(
    title=title,
    lead=lead,
    sections=[
      {"title": section.title, "parts": [_view(part) for part in section.parts]}
      for section in sections
    ],
  )


def file_name(name: str) -> str:
  """A name as that of a file, without an ending: letters, digits, _ . -"""
  return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.") or "part"


def svg(figure: Figure, name: str, caption: str) -> str:
  """The figure as an <svg> that can stand in a page with others.

  Its ids begin with `name`; it scales with its box, and bears the caption for
  those who do not see it.
  """
  prefix = f"{file_name(name)}-"
  _lay_out(figure)
  saved = io.StringIO()
  with matplotlib.rc_context(
    {"svg.hashsalt": "rad_jax", "svg.fonttype": "path"}
  ):
    figure.savefig(saved, format="svg", dpi=_DPI)
  root = ElementTree.fromstring(saved.getvalue())
  styles = []
  for parent in list(root.iter()):
    for child in list(parent):
      tag = _NAMESPACE.sub("", child.tag)
      if tag in ("metadata", "style"):  # the metadata bears the time
        parent.remove(child)
        # Matplotlib's one style, of all elements: those of the page as well.
        styles += re.findall(r"\*\{(.*?)\}", child.text or "")
  for element in root.iter():
    element.tail = None  # white space
    if "d" in element.attrib:
      element.attrib["d"] = _LONG.sub(r"\1", element.attrib["d"])
    element.tag = _NAMESPACE.sub("", element.tag)
    element.attrib = {
      _NAMESPACE.sub("", key): prefix + value
      if key == "id"
      else _REFERENCE.sub(lambda found: found[0] + prefix, value)
      for key, value in element.attrib.items()
    }
  width = root.attrib.pop("width")
  for name in ("height", "version"):
    root.attrib.pop(name, None)
  styles += [f"width: {width}", f"min-width: min({width}, 30rem)"]
  root.attrib |= {
    "role": "img",
    "aria-label": caption,
    "style": "; ".join(styles),
  }
  return ElementTree.tostring(root, encoding="unicode")


def table_csv(table: Table) -> str:
  """The table's values in full, as CSV."""
  lines = io.StringIO()
  csv.writer(lines, lineterminator="\n").writerows([table.head, *table.rows])
  return lines.getvalue()


def table_markdown(table: Table) -> str:
  """The table as Markdown, its best cells bold."""
  _refuse_ragged(table)
  lines = [list(map(_escaped, table.head)), ["---"] * len(table.head)]
  for i, row in enumerate(table.rows):
    cells = [_escaped(cell_text(cell)) for cell in row]
    lines.append(
      [f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(cells)]
    )
  return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def cell_text(cell: Cell) -> str:
  """A cell as it is shown: four digits of a fraction, whole numbers whole."""
  if cell is None:
    return ""
  return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _view(part: Part) -> dict[str, Any]:
  """What the template shows of a part."""
  if isinstance(part, Text):
    return {"kind": "text", "paragraph": part.paragraph}
  if isinstance(part, Picture):
    drawn = svg(part.figure, part.name, part.caption)
    return {
      "kind": "picture",
      "svg": markupsafe.Markup(drawn),
      "caption": part.caption,
    }
  _refuse_ragged(part)
  return {
    "kind": "table",
    "caption": part.caption,
    "head": part.head,
    "numbers": [
      all(isinstance(row[j], int | float | None) for row in part.rows)
      for j in range(len(part.head))
    ],
    "rows": [
      [
        {"text": cell_text(cell), "best": (i, j) in part.best}
        for j, cell in enumerate(row)
      ]
      for i, row in enumerate(part.rows)
    ],
  }


def _save(part: Part, folder: pathlib.Path) -> list[pathlib.Path]:
  if isinstance(part, Text):
    return []
  stem = file_name(part.name)
  if isinstance(part, Picture):
    path = folder / f"{stem}.png"
    _lay_out(part.figure)
    part.figure.savefig(path, dpi=_DPI)
    return [path]
  paths = [folder / f"{stem}.csv", folder / f"{stem}.md"]
  paths[0].write_text(table_csv(part))
  paths[1].write_text(table_markdown(part))
  return paths


def _lay_out(figure: Figure) -> None:
  """Once and for all: a layout engine moves things at each saving."""
  engine = figure.get_layout_engine()
  if engine and not isinstance(engine, PlaceHolderLayoutEngine):
    engine.execute(figure)
    figure.set_layout_engine("none")


def _refuse_same_names(parts: Iterator[Part]) -> None:
  names = [file_name(p.name) for p in parts if not isinstance(p, Text)]
  twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
  if twice:
    raise ValueError(f"two parts of a page are named {', '.join(twice)}")


def _refuse_ragged(table: Table) -> None:
  for row in table.rows:
    if len(row) != len(table.head):
      raise ValueError(
        f"table {table.name}: a row of {len(row)} cells under a head of"
        f" {len(table.head)}"
      )


def _escaped(text: str) -> str:
  """Text in a Markdown cell: no column, line or tag begins in it."""
  text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
  return " ".join(text.split())
