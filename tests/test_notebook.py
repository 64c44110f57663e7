"""The notebook: what it shows is there, and it runs from top to bottom."""

import ast
import pathlib
import re

import nbclient
import nbformat
import pytest

PATH = pathlib.Path(__file__).parent.parent / "docs/new_objective.ipynb"
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


@pytest.fixture
def notebook():
  notebook = nbformat.read(PATH, as_version=4)
  nbformat.validate(notebook)
  return notebook


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


def assert_clean(notebook):
  """Nothing went wrong, and nothing was warned of."""
  assert [out for out in outputs(notebook) if out.output_type == "error"] == []
  assert [out for out in outputs(notebook) if out.get("name") == "stderr"] == []
  counts = [cell.execution_count for cell in code_cells(notebook)]
  assert counts == list(range(1, len(counts) + 1))
  assert len(figures(notebook)) == 3


def test_stored_outputs(notebook):
  assert PATH.stat().st_size < 300_000
  assert_clean(notebook)


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


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
  """All of it, but for the length of training and the number of samples."""
  for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
    monkeypatch.setenv(name, str(tmp_path / name))
  folder = tmp_path / "folder"
  folder.mkdir()
  (parameters,) = (
    cell
    for cell in notebook.cells
    if "parameters" in cell.metadata.get("tags", ())
  )
  names = re.findall(r"^(\w+) = \d+$", parameters.source, re.MULTILINE)
  assert names == ["NUM_STEPS", "NUM_SAMPLES"]
  parameters.source = "NUM_STEPS = 3\nNUM_SAMPLES = 20"
  notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  ).execute()
  assert_clean(notebook)
  assert printed(notebook).endswith("4 objectives tried\n")
  assert list(folder.iterdir()) == []
