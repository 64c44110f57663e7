"""What equivariance costs: how far it shrinks the data, in closed form.

For data of variance q2 along a direction, independent w of standard deviation
rho there, and a linear eps_hat = c x_t, the objective

  E (c x_t - eps)^2 + lambda_t E (c sigma w - w)^2

is least at c = sigma / (alpha^2 q2 / (1 + lambda_t rho^2) + sigma^2), the plain
optimum for variance q2 / (1 + lambda_t rho^2). A level shrinks all directions
alike; sampling decides each at the levels where the noise is of its size. If
data is not Gaussian, this is a hint and no bound.
"""

import math

import numpy as np
import scipy.optimize

# Standard deviation and mean size of w's elements, in units of the radius.
LAWS = {
  "uniform": (1 / math.sqrt(3), 1 / 2),
  "gaussian": (1.0, math.sqrt(2 / math.pi)),
  "corner": (1.0, 1.0),
}


def effective_variance(q2, lam_t, rho):
  """q2 / (1 + lam_t rho^2): the variance that regularised training learns."""
  return np.divide(q2, 1 + np.asarray(lam_t, np.float64) * np.square(rho))


def std_of_w(radius, law: str):
  """Standard deviation of w's elements, in noise units, by the law of w.

  It is a direction's too if w prefers none; all of w in one of d directions has
  r sqrt(d) there. "corner", where sign steps mostly end, bounds the rms over
  directions, for either norm.
  """
  return _law(law)[0] * np.asarray(radius, np.float64)


def mean_size_of_w(radius, law: str):
  """Mean |w_i|, in noise units, by the law of w; see `std_of_w`."""
  return _law(law)[1] * np.asarray(radius, np.float64)


def sampled_variance(
  q2: float,
  alpha: np.ndarray,
  sigma: np.ndarray,
  lam_t: np.ndarray | float,
  rho: np.ndarray | float,
  eta: float = 0.0,
  large: bool = False,
) -> float:
  """The variance along a direction of DDIM's samples by the linear optimum.

  q2 is the data's, in data units squared; lam_t and rho are [n] or numbers.
  Levels fall, and nothing is clipped. eta = 1 is the ddpm sampler of "small"
  variance, and with `large` that of "large".
  """
  alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
  learnt = effective_variance(q2, lam_t, rho)
  total = np.square(alpha) * learnt + np.square(sigma)
  to_x_0, to_eps = alpha * learnt / total, sigma / total
  # The noise of q(x_s | x_t, x_0) at each step, as in process.transition.
  ratio = np.square(alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1]))
  added = np.square(eta * sigma[1:]) * np.maximum(1 - ratio, 0)
  kept = np.sqrt(np.maximum(np.square(sigma[1:]) - added, 0))
  factors = alpha[1:] * to_x_0[:-1] + kept * to_eps[:-1]
  if large:  # q(x_t | x_s)'s noise, the mean as it was
    added = added * np.square(sigma[:-1] / sigma[1:])
  variance = np.square(sigma[0])
  for factor, noise in zip(factors, added, strict=True):
    variance = np.square(factor) * variance + noise
  return float(np.square(to_x_0[-1]) * variance)


def lambda_for(
  target_ratio: float,
  q2: float,
  alpha: np.ndarray,
  sigma: np.ndarray,
  unit_lam_t: np.ndarray | float,
  rho: np.ndarray | float,
  eta: float = 0.0,
  large: bool = False,
  largest: float = 1e9,
) -> float:
  """The lambda that leaves target_ratio of a direction's standard deviation.

  unit_lam_t is lambda_t at lambda = 1; the rest is as for `sampled_variance`.
  """

  def excess(lam: float) -> float:
    lam_t = lam * np.asarray(unit_lam_t, np.float64)
    variance = sampled_variance(q2, alpha, sigma, lam_t, rho, eta, large)
    return math.sqrt(variance / q2) - target_ratio

  least, most = excess(largest) + target_ratio, excess(0.0) + target_ratio
  if not least <= target_ratio <= most:
    raise ValueError(
      f"no lambda up to {largest:g} leaves {target_ratio:g} of the standard"
      f" deviation {math.sqrt(q2):g}: it stays between {least:.4g} and"
      f" {most:.4g}"
    )
  brentq = scipy.optimize.brentq
  return float(brentq(excess, 0.0, largest, xtol=1e-12, maxiter=1000))


def _law(law: str) -> tuple[float, float]:
  if law not in LAWS:
    raise ValueError(f"law of w {law!r}: it must be one of {', '.join(LAWS)}")
  return LAWS[law]
