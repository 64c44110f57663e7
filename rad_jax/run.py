"""The border: a config becomes one Run; nothing below sees the ConfigDict."""

import collections
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, PRNGKeyArray

from rad_jax import config as configs
from rad_jax.config import ConfigDict
from rad_jax.data import prepare, training_set
from rad_jax.data.batches import Batch
from rad_jax.data.training_set import TrainingSet
from rad_jax.diffusion import parametrisation, schedules
from rad_jax.diffusion import process as processes
from rad_jax.models.mlp import mlp
from rad_jax.models.network import Network
from rad_jax.models.unet import unet
from rad_jax.robustness import attacks, objectives, radius
from rad_jax.robustness.method import (
  Method,
  as_predictor,
  without_regulariser,
)
from rad_jax.training import optimizers, passes, replays, step
from rad_jax.training import state as states


class Keys(NamedTuple):
  """The run's independent streams of randomness."""

  init: PRNGKeyArray
  train: PRNGKeyArray
  corruption: PRNGKeyArray
  sampling: PRNGKeyArray


class Run(NamedTuple):
  """What a config stands for.

  config: the resolved fields as plain values, for files and messages.
  attack: the numbers of the method's attack; None if it takes no steps.
  step_passes: forward passes of a step with the regulariser; DDPM's are 3.
  example_shape: of one example, as the network sees it.
  is_synthetic: whether examples are points drawn on the fly, not images.
  open_training_set: () -> the clean set, by index; or another, by keywords.
  corrupt: (index [b], x_0 [b, ...]) -> x_0 as the training set holds it.
  prepare: (batch, keys [b]) -> x_0 and its known noise, for the step.
  initial_state: () -> the state before the first step. Jit-able.
  train_step: whether the regulariser is on -> the step.
  monitor: (state, batch) -> how much more PGD finds than the attack.
  data, objective, ...: sections of the config, as immutable records.
  """

  config: dict[str, Any]
  keys: Keys
  process: schedules.Process
  network: Network
  method: Method
  attack: attacks.Attack | None
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  timetable: passes.Timetable
  step_passes: float
  example_shape: tuple[int, ...]
  is_synthetic: bool
  open_training_set: Callable[..., TrainingSet]
  corrupt: Callable[[Array, Array], Array]
  prepare: prepare.Prepare
  initial_state: Callable[[], states.State]
  train_step: Callable[[bool], step.Step]
  monitor: Callable[[states.State, Batch], step.Metrics]
  data: Any
  objective: Any
  train: Any
  checkpoint: Any
  sampling: Any
  evaluation: Any
  diagnose: Any
  purify: Any


def build(config: ConfigDict) -> Run:
  """The run of a valid config (checks.validate)."""
  keys = Keys(*jax.random.split(jax.random.key(config.seed), 4))
  chosen = _attack(config)
  network = _network(config)
  method = _method(config, network, chosen)
  timetable = passes.Timetable(
    first_step=round(config.regulariser.start * config.train.num_steps),
    every=config.regulariser.every_steps,
  )
  rate = config.optimizer
  learning_rate = optimizers.learning_rate_schedule(
    rate.learning_rate, rate.warmup_steps, rate.decay, config.train.num_steps
  )
  optimizer = _optimizer(config, learning_rate)
  shape = training_set.example_shape(
    config.data.name, config.data.image_size, config.data.num_channels
  )
  kind, fraction = config.data.corruption.kind, config.data.corruption.fraction
  strength = configs.corruption_strength(config)
  corruption = keys.corruption, kind, fraction, strength
  corrupt = prepare.make_corruption(*corruption)
  make_batch = prepare.make_prepare(
    corrupt,
    prepare.make_known_noise(*corruption),
    config.data.flip and not configs.is_synthetic(config),
  )
  strong = attacks.ATTACKS["pgd"]._replace(norm=config.attack.norm)
  names = Run._fields[Run._fields.index("data") :]
  sections = [(name, config[name].to_dict()) for name in names]
  return Run(
    config=config.to_dict(),
    keys=keys,
    process=method.process,
    network=network,
    method=method,
    attack=chosen,
    optimizer=optimizer,
    learning_rate=learning_rate,
    timetable=timetable,
    step_passes=_step_passes(config, method, chosen),
    example_shape=shape,
    is_synthetic=configs.is_synthetic(config),
    open_training_set=_opener(config),
    corrupt=corrupt,
    prepare=make_batch,
    # A copy of the keys, for JAX's check of reuse: it may be called again.
    initial_state=lambda: states.initial_state(
      network, optimizer, shape, *jax.tree.map(jax.random.clone, keys[:2])
    ),
    train_step=_train_step(
      config, method, chosen, optimizer, make_batch, timetable
    ),
    monitor=step.make_monitor(method, make_batch, strong),
    **{name: collections.namedtuple(name, v)(**v) for name, v in sections},
  )


