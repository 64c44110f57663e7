"""The README keeps its word: its links, its code and its demo."""

import pathlib
import re
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere():
  links = re.findall(r"\]\(([^)#]+)", README)
  local = [link for link in links if not link.startswith("http")]
  assert len(local) >= 4
  assert [link for link in local if not (ROOT / link).exists()] == []


def test_configs_and_objectives_are_named():
  from rad_jax.robustness import objectives

  names = {path.stem for path in (ROOT / "configs").glob("*.py")}
  names |= set(objectives.OBJECTIVES)
  assert [name for name in names if f"`{name}`" not in README] == []


def test_code_runs():
  (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  found = {}
  with jax.numpy_rank_promotion("raise"):
    exec(code, found)
  assert found["samples"].shape == (64, 3)


@pytest.mark.slow
def test_demo_runs(tmp_path):
  """Whole, but for the length of its runs: table and figures are there."""
  command = [sys.executable, "-m", "rad_jax.main", "--mode=demo"]
  fields = [
    "--config=configs/demo.py:smoke",
    "--config.study.seeds=1",
    "--config.study.processes=1",
    f"--config.data.data_dir={tmp_path / 'data'}",
  ]
  done = subprocess.run(
    [*command, *fields, f"--workdir={tmp_path}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  table = (tmp_path / "table.md").read_text()
  assert table.rstrip() in done.stdout
  for data in ("digits", "oblique_plane"):
    for label in ("DDPM", "invariance", "Robust_ran", "Robust_adv"):
      assert f"| {data} | {label} |" in table
    assert (tmp_path / f"samples_{data}.png").stat().st_size > 10_000
  assert (tmp_path / "errors.png").stat().st_size > 10_000


def test_demo_script_runs_the_demo():
  script = (ROOT / "launch" / "demo.sh").read_text()
  assert "rad_jax.main" in script and "--mode=demo" in script
  assert not list((ROOT / "launch").glob("*.py"))
