"""The examples in the docstrings: each of them runs.

They see `jax`, `jnp`, `np`, `optax` and `rad_jax`, and three things made once:
`method`, whose network scales its input by the parameters; `level`, three
levels of sigma 0.9, 0.5 and 0.1; and `network`, a small MLP. Arrays are printed
to three digits.
"""

import doctest
import importlib
import inspect
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rad_jax

PACKAGE = pathlib.Path(rad_jax.__file__).parent
NAMES = {
  "jax": jax,
  "jnp": jnp,
  "np": np,
  "optax": optax,
  "rad_jax": rad_jax,
  "method": rad_jax.Method(
    rad_jax.objectives.OBJECTIVES["robust_adv"],
    rad_jax.as_predictor(lambda params, x_t, t: params * x_t),
    rad_jax.schedules.flow(),
  ),
  "level": rad_jax.schedules.flow(end=0.1).grid(3),
  "network": rad_jax.mlp(width=8, depth=2),
}


def modules_with_examples() -> list[types.ModuleType]:
  """But for those that need an optional package which is not there."""
  found = []
  for path in sorted(PACKAGE.rglob("*.py")):
    if ">>> " in path.read_text():
      parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
      name = ".".join(parts).removesuffix(".__init__")
      try:
        found.append(importlib.import_module(name))
      except ModuleNotFoundError as error:
        if (error.name or "").startswith("rad_jax"):
          raise
  return found


def examples(module: types.ModuleType) -> dict[str, str]:
  """Docstrings with examples, of the module and of what it defines, by name."""
  own = {
    f"{module.__name__}.{name}": inspect.getdoc(value)
    for name, value in vars(module).items()
    # A wrapped function, as of lru_cache, has its own behind it.
    if (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)))
    and value.__module__ == module.__name__
  }
  documented = {module.__name__: module.__doc__, **own}
  return {
    name: doc for name, doc in documented.items() if ">>> " in (doc or "")
  }


EXAMPLES = {
  name: doc
  for module in modules_with_examples()
  for name, doc in examples(module).items()
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


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
  assert failures(EXAMPLES[name], name) == ""


def test_every_example_is_found():
  said = sum(
    line.strip().startswith(">>> ")
    for path in PACKAGE.rglob("*.py")
    for line in path.read_text().splitlines()
  )
  found = sum(doc.count(">>> ") for doc in EXAMPLES.values())
  assert found == said > 0


def test_where_examples_are_looked_for():
  source = types.ModuleType("made")
  source.__doc__ = ">>> 1\n1"
  code = (
    "import functools\nfrom inspect import unwrap\n"
    "def f(): '>>> 1'\ndef _g(): '>>> 1'\n"
    "@functools.cache\ndef h(): '>>> 1'\n"
    "class C: '>>> 1'\ndef without(): 'one'\n"
  )
  exec(code, vars(source))
  names = {"made", "made.f", "made._g", "made.h", "made.C"}
  assert set(examples(source)) == names


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
