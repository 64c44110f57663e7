"""Folders of images into --mode=purify, and out of it and --mode=sample."""

import logging

import begun
import numpy as np
import pytest
import tiny
from PIL import Image

from rad_jax import config as configs
from rad_jax import main
from rad_jax import run as runs
from rad_jax.data import examples
from rad_jax.evaluation import purify
from rad_jax.reports import figures


def config_of(folder, **fields):
  return tiny.load(
    "digits",
    data__name="image_folder",
    data__path=str(folder),
    data__linear_rank=0,
    data__image_size=4,
    model__mlp__width=8,
    model__mlp__depth=1,
    purify__num_steps=8,
    purify__t_star=0.5,
    purify__input=str(folder),
    sampling__num_steps=2,
    sampling__num_samples=5,
    sampling__batch_size=8,
    evaluation__subspace_rank=2,
    evaluation__frechet_dims=2,
    **fields,
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """20 grey pictures of 9 x 6 pixels, in two folders and two formats."""
  root = tmp_path_factory.mktemp("pictures")
  generator = np.random.default_rng(0)
  for i in range(20):
    path = root / "ab"[i % 2] / f"{i:02}.{'jpg' if i == 3 else 'png'}"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(generator.integers(0, 256, (9, 6), np.uint8)).save(path)
  return root


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "run"
  begun.begin(runs.build(config_of(folder)), path)
  return path


def run_of(config, workdir):
  """What the examples become."""
  folder = purify.purify(runs.build(config), workdir)
  return np.split(np.load(folder / "samples.npz")["x_0"], 2)[1]


def pixels_in(folder):
  return {
    path.relative_to(folder).as_posix(): np.asarray(Image.open(path))
    for path in folder.rglob("*.png")
  }


def test_a_folder_is_purified_into_one_of_the_same_names(
  folder, workdir, capsys
):
  before = {path: path.read_bytes() for path in folder.rglob("*.*")}
  config = config_of(folder)
  main._purify(config, workdir)
  assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
  written = workdir / "purified"
  x, after = np.split(np.load(written / "samples.npz")["x_0"], 2)
  # As the training set is read.
  training_set = runs.build(config).open_training_set()
  np.testing.assert_array_equal(x, examples.to_model_range(training_set.x_0))
  names = sorted(
    path.relative_to(folder).with_suffix(".png").as_posix() for path in before
  )
  found = pixels_in(written / "images")
  assert sorted(found) == names
  for name, image in zip(names, after, strict=True):
    np.testing.assert_array_equal(found[name], examples.to_uint8(image)[..., 0])
  printed = capsys.readouterr().out
  for line in ("step: 20", "t_star: 0.5", "num_examples: 20"):
    assert f"{line}\n" in printed
  assert "support_rms_before: " in printed and "support_rms_after: " in printed
  assert f"purified: {written / 'images'}" in printed


def test_rows_of_the_picture_are_named():
  x = np.zeros((20, 4, 4, 1), np.float32)
  _, axes = figures.strips_figure({"before": x, "after": x + 1})
  assert len(axes) == 2  # 16 columns, and 4
  for axis in axes:
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["before", "after"]
    assert len(axis.get_images()) == 1


def test_what_would_be_overwritten_is_refused(folder, workdir):
  for path in (workdir / "purified" / "images", workdir):
    path.mkdir(parents=True, exist_ok=True)
    config = config_of(folder)
    config.purify.input = str(path)
    with pytest.raises(configs.ConfigError, match="one inside the other"):
      purify.purify(runs.build(config), workdir)


def test_examples_in_batches_are_those_of_one_batch(folder, workdir):
  """5 batches of 4, the last one filled up."""
  whole = run_of(config_of(folder), workdir)
  config = config_of(folder)
  config.sampling.batch_size = 4
  config.purify.num_examples = 18
  np.testing.assert_allclose(run_of(config, workdir), whole[:18], atol=1e-5)


def test_images_left_out_are_told(folder, workdir, caplog):
  caplog.set_level(logging.WARNING, "rad_jax")
  config = config_of(folder)
  config.purify.num_examples = 3
  assert len(run_of(config, workdir)) == 3
  assert "holds 20 images: the first 3 are taken" in caplog.text


def test_names_that_would_be_one_are_refused(folder, workdir, tmp_path):
  for name in ("a.png", "a.bmp"):
    Image.new("L", (4, 4)).save(tmp_path / name)
  config = config_of(folder)
  config.purify.input = str(tmp_path)
  with pytest.raises(configs.ConfigError, match="differ only by"):
    purify.purify(runs.build(config), workdir)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_input_that_is_not_finite_is_refused(value, folder, workdir, tmp_path):
  x_0 = np.zeros((6, 4, 4, 1), np.float32)
  x_0[[2, 5], 1, 1] = value
  np.savez(tmp_path / "inputs.npz", x_0=x_0)
  config = config_of(folder)
  config.purify.input = str(tmp_path / "inputs.npz")
  message = "a NaN or an infinity in 2 of its 6 examples, .* number 2"
  with pytest.raises(configs.ConfigError, match=message):
    purify.purify(runs.build(config), workdir)


def test_samples_are_a_folder_of_images_too(folder, workdir, capsys):
  main._sample(config_of(folder), workdir)
  written = workdir / "samples" / "step_20"
  x_0 = np.load(written / "samples.npz")["x_0"]
  found = pixels_in(written / "images")
  assert [*sorted(found)] == [f"{i:06}.png" for i in range(5)]
  for i, image in enumerate(examples.to_uint8(x_0)):
    np.testing.assert_array_equal(found[f"{i:06}.png"], image[..., 0])
  assert str(written / "images") in capsys.readouterr().out
  # None of more samples is left among fewer.
  config = config_of(folder)
  config.sampling.num_samples = 2
  main._sample(config, workdir)
  assert len(pixels_in(written / "images")) == 2
