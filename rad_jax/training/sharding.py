"""Where arrays live: a mesh with the axes `data` and `fsdp`.

One program for one device and for a thousand. The batch is split along its
first axis over all of them. The state is replicated, and XLA adds the one
all-reduce of the gradients; or its arrays are split over `fsdp`, gathered
where they are used, and their gradients scattered.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def device_mesh(
  fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """All devices of all processes, process by process.

  In this order a process's rows of the batch are next to each other, and an
  example has the same place, and so the same noise, on any topology.

  Args:
    fsdp: how many devices share one copy of the state; it divides their
      number.
    devices: these instead, as to compile for machines that are elsewhere.
  """
  devices = jax.devices() if devices is None else devices
  in_order = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(
    np.array(in_order).reshape(-1, fsdp),
    ("data", "fsdp"),
    axis_types=(AxisType.Auto,) * 2,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """One axis, that of the examples, split over all devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def of_state(mesh: Mesh, state: PyTree) -> PyTree:
  """A sharding for each array of a state.

  Split over `fsdp` along the longest axis that it divides; arrays without
  one, and keys, are replicated.

  Args:
    mesh: from `device_mesh`.
    state: arrays, or jax.ShapeDtypeStruct.
  """
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


def place(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
  """This process's rows, along an axis, as part of the global batch."""
  return _place(batch, by_example(mesh, axis))


def place_everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
  """What every process holds, on every device."""
  return _place(tree, replicated(mesh))


def _place(tree: PyTree, sharding: NamedSharding) -> PyTree:
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )
