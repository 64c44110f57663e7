"""Batches by (seed, step) alone: a resumed run sees what it would have seen."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32, Shaped, UInt8

_LOG = logging.getLogger("rad_jax")

# "x_0": examples as stored, [b, ...], uint8 images or float32 in model units.
# "index": int32 [b], their places in the training set.
Batch = dict[str, Any]
# Pure: indices -> the "x_0" of a batch.
Fetch = Callable[[Int32[np.ndarray, " b"]], Shaped[np.ndarray, "b ..."]]


@functools.lru_cache(maxsize=4)
def epoch_order(
  seed: int, epoch: int, num_examples: int
) -> Int32[np.ndarray, " n"]:
  """The order of the n examples in an epoch, read-only."""
  generator = np.random.default_rng([seed, epoch])
  order = generator.permutation(num_examples).astype(np.int32)
  order.setflags(write=False)
  return order


def example_indices(
  seed: int, step: int, batch_size: int, num_examples: int
) -> Int32[np.ndarray, " b"]:
  """The examples of batch `step`, over epochs; ValueError if there are none."""
  if num_examples < 1:
    raise ValueError(f"num_examples must be positive, not {num_examples}")
  first = step * batch_size
  epochs, offsets = divmod(np.arange(first, first + batch_size), num_examples)
  indices = np.empty(batch_size, np.int32)
  for epoch in np.unique(epochs):
    rows = epochs == epoch
    indices[rows] = epoch_order(seed, int(epoch), num_examples)[offsets[rows]]
  return indices


def batches(
  fetch: Fetch | None,
  seed: int,
  first_step: int,
  last_step: int,
  batch_size: int,
  num_examples: int,
  rows: slice = slice(None),
  num_worker_threads: int = 4,
  prefetch: int = 8,
) -> Iterator[Batch]:
  """The batches of steps `first_step` to `last_step - 1`, fetched ahead.

  What `fetch` raises reaches the caller; without one, batches hold "index"
  alone. `rows` is this process's part of the global batch.
  """
  if batch_size > num_examples:
    _LOG.warning(
      "a batch of %d, of %d examples, has some of them several times:"
      " train.batch_size",
      batch_size,
      num_examples,
    )

  def load_batch(step: int) -> Batch:
    indices = example_indices(seed, step, batch_size, num_examples)[rows]
    examples = {} if fetch is None else {"x_0": fetch(indices)}
    return examples | {"index": indices}

  options = grain.ReadOptions(
    num_threads=num_worker_threads, prefetch_buffer_size=prefetch
  )
  steps = grain.MapDataset.range(first_step, last_step)
  return iter(steps.map(load_batch).to_iter_dataset(options))


def fetch_from(read_at: Callable[[int], UInt8[np.ndarray, "h w c"]]) -> Fetch:
  """A fetch that reads images one by one, with a `sources.reader`."""
  return lambda indices: np.stack([read_at(int(i)) for i in indices])
