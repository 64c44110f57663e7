"""Runs that are broken off, and what they go on from."""

import json
import multiprocessing
import pathlib
import random
import re
import shutil
import signal
import threading
import time

import built
import faulty
import jax
import numpy as np
import pytest
import tiny
from built import compiled_once  # noqa: F401

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.training import (
  checkpoints,
  hosts,
  loop,
  metrics,
  sharding,
  watch,
)
from rad_jax.training import workdir as folders


def plane(**fields):
  """Sixty steps of one program, whatever their number."""
  return tiny.plane(
    **dict(optimizer__decay="constant", checkpoint__every_steps=20) | fields
  )


def state_of(workdir, config=None):
  run = built.run(config or plane())
  like = jax.eval_shape(run.initial_state)
  with checkpoints.open_manager(workdir) as manager:
    return checkpoints.restore(
      manager, like, sharding.replicated(sharding.device_mesh())
    )


def steps_in(workdir):
  return sorted(
    int(path.name)
    for path in (workdir / "checkpoints").iterdir()
    if path.name.isdigit()
  )


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken")
  return loop.train(built.run(plane()), workdir), workdir


@pytest.fixture
def copied(unbroken, tmp_path):
  return shutil.copytree(unbroken[1], tmp_path / "copied")


# ---- Signals ----


def wait_for(what, timeout=120.0):
  end = time.monotonic() + timeout
  while not what():
    assert time.monotonic() < end, "it never happened"
    time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_step_and_says_how_to_go_on(number, tmp_path):
  long = {"train__num_steps": 10**6, "checkpoint__every_steps": 10**5}
  process = faulty.start(faulty.command(tmp_path, **long))
  wait_for(lambda: metrics.read(tmp_path))
  process.send_signal(number)
  printed, _ = process.communicate(timeout=60)
  assert process.returncode == faulty.INTERRUPTED, printed
  saved = re.search(r"asked to stop: step (\d+) of 1000000 is saved", printed)
  (step,) = steps_in(tmp_path)
  assert int(saved[1]) == step > 0
  assert "Traceback" not in printed
  # All steps are in the log, the last ones too.
  assert metrics.read(tmp_path)[-1]["step"] == step
  code, printed = faulty.run(
    faulty.command(tmp_path, train__num_steps=step + 5)
  )
  assert code == 0, printed
  assert f"step {step} of {step + 5}" in printed


@pytest.mark.slow
def test_signal_before_training_ends_with_the_same_code(tmp_path):
  """While the set is drawn; a launcher starts it again."""
  code = (
    "import sys, time\n"
    "from rad_jax import main\n"
    "from rad_jax.training import loop\n"
    "def train(*_):\n"
    "  print('begun', flush=True)\n"
    "  time.sleep(600)\n"
    "loop.train = train\n"
    "main.run()\n"
  )
  arguments = faulty.command(tmp_path)
  process = faulty.start([arguments[0], "-c", code, *arguments[3:]])
  assert process.stdout.readline() == "begun\n"
  process.send_signal(signal.SIGTERM)
  printed, _ = process.communicate(timeout=60)
  assert process.returncode == faulty.INTERRUPTED, printed
  assert "run the same command again" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
  "number, code, word",
  [
    (signal.SIGTERM, faulty.INTERRUPTED, "asked to stop"),
    (signal.SIGINT, 130, "interrupted"),
  ],
)
def test_signal_ends_a_compilation_at_once(number, code, word, tmp_path):
  """XLA folds a constant for half an hour, and Python's handlers wait."""
  slow = (
    "import jax, jax.numpy as jnp\n"
    "from rad_jax import main\n"
    "from rad_jax.training import dispatch\n"
    "def forever(of_batch):\n"
    "  def of(state, batch):\n"
    "    x = jnp.ones((2000, 2000))\n"
    "    print('begun', flush=True)\n"
    "    return state, {'loss': jax.lax.reduce_window(\n"
    "      x, 0.0, jax.lax.add, (500, 500), (1, 1), 'SAME').sum()}\n"
    "  return of\n"
    "dispatch.with_examples = forever\n"
    "main.run()\n"
  )
  arguments = faulty.command(tmp_path, "--compile_cache=")
  process = faulty.start([arguments[0], "-c", slow, *arguments[3:]])
  assert "begun\n" in iter(process.stdout.readline, "")
  time.sleep(2)  # in XLA by now
  assert process.poll() is None
  process.send_signal(number)
  try:
    printed, _ = process.communicate(timeout=20)
  finally:
    process.kill()
  assert process.returncode == code, printed
  assert f"rad_jax: {word}; run the same command again" in printed
  assert "Traceback" not in printed


