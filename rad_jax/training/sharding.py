"""Where arrays live: a mesh with one axis, `data`.

One program for one device and for a thousand: the state is replicated, the
batch is split along its first axis, XLA adds the one all-reduce of the
gradients.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def data_mesh() -> Mesh:
  """All devices of all processes along the axis `data`."""
  return jax.make_mesh(
    (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
  """The first axis split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def process_rows(batch_size: int) -> slice:
  """The rows of the global batch that this process loads."""
  rows = batch_size // jax.process_count()
  start = jax.process_index() * rows
  return slice(start, start + rows)


def place(batch: PyTree, mesh: Mesh) -> PyTree:
  """This process's rows as part of the global batch on the devices."""
  sharding = by_example(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )
