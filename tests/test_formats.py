"""Checkpoints of every format there has been: read, or refused by name.

tests/data/checkpoint_N.zip is a run's folder of format N, and the .npz beside
it has its parameters. They are never made again. Those of a new format:
PYTHONPATH=. python tests/test_formats.py /tmp/run
"""

import json
import pathlib
import re
import shutil
import sys
import zipfile

import built
import jax
import numpy as np
import pytest
from flax import traverse_util
from tiny import plane

from rad_jax.evaluation import sampling
from rad_jax.run import Run
from rad_jax.training import checkpoints, loop, workdir
from rad_jax.version import __version__

DATA = pathlib.Path(__file__).parent / "data"
READ = [1]


def unpacked(number: int, folder: pathlib.Path) -> pathlib.Path:
  with zipfile.ZipFile(DATA / f"checkpoint_{number}.zip") as packed:
    packed.extractall(folder)
  return folder


def flat(params) -> dict[str, np.ndarray]:
  return traverse_util.flatten_dict(params, sep="/")


def test_todays_format_is_kept():
  assert checkpoints.FORMAT == max(READ)


@pytest.mark.parametrize("number", READ)
def test_format_is_read(number, tmp_path):
  folder = unpacked(number, tmp_path)
  kept = np.load(DATA / f"checkpoint_{number}.npz")
  run = built.run(plane())
  for ema in (True, False):
    fields = run.sampling._replace(ema=ema, num_samples=4)
    model = sampling.newest_model(run._replace(sampling=fields), folder)
    assert model.step == 20
    name = "ema_params" if ema else "params"
    own = {p: x for p, x in kept.items() if p.startswith(f"{name}/")}
    found = {f"{name}/{path}": x for path, x in flat(model.params).items()}
    assert own.keys() == found.keys() and own
    for path, x in found.items():
      np.testing.assert_array_equal(x, own[path])
    assert sampling.draw(model, 4).shape == (4, 3)


@pytest.mark.parametrize("number", READ)
def test_run_of_the_format_goes_on(number, tmp_path, caplog):
  caplog.set_level("INFO", logger="rad_jax")
  run = built.run(plane(train__num_steps=22))
  state = loop.train(run, unpacked(number, tmp_path))
  assert int(state.step) == 22
  assert "step 20 of 22" in caplog.text


def about_file(folder: pathlib.Path) -> pathlib.Path:
  return folder / "checkpoints/20/about/metadata"


def set_format(folder: pathlib.Path, **entries) -> None:
  about = json.loads(about_file(folder).read_text())
  del about["format"], about["rad_jax"]
  about_file(folder).write_text(json.dumps(about | entries))


def as_before_numbers(folder: pathlib.Path) -> None:
  """One item, `default`, its checksum in orbax's own metadata."""
  checkpoint = folder / "checkpoints/20"
  shutil.rmtree(checkpoint / "about")
  (checkpoint / "state").rename(checkpoint / "default")


@pytest.mark.parametrize(
  "change, told",
  [
    (as_before_numbers, r"before 0\.1\.0 \(format without a number\)"),
    (set_format, r"before 0\.1\.0 \(format without a number\)"),
    (
      lambda folder: set_format(folder, format=99, rad_jax="7.0.0"),
      r"7\.0\.0 \(format 99\)",
    ),
  ],
  ids=["before numbers", "no number", "unknown"],
)
def test_other_formats_are_refused_by_name(change, told, tmp_path):
  """With an older checkpoint of today's beside it, and nothing set aside."""
  folder = unpacked(1, tmp_path)
  shutil.copytree(folder / "checkpoints/20", folder / "checkpoints/10")
  change(folder)
  run = built.run(plane())
  today = rf"rad_jax {re.escape(__version__)} reads format 1: use that version"
  for use in (loop.train, sampling.newest_model):
    with pytest.raises(checkpoints.FormatError, match=told) as error:
      use(run, folder)
    assert re.search(today, str(error.value))
    assert "\n" not in str(error.value)
  steps = {path.name for path in (folder / "checkpoints").iterdir()}
  assert steps == {"10", "20"}


def make(run: Run, folder: pathlib.Path) -> None:
  """A run of step 20 in `folder`, and its pair in tests/data."""
  state = jax.jit(run.initial_state)()
  draw = np.random.default_rng(0).normal
  # Of few bits, for small files.
  coarse = lambda x: np.round(16 * (x + 0.1 * draw(size=x.shape))) / 16
  params, average = (
    jax.tree.map(lambda x: coarse(x).astype(np.float32), state.params)
    for _ in range(2)
  )
  state = state._replace(step=np.int32(20), params=params, ema_params=average)
  about = {
    "config": run.config,
    "data": run.open_training_set().identity,
    "history": {"losses": [], "skipped": 0, "rollbacks": 0},
  }
  workdir.claim(folder, run)
  with checkpoints.open_manager(folder) as manager:
    checkpoints.save(manager, 20, state, about)
  path = DATA / f"checkpoint_{checkpoints.FORMAT}.zip"
  arrays = flat({"params": params, "ema_params": average})
  np.savez_compressed(path.with_suffix(".npz"), **arrays)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
    for file in sorted(filter(pathlib.Path.is_file, folder.rglob("*"))):
      packed.write(file, file.relative_to(folder))


if __name__ == "__main__":
  make(built.run(plane()), pathlib.Path(sys.argv[1]))
