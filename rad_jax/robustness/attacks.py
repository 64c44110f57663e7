"""Attacks: perturbations w, in noise units, that raise an objective.

An attack is a row of numbers, Attack; ATTACKS holds the published ones. It
takes the function to be raised, J: (w [b, ...]) -> [b], not a model, so that
it can be checked on functions whose best perturbation is known. Example i's
value of J may depend on w_i alone.

The radius [b] bounds each example's w in one of two norms, of which BALLS
holds the geometry:

  linf: |w_i| <= r for each element
  l2:   rms(w) <= r, that is |w|_2 <= r sqrt(d) for d elements

The root mean square gives r one meaning at any d, and both balls one scale: a
corner of the linf ball lies on the surface of the l2 ball.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rad_jax.diffusion.process import per_example

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]
Keys = Key[Array, " b"]

_TINY = float(jnp.finfo(jnp.float32).tiny)


class Attack(NamedTuple):
  """The numbers of an attack.

  Attributes:
    norm: the ball, a name in BALLS: "linf" or "l2".
    num_steps: gradient steps, 0 or more; 0 is the random start alone.
    step_size: length of a step in units of the radius, positive.
    momentum: mu of MI-FGSM, 0 or more; 0 is none, 1 sums all gradients.
    start: scale of the random start in units of the radius, 0 or more; 1 is
      uniform in the ball, 0 is from zero. An objective whose gradient is zero
      at w = 0 cannot be attacked from there.
    project: whether w is kept in the ball after each step. Without it, w is
      within start + num_steps * step_size radii.
  """

  norm: str = "linf"
  num_steps: int = 1
  step_size: float = 1.0
  momentum: float = 0.0
  start: float = 1.0
  project: bool = True


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
  """The geometry of a ball of radius [b].

  Attributes:
    uniform: (keys, radius, shape) -> w, uniform inside (up to rounding).
    project: (w, radius) -> the nearest point inside.
    ascent: (gradient, radius) -> the step inside the ball that climbs most to
      first order; zero where the gradient is.
  """

  uniform: Callable[[Keys, Scalars, tuple[int, ...]], Batch]
  project: Callable[[Batch, Scalars], Batch]
  ascent: Callable[[Batch, Scalars], Batch]


def gaussian(keys: Keys, radius: Scalars, shape: tuple[int, ...]) -> Batch:
  """w Gaussian of standard deviation `radius`, not bounded by it.

  The input perturbation of DDPM-IP (Ning et al. 2023, arXiv 2301.11706),
  which has radius gamma = 0.1.

  Args:
    keys: one key an example, [b].
    radius: standard deviation of each example's elements, [b].
    shape: the shape of one example.

  Returns:
    [b, *shape].

  Examples:
    >>> keys = jax.random.split(jax.random.key(0), 1000)
    >>> w = rad_jax.attacks.gaussian(keys, jnp.full(1000, 0.1), shape=(8,))
    >>> print(f"{w.std():.2f}")
    0.10
  """
  draw = lambda key: jax.random.normal(key, shape)
  return per_example(radius, 1 + len(shape)) * jax.vmap(draw)(keys)


def _uniform_linf(keys, radius, shape):
  draw = lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
  return per_example(radius, 1 + len(shape)) * jax.vmap(draw)(keys)


def _project_linf(w, radius):
  r = per_example(radius, w.ndim)
  return jnp.clip(w, -r, r)


def _ascent_linf(gradient, radius):
  return per_example(radius, gradient.ndim) * jnp.sign(gradient)


def _rms(w: Batch) -> Scalars:
  """The root mean square of each example's elements, [b]."""
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
  scale = radius / jnp.maximum(_rms(scaled), _TINY)
  return per_example(scale, gradient.ndim) * scaled


BALLS = {
  "linf": Ball(_uniform_linf, _project_linf, _ascent_linf),
  "l2": Ball(_uniform_l2, _project_l2, _ascent_l2),
}


def start(
  attack: Attack, keys: Keys, radius: Scalars, shape: tuple[int, ...]
) -> Batch:
  """The random start w_0: uniform in the ball of attack.start radii.

  Args:
    attack: its norm and start are used.
    keys: one key an example, [b]; w_0_i depends on key i alone.
    radius: radius of each example's ball in noise units, [b], 0 or more.
    shape: the shape of one example.

  Returns:
    [b, *shape].

  Raises:
    KeyError: attack.norm is not in BALLS.

  Examples:
    >>> keys = jax.random.split(jax.random.key(0), 1000)
    >>> attack = rad_jax.attacks.Attack(start=2.0)
    >>> radius = jnp.full(1000, 0.1)
    >>> w_0 = rad_jax.attacks.start(attack, keys, radius, shape=(8,))
    >>> print(f"{jnp.abs(w_0).max():.2f}")
    0.20
  """
  return BALLS[attack.norm].uniform(keys, attack.start * radius, shape)


