"""How many of the mutants the tests kill: python tests/mutants/run.py

Each mutant is made in a copy of the checkout, which is never touched itself.
First come the tests of the changed module, TESTS; a mutant that survives them
meets all tests that are not slow, then, with --all, the slow ones.
"""

import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from table import MUTANTS, Mutant

ROOT = pathlib.Path(__file__).parent.parent.parent
# What a module's own tests are; those that take long come last.
TESTS = {
  "diffusion/parametrisation.py": ("parametrisation", "diffusion"),
  "diffusion/": ("diffusion", "parametrisation", "trajectory", "evaluation"),
  "robustness/attacks.py": ("attacks", "robustness", "method"),
  "robustness/purification.py": ("purification",),
  "robustness/shrinkage.py": ("shrinkage",),
  "robustness/trajectory.py": ("trajectory",),
  "robustness/": ("robustness", "method", "training"),
  "training/checkpoints.py": ("training", "faults"),
  "training/": ("method", "training"),
  "evaluation/diagnose.py": ("diagnose",),
  "evaluation/feature_measures.py": ("quality",),
  "evaluation/measures.py": ("worlds", "quality", "aims"),
  "evaluation/collapse.py": ("collapse",),
  "reports/paired.py": ("paired",),
  "experiments/compare.py": ("paired",),
  "evaluation/": ("evaluation",),
  "data/decoded.py": ("decoded",),
  "data/images.py": ("tfds", "folder"),
  "data/": ("batches", "worlds", "corruptions", "training"),
}
SECONDS = 1800


def main() -> None:
  """Prints one line for each mutant, and the score."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("names", nargs="*", help="mutants; all by default")
  parser.add_argument("--all", action="store_true", help="also slow tests")
  parser.add_argument("--own", action="store_true", help="TESTS alone")
  parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
  args = parser.parse_args()
  rest = [] if args.own else [[]]
  if args.all:
    rest.append(["-m", "slow"])
  names = args.names or list(MUTANTS)
  with tempfile.TemporaryDirectory() as folder:
    free = [pathlib.Path(folder) / str(i) for i in range(args.jobs)]
    for copy in free:
      copy_checkout(copy)

    def judge(name: str) -> str:
      copy = free.pop()
      try:
        return killer(copy, MUTANTS[name], rest)
      finally:
        free.append(copy)

    killed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as threads:
      for name, by in zip(names, threads.map(judge, names), strict=True):
        killed += bool(by)
        print(f"{name:36} {by or 'SURVIVED'}", flush=True)
  print(f"{killed}/{len(names)} killed")
  sys.exit(killed < len(names))


def copy_checkout(folder: pathlib.Path) -> None:
  """What git would have, and what it would add."""
  listed = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  for name in filter(None, listed.split("\0")):
    source, target = ROOT / name, folder / name
    if source.is_file():
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(source, target)


def killer(copy: pathlib.Path, mutant: Mutant, rest: list[list[str]]) -> str:
  """The first test that fails in the copy with the mutant; "" if none does.

  `rest` are pytest's arguments of the runs after that of the module's own.
  """
  path = copy / "rad_jax" / mutant.path
  source = path.read_text()
  if source.count(mutant.old) != 1:
    raise ValueError(f"{mutant.path} no longer has, once, {mutant.old!r}")
  mutated = source.replace(mutant.old, mutant.new)
  compile(mutated, path, "exec")
  own = next(
    names for start, names in TESTS.items() if mutant.path.startswith(start)
  )
  files = [f"tests/test_{name}.py" for name in own]
  try:
    path.write_text(mutated)
    for args in (files, *rest):
      if by := first_failure(copy, args):
        return by
    return ""
  finally:
    path.write_text(source)


def first_failure(copy: pathlib.Path, args: list[str]) -> str:
  """The first failing test of a run of pytest in a copy."""
  command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:xdist"]
  try:
    done = subprocess.run(
      [*command, "--tb=no", "-rfE", *args],
      cwd=copy,
      env=os.environ | {"PYTHONPATH": str(copy)},
      capture_output=True,
      text=True,
      timeout=SECONDS,
    )
  except subprocess.TimeoutExpired:
    return f"no end within {SECONDS} s"
  if done.returncode == 0:
    return ""
  found = [
    line.split(" ", 1)[1].split(" - ")[0]
    for line in done.stdout.splitlines()
    if line.startswith(("FAILED", "ERROR"))
  ]
  if not found:
    raise RuntimeError(f"pytest itself failed:\n{done.stdout}{done.stderr}")
  return found[0]


if __name__ == "__main__":
  main()
