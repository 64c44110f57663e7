"""Tests of rad_jax.models: the networks' contracts, not their quality."""

import functools
import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rad_jax.models import layers, mlp, network, unet

# Compilation is the cost of these tests; without LLVM's passes it is halved.
_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

_BATCH = 3
_SMALL = dict(
  channels=8,
  channel_multipliers=(1, 2),
  num_res_blocks=1,
  attention_resolutions=(4,),
)


def _random_params(shapes, seed, scale=0.2):
  """Normal parameters: the zero-initialised layers would hide most bugs."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype),
    shapes,
  )


def _normal(seed, shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _init(net, *inputs):
  """Shapes of the parameters, and what `init` makes of all last layers.

  The others' draws are left out of the program: they take long to compile.
  """

  def last_layers(key):
    params = net.init(key, *map(jnp.asarray, inputs))
    return params, jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf if _is_last(path) else None, params
    )

  key = jax.random.key(2)
  shapes, _ = jax.eval_shape(last_layers, key)
  return shapes, _jit(lambda key: last_layers(key)[1])(key)


def _is_last(path):
  """Of a residual branch, of attention or of the network."""
  return path[-2].key in ("conv_out", "output")


def _untrained(params, initial):
  """Parameters with those last layers that `init` made."""
  return jax.tree.map(
    lambda leaf, made: leaf if made is None else made, params, initial
  )


@pytest.fixture(scope="module")
def images():
  return jnp.asarray(_normal(1, (_BATCH, 8, 8, 3)))


@pytest.fixture(scope="module")
def times():
  return jnp.array([0, 17, 999])


@pytest.fixture(scope="module")
def small(images, times):
  """A small U-Net: its network, jitted `apply` and two sets of parameters."""
  net = unet.unet(**_SMALL, dropout=0.5)
  shapes, initial = _init(net, images, times)
  return types.SimpleNamespace(
    network=net,
    apply=_jit(net.apply),
    initial=initial,
    shapes=shapes,
    params=_random_params(shapes, seed=3),
  )


@pytest.fixture(scope="module")
def small_gradients(small):
  """eps_hat under dropout, and d|eps_hat|^2 by `(params, x_t)`."""

  def loss(params, x_t, t, key):
    eps_hat = small.network.apply(params, x_t, t, key)
    return jnp.sum(eps_hat**2), eps_hat

  return _jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


@pytest.fixture(scope="module")
def vector_mlp():
  net = mlp.mlp(width=16, depth=2, time_features=8)
  x_t = jnp.asarray(_normal(4, (_BATCH, 5)))
  t = np.zeros(_BATCH, np.int32)
  initial = _jit(net.init)(jax.random.key(5, impl="rbg"), x_t, t)
  return types.SimpleNamespace(
    network=net,
    apply=_jit(net.apply),
    initial=initial,
    params=_random_params(initial, seed=6),
    x_t=x_t,
  )


def test_cifar10_unet_has_the_published_parameter_count():
  net = unet.unet(128, (1, 2, 2, 2), 2, (16,), dropout=0.1)
  params = jax.eval_shape(
    net.init,
    jax.random.key(0),
    jnp.zeros((1, 32, 32, 3)),
    jnp.zeros(1, jnp.int32),
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 35_746_307


def test_untrained_networks_return_zero(small, vector_mlp, images, times):
  params = _untrained(small.params, small.initial)
  np.testing.assert_array_equal(small.apply(params, images, times), 0)
  x_t = vector_mlp.x_t
  np.testing.assert_array_equal(
    vector_mlp.apply(vector_mlp.initial, x_t, times), 0
  )


def test_residual_branches_start_at_zero(small):
  """Also where a zero output layer would hide it."""
  for name, block in small.initial.items():
    if name.endswith("_res"):
      np.testing.assert_array_equal(block["conv_out"]["kernel"], 0, name)
    if name.endswith("_attention"):
      np.testing.assert_array_equal(block["output"]["kernel"], 0, name)


def test_unet_keeps_the_shape(small, images, times):
  square = jax.eval_shape(small.apply, small.params, images, times)
  net = unet.unet(**_SMALL, dropout=0.5)
  oblong = jnp.ones((_BATCH, 8, 4, 1))
  params = jax.eval_shape(net.init, jax.random.key(0), oblong, times)
  eps_hat = jax.eval_shape(net.apply, params, oblong, times)
  assert (square.shape, eps_hat.shape) == (images.shape, oblong.shape)
  assert square.dtype == eps_hat.dtype == jnp.float32


def test_attention_is_where_it_was_asked_for(small):
  names = {name for name in small.initial if name.endswith("_attention")}
  assert names == {
    "down_1_0_attention",
    "middle_attention",
    "up_1_0_attention",
    "up_1_1_attention",
  }


def test_attention_block_matches_numpy():
  """One head, softmax(q k^T / sqrt(c)) over all pixels, plus the residual."""
  block = unet._Attention()
  x = jnp.asarray(_normal(7, (2, 2, 3, 8)))
  shapes = jax.eval_shape(block.init, jax.random.key(8), x)["params"]
  params = _random_params(shapes, seed=9, scale=1.0)

  def dense(h, layer):
    return h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

  pixels = np.asarray(x, np.float64).reshape(2, 6, 8)
  groups = pixels.reshape(2, 6, 2, 4)
  mean = groups.mean((1, 3), keepdims=True)
  variance = groups.var((1, 3), keepdims=True)
  h = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(pixels.shape)
  h = h * np.asarray(params["norm"]["scale"])
  h = h + np.asarray(params["norm"]["bias"])
  query, key, value = (
    dense(h, params[name]) for name in ("query", "key", "value")
  )
  logits = query @ key.transpose(0, 2, 1) / math.sqrt(8)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  expected = pixels + dense(weights @ value, params["output"])
  actual = _jit(block.apply)({"params": params}, x)
  np.testing.assert_allclose(
    actual, expected.reshape(x.shape), rtol=1e-4, atol=1e-4
  )


def test_upsampling_repeats_each_pixel():
  h = jnp.asarray(_normal(10, (2, 3, 4, 5)))
  expected = np.asarray(h).repeat(2, axis=1).repeat(2, axis=2)
  np.testing.assert_array_equal(jax.jit(unet._upsample)(h), expected)


@pytest.mark.parametrize("changed", range(_BATCH))
def test_examples_are_independent(small, vector_mlp, images, times, changed):
  """The attack sums its objective over the batch and relies on this."""
  others = np.delete(np.arange(_BATCH), changed)
  for net, x_t in ((small, images), (vector_mlp, vector_mlp.x_t)):
    moved, later = np.array(x_t), np.array(times)
    moved[changed] += 1.0
    later[changed] += 100
    before = np.asarray(net.apply(net.params, x_t, times))
    after = np.asarray(net.apply(net.params, moved, later))
    np.testing.assert_allclose(after[others], before[others], atol=1e-6)
    assert np.max(np.abs(after[changed] - before[changed])) > 1e-2


def test_vmap_over_networks_matches_a_loop(small, images, times):
  params = [small.params, _random_params(small.params, seed=11)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
  together = _jit(jax.vmap(small.network.apply, in_axes=(0, None, None)))(
    stacked, images, times
  )
  for i, single in enumerate(params):
    np.testing.assert_allclose(
      together[i], small.apply(single, images, times), rtol=1e-4, atol=1e-4
    )


def test_time_changes_the_output(small, vector_mlp, images, times):
  """For every example and between neighbouring times."""
  for apply, params, x_t in (
    (small.apply, small.params, images),
    (vector_mlp.apply, vector_mlp.params, vector_mlp.x_t),
  ):
    change = apply(params, x_t, times + 1) - apply(params, x_t, times)
    per_example = np.abs(np.asarray(change)).reshape(_BATCH, -1).max(axis=1)
    assert np.all(per_example > 1e-4), per_example


def test_every_parameter_and_skip_of_the_unet_matters(
  small, small_gradients, images, times
):
  """Except the keys' biases, to which a softmax is blind."""
  (gradients, _), _ = small_gradients(
    small.params, images, times, jax.random.key(14)
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    name = jax.tree_util.keystr(path)
    size = np.abs(leaf)
    if name.endswith("['shortcut']['kernel']"):
      size = size.max(axis=1)
      assert np.min(size) > 1e-4, f"{name}: {size}"
    elif "['key']['bias']" not in name:
      assert np.max(size) > 1e-4, name


@pytest.mark.parametrize(
  "channels, groups", [(8, 2), (32, 8), (48, 16), (64, 32), (128, 32)]
)
def test_no_group_is_a_single_channel(channels, groups):
  """Its norm would remove what the time adds to the channel."""
  assert layers.default_groups(channels) == groups


def test_every_layer_of_the_mlp_sees_the_time(vector_mlp, times):
  def loss(params):
    eps_hat = vector_mlp.network.apply(params, vector_mlp.x_t, times)
    return jnp.sum(eps_hat**2)

  gradient = _jit(jax.grad(loss))(vector_mlp.params)
  for layer in ("time_0", "time_1"):
    assert np.any(np.abs(gradient[layer]["kernel"]) > 0), layer


def test_bfloat16_is_close_to_float32(small, images, times):
  net = unet.unet(**_SMALL, dropout=0.5, dtype="bfloat16")
  shapes = jax.eval_shape(net.init, jax.random.key(0), images, times)
  assert jax.tree.all(
    jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, shapes)
  )
  expected = small.apply(small.params, images, times)
  eps_hat = _jit(net.apply)(small.params, images, times)
  assert eps_hat.dtype == jnp.float32
  error = np.sqrt(np.mean((eps_hat - expected) ** 2) / np.mean(expected**2))
  assert 1e-4 < error < 0.05, error
  # The output layer is float32: few values are exact in bfloat16.
  eps_hat = np.asarray(eps_hat)
  rounded = eps_hat.astype(jnp.bfloat16).astype(np.float32)
  assert np.mean(rounded == eps_hat) < 0.1


