"""Attacks on sampling against closed forms of linear networks, and counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rad_jax.diffusion import process, samplers, schedules
from rad_jax.robustness import attacks, trajectory
from rad_jax.robustness.attacks import BALLS, Attack
from rad_jax.robustness.trajectory import Chain

N, B, D = 5, 3, 4
GRID = schedules.ddpm(schedules.linear_alpha_bar(100)).grid(N)
ATTACKED = [0, 2, 3]
RADIUS = jnp.array([0.1, 0.2, 0.4])
BUDGET = trajectory.budget_at(RADIUS, ATTACKED, N)
PGD = Attack(num_steps=10, step_size=0.25)
VARIANCE = 0.3


norms = pytest.mark.parametrize("norm", BALLS)


def _keys(seed, count=B):
  return jax.random.split(jax.random.key(seed), count)


def _normal(seed, shape):
  return jax.random.normal(jax.random.key(seed), shape)


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


def _chain(eps_fn=_gaussian, update=None, seed=1, b=B):
  keys = _keys(seed, b)
  x_t = samplers.noise(GRID, keys, (D,))
  return Chain(eps_fn, GRID, update or samplers.ddim(), x_t, keys)


CURVED = _chain(_curved, samplers.ddpm())


@functools.cache
def _sampler(eps_fn, update):
  run = lambda x_t, keys, w: samplers.reverse(
    eps_fn, GRID, update, x_t, keys, w=w
  )
  return jax.jit(run)


def _sample(chain, w=None):
  w = jnp.zeros((N, *chain.x_t.shape)) if w is None else jnp.asarray(w)
  return _sampler(chain.eps_fn, chain.update)(chain.x_t, chain.keys, w)


def _moved(chain, w):
  """Mean squared distance that w moves the sample, [b]."""
  return np.mean(np.square(_sample(chain, w) - _sample(chain)), axis=1)


def _joint(attack, chain, *args, **kwargs):
  find = lambda: trajectory.joint(attack, chain, _keys(2), *args, **kwargs)
  return jax.jit(find)()


def _greedy(attack, chain, budget):
  # The budget is an argument: one program for several.
  return _greedy_program(attack, chain.eps_fn, chain.clip_x_0)(
    chain.x_t, budget
  )


@functools.cache
def _greedy_program(attack, eps_fn, clip_x_0):
  def find(x_t, budget):
    chain = CURVED._replace(eps_fn=eps_fn, x_t=x_t, clip_x_0=clip_x_0)
    return trajectory.greedy(attack, chain, _keys(2), budget)

  return jax.jit(find)


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


def _craft(name, norm="linf"):
  if name == "random":
    return lambda c, budget: trajectory.random(norm, c, _keys(8, B), budget)
  made = {"joint": trajectory.joint, "greedy": trajectory.greedy}[name]
  attack = PGD._replace(norm=norm)
  return lambda c, budget: made(attack, c, _keys(8, B), budget)


every_attack = pytest.mark.parametrize("name", ["joint", "greedy", "random"])


@functools.cache
def _crafted(name, norm):
  return np.asarray(jax.jit(lambda: _craft(name, norm)(CURVED, BUDGET))())


# The budget.


def test_budget_is_the_radius_at_attacked_levels():
  mask = np.isin(np.arange(N), ATTACKED)
  for attacked in (ATTACKED, mask, np.array(ATTACKED)):
    budget = trajectory.budget_at(RADIUS, attacked, N)
    np.testing.assert_array_equal(budget[mask], np.tile(RADIUS, (3, 1)))
    np.testing.assert_array_equal(budget[~mask], 0)


@norms
@every_attack
def test_each_perturbation_is_within_its_own_budget(name, norm):
  w = _crafted(name, norm)
  assert w.shape == (N, B, D)
  np.testing.assert_array_less(_size(norm, w), BUDGET * (1 + 1e-5) + 1e-30)
  np.testing.assert_array_equal(w[[1, 4]], 0)
  assert np.all(_size(norm, w)[ATTACKED] > 0.5 * BUDGET[jnp.array(ATTACKED)])


@norms
def test_the_control_is_on_the_border_in_random_directions(norm):
  w = _crafted("random", norm)
  np.testing.assert_allclose(_size(norm, w), BUDGET, rtol=1e-5)
  if norm == "linf":
    np.testing.assert_allclose(
      np.abs(w), np.broadcast_to(BUDGET[..., None], w.shape), rtol=1e-6
    )
  budget = jnp.ones((40, 50))
  many = trajectory.random(norm, _chain(b=50), _keys(3, 50), budget)
  # 2,000 directions, so five standard errors.
  np.testing.assert_allclose(np.mean(many, axis=(0, 1)), 0, atol=0.112)
  assert len(np.unique(np.sign(many).reshape(-1, D), axis=0)) == 2**D


@every_attack
def test_an_example_depends_on_its_own_key_alone(name):
  w = _crafted(name, "l2")
  some = jnp.array([2, 0])
  chain = CURVED._replace(x_t=CURVED.x_t[some], keys=CURVED.keys[some])
  keys, budget = _keys(8)[some], BUDGET[:, some]
  attack = PGD._replace(norm="l2")
  found = jax.jit(
    {
      "joint": lambda: trajectory.joint(attack, chain, keys, budget),
      "greedy": lambda: trajectory.greedy(attack, chain, keys, budget),
      "random": lambda: trajectory.random("l2", chain, keys, budget),
    }[name]
  )()
  np.testing.assert_allclose(found, w[:, [2, 0]], atol=1e-3)


def test_levels_and_examples_start_apart():
  attack = Attack("linf", num_steps=0)
  budget = jnp.ones((N, B))
  for w in (
    _joint(attack, CURVED, budget),
    _greedy(attack, CURVED, budget),
    trajectory.random("l2", CURVED, _keys(2), budget),
  ):
    assert len(np.unique(w)) == w.size


@every_attack
def test_of_budget_zero_w_is_zero(name):
  craft = _craft(name)
  w = jax.jit(lambda: craft(CURVED, jnp.zeros((N, B))))()
  np.testing.assert_array_equal(w, 0)


# Closed forms.


@norms
def test_joint_reaches_the_best_of_a_linear_goal(norm):
  # x_0_hat = sum c_n w_n + ..., so w_n is the ball's best point along c_n g.
  slope = _normal(4, (B, D))
  attack = Attack(norm, 30, step_size=1.0)
  goal = lambda x_0_hat: jnp.sum(slope * x_0_hat, axis=1)
  w = _joint(attack, _chain(), BUDGET, goal)
  along = (
    np.sign(slope) if norm == "linf" else np.array(slope) / _rms(slope)[:, None]
  )
  assert np.all(_slopes() > 0)
  expected = np.asarray(BUDGET)[..., None] * along
  np.testing.assert_allclose(w, expected, rtol=1e-3, atol=1e-4)


@norms
def test_joint_moves_a_linear_sampler_as_far_as_can_be(norm):
  # All w_n at the border, along one direction.
  attack = Attack(norm, 40, step_size=0.2)
  w = _joint(attack, _chain(), BUDGET)
  farthest = (_slopes() @ np.asarray(BUDGET, np.float64)) ** 2
  np.testing.assert_allclose(_moved(_chain(), w), farthest, rtol=5e-3)


def test_greedy_takes_corners_of_a_linear_sampler():
  # |x_0_hat moves|^2 is convex in w_n: its maxima are corners.
  w = _greedy(PGD, _chain(update=samplers.ddpm()), BUDGET)
  expected = np.broadcast_to(BUDGET[..., None], w.shape)
  np.testing.assert_allclose(np.abs(w), expected, rtol=1e-6)


# What attacks find.


@norms
def test_white_box_attacks_find_more_than_the_control(norm):
  chain, keys = _chain(_curved, samplers.ddpm(), b=32), _keys(8, 32)
  budget = trajectory.budget_at(jnp.full(32, 0.2), ATTACKED, N)
  attack = PGD._replace(norm=norm)

  def moved(craft):
    return _moved(chain, jax.jit(lambda: craft(chain, keys, budget))())

  random = moved(functools.partial(trajectory.random, norm))
  greedy = moved(functools.partial(trajectory.greedy, attack))
  joint = moved(functools.partial(trajectory.joint, attack))
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
  budget = trajectory.budget_at(radius, [3, 4], N)
  start, w = (
    _greedy(Attack("l2", k, project=False), chain, budget) for k in (0, 1)
  )

  def update(denoise, step, x_t, last_x_0, z):
    x_t = x_t + step.t.sigma * w[step.number - 1]
    return chain.update(denoise, step, x_t, last_x_0, z)

  states = samplers.path(*chain._replace(update=update)).x_t
  plain = samplers.path(*chain).x_t
  assert np.all(np.max(np.abs(states - plain)[4], axis=1) > 1e-3)
  a, s = GRID.alpha[4], GRID.sigma[4]
  level = jax.tree.map(lambda v: jnp.full(B, v[4]), GRID)

  def movement(w_4):
    clean = lambda x: jnp.clip((x - s * _curved(x, level)) / a, -0.5, 0.5)
    return jnp.sum((clean(states[4] + s * w_4) - clean(states[4])) ** 2)

  gradient = np.asarray(jax.jit(jax.grad(movement))(start[4]))
  scale = np.maximum(_rms(gradient), 1e-30)[:, None]
  expected = radius[:, None] * gradient / scale
  assert np.any(gradient != 0)
  np.testing.assert_allclose(w[4] - start[4], expected, atol=2e-3)


def test_known_noise_is_the_stronger_attack():
  """On the sample of that noise, against an expectation over other draws."""
  fixed = _joint(PGD, CURVED, BUDGET)
  draws = _keys(11, 4 * B).reshape(4, B)
  blind = _joint(PGD, CURVED, BUDGET, draws=draws)
  assert _moved(CURVED, fixed).mean() > _moved(CURVED, blind).mean()
  # In expectation over its draws, it is the other way round.
  mean = lambda w: np.mean(
    [_moved(CURVED._replace(keys=k), w).mean() for k in draws]
  )
  assert mean(blind) > mean(fixed)


def test_expectation_takes_the_mean_of_the_gradients():
  # An l2 step of one radius along the mean of the draws' own gradients.
  draws = _keys(11, 4 * B).reshape(4, B)
  goal = lambda x_0_hat: jnp.sum(jnp.sin(3 * x_0_hat), axis=1)
  find = lambda k: _joint(
    Attack("l2", k, project=False), CURVED, BUDGET, goal, draws
  )
  start, stepped = find(0), find(1)

  @jax.jit
  def gradient(keys):
    chain = CURVED._replace(keys=keys)
    value = lambda w: jnp.sum(goal(samplers.reverse(*chain, w=w)))
    return jax.grad(value)(start)

  mean = np.mean([gradient(keys) for keys in draws], axis=0)
  expected = np.asarray(BUDGET)[..., None] * mean / _rms(mean)[..., None]
  np.testing.assert_allclose(stepped - start, expected, atol=1e-4)
  alone = np.asarray(gradient(draws[0]))
  assert np.max(np.abs(alone / _rms(alone)[..., None] - mean)) > 0.1


def test_mean_gradient_is_that_of_the_mean():
  draws = {"a": _normal(6, (7, B, D)), "b": _normal(7, (7, B))}
  value = lambda w, draw: jnp.sum(jnp.sin(w * draw["a"]), axis=1) * draw["b"]
  w = _normal(8, (B, D))
  mean = lambda w: jnp.sum(jax.vmap(lambda d: value(w, d))(draws)) / 7
  np.testing.assert_allclose(
    attacks.mean_gradient(value, draws)(w), jax.grad(mean)(w), atol=1e-6
  )


def test_memory_does_not_grow_with_activations_nor_with_draws(optimised):
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
  w = _joint(PGD, surrogate, BUDGET)
  # Another network's gradients move the sample, and its own ones more.
  assert np.all(_moved(CURVED, w) > 0)
  own = _joint(PGD, CURVED, BUDGET)
  assert _moved(CURVED, own).mean() > 1.2 * _moved(CURVED, w).mean()


# Queries.


def _counting():
  """A network, and a dict of how often it was run, forward and backward."""
  counts = {"forward": 0, "backward": 0}

  def counted(name, x):
    # Its value is used: what is not cannot be told from what is not run.
    def host(x):
      counts[name] += 1
      return np.asarray(x)

    return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

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


def _counted(craft, update):
  eps_fn, counts = _counting()
  jax.block_until_ready(craft(_chain(eps_fn, update), BUDGET))
  return counts


UPDATES = {name: make("small", 0.5) for name, make in samplers.SAMPLERS.items()}


@pytest.mark.parametrize("name", UPDATES)
def test_evaluations_of_one_process(name):
  counts = _counted(lambda c, budget: samplers.reverse(*c), UPDATES[name])
  count = samplers.evaluations(name, N)
  assert counts == {"forward": count, "backward": 0}


@pytest.mark.parametrize("own_goal", [False, True])
@pytest.mark.parametrize(
  ("num_steps", "num_draws", "name"),
  [(0, 1, "ddpm"), (1, 1, "ddpm"), (3, 1, "heun"), (3, 2, "ddpm")],
)
def test_queries_of_joint(num_steps, num_draws, name, own_goal):
  attack = PGD._replace(num_steps=num_steps)
  draws = _keys(3, B * num_draws).reshape(num_draws, B)
  goal = (lambda x: jnp.sum(x, axis=1)) if own_goal else None
  counts = _counted(
    lambda c, budget: trajectory.joint(
      attack, c, _keys(2), budget, goal, draws
    ),
    UPDATES[name],
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
    lambda c, budget: trajectory.greedy(attack, c, _keys(2), budget),
    UPDATES[name],
  )
  queries = trajectory.greedy_queries(
    attack, samplers.evaluations(name, N), len(ATTACKED)
  )
  assert counts == {"forward": queries.forward, "backward": queries.backward}
  assert queries.recomputed == 0


def test_the_control_asks_nothing():
  counts = _counted(_craft("random"), samplers.ddpm())
  assert counts == {"forward": 0, "backward": 0}


def test_unknown_norm():
  for craft in ("joint", "greedy", "random"):
    with pytest.raises(KeyError):
      _craft(craft, "l7")(CURVED, BUDGET)
