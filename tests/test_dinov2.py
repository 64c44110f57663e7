"""DINOv2 against transformers' on shared random weights, and its resizes.

The references need requirements-parity.txt; without it they are skipped.
"""

import jax
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from rad_jax.features import dinov2, extractors
from rad_jax.interop import weights

WIDTH, DEPTH = 128, 2

# Meta's keys and transformers', of a block; those of qkv stand in a test.
OF_BLOCK = {
  "norm1.weight": "norm1.weight",
  "norm1.bias": "norm1.bias",
  "attn.proj.weight": "attention.output.dense.weight",
  "attn.proj.bias": "attention.output.dense.bias",
  "ls1.gamma": "layer_scale1.lambda1",
  "norm2.weight": "norm2.weight",
  "norm2.bias": "norm2.bias",
  "mlp.fc1.weight": "mlp.fc1.weight",
  "mlp.fc1.bias": "mlp.fc1.bias",
  "mlp.fc2.weight": "mlp.fc2.weight",
  "mlp.fc2.bias": "mlp.fc2.bias",
  "mlp.w12.weight": "mlp.weights_in.weight",
  "mlp.w12.bias": "mlp.weights_in.bias",
  "mlp.w3.weight": "mlp.weights_out.weight",
  "mlp.w3.bias": "mlp.weights_out.bias",
  "ls2.gamma": "layer_scale2.lambda1",
}
OF_ENDS = {
  "cls_token": "embeddings.cls_token",
  "mask_token": "embeddings.mask_token",
  "pos_embed": "embeddings.position_embeddings",
  "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
  "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
  "norm.weight": "layernorm.weight",
  "norm.bias": "layernorm.bias",
}


def _metas(gated=False, grid=7):
  """A state dict by Meta's keys, whose every array matters to the feature."""
  generator = np.random.default_rng(0)
  state = {}

  def put(key, *shape, mean=0.0, std=0.3):
    values = mean + generator.normal(size=shape) * std
    state[key] = values.astype(np.float32)

  def dense(key, fan_in, outputs, gain=1.0):
    put(f"{key}.weight", outputs, fan_in, std=gain / np.sqrt(fan_in))
    put(f"{key}.bias", outputs)

  def norm(key):
    put(f"{key}.weight", WIDTH, mean=1.0)
    put(f"{key}.bias", WIDTH)

  # Small, so that the first layer norm's epsilon tells.
  put("cls_token", 1, 1, WIDTH, std=0.01)
  put("mask_token", 1, WIDTH)
  put("pos_embed", 1, 1 + grid**2, WIDTH, std=0.03)
  put("patch_embed.proj.weight", WIDTH, 3, 14, 14, std=0.0012)
  put("patch_embed.proj.bias", WIDTH, std=0.01)
  for i in range(DEPTH):
    block = f"blocks.{i}"
    norm(f"{block}.norm1")
    dense(f"{block}.attn.qkv", WIDTH, 3 * WIDTH, gain=1.5)
    dense(f"{block}.attn.proj", WIDTH, WIDTH)
    put(f"{block}.ls1.gamma", WIDTH, mean=1.0)
    norm(f"{block}.norm2")
    if gated:
      dense(f"{block}.mlp.w12", WIDTH, 2 * 344)
      dense(f"{block}.mlp.w3", 344, WIDTH)
    else:
      dense(f"{block}.mlp.fc1", WIDTH, 4 * WIDTH)
      dense(f"{block}.mlp.fc2", 4 * WIDTH, WIDTH)
    put(f"{block}.ls2.gamma", WIDTH, mean=1.0)
  norm("norm")
  return state


def _hugging_faces(state):
  """The same by transformers' keys."""
  found = {theirs: state[key] for key, theirs in OF_ENDS.items()}
  for i in range(DEPTH):
    theirs = f"encoder.layer.{i}"
    for key, their in OF_BLOCK.items():
      if f"blocks.{i}.{key}" in state:
        found[f"{theirs}.{their}"] = state[f"blocks.{i}.{key}"]
    for kind in ("weight", "bias"):
      parts = np.split(state[f"blocks.{i}.attn.qkv.{kind}"], 3)
      for name, part in zip(("query", "key", "value"), parts, strict=True):
        found[f"{theirs}.attention.attention.{name}.{kind}"] = part
  return found