def test_second_signal_is_the_handler_s_that_was_there():
  caught = []
  before = signal.signal(signal.SIGTERM, lambda *_: caught.append("before"))
  try:
    with hosts.stop_requests() as asked:
      assert not asked()
      signal.raise_signal(signal.SIGTERM)
      assert asked() and not caught
      signal.raise_signal(signal.SIGTERM)
      assert caught == ["before"]
    signal.raise_signal(signal.SIGTERM)
    assert len(caught) == 2
  finally:
    signal.signal(signal.SIGTERM, before)


def test_no_signal_is_caught_outside_the_main_thread():
  found = []

  def look():
    with hosts.stop_requests() as asked:
      found.append(asked())

  thread = threading.Thread(target=look)
  thread.start()
  thread.join()
  assert found == [False]


def saved_steps(workdir):
  return steps_in(workdir) if (workdir / "checkpoints").exists() else [0]


@pytest.mark.slow
def test_killed_at_twenty_moments_ends_in_the_same_bits(tmp_path, monkeypatch):
  """SIGKILL, from start-up on; a checkpoint every third step."""
  config = tiny.plane(train__num_steps=450, checkpoint__every_steps=3)
  expected = loop.train(runs.build(config), tmp_path / "unbroken")
  workdir, rng, reached = tmp_path / "broken", random.Random(0), [0]
  # A server that has imported all: its children start in no time, and load
  # what the first has compiled.
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["rad_jax.training.loop"])
  for kill in range(20):
    process = context.Process(target=faulty.train, args=(config, workdir))
    process.start()
    if kill % 5:  # amid steps and savings, else at any time from the start on
      wait_for(lambda: max(saved_steps(workdir), default=0) > reached[-1])
      time.sleep(rng.uniform(0, 0.1))
    else:
      time.sleep(rng.uniform(0, 1.5))
    process.kill()
    process.join()
    reached.append(max(saved_steps(workdir), default=0))
  assert reached == sorted(reached), "a kill cost what was saved"
  assert 0 < reached[-1] < 450, "no kill fell amid the steps"
  assert_same(loop.train(runs.build(config), workdir), expected)
  assert_same(state_of(workdir, config), expected)
  steps = [row["step"] for row in metrics.read(workdir)]
  assert steps == sorted(set(steps))


# ---- Two at once ----


def test_a_folder_is_trained_in_by_one_process(copied, unbroken):
  """The lock is gone with the process that had it, killed though it be."""
  context = multiprocessing.get_context("forkserver")
  ready = context.Event()
  holder = context.Process(target=faulty.hold, args=(copied, ready))
  holder.start()
  assert ready.wait(60)
  before = (copied / "metrics.jsonl").read_bytes()
  config = plane(train__num_steps=70)
  with pytest.raises(folders.InUse, match=f"process {holder.pid} on .* trains"):
    loop.train(built.run(config), copied)
  assert (copied / "metrics.jsonl").read_bytes() == before
  holder.kill()
  holder.join()
  assert_same(loop.train(built.run(plane()), copied), unbroken[0])
  assert not (copied / "holder.json").exists()


# ---- Damaged state ----


