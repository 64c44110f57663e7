"""Attacks: perturbations w, in noise units, that raise a goal w -> [b].

The radius r [b] bounds each |w_i| ("linf"), or rms(w) = |w|_2 / sqrt(d) ("l2"):
one meaning at any d. An example's goal may depend on its own w alone.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from rad_jax.diffusion.process import Batch, Scalars, per_example

Keys = Key[Array, " b"]
Goal = Callable[[Batch], Scalars]
Shape = tuple[int, ...]  # of one example

_TINY = float(jnp.finfo(jnp.float32).tiny)


class Attack(NamedTuple):
  """The numbers of an attack; lengths are in units of the radius."""

  norm: str = "linf"  # the ball, a name in BALLS; else KeyError
  num_steps: int = 1  # gradient steps; 0 is the random start alone
  step_size: float = 1.0  # positive
  momentum: float = 0.0  # mu of MI-FGSM; 0 is none, 1 sums all gradients
  start: float = 1.0  # scale of the random w_0; a goal flat at w = 0 needs it
  project: bool = True  # else w may reach start + num_steps * step_size


ATTACKS = {
  # Uniform in the ball: no attack, but its scale.
  "uniform": Attack(num_steps=0),
  # Wong et al. 2020, "Fast is better than free", Algorithm 3.
  "fgsm": Attack(),
  # de Jorge et al. 2022, arXiv 2202.01181: w may reach 3 radii.
  "n_fgsm": Attack(start=2.0, project=False),
  # Madry et al. 2018, "Towards deep learning models resistant to ...".
  "pgd": Attack(num_steps=10, step_size=0.25),
  # Dong et al. 2018, arXiv 1710.06081, but from a random start, not from 0.
  "mi_fgsm": Attack(num_steps=10, step_size=0.1, momentum=1.0),
}


class Ball(NamedTuple):
  """The geometry of a ball of radius [b]."""

  uniform: Callable[[Keys, Scalars, Shape], Batch]  # inside, up to rounding
  project: Callable[[Batch, Scalars], Batch]  # w -> the nearest point inside
  # gradient -> the step inside that climbs most to first order; 0 where it is 0
  ascent: Callable[[Batch, Scalars], Batch]


def gaussian(keys: Keys, radius: Scalars, shape: Shape) -> Batch:
  """Gaussian w of std `radius`, 0.1 in DDPM-IP (Ning et al. 2023)."""
  draw = lambda key: jax.random.normal(key, shape)
  return per_example(radius, 1 + len(shape)) * jax.vmap(draw)(keys)


def _uniform_linf(keys, radius, shape):
  draw = lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
  return per_example(radius, 1 + len(shape)) * jax.vmap(draw)(keys)


def _project_linf(w, radius):
  r = per_example(radius, w.ndim)
  return jnp.clip(w, -r, r)


def _rms(w: Batch) -> Scalars:
  return jnp.sqrt(jnp.mean(jnp.square(w), axis=tuple(range(1, w.ndim))))


def _uniform_l2(keys, radius, shape):
  # A Gaussian has a uniform direction; U^(1/d) is the uniform ball's norm.
  d = math.prod(shape)
  keys = jax.vmap(jax.random.split)(keys)
  direction = jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 0])
  norm = jax.vmap(jax.random.uniform)(keys[:, 1]) ** (1 / d)
  return _ascent_l2(direction, radius * norm)


def _project_l2(w, radius):
  norm = _rms(w)
  scale = jnp.where(norm > radius, radius / jnp.maximum(norm, _TINY), 1.0)
  return per_example(scale, w.ndim) * w


def _ascent_l2(gradient, radius):
  # Divided by its largest element first: a square of 1e-20 is 0 in float32.
  axes = tuple(range(1, gradient.ndim))
  largest = jnp.maximum(jnp.max(jnp.abs(gradient), axis=axes), _TINY)
  scaled = gradient / per_example(largest, gradient.ndim)
  # The rms is now 1 / sqrt(d) at least, or 0: radius / _TINY would overflow.
  scale = radius / jnp.maximum(_rms(scaled), 1e-9)
  return per_example(scale, gradient.ndim) * scaled


BALLS = {
  "linf": Ball(
    _uniform_linf,
    _project_linf,
    lambda gradient, r: per_example(r, gradient.ndim) * jnp.sign(gradient),
  ),
  "l2": Ball(_uniform_l2, _project_l2, _ascent_l2),
}


def start(attack: Attack, keys: Keys, radius: Scalars, shape: Shape) -> Batch:
  """The random start w_0 [b, *shape]: uniform in attack.start radii."""
  return BALLS[attack.norm].uniform(keys, attack.start * radius, shape)


def step(attack: Attack, w: Batch, gradient: Batch, radius: Scalars) -> Batch:
  """One step up a known gradient of any scale; where that is 0, w stays."""
  ball = BALLS[attack.norm]
  w = w + ball.ascent(gradient, attack.step_size * radius)
  return ball.project(w, radius) if attack.project else w


def climb(
  attack: Attack,
  gradient: Callable[[Batch], Batch],
  w_0: Batch,
  radius: Scalars,
) -> Batch:
  """attack.num_steps steps from w_0 up the gradient w -> [b, ...].

  With momentum, up g <- mu g + grad / mean|grad| of each example (MI-FGSM's sum
  has the same directions). No gradient goes through the result.
  """
  w_0, radius = jax.lax.stop_gradient((w_0, radius))

  def body(_, carry):
    w, g = carry
    slope = jax.lax.stop_gradient(gradient(w))
    if attack.momentum:
      axes = tuple(range(1, w.ndim))
      mean = jnp.maximum(jnp.mean(jnp.abs(slope), axis=axes), _TINY)
      slope = attack.momentum * g + slope / per_example(mean, w.ndim)
    return step(attack, w, slope, radius), slope

  carry = w_0, jnp.zeros_like(w_0)
  if attack.num_steps == 0:
    return w_0
  if attack.num_steps == 1:  # No loop: XLA counts a loop's FLOPs wrongly.
    return body(0, carry)[0]
  return jax.lax.fori_loop(0, attack.num_steps, body, carry)[0]


def ascend(attack: Attack, goal: Goal, w_0: Batch, radius: Scalars) -> Batch:
  """attack.num_steps gradient steps up the goal from w_0, as `climb`.

  Examples:
    FGSM on a linear goal ends in the corner of its slope:

    >>> slope = jnp.array([[3.0, -1.0], [0.0, 2.0]])
    >>> goal = lambda w: jnp.sum(slope * w, axis=1)
    >>> attack = rad_jax.attacks.ATTACKS["fgsm"]
    >>> w_0, radius = jnp.zeros((2, 2)), jnp.full(2, 0.1)
    >>> print(rad_jax.attacks.ascend(attack, goal, w_0, radius))
    [[ 0.1 -0.1]
     [ 0.   0.1]]
  """
  return climb(attack, jax.grad(lambda w: jnp.sum(goal(w))), w_0, radius)


def maximise(
  attack: Attack, goal: Goal, keys: Keys, radius: Scalars, shape: Shape
) -> Batch:
  """An attack's w [b, *shape], start and steps; w_i depends on key i alone."""
  return ascend(attack, goal, start(attack, keys, radius, shape), radius)


def by_name(name: str) -> Callable[..., Batch]:
  """`maximise` by a name in ATTACKS, "gaussian" or "none"; else KeyError."""
  if name in ATTACKS:
    return partial(maximise, ATTACKS[name])
  return {
    "gaussian": lambda goal, *draw: gaussian(*draw),
    "none": lambda goal, _, radius, shape: jnp.zeros((*radius.shape, *shape)),
  }[name]


def mean_gradient(
  value: Callable[[Array, Any], Scalars], draws: Any
) -> Callable[[Array], Array]:
  """w -> the mean of d value / dw over draws [m, ...], in the memory of one."""
  count = len(jax.tree.leaves(draws)[0])

  def gradient(w):
    def add(total, draw):
      return total + jax.grad(lambda w: jnp.sum(value(w, draw)))(w), None

    return jax.lax.scan(add, jnp.zeros_like(w), draws)[0] / count

  return gradient
