"""The training step: one pure function of (state, batch), compiled once."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from rad_jax.diffusion import parametrisation
from rad_jax.diffusion import process as processes
from rad_jax.diffusion.process import Level
from rad_jax.diffusion.schedules import Process
from rad_jax.models.network import Network
from rad_jax.robustness import attacks, objectives
from rad_jax.robustness import radius as radii
from rad_jax.robustness.noising import Noised
from rad_jax.robustness.objectives import Objective
from rad_jax.training import loss_scale
from rad_jax.training.state import State

Metrics = dict[str, Float[Array, ""]]
Batch = dict[str, Array]
Step = Callable[[State, Batch], tuple[State, Metrics]]
# (params, x_t, level, dropout_key=None) -> eps_hat
Predictor = Callable[..., Array]


def as_predictor(
  network: Network | Callable[..., Array],
  prediction: parametrisation.Prediction = parametrisation.eps,
) -> Predictor:
  """A network as a noise predictor.

  Args:
    network: any function (params, x_t [b, ...], t [b]) -> output [b, ...]; or
      a Network, whose apply is given the dropout key too.
    prediction: what its output stands for.

  Examples:
    Any function will do, here one that estimates x_0 by 0:

    >>> predictor = rad_jax.as_predictor(
    ...   lambda params, x_t, t: jnp.zeros_like(x_t),
    ...   rad_jax.parametrisation.x_0,
    ... )
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> print(predictor(None, jnp.ones((3, 1)), level)[:, 0])
    [ 1.111  2.    10.   ]
  """

  def predict(params, x_t, level, dropout_key=None):
    def output_fn(x, t):
      if isinstance(network, Network):
        return network.apply(params, x, t, dropout_key)
      return network(params, x, t)

    return parametrisation.eps_fn(output_fn, prediction)(x_t, level)

  return predict


class Method(NamedTuple):
  """An objective, and how it is applied.

  Three fields are enough; the others' defaults are the paper's method.

  objective: a line of robustness.objectives.
  predictor: the network as a noise predictor, by `as_predictor`.
  process: the noise process.
  radius: sigma_t [b] -> r [b], in noise units.
  lambda_t: r [b] -> lambda_t [b].
  weight: level -> weight of the whole loss [b].
  perturb: (goal, keys [b], r [b], shape) -> w; goal: w -> [b]. None is the
    objective's own attack.
  goal: what the attack raises, a name in objectives.GOALS.
  attack: the numbers of `perturb`; free replays take their steps from it.
  attack_predictor: the predictor that is attacked, if not `predictor`.
  stop_gradient: no gradient through the regulariser's target.
  ramp: step -> factor of lambda_t, for warm-up.
  regularised: (n, m): the first n of every m examples are regularised.
  free_replays: updates on each batch; above 1, w climbs by the gradient of
    the update before and `perturb` gives no more than its start.
  """

  objective: Objective
  predictor: Predictor
  process: Process
  radius: Callable[[Array], Array] = radii.radius
  lambda_t: Callable[[Array], Array] = partial(radii.constant_lambda, 0.3)
  weight: Callable[[Level], Array] = parametrisation.eps_weight
  perturb: Callable[..., Array] | None = None
  goal: str = "J"
  attack: attacks.Attack = attacks.ATTACKS["fgsm"]
  attack_predictor: Predictor | None = None
  stop_gradient: bool = False
  ramp: Callable[[Array], Array | float] = lambda step: 1.0
  regularised: tuple[int, int] = (1, 1)
  free_replays: int = 1


class Draws(NamedTuple):
  """A batch after all that is random in it."""

  level: Level
  noised: Noised
  radius: Array
  lambda_t: Array
  w_keys: Array
  dropout_key: PRNGKeyArray


Parts = tuple[Draws, Draws | None]


def example_keys(key: PRNGKeyArray, batch_size: int) -> Key[Array, " b"]:
  """One key for each place in the global batch, [b].

  Examples:
    A place in the batch has the same key in any batch of the step:

    >>> from rad_jax.training import step
    >>> few, many = (step.example_keys(jax.random.key(0), n) for n in (2, 5))
    >>> print((jax.random.key_data(few) == jax.random.key_data(many)[:2]).all())
    True
  """
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))


def ema_decay_at(update: Array, decay: float) -> Array:
  """min(decay, (1 + n) / (10 + n)): a young average forgets its start.

  Examples:
    >>> from rad_jax.training import step
    >>> updates = jnp.array([0, 90, 100_000])
    >>> print(step.ema_decay_at(updates, decay=0.999))
    [0.1   0.91  0.999]
  """
  return jnp.minimum(decay, (1 + update) / (10 + update))


def draw(
  method: Method,
  x_0: Float[Array, "b ..."],
  sigma_c: Float[Array, " b"],
  key: PRNGKeyArray,
  ramp: Array | float = 1.0,
) -> Draws:
  """Level, noise and keys of each example, from (key, its place) alone.

  Args:
    method: its process, noising, radius and lambda_t are used.
    x_0: training examples, [b, ...].
    sigma_c: known noise of each, [b]; see robustness.noising.
    key: of the step.
    ramp: factor of lambda_t.

  Examples:
    >>> from rad_jax.training import step
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> x_0, sigma_c = jnp.ones((4, 2)), jnp.zeros(4)
    >>> draws = step.draw(method, x_0, sigma_c, jax.random.key(0))
    >>> print(draws.radius.shape, draws.noised.x_t.shape, draws.lambda_t)
    (4,) (4, 2) [0.3 0.3 0.3 0.3]
  """
  b, shape = x_0.shape[0], x_0.shape[1:]
  t_key, eps_key, w_key, _, dropout_key = jax.random.split(key, 5)
  level = method.process.draw(example_keys(t_key, b))
  z = jax.vmap(lambda k: jax.random.normal(k, shape))(example_keys(eps_key, b))
  radius = method.radius(processes.unit_sigma(level))
  return Draws(
    level=level,
    noised=method.objective.noise(x_0, sigma_c, level, z),
    radius=radius,
    lambda_t=ramp * method.lambda_t(radius),
    w_keys=example_keys(w_key, b),
    dropout_key=dropout_key,
  )


def find_w(
  method: Method,
  params: PyTree,
  eps_hat: Float[Array, " b *shape"],
  draws: Draws,
) -> Float[Array, " b *shape"]:
  """The perturbation w of a batch, against the network as it stands.

  Examples:
    It is at a corner of the ball:

    >>> from rad_jax.training import step
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> x_0, sigma_c = jnp.ones((4, 2)), jnp.zeros(4)
    >>> draws = step.draw(method, x_0, sigma_c, jax.random.key(0))
    >>> eps_hat = 0.5 * draws.noised.x_t
    >>> w = step.find_w(method, jnp.array(0.5), eps_hat, draws)
    >>> print(jnp.abs(jnp.abs(w) - draws.radius[:, None]).max() < 1e-6)
    True
  """
  params, eps_hat = jax.lax.stop_gradient((params, eps_hat))
  predictor = method.attack_predictor or method.predictor
  goal = objectives.goal(
    method.goal,
    method.objective,
    lambda x_t: predictor(params, x_t, draws.level, draws.dropout_key),
    eps_hat,
    draws.noised,
  )
  shape = eps_hat.shape[1:]
  perturb = method.perturb or attacks.by_name(method.objective.attack)
  return perturb(goal, draws.w_keys, draws.radius, shape)


def example_losses(
  method: Method, params: PyTree, draws: Draws, w: Array | None
) -> tuple[Array, tuple[dict[str, Array], Array | None]]:
  """The weighted loss of each example [b], its terms, and w.

  The dropout mask is the same in all passes. The clean pass serves attack and
  loss. The attack stands inside the differentiated loss for this: outside,
  XLA does not merge the two clean passes of a U-Net, and a step costs 9
  passes, not 8.

  Args:
    method: the method.
    params: of the network.
    draws: the batch.
    w: the perturbation; None asks the method's attack for it.

  Examples:
    >>> from rad_jax.training import step
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> x_0, sigma_c = jnp.ones((4, 2)), jnp.zeros(4)
    >>> draws = step.draw(method, x_0, sigma_c, jax.random.key(0))
    >>> losses, (terms, w) = step.example_losses(
    ...   method, jnp.array(0.5), draws, None
    ... )
    >>> total = terms["dsm"] + 0.3 * terms["regulariser"]
    >>> print(jnp.abs(losses - total).max() < 1e-6)
    True
  """
  eps_fn = lambda x_t: method.predictor(
    params, x_t, draws.level, draws.dropout_key
  )
  eps_hat = eps_fn(draws.noised.x_t)
  if w is None and method.objective.target is not None:
    w = find_w(method, params, eps_hat, draws)
  values, terms = objectives.loss(
    method.objective,
    eps_fn,
    eps_hat,
    draws.noised,
    w,
    draws.lambda_t,
    method.stop_gradient,
  )
  return method.weight(draws.level) * values, (terms, w)


def make_mean_loss(method: Method):
  """Builds (params, w or None, (regularised, rest)) -> (loss, (terms, w)).

  The two parts of the batch are those of `split`; there may be no rest. Terms
  are means, of the regulariser over the examples that have it. A fourth
  argument is a factor of the loss alone; it is 1 if not given.

  Examples:
    >>> from rad_jax.training import step
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> x_0, sigma_c = jnp.ones((4, 2)), jnp.zeros(4)
    >>> draws = step.draw(method, x_0, sigma_c, jax.random.key(0))
    >>> mean_loss = step.make_mean_loss(method)
    >>> value, (terms, w) = mean_loss(jnp.array(0.5), None, (draws, None))
    >>> print(value.shape, sorted(terms), w.shape)
    () ['dsm', 'regulariser'] (4, 2)
  """
  plain = method._replace(
    objective=objectives.without_regulariser(method.objective)
  )

  def mean_loss(
    params: PyTree, w: Array | None, parts: Parts, scale: Array | float = 1.0
  ):
    regularised, rest = parts
    values, (terms, w) = example_losses(method, params, regularised, w)
    total, count = jnp.sum(values), len(values)
    terms = {name: jnp.mean(term) for name, term in terms.items()}
    if rest is not None:
      values, (plain_terms, _) = example_losses(plain, params, rest, None)
      total, count = total + jnp.sum(values), count + len(values)
      terms["dsm_plain"] = jnp.mean(plain_terms["dsm"])
    return scale * total / count, (terms, w)

  return mean_loss


def in_turns(differentiated, count: int):
  """(params, w, parts[, scale]) -> value and gradient, over `count` pieces.

  Piece i has the examples i, i + count, ...: each device of a sharded batch
  keeps its own share.

  Args:
    differentiated: jax.value_and_grad of `make_mean_loss`, by params alone.
    count: divides both parts.

  Examples:
    The gradient of a batch in two pieces is that of the whole:

    >>> from rad_jax.training import step
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> x_0, sigma_c = jnp.ones((4, 2)), jnp.zeros(4)
    >>> draws = step.draw(method, x_0, sigma_c, jax.random.key(0))
    >>> differentiated = jax.value_and_grad(
    ...   step.make_mean_loss(method), has_aux=True
    ... )
    >>> in_two = step.in_turns(differentiated, 2)
    >>> _, gradient = in_two(jnp.array(0.5), None, (draws, None))
    >>> draws = step.draw(method, x_0, sigma_c, jax.random.key(0))
    >>> _, at_once = differentiated(jnp.array(0.5), None, (draws, None))
    >>> print(jnp.abs(at_once - gradient) < 1e-5)
    True
  """

  def pieces(parts: Parts) -> Parts:
    def cut(x):
      return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def of(draws: Draws) -> Draws:
      return Draws(
        level=jax.tree.map(cut, draws.level),
        noised=jax.tree.map(cut, draws.noised),
        radius=cut(draws.radius),
        lambda_t=cut(draws.lambda_t),
        # JAX's check of reuse takes keys in a new order for used ones.
        w_keys=jax.random.clone(cut(draws.w_keys)),
        dropout_key=jax.random.split(draws.dropout_key, count),
      )

    regularised, rest = parts
    return of(regularised), None if rest is None else of(rest)

  def value_and_grad(
    params: PyTree, w: None, parts: Parts, scale: Array | float = 1.0
  ):
    def add(total, piece: Parts):
      (value, (terms, w)), gradient = differentiated(params, None, piece, scale)
      total = jax.tree.map(jnp.add, total, (value, terms, gradient))
      return total, w

    cut = pieces(parts)
    first = lambda cut: jax.tree.map(lambda x: x[0], cut)
    shapes = jax.eval_shape(
      lambda cut: differentiated(params, None, first(cut), scale), cut
    )
    (value, (terms, _)), gradient = shapes
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), (value, terms, gradient)
    )
    total, w = jax.lax.scan(add, zeros, cut)
    value, terms, gradient = jax.tree.map(lambda x: x / count, total)
    return (value, (terms, w)), gradient

  return value_and_grad


def split(draws: Draws, n: int, m: int) -> Parts:
  """The first n of every m examples, and the others.

  Interleaved, so that each device of a sharded batch keeps its own share.
  Each part has a dropout key of its own.

  Examples:
    >>> from rad_jax.training import step
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> x_0, sigma_c = jnp.ones((4, 2)), jnp.zeros(4)
    >>> draws = step.draw(method, x_0, sigma_c, jax.random.key(0))
    >>> first, rest = step.split(draws, 1, 2)
    >>> print((first.radius == draws.radius[::2]).all(), len(rest.radius))
    True 2
  """
  if n == m:
    return draws, None

  def part(rows: slice, dropout_key: PRNGKeyArray) -> Draws:
    def take(x):
      grouped = x.reshape(x.shape[0] // m, m, *x.shape[1:])[:, rows]
      return grouped.reshape(-1, *x.shape[1:])

    return Draws(
      level=jax.tree.map(take, draws.level),
      noised=jax.tree.map(take, draws.noised),
      radius=take(draws.radius),
      lambda_t=take(draws.lambda_t),
      # JAX's check of reuse takes each part for a use of all keys.
      w_keys=take(jax.random.clone(draws.w_keys)),
      dropout_key=dropout_key,
    )

  keys = jax.random.split(draws.dropout_key)
  return part(slice(0, n), keys[0]), part(slice(n, m), keys[1])


def make_train_step(
  method: Method,
  optimizer: optax.GradientTransformation,
  ema_decay: float,
  prepare: Callable[
    [Batch, Key[Array, " b"]], tuple[Array, Array]
  ] = lambda batch, _: (batch["x_0"], jnp.zeros(len(batch["x_0"]))),
  micro_batches: int = 1,
  skip_non_finite: bool = False,
) -> Step:
  """Builds the step. Jit it with the state donated.

  Args:
    method: what is minimised.
    optimizer: any optax transformation.
    ema_decay: decay of the parameters' moving average, in [0, 1).
    prepare: (batch, keys [b]) -> x_0 [b, ...], the training examples as the
      network shall see them: scaled, corrupted, flipped; and the known noise
      of each, sigma_c [b]. The keys are fresh at each step.
    micro_batches: pieces of the batch that are differentiated one after the
      other, for less memory; they divide both parts of the batch. The step is
      the same but for the dropout masks, of which each piece has its own.
    skip_non_finite: whether a step whose loss or gradient is not finite leaves
      the parameters, their average and the optimiser as they were; the metric
      "skipped" is 1 there. With a `loss_scale` it always does, and lowers it.

  Returns:
    (state, batch) -> (state, metrics); the metrics are scalars on the device.

  Examples:
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> optimizer = optax.sgd(0.1)
    >>> train_step = jax.jit(rad_jax.make_train_step(method, optimizer, 0.999))
    >>> state = rad_jax.state_of(jnp.array(0.5), optimizer, jax.random.key(0))
    >>> state, metrics = train_step(state, {"x_0": jnp.ones((4, 2))})
    >>> print(int(state.step), sorted(metrics))
    1 ['dsm', 'grad_norm', 'loss', 'param_norm', 'regulariser', 'w_linf']
  """
  replays = method.free_replays
  differentiated = jax.value_and_grad(
    make_mean_loss(method), (0, 1) if replays > 1 else 0, has_aux=True
  )
  if micro_batches > 1:
    differentiated = in_turns(differentiated, micro_batches)

  def update(carry, w, parts, count):
    params, ema_params, opt_state = carry
    scale = loss_scale.of(opt_state)
    (value, (terms, w)), gradient = differentiated(params, w, parts, scale)
    value, gradient = jax.tree.map(lambda x: x / scale, (value, gradient))
    gradient, w_gradient = gradient if replays > 1 else (gradient, None)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    ema_params = optax.incremental_update(
      params, ema_params, 1 - ema_decay_at(count, ema_decay)
    )
    metrics = {
      "loss": value,
      "grad_norm": optax.global_norm(gradient),
      "param_norm": optax.global_norm(params),
      **terms,
    }
    if w is not None:
      metrics["w_linf"] = jnp.max(jnp.abs(w))
    updated = params, ema_params, opt_state
    is_scaled = isinstance(carry[2], loss_scale.Scaled)
    if skip_non_finite or is_scaled:
      good = jnp.isfinite(value) & jnp.isfinite(metrics["grad_norm"])
      kept = *carry[:2], loss_scale.lowered(carry[2])
      updated = jax.tree.map(partial(jnp.where, good), updated, kept)
      metrics["skipped"] = 1.0 - good
    if is_scaled:
      metrics["loss_scale"] = scale
    return updated, metrics, w_gradient

  def replay(carry, parts, count):
    """Updates on one batch, w climbing by each one's own backward pass."""
    radius, shape = parts[0].radius, parts[0].noised.x_t.shape[1:]
    w_0 = attacks.start(method.attack, parts[0].w_keys, radius, shape)

    def one(carry, i):
      carry, w = carry
      carry, metrics, gradient = update(carry, w, parts, replays * count + i)
      w = attacks.step(method.attack, w, gradient, radius)
      return (carry, w), metrics

    (carry, _), metrics = jax.lax.scan(one, (carry, w_0), jnp.arange(replays))
    return carry, jax.tree.map(jnp.mean, metrics)

  def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    prepare_key, loss_key = jax.random.split(
      jax.random.fold_in(state.key, state.step)
    )
    batch_size = batch["x_0"].shape[0]
    x_0, sigma_c = prepare(batch, example_keys(prepare_key, batch_size))
    draws = draw(method, x_0, sigma_c, loss_key, method.ramp(state.step))
    parts = split(draws, *method.regularised)
    carry = (state.params, state.ema_params, state.opt_state)
    if replays > 1:
      carry, metrics = replay(carry, parts, state.step)
    else:
      carry, metrics, _ = update(carry, None, parts, state.step)
    params, ema_params, opt_state = carry
    state = state._replace(
      step=state.step + 1,
      params=params,
      ema_params=ema_params,
      opt_state=opt_state,
    )
    return state, metrics

  return train_step


