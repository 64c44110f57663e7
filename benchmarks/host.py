"""What stands beside the step: input, checkpoints, statistics, start-up."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from benchmarks import settings, timing
from rad_jax import run as runs
from rad_jax.config import is_synthetic
from rad_jax.data import batches, folder, images, sources
from rad_jax.data.training_set import TrainingSet
from rad_jax.evaluation import feature_measures
from rad_jax.training import checkpoints, loop, sharding

_ROOT = pathlib.Path(__file__).parent.parent


def input_rows(rounds: int) -> list[dict]:
  """Batches of the pipeline alone, and the share of a step spent waiting.

  "memory" is a CIFAR-10's worth of bytes, "stream" a folder of 64 x 64 PNGs,
  cropped and decoded on the fly by as many threads as there are cores.
  """
  generator = np.random.default_rng(0)
  kept = generator.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name)
    for i, image in enumerate(
      generator.integers(0, 256, (512, 64, 64, 3), np.uint8)
    ):
      Image.fromarray(image).save(path / f"{i}.png")
    fit = lambda image: images.fit(image, 0, 64, 3)
    source = folder.open_folder(name, "train", 3)
    return [
      _input_row("memory", lambda i: kept[i], len(kept), 512, 1, rounds),
      _input_row(
        "stream",
        batches.fetch_from(sources.reader(source, fit)),
        len(source),
        128,
        os.cpu_count() or 1,
        rounds,
      ),
    ]


def _input_row(name, fetch, num_examples, batch_size, threads, rounds) -> dict:
  stream = batches.batches(
    fetch,
    0,
    0,
    10**9,
    batch_size,
    num_examples,
    num_worker_threads=threads,
    prefetch=2 * threads,
  )
  mesh = sharding.device_mesh()
  times = timing.interleaved(
    {
      name: lambda: jax.block_until_ready(
        sharding.place(next(stream), sharding.by_example(mesh))
      )
    },
    rounds,
    1.0,
  )
  seconds = float(np.median(times[name]))
  return {
    "benchmark": "input",
    "setting": name,
    "batch_size": batch_size,
    "seconds": seconds,
    "examples_per_second": batch_size / seconds,
  }


def waiting_rows(name: str, dtype: str, batch_size: int, steps: int) -> list:
  """A loop of real batches: the share of it spent waiting for data."""
  config = settings.load(name, "ddpm", dtype, batch_size)
  batch_size = config.train.batch_size
  kept = np.random.default_rng(0).integers(
    0, 256, (50_000, 32, 32, 3), np.uint8
  )
  stream = batches.batches(
    lambda i: kept[i], 0, 0, 10**9, batch_size, len(kept), num_worker_threads=1
  )
  mesh = sharding.device_mesh()
  everywhere = sharding.replicated(mesh)
  state = jax.jit(runs.build(config).initial_state, out_shardings=everywhere)()
  batch = sharding.place(next(stream), sharding.by_example(mesh))
  step = loop.compile_step(runs.build(config), state, batch, mesh)
  state, metrics = step(state, batch)
  jax.block_until_ready(metrics)
  waited, started = 0.0, time.perf_counter()
  for _ in range(steps):
    asked = time.perf_counter()
    batch = sharding.place(next(stream), sharding.by_example(mesh))
    waited += time.perf_counter() - asked
    previous = metrics
    state, metrics = step(state, batch)
    jax.block_until_ready(previous)
  jax.block_until_ready(metrics)
  seconds = (time.perf_counter() - started) / steps
  return [
    {
      "benchmark": "data wait",
      "setting": name,
      "dtype": dtype,
      "batch_size": batch_size,
      "seconds": seconds,
      "share_waiting": waited / steps / seconds,
    }
  ]


# Steps in a dispatch, and where the training set is.
_DISPATCHES = ((1, "memory"), (50, "memory"), (50, "device"))


def dispatch_rows(name: str, objective: str, dtype: str, rounds: int) -> list:
  """A step of the loop, by itself and one of several in a dispatch."""
  times = timing.interleaved(
    {
      f"{count} of a dispatch, {loading}": _dispatched(
        name, objective, dtype, count, loading
      )
      for count, loading in _DISPATCHES
    },
    rounds,
  )
  first = next(iter(times))
  return [
    {
      "benchmark": "dispatch",
      "setting": f"{name}, {objective}, {contender}",
      "dtype": dtype,
      "seconds": float(np.median(times[contender])) / 50,
      "over_one": timing.ratio(times, contender, first),
    }
    for contender in times
  ]


def _dispatched(name, objective, dtype, count, loading):
  """Runs some 50 steps with the batches that they need."""
  config = settings.load(name, objective, dtype)
  config.data.loading = loading
  config.train.update(num_steps=10**9, steps_per_dispatch=count)
  shape = (10_000, *runs.build(config).example_shape)
  x_0 = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  if is_synthetic(config):
    x_0 = x_0.astype(np.float32) / 128 - 1
  mesh = sharding.device_mesh()
  stream = loop.dispatched_batches(
    config, TrainingSet(lambda i: x_0[i], len(x_0), x_0), 0, mesh
  )
  everywhere = sharding.replicated(mesh)
  state = jax.jit(runs.build(config).initial_state, out_shardings=everywhere)()
  step = loop.compile_step(runs.build(config), state, next(stream), mesh)

  def run() -> Callable[[], object]:
    nonlocal state
    for _ in range(50 // count):
      state, metrics = step(state, next(stream))
    return lambda: jax.block_until_ready(metrics)

  return run


def checkpoint_rows(name: str, rounds: int) -> list[dict]:
  """Saving and restoring a setting's whole state."""
  config = settings.load(name, "ddpm", "float32")
  state = jax.jit(runs.build(config).initial_state)()
  size = sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))
  everywhere = sharding.replicated(sharding.device_mesh())
  seconds: dict[str, list[float]] = {"blocked": [], "saved": [], "restored": []}
  with (
    tempfile.TemporaryDirectory() as path,
    checkpoints.open_manager(pathlib.Path(path)) as manager,
  ):
    for step in range(1, rounds + 1):
      started = time.perf_counter()
      checkpoints.save(manager, step, state)
      seconds["blocked"].append(time.perf_counter() - started)
      manager.wait_until_finished()
      seconds["saved"].append(time.perf_counter() - started)
      seconds["restored"].append(
        timing.seconds_of(
          lambda: jax.block_until_ready(
            checkpoints.restore(manager, state, everywhere)
          )
        )
      )
  return [
    {
      "benchmark": "checkpoint",
      "setting": f"{name}, {what}",
      "seconds": float(np.median(values)),
      "megabytes": size / 1e6,
    }
    for what, values in seconds.items()
  ]


