"""python -m benchmarks [--only train sampling] [--settings cifar10] ...

Times training steps, dispatches, sampling, input, checkpoints, statistics and
start-up on this machine, and prints one table for each with the machine's name.
The peer, PyTorch with diffusers, is timed in the same run where it is installed
(pip install -r requirements-benchmark.txt).
"""

import argparse
import json
import os
import pathlib

# The rest of the device's memory is the peer's.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".35")

from benchmarks import host, layers, machine, sampling, settings, table, train

_ONLY = (
  "train",
  "sampling",
  "dispatch",
  "wait",
  "input",
  "checkpoint",
  "statistics",
  "startup",
  "layers",
)


def main() -> None:
  """Runs the benchmarks that the flags ask for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", nargs="+", choices=_ONLY, default=_ONLY)
  parser.add_argument(
    "--settings",
    nargs="+",
    choices=settings.SETTINGS,
    default=list(settings.SETTINGS),
  )
  parser.add_argument(
    "--objectives",
    nargs="*",
    choices=train.OBJECTIVES,
    default=train.OBJECTIVES,
    help="that are trained; ddpm always is",
  )
  parser.add_argument("--dtype", default="float32")
  parser.add_argument(
    "--batch_size", type=int, default=0, help="0: by platform"
  )
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--cheap", action="store_true", help="cheap schemes too")
  parser.add_argument(
    "--peers", nargs="*", choices=train.PEERS, default=train.PEERS
  )
  parser.add_argument("--out", type=pathlib.Path, help="JSON")
  arguments = parser.parse_args()
  about, rows = machine.describe(), []
  for benchmark in arguments.only:
    for found in _rows(benchmark, arguments):
      rows += found
      if arguments.out:
        arguments.out.write_text(
          json.dumps({"machine": about, "rows": rows}, indent=2) + "\n"
        )
  print(table.markdown(about, rows))


def _rows(benchmark: str, arguments: argparse.Namespace):
  rounds, dtype = arguments.rounds, arguments.dtype
  size, names = arguments.batch_size, arguments.settings
  if benchmark == "train":
    for name in names:
      yield train.rows(
        name,
        dtype,
        size,
        rounds,
        arguments.objectives,
        arguments.cheap,
        arguments.peers,
      )
  elif benchmark == "sampling":
    for name in names:
      yield sampling.rows(name, dtype, size, rounds)
  elif benchmark == "dispatch":
    for objective in ("ddpm", "robust_adv"):
      yield host.dispatch_rows("mlp", objective, dtype, rounds)
  elif benchmark == "wait":
    yield host.waiting_rows("cifar10", dtype, size, 3 * rounds)
  elif benchmark == "input":
    yield host.input_rows(rounds)
  elif benchmark == "checkpoint":
    yield host.checkpoint_rows("cifar10", rounds)
  elif benchmark == "statistics":
    yield host.statistics_rows(rounds)
  elif benchmark == "startup":
    yield host.startup_rows("mlp", dtype)
    yield host.startup_rows("cifar10", dtype)
  elif benchmark == "layers":
    yield layers.rows(size or 4, rounds)


if __name__ == "__main__":
  main()