def test_group_norm_is_flax_s():
  """The same parameters, values and gradients."""
  x = jnp.asarray(2.0 + _normal(16, (3, 4, 4, 12)))
  theirs = nn.GroupNorm(3, epsilon=1e-6)
  ours = layers.GroupNorm(3, jnp.dtype("float32"))
  shapes, own_shapes = (
    jax.eval_shape(norm.init, jax.random.key(18), x) for norm in (theirs, ours)
  )
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, own_shapes)
  params = jax.tree.map(
    lambda leaf: 1 + leaf, _random_params(shapes, seed=17, scale=0.3)
  )

  def value_and_gradient(norm):
    function = jax.value_and_grad(
      lambda params, x: jnp.sum(jnp.sin(norm.apply(params, x))), (0, 1)
    )
    return _jit(function)(params, x)

  chex.assert_trees_all_close(
    value_and_gradient(ours), value_and_gradient(theirs), rtol=1e-4, atol=1e-4
  )


def test_group_statistics_are_float32_under_bfloat16():
  """A mean of 1,000 with a spread of 4 is beyond bfloat16's eight bits."""
  x = 1000.0 + 4.0 * _normal(12, (2, 8, 8, 8))
  x = jnp.asarray(x, jnp.bfloat16)
  norm = layers.GroupNorm(0, jnp.dtype("bfloat16"))
  apply = lambda x: norm.apply(norm.init(jax.random.key(13), x), x)
  actual = _jit(apply)(x)
  groups = np.asarray(x, np.float64).reshape(2, 8, 8, 2, 4)
  mean = groups.mean((1, 2, 4), keepdims=True)
  expected = (groups - mean) / groups.std((1, 2, 4), keepdims=True)
  np.testing.assert_allclose(
    np.asarray(actual, np.float64), expected.reshape(x.shape), atol=0.05
  )


