"""What a network predicts, y = c_x_0 x_0 + c_eps eps: coefficients by level.

For eps_hat to change by w while x_0_hat stays, y must change by c_eps w.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from rad_jax.diffusion.process import Batch, Level, Scalars, per_example

Coefficients = tuple[Array, Array]
Prediction = Callable[[Level], Coefficients]
Weighting = Callable[[Level], Scalars]
EpsFn = Callable[[Batch, Level], Batch]


def eps(level: Level) -> Coefficients:
  """y = eps (Ho et al. 2020)."""
  return jnp.zeros_like(level.sigma), jnp.ones_like(level.sigma)


def x_0(level: Level) -> Coefficients:
  """y = x_0."""
  return jnp.ones_like(level.sigma), jnp.zeros_like(level.sigma)


def v(level: Level) -> Coefficients:
  """y = alpha eps - sigma x_0, normalised (Salimans & Ho 2022, section 4)."""
  scale = jnp.hypot(level.alpha, level.sigma)
  return -level.sigma / scale, level.alpha / scale


def velocity(level: Level) -> Coefficients:
  """y = eps - x_0: dx_t/dt of the straight path (Liu et al. 2022)."""
  return -jnp.ones_like(level.sigma), jnp.ones_like(level.sigma)


def edm(sigma_data: float) -> Prediction:
  """y = F, with x_0_hat = c_skip x_t / alpha + c_out F (Karras et al. 2022)."""

  def coefficients(level: Level) -> Coefficients:
    ratio = level.sigma / level.alpha
    root = jnp.hypot(ratio, sigma_data)
    return ratio / (sigma_data * root), -sigma_data / root

  return coefficients


def predictions(sigma_data: float) -> dict[str, Prediction]:
  """All predictions, by name."""
  return dict(eps=eps, x_0=x_0, v=v, velocity=velocity, edm=edm(sigma_data))


PREDICTIONS = tuple(predictions(1.0))


def target(
  prediction: Prediction, level: Level, x_0: Batch, eps: Batch
) -> Batch:
  """y = c_x_0 x_0 + c_eps eps: what the network should output, [b, ...]."""
  c_x_0, c_eps = (per_example(c, x_0.ndim) for c in prediction(level))
  return c_x_0 * x_0 + c_eps * eps


def to_eps(prediction: Prediction, level: Level, x_t: Batch, y: Batch) -> Batch:
  """eps_hat = (alpha y - c_x_0 x_t) / (alpha c_eps - sigma c_x_0), [b, ...]."""
  columns = level.alpha, prediction(level)[0], _determinant(prediction, level)
  alpha, c_x_0, determinant = (per_example(c, x_t.ndim) for c in columns)
  return (alpha * y - c_x_0 * x_t) / determinant


def eps_fn(
  output_fn: Callable[[Batch, Scalars], Batch], prediction: Prediction
) -> EpsFn:
  """The noise predictor that a network (scaled x_t, time) -> y implies.

  Examples:
    A network that always estimates x_0 as 0 takes the whole state for noise,
    x_t / sigma:

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
  """|y_hat - y|^2 / |eps_hat - eps|^2: the plain loss on y itself."""
  return lambda level: jnp.square(_determinant(prediction, level) / level.alpha)


def eps_weight(level: Level) -> Scalars:
  """DDPM's simple loss whatever the network predicts: 1."""
  return jnp.ones_like(level.sigma)


def min_snr_weight(level: Level) -> Scalars:
  """min(SNR, 5) |x_0_hat - x_0|^2 (Hang et al. 2023, arXiv 2303.09556)."""
  return jnp.minimum(1, 5 * jnp.square(level.sigma / level.alpha))


def weightings(prediction: Prediction) -> dict[str, Weighting]:
  """Weights of |eps_hat - eps|^2 in the loss, by name."""
  own = own_weight(prediction)
  return dict(own=own, eps=eps_weight, min_snr=min_snr_weight)


WEIGHTINGS = tuple(weightings(eps))


def _determinant(prediction: Prediction, level: Level) -> Scalars:
  c_x_0, c_eps = prediction(level)
  return level.alpha * c_eps - level.sigma * c_x_0
