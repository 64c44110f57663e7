"""A local folder of images, and Hugging Face's sets, as data."""

import importlib.util
import shutil
import zipfile
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from rad_jax import checks
from rad_jax import config as configs
from rad_jax.data import builders, folder, sources, synthetic, training_set
from rad_jax.training import workdir


def _pixels(seed, shape=(8, 8, 3)):
  generator = np.random.default_rng(seed)
  return generator.integers(0, 256, shape, dtype=np.uint8)


def _write(path, seed=0, shape=(8, 8, 3)):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = _pixels(seed, shape)
  Image.fromarray(pixels).save(path)
  return pixels


def test_flat_folder_is_in_the_order_of_its_names(tmp_path):
  written = {
    name: _write(tmp_path / name, seed)
    for seed, name in enumerate(["c.png", "a.PNG", "b.png", "10.png", "9.png"])
  }
  (tmp_path / "notes.txt").write_text("no image")
  (tmp_path / "._a.png").write_text("no image either")
  source = folder.open_folder(str(tmp_path), "train", 3)
  assert len(source) == 5
  for image, name in zip(
    source, ["10.png", "9.png", "a.PNG", "b.png", "c.png"], strict=True
  ):
    np.testing.assert_array_equal(image, written[name])
  for index in (-1, 5):
    with pytest.raises(IndexError, match="among 5"):
      source[index]


def test_splits_and_labels_are_tfds_image_folders(tmp_path):
  written = [
    _write(tmp_path / name, seed)
    for seed, name in enumerate(
      [
        "train/cat/1.png",
        "train/cat/2.png",
        "train/dog/0.png",
        "test/cat/1.png",
      ]
    )
  ]
  (tmp_path / "empty").mkdir()
  _write(tmp_path / ".cache/x/1.png")
  train = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_array_equal(list(train), written[:3])
  test = folder.open_folder(str(tmp_path), "test", 3)
  np.testing.assert_array_equal(list(test), written[3:])
  with pytest.raises(folder.FolderError, match="'val'; .*: test, train \\("):
    folder.open_folder(str(tmp_path), "val", 3)


def test_folders_of_no_split_s_name_are_classes(tmp_path):
  names = ["animals/a.png", "cars/b.png", "cars/deep/c.png"]
  written = [_write(tmp_path / name, i) for i, name in enumerate(names)]
  source = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_array_equal(list(source), written)
  # One class alone would be trained on in silence.
  with pytest.raises(folder.FolderError, match="no split 'animals'; .*: train"):
    folder.open_folder(str(tmp_path), "animals", 3)


def test_images_beside_folders_of_images_are_refused(tmp_path):
  for name in ("a.png", "more/b.png", "more/c.png"):
    _write(tmp_path / name)
  with pytest.raises(folder.FolderError, match="holds 1 .* and 2 in more: "):
    folder.open_folder(str(tmp_path), "train", 3)


@pytest.mark.parametrize("wrapped", ["", "photos/", "photos/v1/"])
def test_splits_are_found_in_a_folder_that_holds_all(tmp_path, wrapped):
  names = ["test/b.png", "train/cat/a.png", "train/dog/a.png"]
  written = [_write(tmp_path / wrapped / n, i) for i, n in enumerate(names)]
  source = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_array_equal(list(source), written[1:])


def test_splits_within_classes_are_refused(tmp_path):
  """Trained on as one, the test set would be in the training set."""
  for name in ("cat/train/a.png", "cat/test/b.png", "dog/train/c.png"):
    _write(tmp_path / name)
  with pytest.raises(folder.FolderError, match="below another .*, cat/test: "):
    folder.open_folder(str(tmp_path), "train", 3)


def test_what_is_found_and_not_read_is_told_in_a_line(tmp_path, caplog):
  _write(tmp_path / "cat/a.png", shape=(5, 300))
  _write(tmp_path / "cat/b.png", shape=(1200, 7, 4))
  _write(tmp_path / "dog/c.png", shape=(6, 9))
  (tmp_path / "dog/d.png").write_bytes(b"no image, which decoding tells")
  for name in ("cat/.a.png", "a.txt", "dog/b.TXT", "dog/LICENSE"):
    (tmp_path / name).write_text("skipped")
  caplog.set_level("INFO", "rad_jax")
  folder.open_folder(str(tmp_path), "train", 3)
  (record,) = caplog.records
  assert record.getMessage() == (
    f"'{tmp_path}', split 'train': 4 images in 2 folders of sides 5 to 1,200"
    " and modes L (2), RGBA (1); not read: 2 .txt, 1 hidden, 1 without a suffix"
  )


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "bmp", "webp"])
def test_an_archive_is_the_folder_that_it_holds(tmp_path, suffix):
  for name in ("test/x", "train/cat/b", "train/cat/a", "train/dog/a"):
    _write(tmp_path / f"set/{name}.{suffix}", len(name), (30, 40, 3))
  (tmp_path / "set/train/notes.txt").write_text("no image")
  archive = shutil.make_archive(
    str(tmp_path / "packed"), "zip", tmp_path, "set"
  )
  within, packed = (
    folder.open_folder(str(path), "train", 3, image_size=8)
    for path in (tmp_path / "set", archive)
  )
  assert len(within) == len(packed) == 3
  np.testing.assert_array_equal(list(within), list(packed))


