"""The border: pure parts made from a config, each by one function."""

import copy
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PRNGKeyArray

from rad_jax.config import (
  ConfigDict,
  corruption_strength,
  default,
  is_synthetic,
)
from rad_jax.data import (
  batches,
  corruptions,
  examples,
  folder,
  images,
  sources,
  subspace,
  synthetic,
)
from rad_jax.diffusion import parametrisation, samplers, schedules
from rad_jax.diffusion import process as processes
from rad_jax.diffusion.process import Level
from rad_jax.models.mlp import mlp
from rad_jax.models.network import Network
from rad_jax.models.unet import unet
from rad_jax.robustness import attacks, objectives, radius
from rad_jax.training import budget, loss_scale, optimizers
from rad_jax.training import state as states
from rad_jax.training.step import (
  Batch,
  Method,
  Metrics,
  Predictor,
  Step,
  as_predictor,
  make_monitor,
  make_train_step,
)


class Keys(NamedTuple):
  """The run's independent streams of randomness."""

  init: PRNGKeyArray
  train: PRNGKeyArray
  corruption: PRNGKeyArray
  sampling: PRNGKeyArray


def keys(config: ConfigDict) -> Keys:
  """The streams that the run's seed stands for."""
  return Keys(*jax.random.split(jax.random.key(config.seed), 4))


def process(config: ConfigDict) -> schedules.Process:
  """The noise process."""
  return schedules.PROCESSES[config.diffusion.process](config.diffusion)


def prediction(config: ConfigDict) -> parametrisation.Prediction:
  """What the network predicts."""
  return parametrisation.predictions(config.diffusion.sigma_data)[
    config.diffusion.prediction
  ]


def network(config: ConfigDict, dtype: str = "") -> Network:
  """The network, computing in model.dtype or another."""
  model = config.model
  dtype = dtype or model.dtype
  if model.name == "mlp":
    return mlp(**model.mlp, dtype=dtype)
  return unet(**model.unet, dtype=dtype)


def predictor(config: ConfigDict, dtype: str = "") -> Predictor:
  """The network as a noise predictor."""
  return as_predictor(network(config, dtype), prediction(config))