def _step_passes(
  config: ConfigDict, method: Method, attack: attacks.Attack | None
) -> float:
  return passes.passes(
    method.objective,
    attack.num_steps if attack else 0,
    method.goal,
    config.regulariser.batch_fraction,
    config.regulariser.free_replays,
  )


def _network(config: ConfigDict, dtype: str = "") -> Network:
  model = config.model
  make = mlp if model.name == "mlp" else unet
  return make(**model[model.name], dtype=dtype or model.dtype)


def _attack(config: ConfigDict) -> attacks.Attack | None:
  """The attack's numbers; None for "none" and "gaussian"."""
  chosen = config.attack
  name = chosen.name or objectives.OBJECTIVES[config.objective.name].attack
  if name not in attacks.ATTACKS:
    return None
  numbers = {
    field: chosen[field]
    for field in ("num_steps", "step_size", "start", "momentum")
    if chosen[field] >= 0
  }
  return attacks.ATTACKS[name]._replace(norm=chosen.norm, **numbers)


def _method(
  config: ConfigDict, network: Network, attack: attacks.Attack | None
) -> Method:
  """config.objective and config.attack, on the config's process."""
  chosen, diffusion = config.objective, config.diffusion
  process = schedules.PROCESSES[diffusion.process](diffusion)
  objective = objectives.OBJECTIVES[chosen.name]
  prediction = parametrisation.predictions(diffusion.sigma_data)[
    diffusion.prediction
  ]
  noisiest = processes.unit_sigma(process.grid(1))[0]
  return Method(
    objective=objective,
    predictor=as_predictor(network, prediction),
    process=process,
    radius=partial(
      radius.radius,
      sigma_max=noisiest,
      shape=chosen.radius,
      omega=chosen.omega,
      beta=chosen.beta,
      multiplicative=chosen.beta_role == "multiplicative",
      in_state_units=chosen.radius_units == "state",
    ),
    lambda_t=partial(radius.LAMBDAS[chosen.lambda_t], chosen.lam),
    weight=parametrisation.weightings(prediction)[diffusion.weighting],
    perturb=(
      partial(attacks.maximise, attack)
      if attack
      else attacks.by_name(config.attack.name or objective.attack)
    ),
    goal=config.attack.goal,
    attacked=(
      as_predictor(_network(config, config.attack.dtype), prediction)
      if config.attack.dtype
      else None
    ),
    stop_gradient=chosen.stop_gradient,
    influence=chosen.influence,
  )


def _optimizer(
  config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
  """All updates on one batch have their step's rate."""
  count = config.regulariser.free_replays
  return optimizers.adam(
    lambda update: learning_rate(update // count),
    config.optimizer.b1,
    config.optimizer.b2,
    config.optimizer.max_grad_norm,
  )


def _train_step(
  config: ConfigDict,
  method: Method,
  attack: attacks.Attack | None,
  optimizer: optax.GradientTransformation,
  make_batch: prepare.Prepare,
  timetable: passes.Timetable,
) -> Callable[[bool], step.Step]:
  fields, batch_size = config.regulariser, config.train.batch_size
  share = Fraction(round(fields.batch_fraction * batch_size), batch_size)
  common: dict[str, Any] = {
    "optimizer": optimizer,
    "ema_decay": config.optimizer.ema_decay,
    "prepare": make_batch,
    "skip_non_finite": config.train.max_skipped > 0,
  }
  on = common | {
    "ramp": partial(
      radius.ramp,
      first_step=timetable.first_step,
      warmup_steps=fields.warmup_steps,
    ),
    "regularised": (share.numerator, share.denominator),
  }
  pieces = config.train.micro_batches

  def make(regularised: bool) -> step.Step:
    if not regularised:
      plain = without_regulariser(method)
      return step.make_train_step(plain, micro_batches=pieces, **common)
    if fields.free_replays > 1:
      assert attack  # checks.validate
      return replays.make_replay_step(method, attack, fields.free_replays, **on)
    return step.make_train_step(method, micro_batches=pieces, **on)

  return make


def _opener(config: ConfigDict) -> Callable[..., TrainingSet]:
  own = ("name", "num_threads", "flip", "corruption")  # not of the clean set
  fields = {n: value for n, value in config.data.items() if n not in own}
  return partial(
    training_set.open_training_set, config.data.name, seed=config.seed, **fields
  )
