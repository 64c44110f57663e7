"""The paper's effect in minutes: four objectives on two noised worlds.

Trains DDPM, invariance, Robust_ran and Robust_adv on scikit-learn's digits
and on the oblique plane, 90% of the examples noised at sigma 0.2, three seeds
each, through the same code as `python -m rad_jax.main`. Runs that are done
are kept: interrupted, it goes on where it was.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import time

from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORLDS = ("digits", "oblique_plane")
OBJECTIVES = ("ddpm", "invariance", "robust_ran", "robust_adv")


def load_config(world: str, smoke: bool):
  """The config of configs/<world>.py."""
  spec = importlib.util.spec_from_file_location(
    world, ROOT / "configs" / f"{world}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config("smoke" if smoke else "")


def run_one(world, objective, seed, workdir, data_dir, smoke) -> float:
  """Trains, samples and evaluates one run; returns its error."""
  from rad_jax import config as configs
  from rad_jax.evaluation import evaluate, sampling
  from rad_jax.training import loop

  config = load_config(world, smoke)
  config.seed = seed
  config.objective.name = objective
  config.data.data_dir = str(data_dir)
  configs.validate(config)
  workdir.mkdir(parents=True, exist_ok=True)
  with (
    (workdir / "log.txt").open("a") as log,
    contextlib.redirect_stderr(log),
  ):
    loop.train(config, workdir)
    sampling.sample(config, workdir)
    return evaluate.evaluate(config, workdir)["measures"]["support_rms"]


def step_seconds(world: str, data_dir, smoke: bool) -> dict[str, float]:
  """The median time of a step of each objective, timed in turns."""
  import jax
  import numpy as np

  from rad_jax.training import build

  steps, states = {}, {}
  for objective in OBJECTIVES:
    config = load_config(world, smoke)
    config.objective.name = objective
    config.data.data_dir = str(data_dir)
    if not steps:
      fetch, _ = build.training_set(config)
      index = np.arange(config.train.batch_size, dtype=np.int32)
      batch = jax.device_put({"x_0": fetch(index), "index": index})
    steps[objective] = jax.jit(build.train_step(config), donate_argnums=0)
    states[objective], _ = steps[objective](build.state(config), batch)
  seconds = {objective: [] for objective in OBJECTIVES}
  for _ in range(10):
    for objective, step in steps.items():
      started = time.perf_counter()
      for _ in range(20):
        states[objective], _ = step(states[objective], batch)
      jax.block_until_ready(states[objective])
      seconds[objective].append((time.perf_counter() - started) / 20)
  return {name: float(np.median(values)) for name, values in seconds.items()}


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

  # One thread a run, as many runs as cores: networks this small gain nothing
  # from more. Set before the runs' processes start and import jax.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    (workdir / "compiled").absolute()
  )
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

  from rad_jax.data import builders
  from rad_jax.reports import comparison

  data_dir = workdir.absolute() / "data"
  builders.prepare("digits", str(data_dir))
  grid = list(itertools.product(range(arguments.seeds), WORLDS, OBJECTIVES))
  folders = [
    workdir / "runs" / f"{world}-{objective}-{seed}"
    for seed, world, objective in grid
  ]
  started = time.perf_counter()
  with (
    concurrent.futures.ProcessPoolExecutor(
      arguments.processes, multiprocessing.get_context("spawn")
    ) as pool,
    tqdm(total=len(grid), unit="run") as bar,
  ):
    futures = {
      pool.submit(
        run_one, world, objective, seed, folder, data_dir, arguments.smoke
      ): (world, objective, seed)
      for (seed, world, objective), folder in zip(grid, folders, strict=True)
      if not (folder / "evaluation.json").exists()
    }
    bar.update(len(grid) - len(futures))
    for future in concurrent.futures.as_completed(futures):
      world, objective, seed = futures[future]
      if future.exception():
        pool.shutdown(cancel_futures=True)
      bar.write(
        f"{world:14} {objective:11} seed {seed}: error {future.result():.3f}"
      )
      bar.update()

  runs = [comparison.read_run(folder) for folder in folders]
  runs.sort(
    key=lambda run: (run.data, OBJECTIVES.index(run.objective), run.seed)
  )
  print("timing the steps ...")
  costs = {
    world: step_seconds(world, data_dir, arguments.smoke) for world in WORLDS
  }
  rows = comparison.compare(runs, costs)
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
