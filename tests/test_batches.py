"""Data order as a pure function of (seed, step)."""

import time
from functools import partial

import numpy as np
import psutil
import pytest

from rad_jax.data import batches, images, sources

DATA = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def _fetch(indices):
  return DATA[indices]


def _source(stack):
  return sources.Source("images", list(stack), lambda image: image)


def _run(first_step, last_step, batch_size=8, seed=0, **kwargs):
  return list(
    batches.batches(
      _fetch, seed, first_step, last_step, batch_size, len(DATA), **kwargs
    )
  )


def _stream(seed, num_steps, batch_size, num_examples):
  """All indices of a run, end to end."""
  parts = [
    batches.example_indices(seed, step, batch_size, num_examples)
    for step in range(num_steps)
  ]
  assert all(part.dtype == np.int32 for part in parts)
  return np.concatenate(parts)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64, 130])
def test_every_epoch_holds_every_example_once(batch_size):
  num_steps = -(-200 // batch_size)
  epochs = _stream(3, num_steps, batch_size, 50)[:200].reshape(4, 50)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(50), (4, 1)))


def test_order_does_not_depend_on_batch_size():
  np.testing.assert_array_equal(_stream(3, 26, 5, 50), _stream(3, 10, 13, 50))


def test_epochs_and_seeds_are_shuffled_apart():
  orders = [batches.epoch_order(s, e, 1000) for s in (0, 1) for e in (0, 1)]
  orders.append(np.arange(1000))
  for i, order in enumerate(orders):
    for other in orders[:i]:
      assert np.mean(order == other) < 0.01


def test_cached_order_cannot_be_changed():
  with pytest.raises(ValueError, match="read-only"):
    batches.epoch_order(0, 0, 10)[0] = 5


def test_positions_beyond_int32():
  step = 2**40
  indices = batches.example_indices(0, step, 4, 50)
  epoch, offset = divmod(step * 4, 50)
  expected = batches.epoch_order(0, epoch, 50)[offset : offset + 4]
  np.testing.assert_array_equal(indices[: len(expected)], expected)


def test_no_examples():
  with pytest.raises(ValueError, match="num_examples"):
    batches.example_indices(0, 0, 4, 0)


def test_batches_come_in_order_with_their_indices():
  found = _run(0, 20)
  assert len(found) == 20
  for step, batch in enumerate(found):
    indices = batches.example_indices(0, step, 8, 50)
    np.testing.assert_array_equal(batch["index"], indices)
    np.testing.assert_array_equal(batch["x_0"], DATA[indices])


def test_slow_fetches_do_not_overtake():
  def fetch(indices):
    time.sleep(0.02 * (indices[0] % 3))
    return DATA[indices]

  found = batches.batches(fetch, 0, 0, 12, 8, 50, num_worker_threads=4)
  for batch, expected in zip(found, _run(0, 12), strict=True):
    np.testing.assert_array_equal(batch["index"], expected["index"])


def test_resume_at_step_n_gives_batch_n():
  for resumed, straight in zip(_run(11, 20), _run(0, 20)[11:], strict=True):
    np.testing.assert_array_equal(resumed["x_0"], straight["x_0"])


def test_no_steps_left():
  assert _run(5, 5) == []


def test_rows_of_all_processes_make_up_the_global_batch():
  whole = _run(3, 9)
  parts = [_run(3, 9, rows=slice(i, i + 2)) for i in range(0, 8, 2)]
  for batch, *shares in zip(whole, *parts, strict=True):
    for key in ("x_0", "index"):
      joined = np.concatenate([share[key] for share in shares])
      np.testing.assert_array_equal(joined, batch[key])


def test_only_this_process_rows_are_fetched():
  sizes = []

  def fetch(indices):
    sizes.append(len(indices))
    return DATA[indices]

  list(batches.batches(fetch, 0, 0, 5, 8, 50, rows=slice(2, 5)))
  assert sizes == [3] * 5


def test_failure_reaches_the_caller_after_the_good_batches():
  source = sources.Source(
    "lsun", [b"not an image"], lambda file: images.decode(file, 3)
  )
  bad_step = 4
  bad = batches.example_indices(0, bad_step, 8, 50)

  def fetch(indices):
    return source[0] if np.array_equal(indices, bad) else DATA[indices]

  found = batches.batches(fetch, 0, 0, 20, 8, 50)
  for _ in range(bad_step):
    next(found)
  with pytest.raises(
    sources.ExampleError, match="lsun: example 0: cannot identify"
  ):
    next(found)