def _images(height, width, channels=3, count=2):
  shape = (count, height, width, channels)
  return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def _reference(state, images):
  """transformers' class tokens of images of 224 x 224."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  grid = round((state["pos_embed"].shape[1] - 1) ** 0.5)
  network = transformers.Dinov2Model(
    transformers.Dinov2Config(
      hidden_size=WIDTH,
      num_hidden_layers=DEPTH,
      num_attention_heads=WIDTH // 64,
      image_size=14 * grid,
      patch_size=14,
      use_swiglu_ffn="blocks.0.mlp.w12.weight" in state,
    )
  ).eval()
  tensors = {
    key: torch.from_numpy(value.copy())
    for key, value in _hugging_faces(state).items()
  }
  network.load_state_dict(tensors, strict=True)
  mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
  x = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
  with torch.no_grad():
    return network(torch.from_numpy(x.copy())).pooler_output.numpy()


def _torchs_bicubic(grid, **size):
  """torch's bicubic, not antialiased, of a grid [g, g, width]."""
  torch = pytest.importorskip("torch")
  x = torch.from_numpy(grid.transpose(2, 0, 1)[None].copy())
  x = torch.nn.functional.interpolate(
    x, **size, mode="bicubic", align_corners=False, antialias=False
  )
  return x[0].numpy().transpose(1, 2, 0)


_apply = jax.jit(dinov2.apply)


def _close(found, expected):
  assert 0.5 < expected.std() < 2
  assert not np.allclose(expected[0], expected[1], atol=0.1)
  np.testing.assert_allclose(found, expected, atol=1e-4)


# Parity.


@pytest.mark.parametrize(
  "gated, grid", [(False, 7), (False, 16), (False, 37), (True, 37)]
)
def test_without_the_offset_features_are_transformers(gated, grid):
  state, images = _metas(gated, grid), _images(224, 224)
  expected = _reference(state, images)
  params = dinov2.from_state_dict(_hugging_faces(state), position_offset=0.0)
  _close(_apply(params, images), expected)


@pytest.mark.parametrize("grid", [7, 37])
def test_features_are_of_positions_at_metas_scale(grid):
  state, images = _metas(grid=grid), _images(224, 224)
  token, cells = np.split(state["pos_embed"][0], [1])
  cells = _torchs_bicubic(
    cells.reshape(grid, grid, WIDTH), scale_factor=(16.1 / grid, 16.1 / grid)
  )
  assert cells.shape == (16, 16, WIDTH)
  resized = np.concatenate([token, cells.reshape(-1, WIDTH)])[None]
  expected = _reference(state | {"pos_embed": resized}, images)
  _close(_apply(dinov2.from_state_dict(state), images), expected)


# Resizes.


@pytest.mark.parametrize("cells", [5, 16, 37])
def test_positions_are_resized_as_torchs_bicubic(cells):
  grid = np.random.default_rng(0).normal(size=(cells, cells, 3))
  np.testing.assert_allclose(
    dinov2.interpolated(grid, 16, offset=0.0),
    _torchs_bicubic(grid, size=(16, 16)),
    atol=1e-6,
  )


@pytest.mark.parametrize(
  "shape", [(32, 20), (64, 64), (224, 224), (150, 400), (518, 518)]
)
def test_resize_is_pillows(shape):
  # Antialiased, with overshoots to clip. Ties may be rounded the other way,
  # along rows and along columns.
  images = _images(*shape)
  images[1] = np.where(images[1] < 128, 0, 255)
  expected = np.stack(
    [
      PIL.Image.fromarray(image).resize(
        (224, 224), PIL.Image.Resampling.BICUBIC
      )
      for image in images
    ]
  )
  found = np.asarray(dinov2.resized(jax.numpy.asarray(images)))
  gap = np.abs(found - expected.astype(np.float32))
  assert gap.max() <= 2
  assert gap.mean() < 0.02


# What is fed in.


def _seen(images):
  return np.asarray(dinov2.preprocessed(jax.numpy.asarray(images)))


def test_pixels_are_standardised_as_imagenets():
  for value in (0, 255):
    seen = _seen(np.full((1, 30, 20, 3), value, np.uint8))
    assert seen.shape == (1, 224, 224, 3)
    expected = (value / 255 - np.array([0.485, 0.456, 0.406])) / np.array(
      [0.229, 0.224, 0.225]
    )
    np.testing.assert_allclose(
      seen, np.broadcast_to(expected, seen.shape), atol=1e-5
    )


def test_grey_is_seen_as_colour():
  grey = _images(8, 8, channels=1)
  np.testing.assert_array_equal(_seen(grey), _seen(np.repeat(grey, 3, axis=3)))
  with pytest.raises(ValueError, match="not 2"):
    _seen(_images(8, 8, channels=2))


