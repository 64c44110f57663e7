"""The documentation's pages: links, anchors, fields and paths exist.

Each check is a function from text to what is wrong with it, and is shown a
planted error as well. The site itself is built and looked at only where
`bash launch/docs.sh` was run before.
"""

import pathlib
import re
import subprocess
import unicodedata

import browser
import pytest
import yaml

from rad_jax import config

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
# The report's table is a file, not a page: it is written by the program.
PAGES = sorted(
  path
  for path in [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *DOCS.rglob("*")]
  if path.suffix == ".md" and DOCS / "report" not in path.parents
)
# "any field" in a text.
PLACEHOLDERS = {"a.b"}

_FENCE = re.compile(r"^( *)(`{3,})[^\n]*\n.*?^\1\2 *$", re.M | re.S)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_FIELD = re.compile(r"--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)")
_PATH = re.compile(r"`((?:rad_jax|configs|launch|tests|docs)/[^`\s:]*)")


def anchors(text: str) -> set[str]:
  """The anchors of a page's headings, as GitHub makes them."""
  found: dict[str, int] = {}
  for heading in re.findall(r"^#{1,6} +(.+?) *#*$", _FENCE.sub("", text), re.M):
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    kept = (
      letter
      for letter in unicodedata.normalize("NFC", plain)
      if letter.isalnum() or letter in "-_ "
    )
    name = "".join(kept).replace(" ", "-")
    count = found[name] = found.get(name, -1) + 1
    if count:
      found[f"{name}-{count}"] = 0
  return set(found)


def broken_links(text: str, folder: pathlib.Path, own: set[str]) -> list[str]:
  """Relative links of a page in `folder` that lead nowhere.

  Args:
    text: the page.
    folder: where it lies.
    own: its anchors.
  """
  prose = _FENCE.sub("", text)
  # A link's text may be code; code that is no link's is not looked at.
  prose = _CODE.sub(lambda m: re.sub(r"[\[\]()]", "", m[0]), prose)
  broken = []
  for link in _LINK.findall(prose):
    if re.match(r"[a-z]+:", link):
      continue
    name, _, anchor = link.partition("#")
    target = folder / name
    if name and not target.exists():
      broken.append(link)
    elif anchor and target.suffix == ".md":
      if anchor not in anchors(target.read_text()):
        broken.append(link)
    elif anchor and not name and anchor not in own:
      broken.append(link)
  return broken


def unknown_fields(text: str) -> set[str]:
  """Fields and sections that a page sets by flag, and no config has."""
  known = set(config.flatten(config.default().to_dict()))
  for field in list(known):
    parts = field.split(".")
    known |= {".".join(parts[:n]) for n in range(1, len(parts))}
  return set(_FIELD.findall(text)) - known - PLACEHOLDERS


def missing_paths(text: str) -> set[str]:
  """Files and folders of the repository that a page names as code."""
  return {path for path in _PATH.findall(text) if not (ROOT / path).exists()}