def test_remat_changes_only_the_schedule(small, small_gradients, images, times):
  """By the gradient of x_t, which goes through all that is recomputed."""
  net = unet.unet(**_SMALL, dropout=0.5, remat=True)
  shapes = jax.eval_shape(net.init, jax.random.key(0), images, times)
  assert shapes == small.shapes

  def loss(x_t, params, t, key):
    eps_hat = net.apply(params, x_t, t, key)
    return jnp.sum(eps_hat**2), eps_hat

  inputs = images, small.params, times, jax.random.key(14)
  program = _jit(jax.grad(loss, has_aux=True)).trace(*inputs)
  assert "remat" in str(program.jaxpr)
  gradient, eps_hat = program.lower().compile()(*inputs)
  (_, expected), expected_eps_hat = small_gradients(
    small.params, images, times, jax.random.key(14)
  )
  np.testing.assert_allclose(eps_hat, expected_eps_hat, rtol=1e-5, atol=1e-5)
  scale = float(np.max(np.abs(expected))) + 1.0
  np.testing.assert_allclose(gradient, expected, atol=1e-4 * scale)


def test_dropout_follows_its_key(small, small_gradients, images, times):
  first, again, other = (
    np.asarray(small_gradients(small.params, images, times, key)[1])
    for key in map(jax.random.key, (15, 15, 16))
  )
  clean = np.asarray(small.apply(small.params, images, times))
  np.testing.assert_array_equal(first, again)
  assert np.max(np.abs(first - clean)) > 1e-2
  assert np.max(np.abs(first - other)) > 1e-2
  without_key = small.apply.trace(small.params, images, times).jaxpr
  assert "random" not in str(without_key)