def largest(folder):
  return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
  found = bytearray(path.read_bytes())
  found[len(found) // 2] ^= 1
  path.write_bytes(found)


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGES = {
  "half of an array": lambda folder: truncate(largest(folder)),
  "a bit of an array": lambda folder: flip_a_bit(largest(folder)),
  "an array is gone": lambda folder: largest(folder).unlink(),
  "all is gone": empty,
  "the state is gone": lambda folder: shutil.rmtree(folder / "state"),
  "nothing about it": lambda folder: shutil.rmtree(folder / "about"),
  "another digest": lambda folder: (folder / "about/metadata").write_text(
    json.dumps({"format": checkpoints.FORMAT, "digest": "0"})
  ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_older_whole_checkpoint_is_taken(damage, copied, unbroken, caplog):
  assert steps_in(copied) == [20, 40, 60]
  DAMAGES[damage](copied / "checkpoints" / "60")
  caplog.set_level("WARNING", logger="rad_jax")
  state = loop.train(built.run(plane()), copied)
  assert re.search(r"60 cannot be read \(.*step 40 is taken", caplog.text)
  assert_same(state, unbroken[0])
  assert steps_in(copied) == [20, 40, 60]
  assert (copied / "checkpoints" / "60.damaged").is_dir()  # nothing is lost
  assert_same(state_of(copied), unbroken[0])


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, pathlib.Path.unlink])
def test_files_that_orbax_keeps_for_itself_stop_nothing(
  damage, copied, unbroken
):
  """Of all checkpoints, while the arrays are whole."""
  for step in steps_in(copied):
    damage(copied / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
  config = plane(train__num_steps=65)
  assert int(loop.train(built.run(config), copied).step) == 65
  assert steps_in(copied) == [40, 60, 65]


def test_digest_sees_the_order_the_names_and_the_types():
  tree = {"a": np.arange(4, dtype=np.float32), "b": np.zeros(2, np.int32)}
  swapped = tree | {"a": tree["a"][[1, 0, 2, 3]]}
  renamed = {"a": tree["a"], "c": tree["b"]}
  typed = tree | {"b": np.zeros(2, np.float32)}
  folded = tree | {"a": tree["a"].reshape(2, 2)}
  trees = (tree, swapped, renamed, typed, folded)
  assert len({checkpoints.digest(found) for found in trees}) == 5
  assert checkpoints.digest(dict(tree)) == checkpoints.digest(tree)


@pytest.mark.parametrize("how", ["no config.json", "another's checkpoints"])
def test_checkpoint_says_itself_whose_it_is(how, copied, unbroken, tmp_path):
  other = plane(seed=1)
  if how == "no config.json":
    (copied / "config.json").unlink()
  else:
    (tmp_path / "other").mkdir()
    shutil.move(copied / "checkpoints", tmp_path / "other/checkpoints")
    copied = tmp_path / "other"
  with pytest.raises(configs.ConfigError, match=r"\(seed: 0 -> 1\)"):
    loop.train(built.run(other), copied)
  assert not (copied / "config.json").exists()
  assert steps_in(copied) == [20, 40, 60]


def test_sampling_leaves_a_damaged_checkpoint_where_it_is(copied):
  truncate(largest(copied / "checkpoints" / "60"))
  assert int(state_of(copied).step) == 40
  assert steps_in(copied) == [20, 40, 60]


def test_all_checkpoints_are_damaged(copied):
  for step in steps_in(copied):
    truncate(largest(copied / "checkpoints" / str(step)))
  with pytest.raises(checkpoints.CheckpointError) as error:
    loop.train(built.run(plane()), copied)
  assert "/60 cannot be read" in str(error.value)
  assert "nor can the 2 older" in str(error.value)
  assert "\n" not in str(error.value)
  assert steps_in(copied) == [20, 40, 60]


@pytest.mark.slow
def test_full_disk_ends_the_run_and_keeps_what_is_there(tmp_path):
  """Files of more than 16 KB cannot be written, as on a full disk."""
  fields = {"model__mlp__width": 128}
  argv = faulty.command(tmp_path, train__num_steps=5, **fields)
  assert faulty.run(argv)[0] == 0
  full = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash"]
  # Programs that are cut short would stay in the cache.
  argv = faulty.command(tmp_path, "--compile_cache=", **fields)
  code, printed = faulty.run([*full, *argv])
  assert code == 1, printed
  *before, last = printed.splitlines()
  assert last.startswith("rad_jax: error: no checkpoint can be written to")
  assert len(before) < 30  # of some 300 that orbax would say
  assert "step 5 is there. Make room" in last
  assert steps_in(tmp_path) == [5]
  code, printed = faulty.run(faulty.command(tmp_path, **fields))
  assert code == 0, printed
  assert "step 5 of 60" in printed


def test_checkpoint_of_another_structure_is_refused(copied):
  """As one of an older version: nothing is guessed."""
  path = copied / "config.json"
  saved = json.loads(path.read_text())
  config = plane(**{"model.mlp.depth": 2})
  saved["model"]["mlp"]["depth"] = 2
  path.write_text(json.dumps(saved))
  with pytest.raises(checkpoints.CheckpointError, match="nor can the 2 older"):
    loop.train(built.run(config), copied)
  assert steps_in(copied) == [20, 40, 60]


# ---- Numbers ----


def test_bad_step_is_passed_over(monkeypatch, tmp_path):
  faulty.poisoned(monkeypatch, 3, np.nan)
  config = plane(
    train__num_steps=4, train__max_skipped=3, checkpoint__every_steps=1
  )
  state = loop.train(built.run(config), tmp_path)
  assert int(state.step) == 4
  (row,) = metrics.read(tmp_path)
  assert row["train/skipped"] == 1
  assert all(np.isfinite(value) for value in row.values())
  before, after = (restored_at(tmp_path, config, step) for step in (2, 3))
  assert_same(before._replace(step=after.step), after)
  later = restored_at(tmp_path, config, 4)
  assert np.any(
    later.params["output"]["bias"] != after.params["output"]["bias"]
  )


def restored_at(workdir, config, step):
  like = jax.eval_shape(built.run(config).initial_state)
  with checkpoints.ocp.StandardCheckpointer() as reader:
    return reader.restore(workdir / "checkpoints" / str(step) / "state", like)


def test_too_many_bad_steps_stop_the_run(monkeypatch, tmp_path):
  for step in (2, 3, 5, 6):
    faulty.poisoned(monkeypatch, step, np.nan)
  match = "at step 6 after 3 others were skipped"
  with pytest.raises(watch.NonFiniteLoss, match=match):
    loop.train(built.run(plane(train__max_skipped=3)), tmp_path)


def test_spike_takes_the_run_back_past_its_data(monkeypatch, tmp_path, caplog):
  faulty.poisoned(monkeypatch, 9, 1e6)
  caplog.set_level("WARNING", logger="rad_jax")
  config = plane(
    train__num_steps=12,
    train__log_every_steps=1,
    train__rollback_above=50.0,
    checkpoint__every_steps=4,
  )
  state = loop.train(built.run(config), tmp_path)
  assert "back to the parameters of step 8" in caplog.text
  assert int(state.step) == 12
  # By hand: the steps 11 and 12 from the parameters of step 8.
  expected = restored_at(tmp_path, config, 8)._replace(step=np.int32(10))
  run, mesh = built.run(config), sharding.device_mesh()
  for batch in loop.dispatched_batches(run, run.open_training_set(), 10, mesh):
    expected, _ = loop.compile_step(run, expected, batch, mesh)(expected, batch)
  assert int(expected.step) == 12
  for x, y in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_spike_without_a_checkpoint_stops(monkeypatch, tmp_path):
  faulty.poisoned(monkeypatch, 5, 1e6)
  config = plane(
    train__log_every_steps=1,
    train__rollback_above=50.0,
    checkpoint__every_steps=50,
  )
  with pytest.raises(watch.LossSpike, match="no checkpoint was written yet"):
    loop.train(built.run(config), tmp_path)


def test_debug_mode_raises_where_the_nan_arises(monkeypatch, tmp_path):
  faulty.poisoned(monkeypatch, 3, np.nan)
  with pytest.raises(FloatingPointError, match="nan"):
    loop.train(runs.build(plane(train__debug=True)), tmp_path)


# ---- What is seen of a run ----


def test_steps_are_traced_for_the_profiler(tmp_path):
  config = plane(train__num_steps=6, train__profile_steps=(2, 3))
  loop.train(built.run(config), tmp_path)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_weights_and_biases_gets_every_row(monkeypatch, tmp_path):
  """A stand-in of the package, with what is used of it."""
  import contextlib
  import sys
  import types

  logged, told = [], []

  @contextlib.contextmanager
  def init(**given):
    told.append(given)
    yield types.SimpleNamespace(
      log=lambda values, step: logged.append((step, values))
    )

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  for num_steps in (20, 40):
    config = plane(train__num_steps=num_steps, train__wandb_project="dirt")
    loop.train(built.run(config), tmp_path)
  assert [step for step, _ in logged] == [20, 40]
  assert logged[1][1].keys() == metrics.read(tmp_path)[1].keys() - {"step"}
  assert told[0]["project"] == "dirt"
  assert told[0]["id"] == told[1]["id"]  # one run, gone on with
  assert told[1]["config"]["train"]["num_steps"] == 40


def test_weights_and_biases_is_not_installed(monkeypatch, tmp_path):
  import sys

  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match="pip install wandb"):
    loop.train(built.run(plane(train__wandb_project="dirt")), tmp_path)
