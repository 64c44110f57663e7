"""Imports run one way, and some stay behind one door."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What each part of the house may import of it, besides itself; of two parts
# that a module belongs to, the longer name counts. CONTRIBUTING draws it.
_CORE = {"diffusion", "models", "robustness"}
_DATA = _CORE | {"files", "data", "features", "interop"}
_STEP = {
  f"training.{name}"
  for name in ("optimizers", "passes", "replays", "state", "step")
}
_RUN = _DATA | _STEP | {"config", "run", "memory", "saved"}
_TRAINER = _RUN | {"training"}
ALLOWED = {
  "__init__": _DATA | _STEP | {"version", "evaluation"},
  "version": set(),
  "files": set(),
  "diffusion": set(),
  "models": set(),
  "robustness": {"diffusion", "models.network"},
  "features": {"data", "interop", "models"},
  "interop": {"files", "diffusion", "models"},
  "data": {"files"},
  "config": _DATA,
  "checks": _DATA | {"config"},
  "choices": _DATA | {"config", "memory"},
  "memory": set(),
  "saved": {"config", "files"},
  "__main__": {"main"},
  **{name: _DATA | _STEP for name in _STEP},
  "run": _RUN,
  "training": _TRAINER | {"version"},
  "evaluation": _TRAINER | {"version"},
  "experiments": _TRAINER | {"checks", "evaluation"},
  "reports": {"files", "data"},
  "arguments": _DATA | {"config"},
  "console": _TRAINER | {"arguments"},
  "main": _TRAINER
  | {
    "__init__",
    "arguments",
    "checks",
    "choices",
    "console",
    "evaluation",
    "experiments",
  }
  | {"reports"},
}
# They import the config, and so are no part of `import rad_jax`.
OF_THE_BORDER = {"rad_jax.run", "rad_jax.training.loop"}
# These alone see a ConfigDict.
BORDER = ("config", "checks", "choices", "run", "saved", "experiments", "main")
VAGUE_NAMES = {"utils", "util", "common", "helpers", "misc"}


def _uses(tree: ast.AST, module: str) -> set[str]:
  """Dotted names of all that is imported, or reached through an import."""
  package = module.split(".")[:-1]
  found, aliases = set(), {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        found.add(alias.name)
        name = alias.asname or alias.name.split(".")[0]
        aliases[name] = alias.name if alias.asname else name
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      path = ".".join([*base, *filter(None, [node.module])])
      for alias in node.names:
        found.add(f"{path}.{alias.name}")
        aliases[alias.asname or alias.name] = f"{path}.{alias.name}"
  for node in ast.walk(tree):
    attributes = []
    while isinstance(node, ast.Attribute):
      attributes.insert(0, node.attr)
      node = node.value
    if attributes and isinstance(node, ast.Name) and node.id in aliases:
      found.add(".".join([aliases[node.id], *attributes]))
  return found


def _part(name: str, known: set[str]) -> str:
  """The longest of the known parts that a dotted name is in; "" if none."""
  parts = name.split(".")
  prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
  return next((prefix for prefix in prefixes if prefix in known), "")


def violations(source: str, module: str) -> list[str]:
  """What a module (such as "rad_jax.data.images") uses and must not."""
  inside = module.removeprefix("rad_jax.")
  part = _part(inside, set(ALLOWED))
  found = [
    f"{module}: vague name" for n in module.split(".") if n in VAGUE_NAMES
  ]
  for name in sorted(_uses(ast.parse(source), module)):
    parts = name.split(".")
    target = name.removeprefix("rad_jax.")
    if parts[0] == "rad_jax" and _part(target, set(ALLOWED)):
      own = target == part or target.startswith(f"{part}.")
      if not own and not _part(target, ALLOWED[part]):
        found.append(f"{module}: {name} is not below it")
      if part == "__init__" and ".".join(parts[:3]) in OF_THE_BORDER:
        found.append(f"{module}: {name} reads the config")
    if parts[:2] == ["flax", "linen"] and part not in ("models", "features"):
      found.append(f"{module}: {name} outside models/ and features/")
    if parts[0] == "ml_collections" and part not in ("config", "main"):
      found.append(f"{module}: {name} outside the border")
    if parts[-1] == "ConfigDict" and not inside.startswith(BORDER):
      found.append(f"{module}: {name} outside the border")
    if parts[0] == "tensorflow":
      found.append(f"{module}: {name} needs TensorFlow")
    if name == "os._exit":  # public in all but name
      continue
    if any(n.startswith("_") and not n.endswith("__") for n in parts):
      found.append(f"{module}: {name} is private")
  return found


def _module_of(path: pathlib.Path) -> str:
  return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = sorted((ROOT / "rad_jax").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=_module_of)
def test_module_keeps_to_its_layer(path):
  assert violations(path.read_text(), _module_of(path)) == []


def test_every_part_has_a_layer():
  parts = {_module_of(path).split(".")[1] for path in MODULES}
  assert parts == {name.split(".")[0] for name in ALLOWED}


@pytest.mark.parametrize(
  "module, source",
  [
    ("diffusion.process", "from rad_jax.models import mlp"),
    ("diffusion.process", "import rad_jax.robustness.radius"),
    ("models.mlp", "from rad_jax.diffusion.process import diffuse"),
    ("models.mlp", "from rad_jax import config"),
    ("interop.pretrained", "from rad_jax.config import ConfigError"),
    ("features.extractors", "from rad_jax.training import sharding"),
    ("robustness.radius", "from rad_jax.data import images"),
    ("robustness.radius", "from rad_jax.models import mlp"),
    ("data.images", "from rad_jax.robustness import radius"),
    ("data.images", "from ..diffusion import process"),
    ("data.images", "import rad_jax\nrad_jax.training.loop.train()"),
    ("config", "from rad_jax import run"),
    ("config", "from rad_jax.training import loop"),
    ("run", "from rad_jax.training import loop"),
    ("training.step", "from rad_jax.run import Run"),
    ("training.loop", "from rad_jax.config import ConfigDict"),
    ("evaluation.sampling", "from rad_jax import config\nconfig.ConfigDict()"),
    ("experiments.sweep", "from rad_jax.reports import tables"),
    ("training.loop", "def f():\n  from rad_jax.evaluation import sampling"),
    ("training.loop", "from rad_jax import main"),
    ("evaluation.reference", "from rad_jax.reports import figures"),
    ("reports.figures", "from rad_jax.evaluation import measures"),
    ("reports.figures", "from rad_jax import config"),
    ("__init__", "from rad_jax import config"),
    ("__init__", "from rad_jax.experiments import sweep"),
    ("__init__", "from rad_jax.reports import figures as figures"),
    ("__init__", "from rad_jax import run as run"),
    ("__init__", "from rad_jax.training.loop import train"),
    ("training.state", "import flax.linen as nn"),
    ("training.state", "from flax import linen"),
    ("training.state", "from flax.linen import Dense"),
    ("training.state", "import flax.struct\nflax.linen.Dense(3)"),
    ("training.loop", "import ml_collections"),
    ("data.images", "from ml_collections import config_dict"),
    ("training.loop", "from jax._src import core"),
    ("training.loop", "import optax._src.base as base"),
    ("training.loop", "import jax\njax._src.core.Tracer"),
    ("training.loop", "from optax import _src"),
    ("data.sources", "import tensorflow as tf"),
    ("main", "try:\n  from tensorflow import io\nexcept ImportError: pass"),
    ("data.utils", ""),
    ("data.helpers.images", ""),
  ],
)
def test_checker_finds_planted(module, source):
  assert violations(source, f"rad_jax.{module}") != []


@pytest.mark.parametrize(
  "module, source",
  [
    ("__init__", "from rad_jax.robustness.method import Method as Method"),
    ("run", "from rad_jax.training.step import make_train_step"),
    ("training.loop", "from rad_jax.run import Run"),
    ("experiments.sweep", "from rad_jax.config import ConfigDict"),
    ("robustness.objectives", "from rad_jax.diffusion import process"),
    ("data.batches", "from . import sources\nfrom .sources import load"),
    ("data.sources", "import tensorflow_datasets as tfds\ntfds.core"),
    ("models.unet", "from flax import linen as nn\nnn.Dense(3)"),
    ("features.inception", "from flax import linen as nn"),
    ("interop.layouts", "from rad_jax.models import unet"),
    ("training.state", "import flax.struct"),
    ("main", "from rad_jax.reports import figures\nimport ml_collections"),
    ("training.loop", "class A:\n  def f(self): return self._x.y"),
    ("training.loop", "import jax\njax.__version__"),
  ],
)
def test_checker_lets_the_rest_pass(module, source):
  assert violations(source, f"rad_jax.{module}") == []