def step(attack: Attack, w: Batch, gradient: Batch, radius: Scalars) -> Batch:
  """One step from w up a gradient that is at hand, without momentum.

  "Free" adversarial training (Shafahi et al. 2019, arXiv 1904.12843) calls it
  with the gradient from the training step's own backward pass.

  Args:
    attack: its norm, step_size and project are used.
    w: the perturbation to move, [b, ...].
    gradient: of the objective by w, [b, ...]; its scale does not matter.
    radius: radius of each example's ball in noise units, [b], 0 or more.

  Returns:
    [b, ...]; w itself (projected, if attack.project) where an example's
    gradient is zero.

  Raises:
    KeyError: attack.norm is not in BALLS.

  Examples:
    A step out of the l2 ball is taken back to its border:

    >>> attack = rad_jax.attacks.Attack(norm="l2")
    >>> w = jnp.array([[0.1, 0.1]])  # root mean square 0.1
    >>> print(rad_jax.attacks.step(attack, w, w, radius=jnp.array([0.1])))
    [[0.1 0.1]]
  """
  ball = BALLS[attack.norm]
  w = w + ball.ascent(gradient, attack.step_size * radius)
  return ball.project(w, radius) if attack.project else w


def ascend(
  attack: Attack,
  objective: Callable[[Batch], Scalars],
  w_0: Batch,
  radius: Scalars,
) -> Batch:
  """attack.num_steps gradient steps up the objective from w_0.

  With momentum, g <- mu g + grad / mean|grad| for each example, from g = 0,
  and the step goes up g. (MI-FGSM divides by the sum; the directions are the
  same.)

  Args:
    attack: all of its fields but start are used.
    objective: J, (w [b, ...]) -> [b]; differentiated by w only.
    w_0: the start, [b, ...].
    radius: radius of each example's ball in noise units, [b], 0 or more.

  Returns:
    [b, ...], with no gradient to anything.

  Raises:
    KeyError: attack.norm is not in BALLS.

  Examples:
    FGSM on a linear objective ends in the corner of its slope:

    >>> slope = jnp.array([[3.0, -1.0], [0.0, 2.0]])
    >>> objective = lambda w: jnp.sum(slope * w, axis=1)
    >>> attack = rad_jax.attacks.ATTACKS["fgsm"]
    >>> w_0, radius = jnp.zeros((2, 2)), jnp.full(2, 0.1)
    >>> print(rad_jax.attacks.ascend(attack, objective, w_0, radius))
    [[ 0.1 -0.1]
     [ 0.   0.1]]
  """
  by_w = jax.grad(lambda w: jnp.sum(objective(w)))
  w_0, radius = jax.lax.stop_gradient((w_0, radius))

  def body(_, carry):
    w, g = carry
    gradient = jax.lax.stop_gradient(by_w(w))
    if attack.momentum:
      axes = tuple(range(1, w.ndim))
      mean = jnp.maximum(jnp.mean(jnp.abs(gradient), axis=axes), _TINY)
      gradient = attack.momentum * g + gradient / per_example(mean, w.ndim)
    return step(attack, w, gradient, radius), gradient

  carry = w_0, jnp.zeros_like(w_0)
  if attack.num_steps == 0:
    return w_0
  if attack.num_steps == 1:  # No loop: XLA counts a loop's FLOPs wrongly.
    return body(0, carry)[0]
  return jax.lax.fori_loop(0, attack.num_steps, body, carry)[0]


def maximise(
  attack: Attack,
  objective: Callable[[Batch], Scalars],
  keys: Keys,
  radius: Scalars,
  shape: tuple[int, ...],
) -> Batch:
  """The perturbation w of an attack: its random start and its steps.

  Args:
    attack: the attack.
    objective: J, (w [b, ...]) -> [b]; differentiated by w only, and not
      called if attack.num_steps is 0.
    keys: one key an example, [b]; w_i depends on key i alone.
    radius: radius of each example's ball in noise units, [b], 0 or more.
    shape: the shape of one example.

  Returns:
    [b, *shape], with no gradient to anything.

  Raises:
    KeyError: attack.norm is not in BALLS.

  Examples:
    PGD in the l2 ball turns to the direction of the slope, (0.6, -0.8):

    >>> slope = jnp.array([[3.0, -4.0]])
    >>> w = rad_jax.attacks.maximise(
    ...   rad_jax.attacks.ATTACKS["pgd"]._replace(norm="l2"),
    ...   lambda w: jnp.sum(slope * w, axis=1),
    ...   jax.random.split(jax.random.key(0), 1),
    ...   radius=jnp.ones(1),
    ...   shape=(2,),
    ... )
    >>> print(w / jnp.linalg.norm(w))
    [[ 0.602 -0.799]]
  """
  w_0 = start(attack, keys, radius, shape)
  return ascend(attack, objective, w_0, radius)


def by_name(name: str) -> Callable[..., Batch]:
  """The perturbation of a published attack, or of none, at its own numbers.

  Args:
    name: in ATTACKS; "gaussian"; or "none", for w = 0.

  Returns:
    (objective, keys [b], radius [b], shape) -> w [b, *shape], as `maximise`.

  Raises:
    KeyError: no such attack.

  Examples:
    >>> perturb = rad_jax.attacks.by_name("uniform")
    >>> keys = jax.random.split(jax.random.key(0), 1000)
    >>> objective = lambda w: jnp.sum(w, axis=1)
    >>> w = perturb(objective, keys, jnp.full(1000, 0.1), (8,))
    >>> print(f"{w.min():.2f} to {w.max():.2f}")
    -0.10 to 0.10
  """
  if name in ATTACKS:
    return partial(maximise, ATTACKS[name])
  return {
    "gaussian": lambda objective, keys, radius, shape: gaussian(
      keys, radius, shape
    ),
    "none": lambda objective, keys, radius, shape: jnp.zeros(
      (*radius.shape, *shape)
    ),
  }[name]
