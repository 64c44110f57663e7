"""A small run in processes of its own, to be broken off in many ways."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import tiny

from rad_jax.config import ConfigDict
from rad_jax.console import INTERRUPTED  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]


def command(workdir: pathlib.Path, *flags: str, **fields: object) -> list[str]:
  changes = tiny.PLANE | {k.replace("__", "."): v for k, v in fields.items()}
  return [
    sys.executable,
    "-m",
    "rad_jax.main",
    "--config=configs/oblique_plane.py",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in changes.items()),
    *flags,
  ]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(arguments: list[str], **environment: str) -> tuple[int, str]:
  """The exit code, and all that was printed."""
  process = start(arguments, **environment)
  printed, _ = process.communicate(timeout=240)
  return process.returncode, printed


def values_of(workdir: pathlib.Path) -> list[dict]:
  """The rows of metrics without how fast the run was."""
  from rad_jax.training import metrics

  return [
    {name: x for name, x in row.items() if not name.startswith("speed/")}
    for row in metrics.read(workdir)
  ]


def poisoned(monkeypatch, step: int, factor: float) -> None:
  """The batch of a step is times a factor."""
  from rad_jax.training import loop

  honest = loop.training_batches

  def batches(run, training_set, first_step, rows):
    for done, batch in enumerate(
      honest(run, training_set, first_step, rows), first_step + 1
    ):
      if done == step:
        batch = batch | {"x_0": batch["x_0"] * np.float32(factor)}
      yield batch

  monkeypatch.setattr(loop, "training_batches", batches)


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
  """For processes, which take no Run: its functions cannot be pickled."""
  from rad_jax import run
  from rad_jax.training import loop

  loop.train(run.build(config), workdir)


def hold(workdir: pathlib.Path, ready) -> None:
  """Has the folder until it is killed."""
  import time

  from rad_jax.training import workdir as folders

  with folders.held(workdir):
    ready.set()
    time.sleep(600)