def test_an_archive_is_read_by_several_threads(tmp_path):
  with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as to:
    for i in range(300):
      picture = Image.fromarray(np.full((40, 40), i % 256, np.uint8))
      with to.open(f"{i:03}.png", "w") as file:
        picture.save(file, "png")
  source = folder.open_folder(str(tmp_path / "set.zip"), "train", 1)
  loaded = np.empty((300, 40, 40, 1), np.uint8)
  assert sources.fill(loaded, source, lambda image: image) == 0
  np.testing.assert_array_equal(loaded[:, 0, 0, 0], np.arange(300) % 256)
  assert np.ptp(loaded, axis=(1, 2, 3)).max() == 0


@pytest.mark.parametrize("end", [-10, 100])
def test_no_whole_archive_is_named(tmp_path, end):
  _write(tmp_path / "set/a.png")
  archive = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "set")
  (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:end])
  with pytest.raises(folder.FolderError, match="b.zip' is neither a folder no"):
    folder.open_folder(str(tmp_path / "b.zip"), "train", 3)
  assert len(folder.open_folder(archive, "train", 3)) == 1


def test_missing_and_empty_folders_are_named(tmp_path):
  missing = tmp_path / "nowhere"
  with pytest.raises(
    folder.FolderError, match=f"no folder or zip archive '{missing}'"
  ):
    folder.open_folder(str(missing), "train", 3)
  (tmp_path / "notes.txt").write_text("no image")
  with pytest.raises(folder.FolderError, match=f"'{tmp_path}' holds no images"):
    folder.open_folder(str(tmp_path), "train", 3)


def test_home_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  _write(tmp_path / "set/a.png")
  assert len(folder.open_folder("~/set", "train", 3)) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_undecodable_file_is_named(tmp_path, whole):
  _write(tmp_path / "a.png")
  data = (tmp_path / "a.png").read_bytes()
  (tmp_path / "b.png").write_bytes(b"no image" if whole else data[:-60])
  source = folder.open_folder(str(tmp_path), "train", 3)
  source[0]
  named = r"split 'train': .*example 1: b\.png: "
  with pytest.raises(sources.ExampleError, match=named):
    source[1]
  with pytest.raises(sources.ExampleError, match=named):
    sources.fill(np.empty((2, 8, 8, 3), np.uint8), source, lambda image: image)


def test_grey_and_colour_become_each_other(tmp_path):
  rgb = _write(tmp_path / "a.png", shape=(5, 7, 3))
  grey = _write(tmp_path / "b.png", shape=(5, 7))
  first, second = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_array_equal(first, rgb)
  np.testing.assert_array_equal(second, np.stack([grey] * 3, axis=-1))
  first, second = folder.open_folder(str(tmp_path), "train", 1)
  assert first.shape == (5, 7, 1)
  # ITU-R 601-2.
  luma = rgb @ np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(first[..., 0], luma, atol=1)
  np.testing.assert_array_equal(second[..., 0], grey)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_transparent_is_white(tmp_path, num_channels):
  rgba = np.zeros((2, 2, 4), np.uint8)
  rgba[0] = [60, 60, 60, 255]
  rgba[1, 0] = [60, 60, 60, 128]
  expected = np.array([[60, 60], [157, 255]])[..., None]
  Image.fromarray(rgba).save(tmp_path / "a.png")
  Image.fromarray(rgba[..., 2:]).save(tmp_path / "b.png")
  for image in folder.open_folder(str(tmp_path), "train", num_channels):
    assert image.shape == (2, 2, num_channels)
    np.testing.assert_allclose(image, expected + 0 * image, atol=1)


