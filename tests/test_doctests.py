"""The examples in the docstrings: every public function has one, and it runs.

They see `jax`, `jnp`, `np`, `optax` and `rad_jax`, and print arrays to three
digits.
"""

import doctest
import importlib
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rad_jax

MODULES = [
  f"rad_jax.{name}"
  for name in (
    "diffusion.parametrisation",
    "diffusion.process",
    "diffusion.samplers",
    "diffusion.schedules",
    "robustness.attacks",
    "robustness.noising",
    "robustness.objectives",
    "robustness.purification",
    "robustness.radius",
    "robustness.shrinkage",
    "robustness.trajectory",
    "models.embedding",
    "models.mlp",
    "models.network",
    "models.unet",
    "data.batches",
    "data.corruptions",
    "data.examples",
    "data.images",
    "data.subspace",
    "data.synthetic",
    "training.budget",
    "training.optimizers",
    "training.state",
    "training.step",
    "evaluation.measures",
    "evaluation.truth",
  )
]
NAMES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "rad_jax": rad_jax}


def public_functions(module: types.ModuleType) -> dict[str, types.FunctionType]:
  """Those that a module defines, by name."""
  return {
    name: value
    for name, value in vars(module).items()
    # A wrapped one, as of lru_cache, has its own behind it.
    if inspect.isfunction(inspect.unwrap(value))
    and value.__module__ == module.__name__
    and not name.startswith("_")
  }


FUNCTIONS = {
  f"{name}.{function}": value
  for name in MODULES
  for function, value in public_functions(importlib.import_module(name)).items()
}


def failures(docstring: str, name: str) -> str:
  """What the examples of a docstring print that they should not; "" is well."""
  test = doctest.DocTestParser().get_doctest(
    docstring, dict(NAMES), name, None, None
  )
  said: list[str] = []
  with np.printoptions(precision=3, suppress=True):
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
  return "".join(said)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name):
  docstring = inspect.getdoc(FUNCTIONS[name])
  assert ">>> " in docstring, "a public function has an example"
  assert name.split(".")[-1] in docstring.partition(">>> ")[2]
  assert failures(docstring, name) == ""


def test_modules_are_all_there():
  """No module of the pure parts is left out."""
  parts = ("diffusion", "robustness")
  found = {
    f"rad_jax.{part}.{path.stem}"
    for part in parts
    for path in importlib.resources.files(f"rad_jax.{part}").iterdir()
    if path.suffix == ".py" and path.stem != "__init__"
  }
  assert found == {name for name in MODULES if name.split(".")[1] in parts}


def test_what_is_public():
  source = types.ModuleType("made")
  code = (
    "import functools\nfrom math import sin\nfrom inspect import unwrap\n"
    "def f(): pass\ndef _g(): pass\n@functools.cache\ndef h(): pass\nK = f\n"
    "class C: pass\n"
  )
  exec(code, vars(source))
  assert set(public_functions(source)) == {"f", "h", "K"}


@pytest.mark.parametrize(
  "docstring",
  [
    ">>> print(1 + 1)\n3",
    ">>> raise ValueError",
    ">>> jnp.ones((2, 3)) + jnp.ones(3)  # a broadcast between ranks\n",
    ">>> key = jax.random.key(0)\n"
    ">>> _ = jax.random.normal(key), jax.random.normal(key)",
  ],
)
def test_a_wrong_example_is_found(docstring):
  assert failures(docstring, "planted") != ""


def test_arrays_are_printed_to_three_digits():
  docstring = ">>> print(jnp.array([1e-7, 0.12345]))\n[0.    0.123]"
  assert failures(docstring, "planted") == ""
