"""The linear subspace of a data set: its leading principal components."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


class Subspace(NamedTuple):
  """An affine subspace of R^d."""

  mean: np.ndarray  # [d]
  basis: np.ndarray  # orthonormal rows [rank, d], by falling variance


def fit(x: Float[np.ndarray, "n ..."], rank: int) -> Subspace:
  """The principal components of x; ValueError unless rank <= min(n, d)."""
  flat = x.reshape(len(x), -1)
  if not 1 <= rank <= min(flat.shape):
    raise ValueError(
      f"{len(flat)} examples of {flat.shape[1]} elements have no"
      f" {rank} principal components"
    )
  from sklearn.decomposition import PCA  # A quarter of a second to import.

  # Exact for small sets and randomised, by a fixed seed, for large ones.
  pca = PCA(rank, svd_solver="auto", random_state=0).fit(flat)
  return Subspace(pca.mean_, pca.components_)


def truncate(subspace: Subspace, rank: int) -> Subspace:
  """The `rank` leading components of a subspace."""
  return subspace._replace(basis=subspace.basis[:rank])


def coordinates(
  subspace: Subspace, x: Float[Any, "n ..."]
) -> Float[Any, "n rank"]:
  """Coordinates [n, rank] of x [n, ...], of NumPy or JAX, along the basis."""
  return (x.reshape(len(x), -1) - subspace.mean[None]) @ subspace.basis.T


def project(
  subspace: Subspace, x: Float[np.ndarray, " n *shape"]
) -> Float[np.ndarray, " n *shape"]:
  """The nearest point of the subspace to each example, in x's shape."""
  flat = coordinates(subspace, x) @ subspace.basis + subspace.mean
  return flat.reshape(x.shape).astype(x.dtype)
