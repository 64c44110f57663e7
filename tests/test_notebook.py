"""The notebooks: what they show is there, and they run from top to bottom."""

import ast
import pathlib
import re

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

DOCS = pathlib.Path(__file__).parent.parent / "docs"
FORBIDDEN_MODULES = (
  "ml_collections",
  "rad_jax.config",
  "rad_jax.main",
  "rad_jax.run",
  "rad_jax.checks",
)
WRITERS = {
  *("open", "save", "savez", "savez_compressed", "savefig", "savetxt"),
  *("tofile", "write", "write_bytes", "write_text", "mkdir", "dump"),
}
CHECK = """
assert residual(halfway, normal) < 1e-6
assert residual(objectives.invariant, normal) > 0.1
assert residual(lambda eps_hat, eps, w: halfway(eps_hat, eps, 0), normal) > 0.1
print(len(results), "objectives tried")
"""


def read(name):
  notebook = nbformat.read(DOCS / name, as_version=4)
  nbformat.validate(notebook)
  return notebook


@pytest.fixture
def notebook():
  return read("new_objective.ipynb")


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
  return [out for cell in code_cells(notebook) for out in cell.outputs]


def printed(notebook):
  return "".join(out.get("text", "") for out in outputs(notebook))


def figures(notebook):
  return [
    out for out in outputs(notebook) if "image/png" in out.get("data", ())
  ]


def assert_clean(notebook, num_figures=3):
  """Nothing went wrong, and nothing was warned of."""
  assert [out for out in outputs(notebook) if out.output_type == "error"] == []
  assert [out for out in outputs(notebook) if out.get("name") == "stderr"] == []
  counts = [cell.execution_count for cell in code_cells(notebook)]
  assert counts == list(range(1, len(counts) + 1))
  assert len(figures(notebook)) == num_figures


@pytest.mark.parametrize(
  "name, num_figures", [("new_objective.ipynb", 3), ("your_images.ipynb", 1)]
)
def test_stored_outputs(name, num_figures):
  assert (DOCS / name).stat().st_size < 300_000
  assert_clean(read(name), num_figures)


def test_text_quotes_the_numbers_printed(notebook):
  found = notebook.cells[-1].source
  numbers = re.findall(r"\d\.\d{3}", found)
  assert len(numbers) >= 5
  assert [n for n in numbers if n not in printed(notebook)] == []


def test_functions_alone(notebook):
  """No config, no files."""
  modules, called = set(), set()
  for cell in code_cells(notebook):
    for node in ast.walk(ast.parse(cell.source)):
      if isinstance(node, ast.Import):
        modules |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        modules |= {f"{node.module}.{alias.name}" for alias in node.names}
      elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        called.add(name)
  assert "rad_jax.robustness.objectives" in modules
  assert [m for m in modules if m.startswith(FORBIDDEN_MODULES)] == []
  assert called & WRITERS == set()


def execute(notebook, parameters, folder, monkeypatch):
  """Runs it in `folder`, with other values of its parameters."""
  for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
    monkeypatch.setenv(name, str(folder.parent / name))
  (cell,) = (
    cell
    for cell in notebook.cells
    if "parameters" in cell.metadata.get("tags", ())
  )
  assigned = re.findall(r"^(\w+) = \S+$", cell.source, re.MULTILINE)
  assert assigned == list(parameters)
  cell.source = "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
  nbclient.NotebookClient(
    notebook,
    timeout=900,
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  ).execute()


@pytest.mark.slow
def test_new_objective_runs(notebook, tmp_path, monkeypatch):
  """All of it, but for the length of training and the number of samples."""
  folder = tmp_path / "folder"
  folder.mkdir()
  notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
  tiny = {"NUM_STEPS": 3, "NUM_SAMPLES": 20}
  execute(notebook, tiny, folder, monkeypatch)
  assert_clean(notebook)
  assert printed(notebook).endswith("4 objectives tried\n")
  assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
  "data, measure", [("digits", "support_rms"), ("my photos", "feature_frechet")]
)
def test_your_images_runs(data, measure, tmp_path, monkeypatch):
  """On a set that comes along, and on a folder with a space in its name."""
  folder = tmp_path / "folder"
  (folder / "my photos").mkdir(parents=True)
  for number, pixels in enumerate(
    np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), np.uint8)
  ):
    Image.fromarray(pixels).save(folder / "my photos" / f"{number}.png")
  notebook = read("your_images.ipynb")
  tiny = {"DATA": data, "NUM_STEPS": 3, "NUM_SAMPLES": 60}
  execute(notebook, tiny, folder, monkeypatch)
  assert_clean(notebook, num_figures=1)
  assert re.search(rf"^{measure} +\S+ +\S+$", printed(notebook), re.MULTILINE)
  (report,) = folder.glob("runs/*/ddpm/report/report.html")
  assert report.stat().st_size > 10_000
