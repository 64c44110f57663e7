"""The page: what it shows, that it stands alone and comes out the same."""

import base64
import csv
import html.parser
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rad_jax.reports import looks, page, tables
from rad_jax.reports.page import Picture
from rad_jax.reports.tables import Table
from rad_jax.robustness import objectives

HOSTILE = '<script>alert("x")</script> & \'</svg>-->'


def figure(label="line"):
  """Lines, points and an image."""
  drawn = Figure(figsize=(6, 2.5), layout="constrained")
  left, middle, right = drawn.subplots(1, 3)
  left.plot([1, 2, 3], [3.0, 1.0, 2.0], "o--", label=label)
  left.set_title(label, parse_math=False)
  left.legend()
  points = np.random.default_rng(0).normal(size=(2, 300))
  middle.scatter(*points, s=3)
  right.imshow(np.arange(12).reshape(3, 4), interpolation="nearest")
  return drawn


def sections(text="plain"):
  table = Table(
    f"table {text}",
    ["run", text],
    [[text, 1.23456789], ["b", None], ["c", 3]],
    text,
    best={(0, 1)},
  )
  other = Figure(figsize=(2, 2))
  other.subplots().imshow(np.eye(3), interpolation="nearest")
  return {
    text: [text, Picture(f"one {text}", figure(text), text)],
    "Next": [Picture("two", other, "Two."), table],
  }


