"""The border: pure parts made from a config, each by one function."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PRNGKeyArray

from rad_jax.config import ConfigDict, is_synthetic
from rad_jax.data import (
  batches,
  corruptions,
  examples,
  images,
  sources,
  subspace,
  synthetic,
)
from rad_jax.diffusion import samplers, schedules
from rad_jax.models.mlp import mlp
from rad_jax.models.network import Network
from rad_jax.models.unet import unet
from rad_jax.robustness import objectives, radius
from rad_jax.training import optimizers
from rad_jax.training import state as states
from rad_jax.training.step import Regulariser, Step, make_train_step


class Keys(NamedTuple):
  """The run's independent streams of randomness."""

  init: PRNGKeyArray
  train: PRNGKeyArray
  corruption: PRNGKeyArray
  sampling: PRNGKeyArray


def keys(config: ConfigDict) -> Keys:
  """The streams that the run's seed stands for."""
  return Keys(*jax.random.split(jax.random.key(config.seed), 4))


def schedule(config: ConfigDict) -> schedules.Schedule:
  """The noise schedule."""
  return schedules.make(
    config.diffusion.schedule, config.diffusion.num_timesteps
  )


def network(config: ConfigDict) -> Network:
  """The noise predictor."""
  model = config.model
  if model.name == "mlp":
    return mlp(**model.mlp, dtype=model.dtype)
  return unet(**model.unet, dtype=model.dtype)


def learning_rate(config: ConfigDict) -> optax.Schedule:
  """The learning rate at each step."""
  return optimizers.learning_rate_schedule(
    config.optimizer.learning_rate,
    config.optimizer.warmup_steps,
    config.optimizer.decay,
    config.train.num_steps,
  )


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The optimiser."""
  return optimizers.adam(
    learning_rate(config),
    config.optimizer.b1,
    config.optimizer.b2,
    config.optimizer.max_grad_norm,
  )


def state(config: ConfigDict) -> states.State:
  """The state before the first step. Jit-able."""
  return states.initial_state(
    network(config),
    optimizer(config),
    example_shape(config),
    keys(config).init,
    keys(config).train,
  )


def train_step(config: ConfigDict) -> Step:
  """The training step of config.objective. Jit it with the state donated."""
  objective = config.objective
  loss, perturbation = objectives.OBJECTIVES[objective.name]
  return make_train_step(
    network(config),
    schedule(config),
    loss,
    Regulariser(
      perturbation=objective.perturbation or perturbation,
      radius=partial(
        radius.RADII[objective.radius],
        sigma_max=schedule(config).sigma_max,
        beta=objective.beta,
        omega=objective.omega,
      ),
      lambda_t=partial(radius.LAMBDAS[objective.lambda_t], objective.lam),
      step_size=objective.step_size,
      stop_gradient=objective.stop_gradient,
    ),
    optimizer(config),
    config.optimizer.ema_decay,
    prepare(config),
  )


def corruption(config: ConfigDict) -> Callable[[Array, Array], Array]:
  """(index [b], x_0 [b, ...]) -> x_0 as the training set holds it."""
  fields = config.data.corruption
  if fields.fraction == 0:
    return lambda index, x_0: x_0
  return partial(corruptions.corrupt, keys(config).corruption, **fields)


def prepare(
  config: ConfigDict,
) -> Callable[[dict[str, Array], Key[Array, " b"]], Array]:
  """(batch, keys [b]) -> x_0: scaled, then corrupted, then flipped.

  Flips come last so that an image and its noise are flipped together.
  """
  corrupt = corruption(config)

  def prepare_batch(batch, flip_keys):
    x_0 = corrupt(batch["index"], examples.to_model_range(batch["x_0"]))
    if config.data.flip and not is_synthetic(config):
      x_0 = examples.random_flip(flip_keys, x_0)
    return x_0

  return prepare_batch


def example_shape(config: ConfigDict) -> tuple[int, ...]:
  """The shape of one example, as the network sees it."""
  if is_synthetic(config):
    return synthetic.WORLDS[config.data.name]().mean.shape
  side = config.data.image_size
  return (side, side, config.data.num_channels)


class TrainingSet(NamedTuple):
  """The clean training set, by index.

  fetch: int [b] -> [b, ...], uint8 images or float32 in model units.
  """

  fetch: Callable[[np.ndarray], np.ndarray]
  num_examples: int


def training_set(config: ConfigDict) -> TrainingSet:
  """Opens, and for data.loading "memory" reads, the training set.

  Raises:
    sources.NotPrepared: the TFDS set is not on the disk.
    ValueError: unknown set or split.
  """
  data = config.data
  if is_synthetic(config):
    # Apart from the streams [seed, epoch] of the data order.
    generator = np.random.default_rng([config.seed, 0, 1])
    return _in_memory(
      synthetic.WORLDS[data.name]().sample(generator, data.num_examples)
    )
  source = sources.open_source(data.name, data.split, data.data_dir or None)
  fit = partial(
    images.fit,
    crop_size=data.crop_size,
    image_size=data.image_size,
    num_channels=data.num_channels,
  )
  if data.loading == "stream":
    return TrainingSet(batches.fetch_from(source, fit), len(source))
  x_0 = sources.load(source, fit)
  if data.linear_rank:
    x_0 = examples.to_model_range(x_0)
    x_0 = subspace.project(subspace.fit(x_0, data.linear_rank), x_0)
  return _in_memory(x_0)


def _in_memory(x_0: np.ndarray) -> TrainingSet:
  return TrainingSet(lambda indices: x_0[indices], len(x_0))


def training_batches(
  config: ConfigDict, training_set: TrainingSet, first_step: int, rows: slice
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches first_step .. num_steps - 1."""
  threads = config.data.num_threads if config.data.loading == "stream" else 1
  return batches.batches(
    training_set.fetch,
    config.seed,
    first_step,
    config.train.num_steps,
    config.train.batch_size,
    training_set.num_examples,
    rows=rows,
    num_worker_threads=threads,
    prefetch=2 * threads,
  )


def sampler(config: ConfigDict) -> Callable[..., Array]:
  """(params, index [b]) -> samples [b, ...] in model units. Jit-able."""
  sampling = config.sampling
  apply = network(config).apply
  update = (
    samplers.ddpm(sampling.variance)
    if sampling.sampler == "ddpm"
    else samplers.ddim(sampling.eta)
  )

  def draw(params, index):
    return samplers.sample(
      lambda x_t, t: apply(params, x_t, t),
      schedule(config),
      update,
      keys(config).sampling,
      index,
      example_shape(config),
      sampling.num_steps,
      sampling.clip_x_0 or None,
    )

  return draw


def parameters_of(state: states.State, config: ConfigDict):
  """The parameters that sampling uses: the moving average, or the raw ones."""
  return state.ema_params if config.sampling.ema else state.params


def num_parameters(state: states.State) -> int:
  """How many numbers the network has."""
  return sum(jnp.size(x) for x in jax.tree.leaves(state.params))