def learning_rate(config: ConfigDict) -> optax.Schedule:
  """The learning rate at each step."""
  return optimizers.learning_rate_schedule(
    config.optimizer.learning_rate,
    config.optimizer.warmup_steps,
    config.optimizer.decay,
    config.train.num_steps,
  )


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The optimiser. All updates on one batch have their step's rate."""
  replays, rate = config.regulariser.free_replays, learning_rate(config)
  adam = optimizers.adam(
    lambda update: rate(update // replays),
    config.optimizer.b1,
    config.optimizer.b2,
    config.optimizer.max_grad_norm,
  )
  is_half = config.model.dtype == "float16"
  return loss_scale.with_loss_scale(adam) if is_half else adam


def state(config: ConfigDict) -> states.State:
  """The state before the first step. Jit-able."""
  return states.initial_state(
    network(config),
    optimizer(config),
    example_shape(config),
    keys(config).init,
    keys(config).train,
  )


def attack(config: ConfigDict) -> attacks.Attack | None:
  """The attack's numbers; None for "none" and "gaussian"."""
  fields = config.attack
  objective = objectives.OBJECTIVES[config.objective.name]
  name = fields.name or objective.attack
  if name not in attacks.ATTACKS:
    return None
  chosen = {
    field: fields[field]
    for field in ("num_steps", "step_size", "start", "momentum")
    if fields[field] >= 0
  }
  return attacks.ATTACKS[name]._replace(norm=fields.norm, **chosen)


def perturb(config: ConfigDict) -> Callable[..., Array]:
  """(goal, keys [b], radius [b], shape) -> w."""
  chosen = attack(config)
  if chosen is not None:
    return partial(attacks.maximise, chosen)
  objective = objectives.OBJECTIVES[config.objective.name]
  return attacks.by_name(config.attack.name or objective.attack)


def radius_of(config: ConfigDict) -> Callable[[Array], Array]:
  """sigma_t [b] -> r [b] in noise units."""
  fields = config.objective
  return partial(
    radius.radius,
    sigma_max=processes.unit_sigma(process(config).grid(1))[0],
    shape=fields.radius,
    omega=fields.omega,
    beta=fields.beta,
    multiplicative=fields.beta_role == "multiplicative",
    in_state_units=fields.radius_units == "state",
  )


def ramp(config: ConfigDict) -> Callable[[Array], Array | float]:
  """step -> factor of lambda_t: 1, or rising to it from where it starts."""
  first_step = timetable(config).first_step
  return lambda step: radius.ramp(
    step, first_step, config.regulariser.warmup_steps
  )


def method(config: ConfigDict) -> Method:
  """config.objective, and how it is applied."""
  fields, regulariser = config.objective, config.regulariser
  share = Fraction(
    round(regulariser.batch_fraction * config.train.batch_size),
    config.train.batch_size,
  )
  weighting = parametrisation.weightings(prediction(config))
  return Method(
    objective=objectives.OBJECTIVES[fields.name],
    predictor=predictor(config),
    process=process(config),
    radius=radius_of(config),
    lambda_t=partial(radius.LAMBDAS[fields.lambda_t], fields.lam),
    weight=weighting[config.diffusion.weighting],
    perturb=perturb(config),
    goal=config.attack.goal,
    attack=attack(config) or attacks.ATTACKS["uniform"],
    attack_predictor=(
      predictor(config, config.attack.dtype) if config.attack.dtype else None
    ),
    stop_gradient=fields.stop_gradient,
    ramp=ramp(config),
    regularised=(share.numerator, share.denominator),
    free_replays=regulariser.free_replays,
  )


def train_step(config: ConfigDict, regularised: bool = True) -> Step:
  """The training step. Jit it with the state donated.

  Args:
    config: the config.
    regularised: False for the steps of the timetable that go without.
  """
  chosen = method(config)
  if not regularised:
    chosen = chosen._replace(
      objective=objectives.without_regulariser(chosen.objective),
      regularised=(1, 1),
      free_replays=1,
    )
  return make_train_step(
    chosen,
    optimizer(config),
    config.optimizer.ema_decay,
    prepare(config),
    config.train.micro_batches,
    config.train.max_skipped > 0,
  )


def as_ddpm(config: ConfigDict) -> ConfigDict:
  """A copy with DDPM's objective, and all about perturbations at its default.

  What other methods' cost is held against: the rest of the run is the same.
  """
  config = copy.deepcopy(config)
  for section in ("objective", "attack", "regulariser"):
    config[section].update(default()[section].to_dict())
  config.objective.name = "ddpm"
  return config


def monitor(config: ConfigDict) -> Callable[[states.State, Batch], Metrics]:
  """(state, batch) -> how much more PGD-10 finds than the attack. Jit-able."""
  return make_monitor(method(config), prepare(config))


def timetable(config: ConfigDict) -> budget.Timetable:
  """The steps at which the regulariser is on."""
  fields = config.regulariser
  return budget.Timetable(
    first_step=round(fields.start * config.train.num_steps),
    every=fields.every_steps,
  )


def passes(config: ConfigDict) -> float:
  """Forward passes of a step while the regulariser is on; DDPM's are 3."""
  chosen = attack(config)
  return budget.passes(
    objectives.OBJECTIVES[config.objective.name],
    chosen.num_steps if chosen else 0,
    config.attack.goal,
    config.regulariser.batch_fraction,
    config.regulariser.free_replays,
  )


def total_passes(config: ConfigDict, num_steps: int | None = None) -> float:
  """Forward passes of the first num_steps steps, or of the whole run."""
  if num_steps is None:
    num_steps = config.train.num_steps
  return budget.total_passes(timetable(config), num_steps, passes(config))


def corruption(config: ConfigDict) -> Callable[[Array, Array], Array]:
  """(index [b], x_0 [b, ...]) -> x_0 as the training set holds it."""
  fields = config.data.corruption
  if fields.fraction == 0:
    return lambda index, x_0: x_0
  return partial(
    corruptions.corrupt,
    keys(config).corruption,
    kind=fields.kind,
    fraction=fields.fraction,
    sigma=corruption_strength(config),
  )


def known_noise(config: ConfigDict) -> Callable[[Array], Array]:
  """index [b] -> sigma_c [b] of the examples' Gaussian noise, 0 where clean."""
  fields = config.data.corruption
  if fields.fraction == 0 or fields.kind != "gaussian":
    return lambda index: jnp.zeros(index.shape)
  key, sigma = keys(config).corruption, corruption_strength(config)
  return lambda index: sigma * corruptions.is_dirty(key, index, fields.fraction)


def prepare(
  config: ConfigDict,
) -> Callable[[Batch, Key[Array, " b"]], tuple[Array, Array]]:
  """(batch, keys [b]) -> x_0: scaled, corrupted, then flipped; and sigma_c.

  Flips come last so that an image and its noise are flipped together. sigma_c
  is what noise-aware objectives are told; the others do not look at it.
  """
  corrupt, noise_of = corruption(config), known_noise(config)

  def prepare_batch(batch, flip_keys):
    x_0 = corrupt(batch["index"], examples.to_model_range(batch["x_0"]))
    if config.data.flip and not is_synthetic(config):
      x_0 = examples.random_flip(flip_keys, x_0)
    return x_0, noise_of(batch["index"])

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
  x_0: all of them, [n, ...]; None where they are read when they are needed.
  """

  fetch: Callable[[np.ndarray], np.ndarray]
  num_examples: int
  x_0: np.ndarray | None = None


def training_set(config: ConfigDict) -> TrainingSet:
  """Opens, and unless data.loading is "stream" reads, the training set.

  Raises:
    sources.NotPrepared: the TFDS set is not on the disk.
    ValueError: unknown or empty set or split; no folder of images; more than
      data.max_unreadable images cannot be read.
  """
  data = config.data
  if is_synthetic(config):
    # Apart from the streams [seed, epoch] of the data order.
    generator = np.random.default_rng([config.seed, 0, 1])
    return _in_memory(
      synthetic.WORLDS[data.name]().sample(generator, data.num_examples)
    )
  source: sources.Source
  if data.name == folder.NAME:
    source = folder.open_folder(data.path, data.split, data.num_channels)
  else:
    source = sources.open_source(data.name, data.split, data.data_dir or None)
  fit = partial(
    images.fit,
    crop_size=data.crop_size,
    image_size=data.image_size,
    num_channels=data.num_channels,
  )
  read_at = sources.reader(source, fit, data.max_unreadable)
  if data.loading == "stream":
    return TrainingSet(batches.fetch_from(read_at), len(source))
  x_0 = sources.load(source, read_at)
  if data.linear_rank:
    x_0 = examples.to_model_range(x_0)
    x_0 = subspace.project(subspace.fit(x_0, data.linear_rank), x_0)
  return _in_memory(x_0)


def _in_memory(x_0: np.ndarray) -> TrainingSet:
  return TrainingSet(lambda indices: x_0[indices], len(x_0), x_0)


def training_batches(
  config: ConfigDict, training_set: TrainingSet, first_step: int, rows: slice
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches first_step .. num_steps - 1.

  They hold no examples where data.loading is "device", just their indices.
  """
  loading = config.data.loading
  threads = config.data.num_threads if loading == "stream" else 1
  return batches.batches(
    training_set.fetch if loading != "device" else None,
    config.seed,
    first_step,
    config.train.num_steps,
    config.train.batch_size,
    training_set.num_examples,
    rows=rows,
    num_worker_threads=threads,
    prefetch=2 * threads,
  )


def sampler_levels(config: ConfigDict, num_steps: int | None = None) -> Level:
  """The sampler's noise levels, falling: num_steps or the config's own."""
  return schedules.stopped(
    process(config).grid(num_steps or config.sampling.num_steps),
    config.sampling.stop_sigma,
  )


def update(config: ConfigDict, name: str = "") -> samplers.Update:
  """The sampler's step: of that name, or the config's own."""
  sampling = config.sampling
  make = samplers.SAMPLERS[name or sampling.sampler]
  return make(sampling.variance, sampling.eta)


def evaluations(config: ConfigDict, num_levels: int, name: str = "") -> int:
  """Evaluations of the network for one sample, over so many levels."""
  return samplers.evaluations(name or config.sampling.sampler, num_levels)


def sampler(
  config: ConfigDict, name: str = "", num_steps: int | None = None
) -> Callable[..., Array]:
  """(params, index [b]) -> samples [b, ...] in model units. Jit-able."""
  predict = predictor(config)
  levels, step = sampler_levels(config, num_steps), update(config, name)

  def draw(params, index):
    return samplers.sample(
      lambda x_t, level: predict(params, x_t, level),
      levels,
      step,
      keys(config).sampling,
      index,
      example_shape(config),
      config.sampling.clip_x_0 or None,
    )

  return draw


def parameters_of(state: states.State, config: ConfigDict):
  """The parameters that sampling uses: the moving average, or the raw ones."""
  return state.ema_params if config.sampling.ema else state.params


def num_parameters(state: states.State) -> int:
  """How many numbers the network has."""
  return sum(jnp.size(x) for x in jax.tree.leaves(state.params))