def test_palettes_are_resolved(tmp_path):
  picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
  colours = np.array([[10, 20, 30], [200, 100, 0], [7, 7, 7]], np.uint8)
  picture.putpalette(colours.tobytes())
  picture.save(tmp_path / "a.png")
  picture.save(tmp_path / "b.png", transparency=2)
  plain, transparent = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_array_equal(plain, colours[[[0, 1], [2, 1]]])
  colours[2] = 255
  np.testing.assert_array_equal(transparent, colours[[[0, 1], [2, 1]]])


def test_photos_stand_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation: to be turned clockwise by 90 degrees.
  rgb = _pixels(0, (4, 6, 3))
  Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
  (image,) = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_array_equal(image, np.rot90(rgb, -1))


def test_sixteen_bits_become_eight_and_floats_are_refused(tmp_path):
  pixels = np.array([[0, 255, 256], [40_000, 65_279, 65_535]], np.uint16)
  Image.fromarray(pixels).save(tmp_path / "a.png")
  Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "b.tiff")
  source = folder.open_folder(str(tmp_path), "train", 1)
  np.testing.assert_array_equal(source[0][..., 0], pixels >> 8)
  with pytest.raises(sources.ExampleError, match="b.tiff: mode F has no larg"):
    source[1]


@pytest.mark.parametrize("suffix", ["bmp", "gif", "tiff", "webp"])
def test_formats_are_read_and_of_moving_pictures_the_first_frame(
  tmp_path, suffix
):
  still, moved = (
    Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")
  )
  several = dict(save_all=True, append_images=[moved], lossless=True)
  still.save(tmp_path / f"a.{suffix}", **several if suffix != "bmp" else {})
  (image,) = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_array_equal(image, np.full((8, 8, 3), [255, 0, 0]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "I;16"])