def statistics_rows(rounds: int, examples: int = 5000) -> list[dict]:
  """The measures of quality on features of Inception's width."""
  generator = np.random.default_rng(0)
  x, y = generator.standard_normal((2, examples, 2048), np.float32)
  measures = {
    "frechet": lambda: feature_measures.fid(x, y),
    "kid": lambda: feature_measures.kid(x, y),
    "precision, recall": lambda: feature_measures.precision_recall(x, y),
    "density, coverage": lambda: feature_measures.density_coverage(x, y),
  }
  times = timing.interleaved(measures, rounds, 0.0)
  return [
    {
      "benchmark": "statistics",
      "setting": f"{name}, {examples} x 2048",
      "seconds": float(np.median(times[name])),
    }
    for name in times
  ]


_TRAIN = """
import sys, time
started = time.perf_counter()
from benchmarks import ours, settings
config = settings.load(sys.argv[1], "robust_adv", sys.argv[2])
imported = time.perf_counter()
run = ours.step(config)
compiled = time.perf_counter()
run()
print("SECONDS", imported - started, compiled - imported,
      time.perf_counter() - compiled)
"""


def startup_rows(name: str, dtype: str) -> list[dict]:
  """Imports, compilation and first step in a new process: cold, then cached."""
  rows = []
  with tempfile.TemporaryDirectory() as cache:
    for kind in ("cold", "cached"):
      printed = subprocess.run(
        [sys.executable, "-c", _TRAIN, name, dtype],
        cwd=_ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
        check=True,
        capture_output=True,
        text=True,
      ).stdout
      found = re.search(r"SECONDS (\S+) (\S+) (\S+)", printed)
      assert found
      imports, compilation, first_step = map(float, found.groups())
      rows.append(
        {
          "benchmark": "start-up",
          "setting": f"{name}, robust_adv, {kind}",
          "dtype": dtype,
          "seconds": imports + compilation + first_step,
          "imports": imports,
          "compilation": compilation,
          "first_step": first_step,
        }
      )
  return rows
