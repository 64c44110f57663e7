"""The decoded set, kept on disk for later runs."""

import errno
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from rad_jax.data import decoded, sources, training_set

N = 5


@pytest.fixture
def opened(tmp_path):
  """Opens a folder of N pictures, 12 x 10, with a cache."""
  generator = np.random.default_rng(0)
  (tmp_path / "set").mkdir()
  for i in range(N):
    pixels = generator.integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"set/{i}.bmp")

  def of(**fields):
    fields = (
      dict(
        seed=0,
        num_examples=1,
        path=str(tmp_path / "set"),
        split="train",
        data_dir="",
        cache=str(tmp_path / "cache/data"),
        loading="memory",
        crop_size=0,
        image_size=8,
        num_channels=3,
        max_megapixels=150.0,
        max_unreadable=0,
        linear_rank=0,
      )
      | fields
    )
    fetch = training_set.open_training_set("image_folder", **fields).fetch
    return fetch(np.arange(N, dtype=np.int32))

  return of


def _spoil(path, text=b"\0"):
  """Other bytes, of which neither size nor time tells."""
  stat = path.stat()
  path.write_bytes(text * (stat.st_size // len(text)))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _kept(tmp_path):
  """What is in the cache besides locks."""
  found = (tmp_path / "cache/data").iterdir()
  return [path.name for path in found if path.suffix != ".lock"]


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_what_one_run_decodes_is_read_by_the_next(opened, tmp_path, loading):
  plain = opened(cache="", loading=loading)
  np.testing.assert_array_equal(opened(), plain)
  for path in (tmp_path / "set").iterdir():
    _spoil(path)
  np.testing.assert_array_equal(opened(loading=loading), plain)
  # The pictures themselves are gone.
  with pytest.raises(sources.ExampleError):
    opened(loading=loading, cache="")


def test_a_stream_decodes_no_more_than_it_needs(opened, tmp_path):
  opened(loading="stream")
  assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
  "fields",
  [
    {"image_size": 4},
    {"crop_size": 9},
    {"num_channels": 1},
    {"path": "moved"},
  ],
)
def test_another_decoding_is_kept_by_itself(
  opened, tmp_path, fields, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  opened()
  (tmp_path / "moved").symlink_to(tmp_path / "set")
  expected = opened(cache="", **fields)
  np.testing.assert_array_equal(opened(**fields), expected)
  # The same pictures by another name are the same.
  assert len(list((tmp_path / "cache/data").glob("*.npy"))) == 1 + (
    "path" not in fields
  )


@pytest.mark.parametrize("how", ["touched", "renamed", "grown", "added"])
def test_a_changed_folder_is_decoded_anew(opened, tmp_path, how):
  before = opened()
  path = tmp_path / "set/2.bmp"
  if how == "touched":
    stat = path.stat()
    Image.new("RGB", (10, 12), "red").save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
  elif how == "renamed":
    path.rename(tmp_path / "set/9.bmp")
  elif how == "grown":
    Image.new("RGB", (20, 20), "red").save(path)
  else:
    Image.new("RGB", (10, 12), "red").save(tmp_path / "set/1b.bmp")
  after = opened()
  np.testing.assert_array_equal(after, opened(cache=""))
  assert not np.array_equal(before, after)


@pytest.mark.parametrize(
  "damage", ["cut", "emptied", "gone", "flipped", "header", "json"]
)
def test_a_damaged_file_is_told_and_made_anew(opened, tmp_path, damage, caplog):
  before = opened()
  (path,) = (tmp_path / "cache/data").glob("*.npy")
  content = bytearray(path.read_bytes())
  content[-5 if damage == "flipped" else 0] ^= 1
  if damage in ("flipped", "header"):
    path.write_bytes(content)
  elif damage == "gone":
    path.unlink()
  elif damage == "json":
    path.with_suffix(".json").write_text("{")
  else:
    os.truncate(path, 0 if damage == "emptied" else len(content) - 1)
  for loading in ("stream", "memory"):
    caplog.clear()
    np.testing.assert_array_equal(opened(loading=loading), before)
    assert f"{path} is damaged, and not used: " in caplog.text
  caplog.clear()
  np.testing.assert_array_equal(opened(), before)
  assert "damaged, and" not in caplog.text


def test_a_set_with_unreadable_images_is_not_kept(opened, tmp_path):
  _spoil(tmp_path / "set/1.bmp")
  found = opened(max_unreadable=1)
  np.testing.assert_array_equal(found[1], found[2])
  assert not _kept(tmp_path)
  with pytest.raises(sources.ExampleError, match="example 1: 1.bmp: no image"):
    opened()
  assert not _kept(tmp_path)


@pytest.mark.parametrize("why", ["full", "no folder"])
def test_a_disk_that_does_not_take_it_is_told(
  opened, tmp_path, monkeypatch, caplog, why
):
  plain = opened(cache="")

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  if why == "full":
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    told = "No space left on device: the decoded images are not kept"
  else:
    (tmp_path / "cache").write_text("a file")
    told = "Not a directory: the decoded images are not kept"
  np.testing.assert_array_equal(opened(), plain)
  assert told in caplog.text
  assert why != "full" or not _kept(tmp_path)


def test_the_kept_images_cannot_be_changed(tmp_path):
  shape = (2, 1, 1, 1)
  for _ in range(2):  # made, then read
    images = decoded.keep(tmp_path / "a.npy", shape, lambda images: 0)
    with pytest.raises(ValueError, match="read-only"):
      images[0] = 1


def test_of_two_runs_at_once_one_decodes(tmp_path, caplog):
  caplog.set_level("INFO", "rad_jax")
  go, calls, found = threading.Event(), [], []

  def fill(images):
    calls.append(images)
    go.wait()
    images[:] = 7
    return 0

  def run():
    found.append(decoded.keep(tmp_path / "a.npy", (3, 2, 2, 1), fill))

  threads = [threading.Thread(target=run) for _ in range(2)]
  try:
    for thread in threads:
      thread.start()
    while not (calls and "waiting for" in caplog.text):
      time.sleep(0.01)
  finally:
    go.set()
    for thread in threads:
      thread.join()
  assert len(calls) == 1
  np.testing.assert_array_equal(found, np.full((2, 3, 2, 2, 1), 7))