def make_monitor(
  method: Method,
  prepare: Callable[[Batch, Key[Array, " b"]], tuple[Array, Array]],
  strong: attacks.Attack = attacks.ATTACKS["pgd"],
) -> Callable[[State, Batch], Metrics]:
  """Builds (state, batch) -> how much more PGD-10 finds than the attack.

  Both start from the same draw, inside the same radius, and raise the
  method's goal: a training attack that the network has learnt to evade shows
  as a growing ratio, before the samples show it.

  Returns:
    "goal_attack" and "goal_pgd", the goal's mean over elements and examples
    at w of each; "pgd_gain", their ratio; "regulariser_pgd", the perturbed
    branch's loss at PGD's w.

  Examples:
    On a linear network, FGSM finds all there is:

    >>> from rad_jax.training import step
    >>> method = rad_jax.Method(
    ...   rad_jax.objectives.OBJECTIVES["robust_adv"],
    ...   rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    ...   rad_jax.schedules.flow(),
    ... )
    >>> monitor = step.make_monitor(
    ...   method, lambda batch, keys: (batch["x_0"], jnp.zeros(4))
    ... )
    >>> state = rad_jax.state_of(
    ...   jnp.array(0.5), optax.sgd(0.1), jax.random.key(0)
    ... )
    >>> metrics = monitor(state, {"x_0": jnp.ones((4, 2))})
    >>> print(f"{metrics['pgd_gain']:.2f}")
    1.00
  """

  def monitor(state: State, batch: Batch) -> Metrics:
    prepare_key, loss_key = jax.random.split(
      jax.random.fold_in(state.key, state.step)
    )
    x_0, sigma_c = prepare(batch, example_keys(prepare_key, len(batch["x_0"])))
    draws = draw(method, x_0, sigma_c, loss_key)
    eps_fn = lambda x_t: method.predictor(
      state.params, x_t, draws.level, draws.dropout_key
    )
    eps_hat = eps_fn(draws.noised.x_t)
    strongest = method._replace(
      attack_predictor=None,
      perturb=lambda *args: attacks.maximise(
        strong._replace(norm=method.attack.norm), *args
      ),
    )
    goal, residual = (
      objectives.goal(name, method.objective, eps_fn, eps_hat, draws.noised)
      for name in (method.goal, "residual")
    )
    elements = eps_hat.size
    weak = jnp.sum(goal(find_w(method, state.params, eps_hat, draws)))
    same_start = draws._replace(w_keys=jax.random.clone(draws.w_keys))
    w = find_w(strongest, state.params, eps_hat, same_start)
    found = jnp.sum(goal(w))
    return {
      "goal_attack": weak / elements,
      "goal_pgd": found / elements,
      # A network that does not move at all, as at its start, has gain 1.
      "pgd_gain": (found + 1e-9 * elements) / (weak + 1e-9 * elements),
      "regulariser_pgd": jnp.sum(residual(w)) / elements,
    }

  return monitor
