"""Perturbations w, in noise units, inside the box |w_i| <= radius.

An attack takes the function to be raised, not a model, so that it can be
checked on a linear function whose best perturbation is known.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rad_jax.diffusion.schedules import per_example

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]


def uniform(
  keys: Key[Array, " b"], radius: Scalars, shape: tuple[int, ...]
) -> Batch:
  """w uniform in the box, drawn for each example from its own key.

  Args:
    keys: one key an example, [b].
    radius: half-width of the box of each example, [b].
    shape: the shape of one example.

  Returns:
    [b, *shape].
  """
  draw = lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
  return per_example(radius, 1 + len(shape)) * jax.vmap(draw)(keys)


def fgsm(
  objective: Callable[[Batch], Scalars],
  w_0: Batch,
  radius: Scalars,
  step_size: float = 1.0,
) -> Batch:
  """One signed gradient step up the objective, from w_0, kept in the box.

  w = clip(w_0 + step_size r sign(grad J(w_0)), -r, r) (Wong et al. 2020,
  "Fast is better than free", Algorithm 3).

  Args:
    objective: J, (w [b, ...]) -> [b]; example i's value may depend on w_i
      alone. The paper's J has gradient zero at w = 0: without a random start
      there is no attack.
    w_0: the start, inside the box.
    radius: half-width of the box of each example, [b].
    step_size: in units of the radius; 1 by default, 1.25 in Wong et al.

  Returns:
    [b, ...], with no gradient to anything.
  """
  r = per_example(radius, w_0.ndim)
  gradient = jax.grad(lambda w: jnp.sum(objective(w)))(w_0)
  w = jnp.clip(w_0 + step_size * r * jnp.sign(gradient), -r, r)
  return jax.lax.stop_gradient(w)
