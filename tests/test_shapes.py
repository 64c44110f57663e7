"""Signatures name shapes, and the tests run with them checked.

pyproject.toml has the option that does it, for the whole suite; without it,
these calls would broadcast, or go wrong later.
"""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import rad_jax
from rad_jax.robustness import method

LEVEL = rad_jax.schedules.flow().grid(3)
NOISED = rad_jax.noising.Noised(
  jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones(3), jnp.ones(3)
)
X = jnp.ones((3, 2))
METHOD = rad_jax.Method(
  rad_jax.objectives.OBJECTIVES["ddpm"],
  rad_jax.as_predictor(lambda params, x_t, t: x_t),
  rad_jax.schedules.flow(),
)


def keys():
  return jax.random.split(jax.random.key(0), 3)


WRONG = {
  "batch sizes": lambda: rad_jax.process.diffuse(LEVEL, X, jnp.ones((1, 2))),
  "ranks": lambda: rad_jax.objectives.squared_error(X, jnp.ones(3)),
  "a radius for each": lambda: rad_jax.attacks.start(
    rad_jax.attacks.Attack(), keys(), jnp.ones(1), (2,)
  ),
  "a sigma_c for each": lambda: rad_jax.noising.aware(X, jnp.ones(1), LEVEL, X),
  "w like the state": lambda: rad_jax.objectives.loss(
    rad_jax.objectives.OBJECTIVES["robust_adv"],
    lambda x_t: x_t,
    X,
    NOISED,
    jnp.ones((3, 1)),
    jnp.ones(3),
  ),
  "a budget for each level": lambda: rad_jax.trajectory.random(
    "linf", None, keys(), jnp.ones(3)
  ),
  "a whole number of levels": lambda: rad_jax.schedules.respaced_timesteps(
    10.0, 5
  ),
  "noise of each example": lambda: method.draw(
    METHOD, X, jnp.ones(2), jax.random.key(0)
  ),
  "points as floats": lambda: rad_jax.subspace.fit(
    np.array([[1, 2], [3, 4]]), 1
  ),
  "images": lambda: rad_jax.examples.random_flip(keys(), jnp.ones((3, 4, 4))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused(name):
  with pytest.raises(jaxtyping.TypeCheckError):
    WRONG[name]()