class _Loader(yaml.SafeLoader):
  """Reads mkdocs.yml, whose own tags do not matter here."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
_Loader.add_multi_constructor(
  "tag:yaml.org,2002:python/", lambda loader, suffix, node: None
)


def navigation(entry) -> list[str]:
  """The files that a nav entry of mkdocs.yml leads to."""
  if isinstance(entry, str):
    return [entry]
  children = entry.values() if isinstance(entry, dict) else entry
  return [name for child in children for name in navigation(child)]


NAV = navigation(yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)["nav"])

every_page = pytest.mark.parametrize(
  "page", PAGES, ids=lambda path: str(path.relative_to(ROOT))
)


@every_page
def test_links_and_anchors_lead_somewhere(page):
  text = page.read_text()
  assert broken_links(text, page.parent, anchors(text)) == []


@pytest.mark.parametrize(
  "page",
  [*PAGES, *DOCS.glob("*.ipynb")],
  ids=lambda path: str(path.relative_to(ROOT)),
)
def test_fields_are_of_the_config(page):
  assert unknown_fields(page.read_text()) == set()


@every_page
def test_paths_exist(page):
  assert missing_paths(page.read_text()) == set()


def test_navigation_has_every_page_once():
  pages = {
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*")
    if path.suffix in (".md", ".ipynb") and DOCS / "report" not in path.parents
  }
  assert sorted(NAV) == sorted(pages)
  assert [name for name in NAV if not (DOCS / name).exists()] == []


@pytest.mark.parametrize(
  "link",
  [
    "nothing.md",
    "../README.md#no-such-heading",
    "#no-such-heading",
    "study.md#Studies-cheap-training-baselines-readings",
    "../rad_jax/nothing.py",
  ],
)
def test_a_broken_link_is_found(link):
  text = f"# Page\n\nSee [`code`, [1]]({link}) and [this](methods.md#attacks)."
  assert broken_links(text, DOCS, anchors(text)) == [link]


def test_links_in_code_are_none():
  text = "# Page\n\n`[a](b.md)`, [`x`](#page)\n\n```md\n[c](d.md)\n```\n"
  assert broken_links(text, DOCS, anchors(text)) == []


def test_anchors_are_github_s():
  text = (
    "# What was run, and what not\n## `code`: the `a_b` case\n"
    "## Twice\n```\n# not one\n```\n## Twice\n### A [link](x.md) & dash\n"
  )
  assert anchors(text) == {
    "what-was-run-and-what-not",
    "code-the-a_b-case",
    "twice",
    "twice-1",
    "a-link--dash",
  }


def test_a_wrong_field_is_found():
  text = "`--config.objective.lamb=3 --config.objective.lam=3 --config.data`"
  assert unknown_fields(text) == {"objective.lamb"}


def test_a_wrong_path_is_found():
  text = "`rad_jax/nothing.py`, `rad_jax/config.py`, `configs/digits.py:smoke`"
  assert missing_paths(text) == {"rad_jax/nothing.py"}


def test_a_page_outside_the_navigation_is_found():
  nested = [{"A": "a.md"}, {"B": ["b.md", {"C": "c/d.ipynb"}]}]
  assert navigation(nested) == ["a.md", "b.md", "c/d.ipynb"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The site, opened as files in a browser: (browser, its folder)."""
  made_of = ROOT / ".venv-docs" / "installed"
  pins = (ROOT / "requirements-docs.txt").read_text()
  if not made_of.exists() or made_of.read_text() != pins:
    pytest.skip("bash launch/docs.sh has not been run")
  folder = tmp_path_factory.mktemp("site")
  build = ["bash", "launch/docs.sh", "--quiet", "--site-dir", str(folder)]
  subprocess.run(build, cwd=ROOT, check=True)
  with browser.chromium(tmp_path_factory.mktemp("profile")) as opened:
    yield opened, folder


FOUND = """
const [query, done] = arguments;
const box = document.querySelector(".md-search__input");
document.querySelector("[data-md-toggle=search]").click();
box.focus();
box.value = query;
box.dispatchEvent(new Event("input", { bubbles: true }));
box.dispatchEvent(new Event("keyup", { bubbles: true }));
const look = () => {
  const links = [...document.querySelectorAll(".md-search-result__link")];
  if (links.length) done(links.map((link) => link.href));
  else setTimeout(look, 50);
};
look();
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  "query, page",
  [
    ("image_folder", "howto/own_data.html"),
    ("linear_rank", "fields.html"),
    ("wandb", "fields.html"),
    ("config.train.batch_size", "fields.html"),
    ("--config.train.batch_size=64", "fields.html"),
    ("--workdir", "fields.html"),
  ],
)
def test_search_finds(query, page, site):
  opened, folder = site
  browser.open_page(opened, folder / "index.html", 1200)
  found = opened.execute_async_script(FOUND, query)
  assert any(f"/{page}" in link for link in found[:3])


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 500, 1280])
@pytest.mark.parametrize("page", ["index.html", "mathematics.html"])
def test_page_fits(page, width, site):
  """It is no wider than its window, nor are pictures, and fetches nothing."""
  opened, folder = site
  requests = browser.open_page(opened, folder / page, width)
  here = (folder.as_uri(), "data:")
  assert [url for url in requests if not url.startswith(here)] == []
  seen = opened.execute_async_script(browser.SEEN)
  assert seen["overflow"] <= 0
  for shown, _, natural, _ in seen["pictures"]:
    assert 250 < shown <= min(width, 900)
    assert natural < 1000 or width > 900
  drawn = opened.execute_script(
    "return [...document.querySelectorAll('svg.formula')].map("
    "(svg) => svg.getBoundingClientRect().height)"
  )
  assert len(drawn) > 30 or page != "mathematics.html"
  assert all(5 < height < 50 for height in drawn)
