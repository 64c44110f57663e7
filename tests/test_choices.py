"""What configs/my_images.py leaves open is chosen so that it can be run."""

import importlib
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rad_jax import checks, choices, files
from rad_jax import config as configs
from rad_jax.choices import Images, Machine
from rad_jax.data import sources

SLOW = Machine(False, 1, 8e9, False)
FAST = Machine(True, 1, 80e9, True)
images_ = st.builds(
  Images, st.integers(1, 10**7), st.integers(1, 10**4), st.booleans()
)
machines = st.builds(
  Machine,
  st.booleans(),
  st.integers(1, 12),
  st.none() | st.floats(1e8, 1e12),
  st.booleans(),
)


def my_images(variant="", **fields):
  config = importlib.import_module("configs.my_images").get_config(variant)
  config.data.path = "photos"
  config.update_from_flattened_dict(
    {path.replace("__", "."): value for path, value in fields.items()}
  )
  return config


NOWHERE = pathlib.Path("no such folder")


def filled(images, machine, variant="", **fields):
  config = my_images(variant, **fields)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(choices, "look_at", lambda config: images)
    patch.setattr(choices, "this_machine", lambda: machine)
    return config, choices.fill(config, NOWHERE)


@given(images_, machines, st.sampled_from(["", "smoke"]))
def test_every_choice_can_be_run(images, machine, variant):
  # Bugs: a batch that devices or pieces do not divide, a side that the levels
  # do not halve, a field without a rule.
  if variant:  # its batch is 16, whatever the machine
    machine = machine._replace(num_devices=1)
  config, chosen = filled(images, machine, variant)
  checks.validate(config, machine.num_devices)
  assert None not in configs.flatten(config.to_dict()).values()
  assert all(reason for _, reason in chosen)


@given(images_, machines, st.integers(1, 200))
def test_a_side_that_was_given_stays_and_the_network_fits_it(
  images, machine, side
):
  config, chosen = filled(images, machine, data__image_size=side)
  checks.validate(config, machine.num_devices)
  assert config.data.image_size == side
  assert not any("data.image_size" in flag for flag, _ in chosen)


def test_every_open_field_has_a_rule_and_no_other():
  fields = configs.flatten(my_images().to_dict())
  config, _ = filled(Images(8000, 500, False), FAST)
  chosen = choices.choices(config, Images(8000, 500, False), FAST)
  assert {path for path, *_ in chosen} == (
    {path for path, value in fields.items() if value is None}
  )


def test_a_run_goes_on_as_it_was_on_another_machine(tmp_path):
  begun, _ = filled(Images(8000, 500, False), FAST)
  files.write_json(tmp_path / "config.json", begun.to_dict())
  config = my_images(train__num_steps=7)
  # Neither folder nor machine is looked at.
  choices.fill(config, tmp_path)
  now, before = (configs.flatten(c.to_dict()) for c in (config, begun))
  assert now == before | {"train.num_steps": 7}


def test_less_memory_makes_more_pieces():
  images = Images(8000, 500, False)
  large, small = (
    filled(images, FAST._replace(memory=memory))[0].train.micro_batches
    for memory in (400e9, 4e9)
  )
  assert (large, small > 1) == (1, True)


@pytest.mark.parametrize(
  "images, machine, expected",
  [
    # The largest power of two in the image, up to what the machine can do.
    (Images(8000, 500, False), SLOW, {"data.image_size": 16}),
    (Images(8000, 500, False), FAST, {"data.image_size": 64}),
    (Images(8000, 40, False), FAST, {"data.image_size": 32}),
    # 1000 times 8000 images in batches of 128; and no less for few.
    (Images(8000, 40, False), FAST, {"train.num_steps": 62_000}),
    (Images(100, 40, True), FAST, {"train.num_steps": 20_000}),
    (Images(100, 40, True), FAST, {"train.batch_size": 64}),
    (Images(100, 40, True), SLOW, {"data.num_channels": 1}),
    # 10^7 images of 64 x 64 in colour are 123 GB.
    (Images(10**7, 500, False), FAST, {"data.loading": "stream"}),
    (Images(8000, 500, False), FAST, {"data.loading": "memory"}),
  ],
)
def test_choice(images, machine, expected):
  config, _ = filled(images, machine)
  found = configs.flatten(config.to_dict())
  assert {path: found[path] for path in expected} == expected


# ---- The folder ----


def draw(folder, name, size, colour):
  folder.mkdir(exist_ok=True)
  Image.new("RGB", size, colour).save(folder / name)


def test_folder_is_described_by_what_can_be_read(tmp_path):
  for i, size in enumerate([(20, 30), (50, 40), (90, 60)]):
    draw(tmp_path, f"{i}.png", size, (7, 7, 7))
  (tmp_path / "3.png").write_bytes(b"no image")
  config = my_images(data__path=str(tmp_path))
  assert choices.look_at(config) == Images(4, 40, True)
  draw(tmp_path, "4.png", (90, 60), (7, 8, 7))
  assert choices.look_at(config) == Images(5, 50, False)


def test_folder_without_a_readable_image(tmp_path):
  (tmp_path / "0.png").write_bytes(b"no image")
  with pytest.raises(sources.ExampleError, match=r"0\.png"):
    choices.look_at(my_images(data__path=str(tmp_path)))


def test_folder_must_be_named():
  with pytest.raises(configs.ConfigError, match=r"--config\.data\.path=DIR"):
    choices.look_at(my_images(data__path=""))


def test_bfloat16_is_asked_of_the_device():
  machine = choices.this_machine()
  assert (machine.is_accelerated, machine.has_bfloat16) == (False, False)
  assert machine.memory is None or np.isfinite(machine.memory)