@pytest.mark.parametrize("features", [4, 10])
def test_embedding_matches_numpy(features):
  t = [0, 1, 500, 999]
  half = features // 2
  expected = np.zeros((len(t), features))
  for row, time in enumerate(t):
    for i in range(half):
      angle = time * 10_000.0 ** (-i / (half - 1))
      expected[row, i] = math.sin(angle)
      expected[row, half + i] = math.cos(angle)
  embed = jax.jit(layers.sines_first, static_argnums=1)
  actual = embed(np.array(t), features)
  np.testing.assert_allclose(actual, expected, atol=2e-4)


@pytest.mark.parametrize("features", [2, 7])
def test_embedding_rejects_sizes_without_two_frequencies(features):
  with pytest.raises(ValueError, match=f"features={features}"):
    layers.sines_first(jnp.zeros(1), features)


@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_unet_names_size_and_factor_that_do_not_fit(shape):
  net = unet.unet(8, (1, 1, 1), 1, (), dropout=0.0)
  height, width = shape
  with pytest.raises(ValueError, match=f"{height}x{width}.* by 4 "):
    jax.eval_shape(
      net.init,
      jax.random.key(0),
      jnp.zeros((1, height, width, 3)),
      jnp.zeros(1, jnp.int32),
    )


def test_mlp_on_images_is_the_mlp_on_their_pixels(times):
  net = mlp.mlp(width=16, depth=2, time_features=8)
  images = jnp.asarray(_normal(16, (_BATCH, 4, 2, 3)))
  flat = images.reshape(_BATCH, -1)
  shapes = jax.eval_shape(net.init, jax.random.key(17), images, times)
  params = _random_params(shapes, seed=18)
  apply = _jit(net.apply)
  eps_hat = np.asarray(apply(params, images, times))
  assert eps_hat.shape == images.shape
  np.testing.assert_allclose(
    eps_hat.reshape(_BATCH, -1),
    apply(params, flat, times),
    rtol=1e-5,
    atol=1e-6,
  )


def test_from_module_rejects_batch_statistics():
  nn = pytest.importorskip("flax.linen")

  class Coupled(nn.Module):
    @nn.compact
    def __call__(self, x_t, t, train):
      return nn.BatchNorm(use_running_average=not train)(x_t)

  net = network.from_module(Coupled())
  with pytest.raises(ValueError, match="batch_stats"):
    net.init(jax.random.key(0), jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))
