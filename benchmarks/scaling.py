"""python -m benchmarks.scaling [--topology v5e:2x4] [--setting mlp] ...

What many chips exchange, and what it costs: compiles the training step for
eight virtual CPU devices, or for a slice of TPUs that need not be there (pip
install libtpu), counts the collectives of the program, and predicts the
efficiency of larger machines. Nothing is run but the compiler.
"""

import argparse
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from benchmarks import ours, settings, train
from rad_jax import run as runs
from rad_jax.config import ConfigDict
from rad_jax.training import loop, passes, sharding
from rad_jax.training.state import num_parameters

# Assumed: the share of the peak that a chip reaches, and of its time that can
# hide an all-reduce: gradients are there from the backward pass on.
MFU, OVERLAP = 0.4, 0.5
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4}
_BYTES |= {"s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(
  r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all"
  r"|collective-permute)(?:-start)?\(.*?(?:channel_id=(\d+)|$)",
  re.MULTILINE,
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Exchange(NamedTuple):
  """A collective of one kind: how many arrays in how many calls, and bytes."""

  calls: int
  bytes: int


class Chip(NamedTuple):
  """A chip, and its way to the others.

  peak: bfloat16 FLOP/s.
  bandwidth: bytes/s of an all-reduce's data, over all links that it uses.
  hop: seconds of latency for each step of the all-reduce.
  hops: number of chips -> steps of the all-reduce.
  largest: number of chips with such links.
  """

  peak: float
  bandwidth: float
  hop: float
  hops: Callable[[int], float]
  largest: float = math.inf


def _torus(dimensions: int) -> Callable[[int], float]:
  """Along each axis to the end and back."""
  return lambda n: 2 * dimensions * (n ** (1 / dimensions) - 1)


# Peaks and bandwidths in one direction are the makers':
# cloud.google.com/tpu/docs, v5e and v5p; nvidia.com, H100 SXM and DGX H100,
# where each of a node's eight 400 Gb/s adapters carries an eighth. Latencies
# are guesses.
CHIPS = {
  "TPU v5e": Chip(197e12, 200e9, 1e-6, _torus(2), largest=256),
  "TPU v5p": Chip(459e12, 600e9, 1e-6, _torus(3)),
  "H100": Chip(989e12, 400e9, 5e-6, lambda n: 2 * math.log2(n)),
}
# What a step computes, in passes, for what it exchanges, in bytes a parameter:
# of a bfloat16 network, as compiled for TPUs.
_METHODS = (("DDPM, 3F", 3, 2), ("Robust_adv, 8F", 8, 4))


def collectives(program: str) -> dict[str, Exchange]:
  """The collectives of a compiled program, by kind.

  Args:
    program: HLO text; what is there in several parts, as where it is begun
      and waited for, counts once.
  """
  found: dict[str, Exchange] = {}
  channels = set()
  for shapes, kind, channel in _COLLECTIVE.findall(program):
    if channel in channels:
      continue
    if channel:
      channels.add(channel)
    size = sum(
      _BYTES[dtype] * math.prod(map(int, filter(None, sides.split(","))))
      for dtype, sides in _ARRAY.findall(shapes)
    )
    before = found.get(kind, Exchange(0, 0))
    found[kind] = Exchange(before.calls + 1, before.bytes + size)
  return found


def compiled(
  config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> jax.stages.Compiled:
  """The training step, compiled for some devices; None: all there are."""
  mesh = sharding.device_mesh(config.train.fsdp, devices)
  state = jax.eval_shape(runs.build(config).initial_state)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ours.batch(config)
  )
  return loop.compile_step(runs.build(config), state, batch, mesh)


def slice_of_tpus(topology: str) -> list[jax.Device]:
  """Devices to compile for, not to run on, such as "v5e:2x4": 8 of TPU v5e."""
  # There is no machine to ask, and no chip to keep others away from.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  return topologies.get_topology_desc(topology, platform="tpu").devices


def efficiency(
  chip: Chip, n: int, flops: float, exchanged: float, mfu: float, overlap: float
) -> float:
  """The share of its time that a chip computes, against one chip alone.

  Args:
    chip: the chip.
    n: how many.
    flops: of a step on one of them.
    exchanged: bytes all-reduced once a step.
    mfu: share of the peak at which a chip computes, in (0, 1].
    overlap: share of the computation that hides the all-reduce, in [0, 1].
  """
  if n == 1:
    return 1.0
  work = flops / (mfu * chip.peak)
  # A ring sends each byte twice, but for its own part.
  exchange = 2 * (n - 1) / n * exchanged / chip.bandwidth
  exchange += chip.hop * chip.hops(n)
  return work / (work + max(0.0, exchange - overlap * work))


def collective_table(
  name: str,
  dtype: str,
  local_batch: int,
  devices: Sequence[jax.Device],
  fsdp: Sequence[int],
) -> str:
  """Markdown: what the steps of a setting exchange, calls and MB; their memory.

  Args:
    name: of settings.SETTINGS.
    dtype: the network's compute type.
    local_batch: examples on each device.
    devices: that it is compiled for.
    fsdp: over how many the state is shared out: a row for each.
  """
  lines = [
    "| objective | fsdp | collectives, MB | working memory, MB | compiled |",
    "|---|---|---|---|---|",
  ]
  for shared in fsdp:
    for objective in train.OBJECTIVES:
      config = settings.load(name, objective, dtype, local_batch * len(devices))
      config.train.fsdp = shared
      started = time.perf_counter()
      step = compiled(config, devices)
      seconds = time.perf_counter() - started
      found = "; ".join(
        f"{calls} {kind}, {size / 1e6:,.3f}"
        for kind, (calls, size) in sorted(
          collectives(step.as_text()).items(), key=lambda item: -item[1].bytes
        )
      )
      memory = step.memory_analysis().temp_size_in_bytes / 1e6
      lines.append(
        f"| {objective} | {shared} | {found} | {memory:,.1f}"
        f" | {seconds:.0f} s |"
      )
  return "\n".join(lines)


def efficiency_table(
  parameters: int, pass_flops: float, local_batch: Callable[[int], float]
) -> str:
  """Markdown: DDPM's and Robust_adv's efficiency, without and with overlap.

  Args:
    parameters: of the network.
    pass_flops: of a forward pass of one example.
    local_batch: number of chips -> examples on each.
  """
  counts = (8, 32, 128, 512, 1024)
  lines = [
    "| chip | method | " + " | ".join(map(str, counts)) + " |",
    "|---|---|" + "---|" * len(counts),
  ]
  for name, chip in CHIPS.items():
    for method, count, size in _METHODS:
      cells = []
      for n in counts:
        if n > chip.largest:
          cells.append("")
          continue
        flops = count * pass_flops * local_batch(n)
        exchanged = size * parameters
        without, hidden = (
          efficiency(chip, n, flops, exchanged, MFU, overlap)
          for overlap in (0.0, OVERLAP)
        )
        cells.append(f"{100 * without:.0f} / {100 * hidden:.0f}%")
      lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  """Prints the tables of docs/scaling.md."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topology", default="", help="v5e:2x4, v5p:2x2x2, ...")
  parser.add_argument("--setting", choices=settings.SETTINGS, default="mlp")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--local_batch", type=int, default=256)
  parser.add_argument("--fsdp", type=int, nargs="+", default=(1, 8))
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  name, topology = arguments.setting, arguments.topology
  devices = slice_of_tpus(topology) if topology else jax.devices()
  print(
    f"{arguments.local_batch} examples on each of {len(devices)}"
    f" {devices[0].device_kind}, {name}, {arguments.dtype}:\n"
  )
  print(
    collective_table(
      name, arguments.dtype, arguments.local_batch, devices, arguments.fsdp
    )
  )
  config = settings.load("cifar10", "robust_adv", "float32")
  run = runs.build(config)
  parameters = num_parameters(jax.eval_shape(run.initial_state))
  flops = passes.flops(run.network, run.initial_state, run.example_shape)
  print(f"\nCIFAR-10's network: {parameters:,} parameters, {flops:.4g} FLOP")
  for title, local_batch in (
    ("64 examples on each chip", lambda n: 64),
    ("4,096 examples on all", lambda n: 4096 / n),
  ):
    print(f"\n{title}:\n\n{efficiency_table(parameters, flops, local_batch)}")


if __name__ == "__main__":
  main()