@pytest.mark.parametrize("crop_size", [0, 300])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_pictures_are_shrunk_in_bands(
  tmp_path, mode, crop_size, orientation
):
  """Against the whole picture, converted, cut and box-filtered at once."""
  grid = np.linspace(0, 1, 500)
  smooth = 127 + 120 * np.sin(7 * grid[:, None] + 5 * grid[None, :360])
  channels = np.stack([smooth, 255 - smooth, smooth[::-1]], -1)
  rgb = Image.fromarray(channels.astype(np.uint8))
  picture = rgb.convert("L" if mode == "I;16" else mode)
  if mode == "I;16":
    picture = Image.fromarray(np.array(picture).astype(np.uint16) << 8)
  if mode == "RGBA":
    picture.putalpha(Image.fromarray(smooth.astype(np.uint8)))
  path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
  exif = Image.Exif()
  exif[0x0112] = orientation
  picture.save(path, exif=exif)
  whole, shrunk = (
    folder.open_folder(str(tmp_path), "train", 3, crop_size, size)[0]
    for size in (0, 32)
  )
  side = crop_size or 360
  assert shrunk.shape == (-(-side // (side // 64)),) * 2 + (3,)
  height, width, _ = whole.shape
  top, left = (height - side) // 2, (width - side) // 2
  square = Image.fromarray(whole[top : top + side, left : left + side])
  expected = square.reduce(side // 64)
  np.testing.assert_allclose(shrunk, np.array(expected), atol=3)


def test_jpeg_of_four_inks_has_its_colours(tmp_path):
  """Those of Adobe, as most of them are, hold the inks inverted."""
  colours = np.full((16, 16, 3), [200, 40, 90], np.uint8)
  Image.fromarray(colours).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
  (image,) = folder.open_folder(str(tmp_path), "train", 3)
  np.testing.assert_allclose(image, colours, atol=3)


def test_jpeg_is_decoded_at_a_fraction(tmp_path):
  grid = np.linspace(0, 1, 640)
  smooth = 127 + 120 * np.sin(7 * grid[:, None] + 5 * grid[None])
  picture = Image.fromarray(smooth.astype(np.uint8))
  picture.save(tmp_path / "a.jpg", quality=95)
  (small,) = folder.open_folder(str(tmp_path), "train", 1, image_size=32)
  assert small.shape == (80, 80, 1)
  expected = np.array(picture.reduce(8))
  np.testing.assert_allclose(small[..., 0], expected, atol=4)


def test_too_large_a_picture_is_named_with_what_allows_it(tmp_path):
  Image.new("1", (30_000, 6_000)).save(tmp_path / "a.png")
  source = folder.open_folder(str(tmp_path), "train", 1, image_size=8)
  message = "a.png: 180 megapixels, more than data.max_megapixels=150"
  with pytest.raises(sources.ExampleError, match=message):
    source[0]
  allowed = folder.open_folder(str(tmp_path), "train", 1, 0, 8, 200.0)
  assert allowed[0].shape == (16, 16, 1)


# As a run's data.


def _config(path, **fields):
  config = configs.default()
  config.model.name = "mlp"
  config.data.update(name="image_folder", path=str(path), image_size=8)
  config.data.update(fields)
  return config


def _open(config):
  data = config.data.to_dict()
  for name in ("num_threads", "flip", "corruption"):
    del data[name]
  return training_set.open_training_set(seed=config.seed, **data)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_images_of_all_sizes_are_fitted(tmp_path, loading):
  first = _write(tmp_path / "a.png")
  _write(tmp_path / "b.png", shape=(20, 31, 3))
  _write(tmp_path / "c.png", shape=(4, 3))
  config = _config(tmp_path, loading=loading)
  checks.validate(config)
  opened = _open(config)
  assert opened.num_examples == 3
  fetched = opened.fetch(np.array([2, 1, 0], np.int32))
  assert fetched.shape == (3, 8, 8, 3) and fetched.dtype == np.uint8
  np.testing.assert_array_equal(fetched[2], first)


def test_a_set_of_one_image_is_told(tmp_path, caplog):
  _write(tmp_path / "a.png")
  assert _open(_config(tmp_path)).num_examples == 1
  assert "of one image, nothing but it is learnt" in caplog.text
  caplog.clear()
  _write(tmp_path / "b.png")
  _open(_config(tmp_path))
  assert "nothing but it" not in caplog.text


def test_an_added_or_another_picture_makes_another_set(tmp_path):
  for name in ("a.png", "b.png"):
    _write(tmp_path / "here" / name, len(name))
  opened = lambda where: _open(_config(tmp_path / where)).identity
  before = opened("here")
  (tmp_path / "here").rename(tmp_path / "moved")
  assert opened("moved") == before
  _write(tmp_path / "moved/b.png", 9, (20, 20, 3))
  changed = opened("moved")
  (tmp_path / "moved/b.png").rename(tmp_path / "moved/c.png")
  renamed = opened("moved")
  _write(tmp_path / "moved/d.png")
  assert opened("moved")["num_examples"] == 3
  files = [found["files"] for found in (before, changed, renamed)]
  assert len({*files, opened("moved")["files"]}) == 4
  saved, today = (
    {"config": configs.default().to_dict(), "data": found}
    for found in (before, opened("moved"))
  )
  workdir.refuse_other(tmp_path, saved, saved)
  with pytest.raises(configs.ConfigError, match="num_examples: 2 -> 3"):
    workdir.refuse_other(tmp_path, saved, today)


def test_a_crop_beyond_an_image_is_named(tmp_path):
  _write(tmp_path / "a.png")
  with pytest.raises(ValueError, match="crop_size 9 exceeds the image, 8x8"):
    _open(_config(tmp_path, crop_size=9))


def test_path_and_name_go_together():
  checks.validate(_config("somewhere"))
  with pytest.raises(configs.ConfigError, match="path='': .*archive of image_"):
    checks.validate(_config(""))
  with pytest.raises(configs.ConfigError, match="path='x': it must be \"\" "):
    checks.validate(_config("x", name="cifar10"))


def test_what_needs_preparation():
  assert training_set.needs_preparation("cifar10")
  assert training_set.needs_preparation("huggingface:owner__set")
  assert not training_set.needs_preparation("image_folder")
  assert not any(map(training_set.needs_preparation, synthetic.WORLDS))


# Hugging Face's sets.


def test_hugging_face_without_its_package(tmp_path):
  find_spec = importlib.util.find_spec
  missing = lambda name: None if name == "datasets" else find_spec(name)
  with (
    mock.patch.object(importlib.util, "find_spec", missing),
    pytest.raises(builders.PreparationError) as error,
  ):
    builders.prepare("huggingface:owner__set", str(tmp_path))
  for part in ("huggingface:owner__set", "pip install datasets", folder.NAME):
    assert part in str(error.value)
  assert "\n" not in str(error.value)


def test_prepared_set_of_hugging_face_needs_no_package(tmp_path):
  """A prepared set stands in, under the folder's name that TFDS gives it."""
  builders.prepare("digits", str(tmp_path))
  expected = builders.open_source("digits", "train", str(tmp_path))[3]
  (tmp_path / "digits").rename(tmp_path / "owner__set")
  name = "huggingface:owner__set"
  builders.prepare(name, str(tmp_path))
  source = builders.open_source(name, "train", str(tmp_path))
  assert len(source) == 1797
  np.testing.assert_array_equal(source[3], expected)