def test_fetch_from_stacks_transformed_images():
  stack = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
  fetch = batches.fetch_from(
    sources.reader(_source(stack), lambda image: image[:, 1:5])
  )
  indices = np.array([4, 0, 1, 4], np.int32)
  np.testing.assert_array_equal(fetch(indices), stack[indices][:, :, 1:5])


def test_fetch_from_names_an_example_that_does_not_fit():
  def transform(image):
    raise ValueError("crop_size 9 exceeds the image")

  fetch = batches.fetch_from(
    sources.reader(_source(np.zeros((5, 4, 4, 3), np.uint8)), transform)
  )
  with pytest.raises(sources.ExampleError, match="example 2: crop_size 9"):
    fetch(np.array([2], np.int32))


def _undecodable(bad):
  """Six images of their own index each, of which some are damaged."""

  def transform(image):
    if image[0, 0, 0] in bad:
      raise ValueError("damaged")
    return image

  stack = np.broadcast_to(
    np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 2, 2, 1)
  )
  return _source(stack), transform


@pytest.mark.parametrize("bad, expected", [({2}, 3), ({2, 3}, 4), ({2, 5}, 3)])
def test_next_image_takes_the_place_of_one_that_cannot_be_read(
  bad, expected, caplog
):
  source, transform = _undecodable(bad)
  loaded = np.empty((6, 2, 2, 1), np.uint8)
  assert sources.fill(loaded, source, transform, 2) == len(bad)
  found = loaded[:, 0, 0, 0].tolist()
  assert found[2] == expected
  assert [found[i] for i in {0, 1, 3, 4, 5} - bad] == sorted(
    {0, 1, 3, 4, 5} - bad
  )
  if 5 in bad:
    assert found[5] == 0
  told = caplog.records[0].getMessage()
  assert f"{len(bad)} of 6 images cannot be read: example 2: damaged" in told
  # As they are streamed, each is named once, whoever reads it again.
  read_at = sources.reader(source, transform, 2)
  caplog.clear()
  for _ in range(2):
    fetched = batches.fetch_from(read_at)(np.arange(6))
  np.testing.assert_array_equal(fetched, loaded)
  assert len(caplog.records) == len(bad)
  told = caplog.records[0].getMessage()
  assert told == "images: example 2: damaged: the next one takes its place"


@pytest.mark.parametrize("limit", [0, 1, 10**6])
def test_one_unreadable_image_too_many(limit):
  """All are damaged: no limit lets a reader look for ever."""
  source, transform = _undecodable(set(range(6)))
  remedy = (
    f"data.max_unreadable={limit + 1}," if limit < 6 else "there is no other"
  )
  with pytest.raises(
    sources.ExampleError, match=f"example {min(limit, 5)}: damaged: .*{remedy}"
  ):
    sources.reader(source, transform, limit)(0)


def test_all_unreadable_images_are_named_at_once():
  bad = set(range(3, 28))
  source = _source(np.arange(30, dtype=np.uint8)[:, None, None, None])
  _, transform = _undecodable(bad)
  with pytest.raises(sources.ExampleError) as error:
    sources.fill(np.empty((30, 1, 1, 1), np.uint8), source, transform, 24)
  told = str(error.value)
  assert "images: 25 of 30 images cannot be read: example 3: damaged;" in told
  assert told.count("damaged") == 20 and "example 22: damaged; and 5" in told
  assert "data.max_unreadable=25," in told and "\n" not in told


def test_empty_source_is_named():
  fill = partial(sources.fill, np.empty((0, 1, 1, 1), np.uint8))
  for read in (sources.reader, fill):
    with pytest.raises(ValueError, match="images is empty"):
      read(_source([]), lambda image: image)


@pytest.mark.parametrize("batch_size, warnings", [(50, 0), (51, 1)])
def test_a_batch_beyond_the_set_is_told(batch_size, warnings, caplog):
  batches.batches(None, 0, 0, 1, batch_size, 50)
  told = [record.getMessage() for record in caplog.records]
  assert len(told) == warnings and all("51, of 50 examples" in t for t in told)


def test_a_set_larger_than_the_memory_is_told_before_it_is_read():
  free = psutil.virtual_memory().available
  source = sources.Source("images", range(100), lambda _: 1 / 0)
  sources.refuse_too_large(source, (4, 4, 3), free // 200, "do less")
  told = r"100 images of \(4, 4, 3\) take .* enough for \d\d: do less"
  with pytest.raises(ValueError, match=told):
    sources.refuse_too_large(source, (4, 4, 3), free // 50, "do less")
