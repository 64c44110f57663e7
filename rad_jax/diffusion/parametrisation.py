"""What a network predicts: five ways to write one denoiser.

Every network output y is a mix of the data and the noise of the state,
y = c_x_0 x_0 + c_eps eps, so two coefficients a level say all about it: its
training target, the estimates of eps and x_0 it implies, its natural loss
weight, and how it must move for the noise estimate to move by w at
x_t + sigma w, with x_0 unmoved: by c_eps w.

| prediction | c_x_0 | c_eps: equivariant shift / w |
|---|---|---|
| eps | 0 | 1 |
| x_0 | 1 | 0 |
| v | -sigma | alpha |
| velocity | -1 | 1 |
| edm | ratio / (sd root) | -sd / root |

v is normalised by hypot(alpha, sigma), which is 1 for DDPM. For edm, ratio =
sigma / alpha, sd = sigma_data and root = hypot(ratio, sd).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from rad_jax.diffusion.process import Level, per_example

Batch = Float[Array, "b ..."]
Scalars = Float[Array, " b"]
Coefficients = tuple[Array, Array]
Prediction = Callable[[Level], Coefficients]
Weighting = Callable[[Level], Scalars]
EpsFn = Callable[[Batch, Level], Batch]


def eps(level: Level) -> Coefficients:
  """y = eps (Ho et al. 2020).

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)  # sigma 0.9, 0.5, 0.1
    >>> c_x_0, c_eps = rad_jax.parametrisation.eps(level)
    >>> print(c_x_0, c_eps)
    [0. 0. 0.] [1. 1. 1.]
  """
  return jnp.zeros_like(level.sigma), jnp.ones_like(level.sigma)


def x_0(level: Level) -> Coefficients:
  """y = x_0.

  Examples:
    A network that predicts x_0 is equivariant if its output does not move:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> _, shift = rad_jax.parametrisation.x_0(level)
    >>> print(shift)
    [0. 0. 0.]
  """
  return jnp.ones_like(level.sigma), jnp.zeros_like(level.sigma)


def v(level: Level) -> Coefficients:
  """y = alpha eps - sigma x_0, normalised (Salimans & Ho 2022, section 4).

  Examples:
    Unit data and noise give a unit target at every level:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> c_x_0, c_eps = rad_jax.parametrisation.v(level)
    >>> print(c_x_0**2 + c_eps**2)
    [1. 1. 1.]
  """
  scale = jnp.hypot(level.alpha, level.sigma)
  return -level.sigma / scale, level.alpha / scale


def velocity(level: Level) -> Coefficients:
  """y = eps - x_0: dx_t/dt of the straight path (Liu et al. 2022).

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> print(*rad_jax.parametrisation.velocity(level))
    [-1. -1. -1.] [1. 1. 1.]
  """
  return -jnp.ones_like(level.sigma), jnp.ones_like(level.sigma)


def edm(sigma_data: float) -> Prediction:
  """y = F, where x_0_hat = c_skip x + c_out F (Karras et al. 2022, table 1).

  x = x_t / alpha has noise sigma / alpha; F's target has unit variance.

  Examples:
    The target of data of standard deviation 0.5 has unit variance:

    >>> level = rad_jax.schedules.edm().grid(3)
    >>> c_x_0, c_eps = rad_jax.parametrisation.edm(sigma_data=0.5)(level)
    >>> print((0.5 * c_x_0) ** 2 + c_eps**2)
    [1. 1. 1.]
  """

  def coefficients(level: Level) -> Coefficients:
    ratio = level.sigma / level.alpha
    root = jnp.hypot(ratio, sigma_data)
    return ratio / (sigma_data * root), -sigma_data / root

  return coefficients


def predictions(sigma_data: float) -> dict[str, Prediction]:
  """All of them by name.

  Examples:
    >>> print(*rad_jax.parametrisation.predictions(sigma_data=0.5))
    eps x_0 v velocity edm
  """
  return {
    "eps": eps,
    "x_0": x_0,
    "v": v,
    "velocity": velocity,
    "edm": edm(sigma_data),
  }


PREDICTIONS = tuple(predictions(1.0))


def target(
  prediction: Prediction, level: Level, x_0: Batch, eps: Batch
) -> Batch:
  """y = c_x_0 x_0 + c_eps eps: what the network should put out.

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> x_0, eps = jnp.ones((3, 2)), jnp.full((3, 2), 0.25)
    >>> velocity = rad_jax.parametrisation.velocity
    >>> print(rad_jax.parametrisation.target(velocity, level, x_0, eps)[0])
    [-0.75 -0.75]
  """
  c_x_0, c_eps = (per_example(c, x_0.ndim) for c in prediction(level))
  return c_x_0 * x_0 + c_eps * eps


def to_eps(prediction: Prediction, level: Level, x_t: Batch, y: Batch) -> Batch:
  """eps_hat = (alpha y - c_x_0 x_t) / (alpha c_eps - sigma c_x_0).

  Examples:
    It undoes `target`:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> x_0, eps = jnp.ones((3, 2)), jnp.full((3, 2), 0.25)
    >>> x_t = rad_jax.process.diffuse(level, x_0, eps)
    >>> v = rad_jax.parametrisation.v
    >>> y = rad_jax.parametrisation.target(v, level, x_0, eps)
    >>> eps_hat = rad_jax.parametrisation.to_eps(v, level, x_t, y)
    >>> print(eps_hat[:, 0])
    [0.25 0.25 0.25]
  """
  c_x_0, _ = prediction(level)
  numerator = (
    per_example(level.alpha, x_t.ndim) * y - per_example(c_x_0, x_t.ndim) * x_t
  )
  return numerator / per_example(_determinant(prediction, level), x_t.ndim)


def eps_fn(
  output_fn: Callable[[Batch, Scalars], Batch], prediction: Prediction
) -> EpsFn:
  """The noise predictor that a network, told its input and time, amounts to.

  Examples:
    A network whose estimate of x_0 is 0 takes the state for noise, x_t / sigma:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> eps_fn = rad_jax.parametrisation.eps_fn(
    ...   lambda x_t, t: jnp.zeros_like(x_t), rad_jax.parametrisation.x_0
    ... )
    >>> print(eps_fn(jnp.ones((3, 1)), level)[:, 0])
    [ 1.111  2.    10.   ]
  """

  def predict(x_t: Batch, level: Level) -> Batch:
    y = output_fn(per_example(level.input_scale, x_t.ndim) * x_t, level.time)
    return to_eps(prediction, level, x_t, y)

  return predict


def own_weight(prediction: Prediction) -> Weighting:
  """|y_hat - y|^2 / |eps_hat - eps|^2: the plain loss on the output itself.

  This is DDPM's simple loss for eps, 1 / SNR (the plain |x_0_hat - x_0|^2) for
  x_0, EDM's weighting for edm, flow matching's loss for velocity.

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> weight = rad_jax.parametrisation.own_weight(rad_jax.parametrisation.x_0)
    >>> print(weight(level))  # (sigma / alpha)^2
    [81.     1.     0.012]
  """
  return lambda level: jnp.square(_determinant(prediction, level) / level.alpha)


def eps_weight(level: Level) -> Scalars:
  """DDPM's simple loss whatever the network predicts: 1.

  Examples:
    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> print(rad_jax.parametrisation.eps_weight(level))
    [1. 1. 1.]
  """
  return jnp.ones_like(level.sigma)


def min_snr_weight(level: Level) -> Scalars:
  """min(SNR, 5) |x_0_hat - x_0|^2 (Hang et al. 2023, arXiv 2303.09556).

  Examples:
    Levels of a signal-to-noise ratio under 5 weigh as DDPM's:

    >>> level = rad_jax.schedules.flow(end=0.1).grid(3)
    >>> print(rad_jax.parametrisation.min_snr_weight(level))
    [1.    1.    0.062]
  """
  return jnp.minimum(1, 5 * jnp.square(level.sigma / level.alpha))


def weightings(prediction: Prediction) -> dict[str, Weighting]:
  """Weights of |eps_hat - eps|^2 in the loss, by name.

  Examples:
    >>> print(*rad_jax.parametrisation.weightings(rad_jax.parametrisation.v))
    own eps min_snr
  """
  return {
    "own": own_weight(prediction),
    "eps": eps_weight,
    "min_snr": min_snr_weight,
  }


WEIGHTINGS = tuple(weightings(eps))


def _determinant(prediction: Prediction, level: Level) -> Scalars:
  c_x_0, c_eps = prediction(level)
  return level.alpha * c_eps - level.sigma * c_x_0