class Outline(html.parser.HTMLParser):
  """The tags of a page with their attributes, and its text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)

  def handle_data(self, data):
    self.text += data

  def of(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def html(title, lead, shown, folder):
  """The text of the page."""
  return page.write(title, lead, shown, folder)[0].read_text()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  folder = tmp_path_factory.mktemp("plain")
  return html("Title", "Lead.", sections(), folder)


def test_hostile_text_is_shown_and_never_a_tag(tmp_path):
  outline = Outline(html(HOSTILE, HOSTILE, sections(HOSTILE), tmp_path))
  assert outline.of("script") == []
  # Title, heading, lead, contents, heading, paragraph, caption, head, cell,
  # caption.
  assert outline.text.count(HOSTILE) == 10
  assert outline.of("img")[0]["alt"] == HOSTILE


def test_page_is_self_contained(plain):
  outline = Outline(plain)
  assert {"script", "iframe", "object", "embed"}.isdisjoint(
    tag for tag, _ in outline.tags
  )
  links = [
    value
    for _, attributes in outline.tags
    for name, value in attributes.items()
    if name.split(":")[-1] in ("src", "href", "srcset", "data", "action")
  ]
  pictures = [link for link in links if link.startswith("data:image/png")]
  assert len(pictures) == len(outline.of("img")) == 2
  assert all(link.startswith(("#", "data:")) for link in links)
  assert "url(" not in plain
  assert "@import" not in plain


def test_ids_are_unique_and_references_lead_to_them(plain):
  outline = Outline(plain)
  ids = [a["id"] for _, a in outline.tags if "id" in a]
  assert len(ids) == len(set(ids)) == 2
  assert [a["aria-labelledby"] for a in outline.of("section")] == ids
  contents = [a["href"] for a in outline.of("a")]
  headings = [a["id"] for a in outline.of("h2")]
  assert contents == [f"#{heading}" for heading in headings]


def test_pictures_are_those_beside_the_page(tmp_path):
  paths = page.write("Title", "Lead.", sections(), tmp_path)
  shown = Outline(paths[0].read_text()).of("img")
  for picture, path in zip(shown, paths[1:], strict=False):
    _, data = picture["src"].split(",")
    assert base64.b64decode(data) == path.read_bytes()


def test_same_input_same_bytes(tmp_path):
  for folder in ("a", "b"):
    page.write("Title", "Lead.", sections(), tmp_path / folder)
  files = sorted(path.name for path in (tmp_path / "a").iterdir())
  assert len(files) == 5
  for name in files:
    first, other = [(tmp_path / f / name).read_bytes() for f in "ab"]
    assert first == other, name
  text = (tmp_path / "a/report.html").read_text()
  assert re.findall(r"\b20\d\d-\d\d", text) == []


def test_files_beside_the_page(tmp_path):
  paths = page.write(
    "Title", "Lead.", sections(HOSTILE), tmp_path / "new" / "x"
  )
  assert paths[0] == tmp_path / "new" / "x" / "report.html"
  assert sorted(paths) == sorted((tmp_path / "new" / "x").iterdir())
  names = [path.name for path in paths]
  assert [path.suffix for path in paths] == (
    [".html", ".png", ".png", ".csv", ".md"]
  )
  assert all(re.fullmatch(r"[\w.-]+", name) for name in names)
  with Image.open(paths[1]) as picture:
    assert picture.size == (900, 375)


def test_csv_gives_the_values_back():
  values = [1 / 3, 1e-30, -0.0, 7, None, float("nan")]
  table = Table(
    "t", ["name", "a,b"], [[f'"{HOSTILE}",\n', v] for v in values], ""
  )
  head, *rows = csv.reader(io.StringIO(tables.in_full(table)))
  assert head == ["name", "a,b"]
  assert {name for name, _ in rows} == {f'"{HOSTILE}",\n'}
  for value, (_, cell) in zip(values, rows, strict=True):
    if value is None:
      assert cell == ""
    else:
      np.testing.assert_equal(float(cell), value)


@pytest.mark.parametrize(
  "cell, written",
  [
    ("=1+1", "'=1+1"),
    ("@x", "'@x"),
    ("+cmd", "'+cmd"),
    ("-2+3", "'-2+3"),
    ("-1.5 ± 0.25", "-1.5 ± 0.25"),
    ("-inf", "-inf"),
    (-1.5, "-1.5"),
    ("a=b", "a=b"),
  ],
)
def test_no_cell_of_csv_is_computed(cell, written):
  text = tables.in_full(Table("t", ["=h", "x"], [[cell, 0]]))
  assert list(csv.reader(io.StringIO(text))) == [["'=h", "x"], [written, "0"]]


def test_markdown_has_no_links_from_names():
  table = Table("t", ["[a](b)"], [["`x` *y* $z$ ~w~ ![u](v)"]])
  head, _, row = tables.markdown(table).splitlines()
  assert head == r"| \[a\](b) |"
  assert row == r"| \`x\` \*y\* \$z\$ \~w\~ !\[u\](v) |"


def test_markdown_keeps_its_columns():
  table = Table(
    "t", ["a|b", "c"], [["x|y\nz", 0.123456], [HOSTILE, 3]], "", [(0, 1)]
  )
  head, rule, *rows = tables.markdown(table).splitlines()
  parted = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (head, rule, *rows)]
  assert {len(cells) for cells in parted} == {2}
  assert rows[0] == r"| x\|y z | **0.1235** |"
  assert "<" not in rows[1]


def test_best_cells_are_bold(plain):
  bold = re.findall(r"<t[dh][^>]*><strong>(.*?)</strong>", plain)
  assert bold == ["1.235"]


def test_columns_of_numbers_stand_to_the_right(tmp_path):
  table = Table("t", ["x", "n", "m"], [["a", 1.0, 2], ["b", None, "c"]], "")
  text = html("", "", {"": [table]}, tmp_path)
  assert re.findall(r"<td([^>]*)>", text) == [' class="number"', ""] * 2
  assert re.findall(r"<th scope=.col.([^>]*)>", text) == (
    ["", ' class="number"', ""]
  )


def test_parts_of_the_same_file_are_refused(tmp_path):
  same = [Picture("a b", figure(), ""), Table("a/b", ["x"], [], "")]
  with pytest.raises(ValueError, match="a_b"):
    page.write("", "", {"": same}, tmp_path / "none")
  assert not (tmp_path / "none").exists()


def test_ragged_table_is_refused(tmp_path):
  table = Table("results", ["a", "b"], [["x", 1], ["y"]], "")
  with pytest.raises(ValueError, match="results: a row of 1"):
    html("", "", {"": [table]}, tmp_path)


# Looks.


def test_every_objective_has_its_look():
  assert list(looks.LOOKS) == list(objectives.OBJECTIVES)


def test_objectives_are_told_apart_in_grey():
  found = list(looks.LOOKS.values())
  for field in ("label", "marker", "linestyle"):
    assert len({getattr(look, field) for look in found}) == len(found), field
  okabe_ito = "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7"
  assert {look.color for look in found} <= set(okabe_ito.split())


def test_looks_can_be_drawn():
  axis = Figure().subplots()
  for name in [*looks.LOOKS, "unknown"]:
    axis.plot([0, 1], [0, 1], **looks.of(name)._asdict())
  axis.figure.draw_without_rendering()
  assert axis.lines[-1].get_label() == "unknown"


def test_looks_are_the_objectives_own_where_they_differ():
  own = looks.of_runs(["robust_adv", "ddpm"], ["a", "b"])
  assert [look.label for look in own] == ["a", "b"]
  assert [look.color for look in own] == (
    [looks.of("robust_adv").color, looks.of("ddpm").color]
  )
  shared = looks.of_runs(["ddpm"] * 8, list("abcdefgh"))
  assert len({look.marker for look in shared}) == 8
