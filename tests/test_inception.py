"""The FID Inception against torch-fidelity's, on shared random weights.

The reference needs requirements-parity.txt; without it the parity is skipped.
"""

import importlib
import importlib.util
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from rad_jax.features import extractors, inception
from rad_jax.interop import weights


def _random_state():
  """A state dict whose activations stay of order 1."""
  generator = np.random.default_rng(0)
  state = {}

  def put(key, values):
    state[key] = values.astype(np.float32)

  for name, like in inception.shapes().items():
    height, width, fan_in, outputs = (1, 1, *like["kernel"].shape)[-4:]
    gain = np.sqrt(2 / (fan_in * height * width))
    if name == "fc":
      put("fc.weight", generator.normal(size=(outputs, fan_in)) * gain)
      put("fc.bias", generator.normal(size=outputs))
      continue
    kernel = generator.normal(size=(outputs, fan_in, height, width)) * gain
    put(f"{name}.conv.weight", kernel)
    put(f"{name}.bn.weight", generator.uniform(0.7, 1.1, outputs))
    put(f"{name}.bn.bias", generator.normal(size=outputs) * 0.1)
    put(f"{name}.bn.running_mean", generator.normal(size=outputs) * 0.1)
    put(f"{name}.bn.running_var", generator.uniform(0.7, 1.3, outputs))
  return state


@pytest.fixture(scope="module")
def state():
  return _random_state()


@pytest.fixture(scope="module")
def params(state):
  return inception.from_state_dict(state)


def _torch_fidelity(module):
  """A module of torch-fidelity, without its package's need of torchvision."""
  pytest.importorskip("torch")
  if "torch_fidelity" not in sys.modules:
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
      pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
  return importlib.import_module(f"torch_fidelity.{module}")


@pytest.fixture(scope="module")
def reference(state, tmp_path_factory):
  """uint8 images [b, h, w, 3] -> pool, logits, logits without bias."""
  module = _torch_fidelity("feature_extractor_inceptionv3")
  import torch

  path = tmp_path_factory.mktemp("reference") / "weights.pth"
  counts = {
    key.replace("running_var", "num_batches_tracked"): torch.tensor(1)
    for key in state
    if key.endswith("running_var")
  }
  tensors = {key: torch.from_numpy(value) for key, value in state.items()}
  torch.save(tensors | counts, path)
  network = module.FeatureExtractorInceptionV3(
    "reference", ["2048", "logits", "logits_unbiased"], str(path)
  )
  path.unlink()

  def run(images):
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return [output.numpy() for output in network(tensor)]

  return run


def _images(side, channels=3, count=2):
  shape = (count, side, side, channels)
  return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


# Parity.


@pytest.mark.parametrize("side", [32, 299])
def test_features_and_logits_are_torch_fidelitys(side, params, reference):
  images = _images(side)
  pool, logits, unbiased = reference(images)
  assert 0.1 < pool.std() < 10
  found = jax.jit(inception.apply)(params, images)
  np.testing.assert_allclose(found.pool, pool, atol=1e-4)
  np.testing.assert_allclose(found.logits, logits, atol=1e-4)
  np.testing.assert_allclose(
    found.logits - params["fc"]["bias"][None], unbiased, atol=1e-4
  )


@pytest.mark.parametrize("shape", [(8, 8), (32, 20), (299, 299), (400, 310)])
def test_resize_is_tensorflow_1s(shape):
  module = _torch_fidelity("interpolate_compat_tensorflow")
  import torch

  x = np.random.default_rng(0).uniform(0, 255, (2, *shape, 3))
  x = x.astype(np.float32)
  expected = module.interpolate_bilinear_2d_like_tensorflow1x(
    torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
    (299, 299),
    align_corners=False,
  )
  np.testing.assert_allclose(
    inception.resized(jnp.asarray(x)),
    expected.numpy().transpose(0, 2, 3, 1),
    atol=1e-4,
  )


