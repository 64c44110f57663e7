"""The paper's effect in minutes: four objectives on two noised worlds.

Trains DDPM, invariance, Robust_ran and Robust_adv on scikit-learn's digits
and on the oblique plane, 90% of the examples noised at sigma 0.2, three seeds
each, through the same code as `python -m rad_jax.main`. Runs that are done
are kept: interrupted, it goes on where it was.
"""

import argparse
import importlib.util
import os
import pathlib
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORLDS = ("digits", "oblique_plane")
OBJECTIVES = ("ddpm", "invariance", "robust_ran", "robust_adv")


def load_config(world: str, variant: str = ""):
  """The config of configs/<world>.py."""
  spec = importlib.util.spec_from_file_location(
    world, ROOT / "configs" / f"{world}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def small_networks_on_cpu(workdir: pathlib.Path) -> None:
  """Settings that jax reads as it is imported, here and in a run's process.

  Networks this small gain nothing from an accelerator, nor from a second
  thread; what was compiled for one run serves the next.
  """
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
  os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str((workdir / "compiled").absolute())
  )
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def world_grid(world: str, seeds: int, data_dir, smoke: bool) -> list:
  """All runs on one world, by objective, then seed."""
  from rad_jax.experiments import sweep

  config = load_config(world, "smoke" if smoke else "")
  config.data.data_dir = str(data_dir)
  config.sweep.update(objective=OBJECTIVES, seed=tuple(range(seeds)))
  return [
    run._replace(
      name=f"{world}-{run.name}", labels={"data": world, **run.labels}
    )
    for run in sweep.grid(config)
  ]


def main() -> None:
  """Runs all that is missing, then prints the table and draws the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--smoke", action="store_true", help="seconds, no result")
  parser.add_argument("--processes", type=int, default=os.cpu_count())
  arguments = parser.parse_args()
  workdir = arguments.workdir or pathlib.Path(
    "runs/demo_smoke" if arguments.smoke else "runs/demo"
  )

  small_networks_on_cpu(workdir)

  from rad_jax.data import builders
  from rad_jax.experiments import sweep
  from rad_jax.reports import comparison

  started = time.perf_counter()
  data_dir = workdir.absolute() / "data"
  builders.prepare("digits", str(data_dir))
  grids = {
    world: world_grid(world, arguments.seeds, data_dir, arguments.smoke)
    for world in WORLDS
  }
  runs = [run for grid in grids.values() for run in grid]
  sweep.run_all(runs, workdir, arguments.processes)

  print("timing the steps ...")
  costs = {
    world: {
      run.labels["objective"]: sweep.step_seconds(run.config)
      for run in grid
      if run.labels["seed"] == 0
    }
    for world, grid in grids.items()
  }
  rows = comparison.compare(
    [comparison.read_run(workdir / "runs" / run.name) for run in runs], costs
  )
  paths = comparison.write(rows, workdir)
  print(f"\n{comparison.markdown_table(rows)}\n")
  print(
    "error: distance of the samples from the clean truth; spread: 1 is the"
    " clean data's;\ncost: time of a step relative to DDPM's. 90% of the"
    " training examples noised, sigma 0.2."
  )
  print(f"{time.perf_counter() - started:.0f} s. Written:")
  for path in paths:
    print(f"  {path}")


if __name__ == "__main__":
  main()