# Weights.


@pytest.mark.parametrize("gated", [False, True])
def test_both_layouts_hold_the_same(gated, tmp_path):
  torch = pytest.importorskip("torch")
  state = _metas(gated)
  published = tmp_path / "dinov2_pretrain.pth"
  torch.save({k: torch.from_numpy(v) for k, v in state.items()}, published)
  other = tmp_path / "model.safetensors"
  save_file({k: v.copy() for k, v in _hugging_faces(state).items()}, str(other))
  params = dinov2.load_weights(published)
  kernel = params["blocks"]["norm1"]["scale"]
  assert kernel.shape == (DEPTH, WIDTH)
  jax.tree.map(
    np.testing.assert_array_equal, params, dinov2.load_weights(str(other))
  )


@pytest.mark.parametrize("path", ["", "no/such/file.pth"])
def test_without_weights_the_error_says_what_to_fetch(path):
  with pytest.raises(weights.WeightsError) as error:
    extractors.dinov2(path)
  for part in (
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/"
    "dinov2_vitl14_pretrain.pth",
    "1.2 GB",
    "--config.evaluation.dinov2_weights",
    path,
  ):
    assert part in str(error.value)


def test_another_networks_file_is_told_with_what_to_fetch(tmp_path):
  path = tmp_path / "inception.safetensors"
  save_file({"fc.bias": np.zeros(1008, np.float32)}, path)
  with pytest.raises(
    weights.WeightsError,
    match=r"inception\.safetensors.*cls_token.*fetch.*dinov2_weights",
  ):
    dinov2.load_weights(path)


def _without(key):
  return lambda state: {k: v for k, v in state.items() if k != key}


def _zeros(key, *shape):
  return lambda state: state | {key: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
  "change, told",
  [
    (_without("cls_token"), "cls_token"),
    (_without("pos_embed"), "pos_embed"),
    (_without("norm.bias"), r"have no norm\.bias"),
    # A lost layer shortens nothing.
    (_without("blocks.0.ls1.gamma"), r"have no blocks\.0\.ls1\.gamma"),
    (_zeros("blocks.3.ls1.gamma", WIDTH), r"have no blocks\.2\.norm1"),
    (_zeros("cls_token", 1, 1, 96), "width 96"),
    (_zeros("cls_token", 1, 1, 192), r"pos_embed.*\(1, 50, 192\)"),
    (_zeros("pos_embed", 1, 1 + 48, WIDTH), r"pos_embed.*\(1, 37, 128\)"),
    # DINO's patches.
    (
      _zeros("patch_embed.proj.weight", WIDTH, 3, 16, 16),
      r"patch_embed.*\(128, 3, 16, 16\)",
    ),
    (_zeros("register_tokens", 1, 4, WIDTH), "registers"),
  ],
)
def test_other_networks_are_refused(change, told):
  with pytest.raises(weights.WeightsError, match=told):
    dinov2.from_state_dict(change(_metas()))


def test_a_missing_key_is_named_as_in_the_file():
  key = "encoder.layer.1.attention.attention.key.bias"
  state = _without(key)(_hugging_faces(_metas()))
  with pytest.raises(weights.WeightsError, match=f"have no {key}"):
    dinov2.from_state_dict(state)
  registers = {"embeddings.register_tokens": np.zeros((1, 4, WIDTH))}
  with pytest.raises(weights.WeightsError, match="registers"):
    dinov2.from_state_dict(_hugging_faces(_metas()) | registers)


# The extractor.


def test_extractor_gives_the_networks_features_and_no_logits(tmp_path):
  path = tmp_path / "weights.safetensors"
  state = _metas()
  save_file(state, path)
  extractor = extractors.dinov2(path)
  images = _images(224, 224)
  found = extractors.extract_all(extractor, images)
  assert found.logits is None
  np.testing.assert_allclose(
    found.features,
    _apply(dinov2.from_state_dict(state), images),
    atol=1e-4,
  )
  # As saved images: rounded to 8 bits.
  units = images / np.float32(127.5) - 1 - np.float32(0.4 / 127.5)
  np.testing.assert_allclose(
    extractors.extract_all(extractor, units).features, found.features, atol=1e-4
  )
  state["norm.bias"] += 1
  save_file(state, path)
  assert extractors.dinov2(str(path)).version != extractor.version
  assert extractor.version.startswith("dinov2-1-")