def test_resize_by_hand():
  # Output i lies at 2 i / 299 of two pixels; past the last there is no slope.
  x = np.array([0.0, 299.0], np.float32).reshape(1, 1, 2, 1)
  row = np.asarray(inception.resized(jnp.asarray(x)))[0, 0, :, 0]
  np.testing.assert_allclose(row[:150], 2 * np.arange(150), rtol=1e-5)
  np.testing.assert_array_equal(row[150:], 299)


# What is fed in.


def _seen(images):
  return np.asarray(inception.preprocessed(jnp.asarray(images)))


def test_pixels_are_seen_in_the_graphs_units():
  extremes = np.full((1, 4, 4, 3), 255, np.uint8)
  np.testing.assert_allclose(_seen(extremes), 127 / 128)


def test_grey_is_seen_as_colour():
  grey = _images(8, channels=1)
  np.testing.assert_array_equal(_seen(grey), _seen(np.repeat(grey, 3, axis=3)))
  with pytest.raises(ValueError, match="not 2"):
    _seen(_images(8, channels=2))


# Weights.


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_safetensors_hold_the_same(state, params, tmp_path):
  path = tmp_path / "weights.safetensors"
  save_file(state, path)
  _equal(inception.load_weights(path), params)
  version = extractors.inception(path).version
  path.unlink()
  assert version.startswith("inception-2015-12-05-")
  state = state | {"fc.bias": state["fc.bias"] + 1}
  save_file(state, path)
  assert extractors.inception(str(path)).version != version
  path.unlink()


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_hold_the_same(zipped, state, params, tmp_path):
  # The published file is older than PyTorch's zip format.
  torch = pytest.importorskip("torch")
  path = tmp_path / "weights.pth"
  torch.save(
    {key: torch.from_numpy(value) for key, value in state.items()},
    path,
    _use_new_zipfile_serialization=zipped,
  )
  _equal(inception.load_weights(path), params)
  path.unlink()


class _Code:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


def test_no_code_in_a_file_is_run(tmp_path):
  pytest.importorskip("torch")
  path, touched = tmp_path / "weights.pth", tmp_path / "touched"
  path.write_bytes(pickle.dumps({"fc.weight": _Code(str(touched))}, 2))
  with pytest.raises(weights.WeightsError, match="no PyTorch state dict"):
    inception.load_weights(path)
  assert not touched.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.npz", "a.pt"])
def test_what_is_no_weights_file_is_told(name, tmp_path):
  if name.endswith((".pth", ".pt")):
    pytest.importorskip("torch")
  path = tmp_path / name
  path.write_bytes(b"nothing of the sort")
  with pytest.raises(weights.WeightsError, match=name):
    inception.load_weights(path)


@pytest.mark.parametrize("path", ["", "no/such/file.pth"])
def test_without_weights_the_error_says_what_to_fetch(path):
  with pytest.raises(weights.WeightsError) as error:
    extractors.inception(path)
  for part in (
    "https://github.com/mseitzer/pytorch-fid/releases",
    "pt_inception-2015-12-05-6726825d.pth",
    "--config.evaluation.inception_weights",
    path,
  ):
    assert part in str(error.value)


def test_without_torch_the_error_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = tmp_path / "weights.pth"
  path.touch()
  with pytest.raises(weights.WeightsError, match="pip install torch"):
    inception.load_weights(path)


def test_a_missing_key_is_named(state):
  key = "Mixed_7c.branch3x3dbl_3b.bn.running_mean"
  rest = {k: v for k, v in state.items() if k != key}
  with pytest.raises(weights.WeightsError, match=f"have no {key}"):
    inception.from_state_dict(rest)


def test_torchvisions_weights_are_told_by_their_classes(state):
  other = state | {"fc.weight": np.zeros((1000, 2048), np.float32)}
  with pytest.raises(weights.WeightsError, match=r"fc.weight.*\(1000, 2048\)"):
    inception.from_state_dict(other)
