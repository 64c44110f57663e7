"""Hooks of the site's build: links to the repository, formulas, notebooks.

The pages are written to be read on GitHub as well. What GitHub does by itself
is done here: links that leave docs/, mathematics, notebooks. Nothing is
fetched, neither while building nor while reading.
"""

import html
import json
import pathlib
import posixpath
import re

import ziamath

BRANCH = "main"
# In notebooks, for the repository's own.
ADDRESS = "https://github.com/OWNER/rad_jax"
# Whole shapes in each formula, so that ids need not differ within a page.
ziamath.config.svg2 = False
ziamath.config.precision = 2

# In the search: what explains comes before what lists every function.
_BOOST = {"fields.md": 4, "api.md": 0.25}

_ROOT = pathlib.Path(__file__).parents[2]
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
# GitHub's inline formulas: $`x_0`$.
_MATH = re.compile(r"\$`([^`]+)`\$")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def on_config(config):
  """```math blocks become drawings; notebooks are pages in the navigation."""
  fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
  fences["custom_fences"] = [
    {"name": "math", "class": "math", "format": _block}
  ]
  config.nav = json.loads(json.dumps(config.nav).replace(".ipynb", ".md"))
  return config


def on_files(files, config):
  """Puts a page in the place of each notebook."""
  for file in list(files):
    if file.src_uri.endswith(".ipynb"):
      files.remove(file)
      text = _notebook(json.loads(pathlib.Path(file.abs_src_path).read_text()))
      if config.repo_url:
        text = text.replace(ADDRESS, config.repo_url.rstrip("/"))
      name = file.src_uri.removesuffix(".ipynb") + ".md"
      files.append(type(file).generated(config, name, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Draws formulas; links that leave docs/ go to the repository, or go."""
  page.meta["search"] = {"boost": _BOOST.get(page.file.src_uri, 1)}
  folder = posixpath.dirname(page.file.src_uri)

  def moved(match):
    text, target = match.groups()
    path, hash_mark, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target) or not path:
      return match[0]
    if path.endswith(".ipynb"):
      return f"[{text}]({path.removesuffix('.ipynb')}.md{hash_mark}{anchor})"
    place = posixpath.normpath(posixpath.join("docs", folder, path))
    if place.startswith("docs/") and not _is_left_out(place, files):
      return match[0]
    if not config.repo_url:
      return text
    kind = "tree" if (_ROOT / place).is_dir() else "blob"
    address = f"{config.repo_url.rstrip('/')}/{kind}/{BRANCH}/{place}"
    return f"[{text}]({address}{hash_mark}{anchor})"

  # Code is left as it is.
  parts = re.split(r"(^```.*?^```\s*$)", markdown, flags=re.M | re.S)
  return "".join(
    part
    if part.startswith("```")
    else _MATH.sub(_inline, _LINK.sub(moved, part))
    for part in parts
  )


def _is_left_out(place: str, files) -> bool:
  """Whether a file of docs/ is no part of the site."""
  if not (_ROOT / place).exists():
    return False  # A broken link, which the build shall find.
  file = files.get_file_from_path(place.removeprefix("docs/"))
  return file is None or file.inclusion.is_excluded()


def _block(source, language, css_class, options, md, **kwargs) -> str:
  """A formula in lines of its own."""
  svg = _drawn(" ".join(source.split()), size=18)
  return f'<div class="{css_class}" tabindex="0">{svg}</div>'


def _inline(match: re.Match[str]) -> str:
  """A formula in a line of text: as large as its letters, on their line."""
  svg = _drawn(match[1], size=16, inline=True)
  box = re.findall(r'viewBox="(.*?)"', svg)[0]
  # The font's letters are smaller than those of the text around.
  _, top, width, height = (float(x) / 14.5 for x in box.split())
  style = (
    f"width:{width:.3f}em;height:{height:.3f}em;"
    f"vertical-align:{-top - height:.3f}em"
  )
  return svg.replace("<svg ", f'<svg class="formula" style="{style}" ', 1)


def _drawn(tex: str, **kwargs) -> str:
  """A formula as SVG: it needs neither scripts nor fonts.

  (Browsers draw MathML well only where a font for mathematics is installed.)
  """
  svg = ziamath.Latex(tex, color="currentColor", **kwargs).svg()
  # As entities: in a line of text, Markdown would read it.
  label = "".join(f"&#{ord(x)};" for x in tex)
  return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _notebook(notebook) -> str:
  return "\n\n".join(_cell(cell) for cell in notebook["cells"])


def _cell(cell) -> str:
  source = "".join(cell["source"])
  if cell["cell_type"] == "markdown":
    return source
  shown = [_output(output) for output in cell.get("outputs", [])]
  return "\n\n".join([f"```python\n{source}\n```", *filter(None, shown)])


def _output(output) -> str:
  data = output.get("data", {})
  if "image/png" in data:
    png = "".join(data["image/png"]).replace("\n", "")
    about = html.escape("".join(data.get("text/plain", "")), quote=True)
    return f'<img alt="{about}" src="data:image/png;base64,{png}">'
  text = "".join(output.get("text", data.get("text/plain", "")))
  text = _ANSI.sub("", text).rstrip()
  return f"```text\n{text}\n```" if text else ""
