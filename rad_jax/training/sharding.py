"""Where arrays live: a mesh with the axes `data` and `fsdp`.

The batch is split by example over all devices. The state is replicated, or its
arrays are split over `fsdp`; XLA adds what moves them and their gradients.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def device_mesh(
  fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """All devices, or those given; each `fsdp` of them share a copy of the state.

  Process by process: an example has the same place and noise on any topology.
  """
  devices = jax.devices() if devices is None else devices
  in_order = sorted(devices, key=lambda d: (d.process_index, d.id))
  grid, types = np.array(in_order).reshape(-1, fsdp), (AxisType.Auto,) * 2
  return Mesh(grid, ("data", "fsdp"), axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """One axis, that of the examples, split over all devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def of_state(mesh: Mesh, state: PyTree) -> PyTree:
  """Arrays but keys: over `fsdp`, on the longest axis that it divides."""
  parts = mesh.shape["fsdp"]

  def of(leaf) -> NamedSharding:
    axes = [i for i, size in enumerate(leaf.shape) if size % parts == 0]
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    if parts == 1 or is_key or not axes:
      return replicated(mesh)
    longest = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

  return jax.tree.map(of, state)


def process_rows(batch_size: int) -> slice:
  """The rows of the global batch that this process loads."""
  rows = batch_size // jax.process_count()
  start = jax.process_index() * rows
  return slice(start, start + rows)


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
  """Arrays on the devices; this process holds its own part of each."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )
