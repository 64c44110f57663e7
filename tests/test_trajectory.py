"""Attacks on sampling against closed forms of linear networks, and counts."""

import functools

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax.diffusion import process, samplers, schedules
from rad_jax.robustness import attacks, trajectory
from rad_jax.robustness.attacks import BALLS, Attack
from rad_jax.robustness.trajectory import Chain

# One size of everything, so that many tests share one program.
N, B, D = 5, 32, 4
GRID = jax.tree.map(
  np.asarray, schedules.ddpm(schedules.linear_alpha_bar(100)).grid(N)
)
ATTACKED = [0, 2, 3]
RADIUS = np.resize(np.float32([0.1, 0.2, 0.4]), B)
PGD = Attack(num_steps=10, step_size=0.25)
VARIANCE = 0.3


norms = pytest.mark.parametrize("norm", BALLS)


def _budget(radius, attacked=ATTACKED):
  mask = np.isin(np.arange(N), attacked)
  return np.where(mask[:, None], np.float32(radius), np.float32(0))


BUDGET = _budget(RADIUS)


def _keys(seed, *shape):
  data = np.random.default_rng(seed).integers(
    2**32, size=(*(shape or (B,)), 2), dtype=np.uint32
  )
  return jax.random.wrap_key_data(data)


def _normal(seed, shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _gaussian(x_t, level):
  """The exact noise predictor of data N(0, VARIANCE): linear in x_t."""
  a, s = (process.per_example(v, 2) for v in (level.alpha, level.sigma))
  return s * x_t / (a**2 * VARIANCE + s**2)


WEIGHTS = _normal(5, (2, D, 8))


def _curved(x_t, level):
  """A small network: its clean estimate is a hidden layer's."""
  a, s, time = (
    process.per_example(v, 2) for v in (level.alpha, level.sigma, level.time)
  )
  x_0 = jnp.tanh(x_t @ WEIGHTS[0] + time / 100) @ WEIGHTS[1].T / 4
  return (x_t - a * x_0) / s


UPDATES = {name: make("small", 0.5) for name, make in samplers.SAMPLERS.items()}
X_T = GRID.sigma[0] * _normal(1, (B, D))
LINEAR = Chain(_gaussian, GRID, samplers.ddim(), X_T, _keys(1))
CURVED = LINEAR._replace(eps_fn=_curved, update=UPDATES["ddpm"])


def _split(chain):
  """A chain's arrays, and the rest of it, which is part of a program."""
  return (chain.x_t, chain.keys), chain._replace(
    levels=None, x_t=None, keys=None
  )


def _joined(rest, arrays):
  levels = jax.tree.map(jnp.asarray, GRID)
  return rest._replace(levels=levels, x_t=arrays[0], keys=arrays[1])


@functools.cache
def _sampler(rest):
  return jax.jit(
    lambda arrays, w: samplers.reverse(*_joined(rest, arrays), w=w)
  )


def _sample(chain, w=None):
  arrays, rest = _split(chain)
  w = np.zeros((N, B, D), np.float32) if w is None else w
  return np.asarray(_sampler(rest)(arrays, w))


def _moved(chain, w):
  """Mean squared distance that w moves the sample, [b]."""
  return np.mean(np.square(_sample(chain, w) - _sample(chain)), axis=1)


@functools.cache
def _program(craft, rest, goal=None):
  """One for all states, keys, budgets and draws, and goal's own arguments."""

  def find(arrays, keys, budget, draws, given):
    more = {} if draws is None else {"draws": draws}
    if goal:
      more["goal"] = lambda x_0_hat: goal(x_0_hat, *given)
    return craft(_joined(rest, arrays), keys, budget, **more)

  return jax.jit(find)


@functools.cache
def _craft(name, attack):
  """The attack of this name, or with a norm in place of one, the control."""
  made = getattr(trajectory, name)
  return functools.partial(made, attack)


def _found(
  name, attack, chain, budget=BUDGET, seed=2, goal=None, given=(), draws=None
):
  """The w of an attack; keys are of the seed, or given."""
  arrays, rest = _split(chain)
  keys = _keys(seed) if isinstance(seed, int) else seed
  find = _program(_craft(name, attack), rest, goal)
  return np.asarray(find(arrays, keys, budget, draws, given))


_joint = functools.partial(_found, "joint")
_greedy = functools.partial(_found, "greedy")


def _rms(w):
  return np.sqrt(np.mean(np.square(np.asarray(w, np.float64)), axis=-1))


def _size(norm, w):
  """The least radius of a ball that holds w, [n, b]."""
  return np.abs(w).max(axis=-1) if norm == "linf" else _rms(w)


def _slopes():
  """d x_0_hat / d w_n of _gaussian under DDIM, [n], from its recursion."""
  a, s = (np.asarray(v, np.float64) for v in (GRID.alpha, GRID.sigma))
  v = a**2 * VARIANCE + s**2
  steps = (a[1:] * a[:-1] * VARIANCE + s[1:] * s[:-1]) / v[:-1]
  last = a[-1] * VARIANCE / v[-1]
  return s * np.array([np.prod(steps[n:]) for n in range(N)]) * last


def _of_norm(name, norm, *args, **kwargs):
  """Of one of the attacks, or of the control, 10 steps in this norm."""
  attack = norm if name == "random" else PGD._replace(norm=norm)
  return _found(name, attack, *args, **kwargs)


every_attack = pytest.mark.parametrize("name", ["joint", "greedy", "random"])


@functools.cache
def _crafted(name, norm):
  return _of_norm(name, norm, CURVED)


# The budget.


def test_budget_is_the_radius_at_attacked_levels():
  mask = np.isin(np.arange(N), ATTACKED)
  for attacked in (ATTACKED, mask, np.array(ATTACKED)):
    budget = trajectory.budget_at(jnp.asarray(RADIUS), attacked, N)
    budget = np.asarray(budget)
    np.testing.assert_array_equal(budget[mask], np.tile(RADIUS, (3, 1)))
    np.testing.assert_array_equal(budget[~mask], 0)


@norms
@every_attack
def test_each_perturbation_is_within_its_own_budget(name, norm):
  w = _crafted(name, norm)
  assert w.shape == (N, B, D)
  np.testing.assert_array_less(_size(norm, w), BUDGET * (1 + 1e-5) + 1e-30)
  np.testing.assert_array_equal(w[[1, 4]], 0)
  assert np.all(_size(norm, w)[ATTACKED] > 0.5 * BUDGET[ATTACKED])


@norms
def test_the_control_is_on_the_border_in_random_directions(norm):
  w = _crafted("random", norm)
  np.testing.assert_allclose(_size(norm, w), BUDGET, rtol=1e-5)
  if norm == "linf":
    np.testing.assert_allclose(
      np.abs(w), np.broadcast_to(BUDGET[..., None], w.shape), rtol=1e-6
    )
  one = np.ones((N, B), np.float32)
  many = np.concatenate(
    [_of_norm("random", norm, CURVED, one, seed) for seed in range(13)]
  )
  # 2,080 directions, so five standard errors.
  np.testing.assert_allclose(np.mean(many, axis=(0, 1)), 0, atol=0.11)
  assert len(np.unique(np.sign(many).reshape(-1, D), axis=0)) == 2**D


@every_attack
def test_an_example_depends_on_its_own_key_alone(name):
  w = _crafted(name, "l2")
  # Two examples elsewhere in the batch, among others.
  place, was = np.array([4, 1]), np.array([2, 0])
  x_t, radius = 1 - X_T, RADIUS[::-1].copy()
  x_t[place], radius[place] = X_T[was], RADIUS[was]
  data, own = (np.array(jax.random.key_data(_keys(i))) for i in (3, 4))
  data[place] = np.asarray(jax.random.key_data(CURVED.keys))[was]
  own[place] = np.asarray(jax.random.key_data(_keys(2)))[was]
  keys, own = map(jax.random.wrap_key_data, (data, own))
  found = _of_norm(
    name, "l2", CURVED._replace(x_t=x_t, keys=keys), _budget(radius), own
  )
  np.testing.assert_allclose(found[:, place], w[:, was], atol=1e-3)
  assert np.all(np.abs(found[0] - w[0]).max(axis=1) > 1e-3)


def test_levels_and_examples_start_apart():
  start = Attack("l2", num_steps=0, project=False)
  budget = np.ones((N, B), np.float32)
  for w in (
    _joint(start, CURVED, budget),
    _greedy(start, CURVED._replace(clip_x_0=0.5), budget),
    _of_norm("random", "l2", CURVED, budget),
  ):
    assert len(np.unique(w)) == w.size


@every_attack
def test_of_budget_zero_w_is_zero(name):
  w = _of_norm(name, "linf", CURVED, np.zeros((N, B), np.float32))
  np.testing.assert_array_equal(w, 0)


# Closed forms.


def _along(x_0_hat, slope):
  return jnp.sum(slope * x_0_hat, axis=1)


@norms
def test_joint_reaches_the_best_of_a_linear_goal(norm):
  # x_0_hat = sum c_n w_n + ..., so w_n is the ball's best point along c_n g.
  slope = _normal(4, (B, D))
  attack = Attack(norm, 30, step_size=1.0)
  w = _joint(attack, LINEAR, goal=_along, given=(slope,))
  along = np.sign(slope) if norm == "linf" else slope / _rms(slope)[:, None]
  assert np.all(_slopes() > 0)
  expected = BUDGET[..., None] * along
  np.testing.assert_allclose(w, expected, rtol=1e-3, atol=1e-4)


@norms
def test_joint_moves_a_linear_sampler_as_far_as_can_be(norm):
  # All w_n at the border, along one direction.
  attack = Attack(norm, 40, step_size=0.2)
  w = _joint(attack, LINEAR)
  farthest = (_slopes() @ np.asarray(BUDGET, np.float64)) ** 2
  np.testing.assert_allclose(_moved(LINEAR, w), farthest, rtol=5e-3)


def test_greedy_takes_corners_of_a_linear_sampler():
  # |x_0_hat moves|^2 is convex in w_n: its maxima are corners.
  w = _greedy(PGD, LINEAR._replace(update=UPDATES["ddpm"]))
  expected = np.broadcast_to(BUDGET[..., None], w.shape)
  np.testing.assert_allclose(np.abs(w), expected, rtol=1e-6)


# What attacks find.


@norms
def test_white_box_attacks_find_more_than_the_control(norm):
  budget = _budget(np.full(B, 0.2))
  joint, greedy, random = (
    _moved(CURVED, _of_norm(name, norm, CURVED, budget))
    for name in ("joint", "greedy", "random")
  )
  assert joint.mean() > 2 * random.mean()
  assert joint.mean() > greedy.mean() > random.mean()
  assert np.mean(joint > random) > 0.9


def test_greedy_climbs_from_the_states_it_has_led_to():
  """One step from a known start at the last level, behind a perturbed one.

  Against the gradient of |clip(x_0_hat) - clip(x_0_hat')|^2 by its definition,
  at the state to which a sampler of w's own comes.
  """
  chain = CURVED._replace(clip_x_0=0.5)
  radius = 3 * RADIUS
  budget = _budget(radius, [3, 4])
  start, w = (
    _greedy(Attack("l2", k, project=False), chain, budget) for k in (0, 1)
  )
  a, s = GRID.alpha[4], GRID.sigma[4]
  level = jax.tree.map(lambda v: jnp.full(B, v[4]), GRID)

  @jax.jit
  def by_definition(x_t, w, start):
    def update(denoise, step, x_t, last_x_0, z):
      x_t = x_t + step.t.sigma * w[step.number - 1]
      return chain.update(denoise, step, x_t, last_x_0, z)

    plain = _joined(chain, (x_t, chain.keys))
    states = samplers.path(*plain._replace(update=update)).x_t[4]

    def movement(w_4):
      clean = lambda x: jnp.clip((x - s * _curved(x, level)) / a, -0.5, 0.5)
      return jnp.sum((clean(states + s * w_4) - clean(states)) ** 2)

    return jax.grad(movement)(start), states - samplers.path(*plain).x_t[4]

  gradient, apart = map(np.asarray, by_definition(chain.x_t, w, start[4]))
  assert np.all(np.max(np.abs(apart), axis=1) > 1e-3)
  scale = np.maximum(_rms(gradient), 1e-30)[:, None]
  expected = radius[:, None] * gradient / scale
  assert np.any(gradient != 0)
  np.testing.assert_allclose(w[4] - start[4], expected, atol=2e-3)


def test_known_noise_is_the_stronger_attack():
  """On the sample of that noise, against an expectation over other draws."""
  fixed = _joint(PGD, CURVED)
  draws = _keys(11, 4, B)
  blind = _joint(PGD, CURVED, draws=draws)
  assert _moved(CURVED, fixed).mean() > _moved(CURVED, blind).mean()
  # In expectation over its draws, it is the other way round.
  mean = lambda w: np.mean(
    [_moved(CURVED._replace(keys=k), w).mean() for k in draws]
  )
  assert mean(blind) > mean(fixed)


def _wave(x_0_hat):
  return jnp.sum(jnp.sin(3 * x_0_hat), axis=1)


def test_expectation_takes_the_mean_of_the_gradients():
  # An l2 step of one radius along the mean of the draws' own gradients.
  draws = _keys(11, 4, B)
  start = _joint(Attack("l2", 0, project=False), CURVED)
  one = Attack("l2", 1, project=False)
  stepped = _joint(one, CURVED, goal=_wave, draws=draws)

  @jax.jit
  def gradient(keys, start):
    chain = _joined(CURVED, (jnp.asarray(X_T), keys))
    value = lambda w: jnp.sum(_wave(samplers.reverse(*chain, w=w)))
    return jax.grad(value)(start)

  each = np.asarray([gradient(keys, start) for keys in draws])
  mean = each.mean(axis=0)
  expected = BUDGET[..., None] * mean / _rms(mean)[..., None]
  np.testing.assert_allclose(stepped - start, expected, atol=1e-4)
  assert np.max(np.abs(each[0] / _rms(each[0])[..., None] - mean)) > 0.1


def test_mean_gradient_is_that_of_the_mean():
  draws = {"a": _normal(6, (7, B, D)), "b": _normal(7, (7, B))}
  value = lambda w, draw: jnp.sum(jnp.sin(w * draw["a"]), axis=1) * draw["b"]

  @jax.jit
  def both(w, draws):
    mean = lambda w: jnp.sum(jax.vmap(lambda d: value(w, d))(draws)) / 7
    return attacks.mean_gradient(value, draws)(w), jax.grad(mean)(w)

  np.testing.assert_allclose(*both(_normal(8, (B, D)), draws), atol=1e-6)


def test_memory_does_not_grow_with_activations_nor_with_draws():
  width, levels = 2048, schedules.ddpm(schedules.linear_alpha_bar(100)).grid(40)
  weights = _normal(0, (1, width))
  network = lambda x_t, level: jnp.tanh(x_t @ weights) @ weights.T / width
  budget = jnp.ones((40, 8))

  def memory(num_draws):
    def craft(x_t):
      chain = Chain(network, levels, samplers.ddim(), x_t, _keys(0, 8))
      draws = _keys(1, 8 * num_draws).reshape(num_draws, 8)
      return trajectory.joint(Attack(), chain, _keys(2, 8), budget, draws=draws)

    compiled = jax.jit(craft).lower(jnp.ones((8, 1))).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # Against the activations of all examples at all levels, float32.
  assert memory(1) < 8 * 40 * width * 4 / 4
  assert memory(8) < 1.5 * memory(1)


# Transfer.


def test_transfer_attacks_one_network_and_samples_the_other():
  surrogate = CURVED._replace(eps_fn=lambda x_t, level: jnp.sin(x_t))
  w = _joint(PGD, surrogate)
  # Another network's gradients move the sample, and its own ones more.
  assert np.all(_moved(CURVED, w) > 0)
  own = _joint(PGD, CURVED)
  assert _moved(CURVED, own).mean() > 1.2 * _moved(CURVED, w).mean()


# Queries.


def _counting(callback):
  """A network, and a dict of how often it was run, forward and backward."""
  counts = {"forward": 0, "backward": 0}

  def counted(name, x):
    def host(x):
      counts[name] += 1
      return np.asarray(x)

    return callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

  @jax.custom_vjp
  def network(x_t, sigma):
    return jnp.tanh(counted("forward", x_t)) * sigma

  def forward(x_t, sigma):
    y = jnp.tanh(counted("forward", x_t))
    return y * sigma, (y, sigma)

  def backward(kept, g):
    y, sigma = kept
    return counted("backward", g * (1 - y**2) * sigma), jnp.zeros_like(sigma)

  network.defvjp(forward, backward)
  eps_fn = lambda x_t, level: network(x_t, process.per_example(level.sigma, 2))
  return eps_fn, counts


def _counted(craft, update, callback=jax.pure_callback):
  """Of one program, which leaves out a pure callback that nothing needs."""
  eps_fn, counts = _counting(callback)
  chain = CURVED._replace(eps_fn=eps_fn, update=update)
  run = lambda: craft(_joined(chain, (jnp.asarray(X_T), CURVED.keys)))
  jax.block_until_ready(jax.jit(run)())
  return counts


@pytest.mark.parametrize("name", UPDATES)
def test_evaluations_of_one_process(name):
  counts = _counted(lambda chain: samplers.reverse(*chain), UPDATES[name])
  count = samplers.evaluations(name, N)
  assert counts == {"forward": count, "backward": 0}


@pytest.mark.parametrize("own_goal", [False, True])
@pytest.mark.parametrize(
  ("num_steps", "num_draws", "name"),
  [(0, 1, "ddpm"), (1, 1, "ddpm"), (3, 1, "heun"), (3, 2, "ddpm")],
)
def test_queries_of_joint(num_steps, num_draws, name, own_goal):
  attack = PGD._replace(num_steps=num_steps)
  draws = _keys(3, num_draws, B)
  goal = (lambda x: jnp.sum(x, axis=1)) if own_goal else None
  counts = _counted(
    lambda chain: trajectory.joint(
      attack, chain, _keys(2), jnp.asarray(BUDGET), goal, draws
    ),
    UPDATES[name],
    # Nothing needs the unperturbed sample if there is no step.
    jax.pure_callback if num_steps else jax.experimental.io_callback,
  )
  queries = trajectory.joint_queries(
    attack, samplers.evaluations(name, N), num_draws, own_goal
  )
  assert counts["backward"] == queries.backward
  assert counts["forward"] == queries.forward + queries.recomputed


@pytest.mark.parametrize(
  ("num_steps", "name"), [(1, "heun"), (3, "dpm_solver")]
)
def test_queries_of_greedy(num_steps, name):
  attack = PGD._replace(num_steps=num_steps)
  counts = _counted(
    lambda chain: trajectory.greedy(
      attack, chain, _keys(2), jnp.asarray(BUDGET)
    ),
    UPDATES[name],
    # Nothing needs the last level's estimate.
    jax.experimental.io_callback,
  )
  queries = trajectory.greedy_queries(
    attack, samplers.evaluations(name, N), len(ATTACKED)
  )
  assert counts == {"forward": queries.forward, "backward": queries.backward}
  assert queries.recomputed == 0


def test_the_control_asks_nothing():
  craft = lambda chain: trajectory.random(
    "linf", chain, _keys(2), jnp.asarray(BUDGET)
  )
  counts = _counted(craft, UPDATES["ddpm"])
  assert counts == {"forward": 0, "backward": 0}


def test_unknown_norm():
  for craft in ("joint", "greedy", "random"):
    with pytest.raises(KeyError):
      _of_norm(craft, "l7", CURVED)
