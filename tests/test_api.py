"""`import rad_jax` alone: its names, own networks and arrays, and its page."""

import ast
import functools
import importlib.util
import pathlib
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import rad_jax
from rad_jax import run as runs
from rad_jax.robustness import method as methods

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "howto" / "own_network.md").read_text()
OBJECTIVES = rad_jax.objectives.OBJECTIVES


def public_names():
  """The names of `import rad_jax`, and the modules they come from."""
  tree = ast.parse((ROOT / "rad_jax" / "__init__.py").read_text())
  return {
    alias.asname: node.module
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and node.module != "etils"
    for alias in node.names
    if not alias.name.startswith("__")
  }


NAMES = public_names()

ALONE = f"""
import sys
import rad_jax
assert "jax" not in sys.modules, "import rad_jax is light"
for name in {sorted(NAMES.keys() - {"load", "sampling"})}:  # of a whole run
  assert name in dir(rad_jax)
  getattr(rad_jax, name)
heavy = ("ml_collections", "tensorflow_datasets", "tensorflow", "matplotlib",
  "rad_jax.config", "rad_jax.main", "rad_jax.run",
  "rad_jax.training.loop", "rad_jax.reports", "rad_jax.experiments")
print([name for name in heavy if name in sys.modules])
"""


def test_names_need_no_config_and_no_files():
  done = subprocess.run(
    [sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", NAMES)
def test_name_is_documented(name):
  value = getattr(rad_jax, name)
  assert value.__doc__, name
  # Not the one that every NamedTuple has.
  assert not value.__doc__.startswith(f"{name}(")
  assert re.search(rf"\b{name}\b", rad_jax.__doc__)
  named = getattr(value, "__module__", value.__name__)
  assert f"::: {named}\n" in (ROOT / "docs" / "api.md").read_text()


def test_names_are_those_of_the_modules_they_come_from():
  for name, module in NAMES.items():
    found = getattr(importlib.import_module(module), name, None)
    own = found or importlib.import_module(f"{module}.{name}")
    assert getattr(rad_jax, name) is own


def test_an_unknown_name_is_refused():
  with pytest.raises(AttributeError, match="no attribute 'sampler'"):
    getattr(rad_jax, "sampler")  # noqa: B009


def points(n, seed=0):
  world = rad_jax.synthetic.oblique_plane()
  return world.sample(np.random.default_rng(seed), n)


def test_functions_are_the_config_s_to_the_bit():
  chosen = tiny.plane(
    objective__lam=0.7,
    data__corruption__fraction=0.5,
    data__corruption__sigma=0.3,
  )
  run = runs.build(chosen)
  streams = run.keys
  batch = {"x_0": points(16), "index": np.arange(16, dtype=np.int32)}

  network = rad_jax.mlp(**chosen.model.mlp)
  process = rad_jax.schedules.ddpm(rad_jax.schedules.linear_alpha_bar(50))
  sigma_max = rad_jax.process.unit_sigma(process.grid(1))[0]
  optimizer = rad_jax.optimizers.adam(
    rad_jax.optimizers.learning_rate_schedule(
      chosen.optimizer.learning_rate,
      warmup_steps=2,
      decay=chosen.optimizer.decay,
      num_steps=chosen.train.num_steps,
    ),
    b1=chosen.optimizer.b1,
    b2=chosen.optimizer.b2,
    max_grad_norm=chosen.optimizer.max_grad_norm,
  )

  def prepare(batch, keys):
    x_0 = rad_jax.corruptions.corrupt(
      streams.corruption, batch["index"], batch["x_0"], "gaussian", 0.5, 0.3
    )
    is_dirty = rad_jax.corruptions.is_dirty(
      streams.corruption, batch["index"], 0.5
    )
    return x_0, 0.3 * is_dirty

  method = rad_jax.Method(
    objective=OBJECTIVES["robust_adv"],
    predictor=rad_jax.as_predictor(network),
    process=process,
    radius=partial(rad_jax.radius.radius, sigma_max=sigma_max),
    lambda_t=partial(rad_jax.radius.constant_lambda, 0.7),
    weight=rad_jax.parametrisation.own_weight(rad_jax.parametrisation.eps),
  )
  own = rad_jax.make_train_step(
    method,
    optimizer,
    chosen.optimizer.ema_decay,
    prepare,
    skip_non_finite=chosen.train.max_skipped > 0,
  )
  own_state = jax.jit(
    lambda: rad_jax.initial_state(
      network, optimizer, (3,), streams.init, streams.train
    )
  )()
  state = jax.jit(run.initial_state)()
  own_step, step = jax.jit(own), jax.jit(run.train_step(True))
  for _ in range(3):
    own_state, own_metrics = own_step(own_state, batch)
    state, metrics = step(state, batch)
    assert own_metrics == metrics
  assert metrics["w_linf"] > 0
  jax.tree.map(
    np.testing.assert_array_equal,
    own_state._replace(key=None),
    state._replace(key=None),
  )


@pytest.mark.parametrize("process", ["ddpm", "edm", "flow"])
def test_defaults_are_the_configs(process):
  prediction = {"ddpm": "eps", "edm": "edm", "flow": "velocity"}[process]
  chosen = runs.build(
    tiny.plane(
      diffusion__process=process,
      diffusion__prediction=prediction,
      diffusion__weighting="eps",
      objective__name="robust_adv",
      objective__lam=0.3,
    )
  ).method
  own = rad_jax.Method(OBJECTIVES["robust_adv"], None, chosen.process)
  level = chosen.process.grid(20)
  sigma_t = rad_jax.process.unit_sigma(level)
  radius = chosen.radius(sigma_t)
  np.testing.assert_allclose(own.radius(sigma_t), radius, atol=2e-4)
  np.testing.assert_array_equal(own.lambda_t(radius), chosen.lambda_t(radius))
  np.testing.assert_array_equal(own.weight(level), chosen.weight(level))
  rest = ("goal", "attacked", "stop_gradient")
  assert [getattr(own, f) for f in rest] == [getattr(chosen, f) for f in rest]


@functools.cache
def losses_by_attack():
  """Objective -> mean loss under no chosen attack, the config's, another."""
  predictor = rad_jax.as_predictor(
    lambda params, x_t, t: jnp.tanh(params * x_t)
  )

  def losses(name, x_0, key):
    objective = OBJECTIVES[name]
    own = rad_jax.Method(objective, predictor, rad_jax.schedules.flow())
    of_config = runs.build(tiny.plane(objective__name=name)).method.perturb
    other = "gaussian" if objective.attack != "gaussian" else "fgsm"
    draws = methods.draw(own, x_0, jnp.zeros(len(x_0)), key)
    found = []
    for perturb in (None, of_config, rad_jax.attacks.by_name(other)):
      same = draws._replace(w_keys=jax.random.clone(draws.w_keys))
      method = own._replace(perturb=perturb)
      found.append(jnp.mean(methods.losses(method, 0.5, same)[0]))
    return found

  @jax.jit
  def of_all(x_0, key):
    return {
      name: losses(name, x_0, jax.random.clone(key)) for name in OBJECTIVES
    }

  return of_all(points(8), jax.random.key(0))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_brings_its_attack(name):
  """w is that of the objective's own attack where none is chosen."""
  own, configs, another = map(float, losses_by_attack()[name])
  assert own == pytest.approx(configs, rel=1e-6)
  differs = own != pytest.approx(another, rel=1e-4)
  assert differs == bool(OBJECTIVES[name].target)


def test_attacks_by_name():
  names = ("none", "gaussian", "uniform", "fgsm")

  @jax.jit
  def drawn(keys, radius):
    climb = lambda w: jnp.sum(w, axis=1)
    return [
      rad_jax.attacks.by_name(name)(climb, jax.random.clone(keys), radius, (4,))
      for name in names
    ]

  keys = jax.random.split(jax.random.key(0), 500)
  w = dict(zip(names, drawn(keys, np.full(500, 0.2, np.float32)), strict=True))
  assert not w["none"].any()
  assert 0.19 < w["gaussian"].std() < 0.21
  assert w["uniform"].max() < 0.2 and w["uniform"].min() < -0.19
  # From inside the ball, up a slope of 1 by a radius.
  assert w["fgsm"].min() >= 0 and w["fgsm"].max() == np.float32(0.2)
  with pytest.raises(KeyError):
    rad_jax.attacks.by_name("fgms")


def test_a_dropout_key_is_for_networks_alone():
  level = rad_jax.schedules.flow().grid(3)
  x_t, key = jnp.ones((3, 1)), jax.random.key(0)
  seen = []

  def apply(params, x_t, t, dropout_key=None):
    seen.append(dropout_key)
    return x_t

  rad_jax.as_predictor(apply)(None, x_t, level, key)
  rad_jax.as_predictor(rad_jax.Network(None, apply))(None, x_t, level, key)
  assert seen == [None, key]


def test_a_network_sees_the_scaled_state_and_the_time():
  level = rad_jax.schedules.edm().grid(3)
  predict = rad_jax.as_predictor(
    lambda params, x_t, t: params * x_t + t[:, None],
    rad_jax.parametrisation.x_0,
  )
  x_t = jnp.array([[3.0], [2.0], [1.0]])
  x_0_hat = 2 * level.input_scale * x_t[:, 0] + level.time
  np.testing.assert_allclose(
    predict(jnp.array(2.0), x_t, level)[:, 0],
    (x_t[:, 0] - x_0_hat) / level.sigma,
    rtol=1e-5,
  )


def test_a_donated_state_leaves_the_caller_s_parameters():
  params, optimizer = {"scale": jnp.ones(())}, optax.sgd(0.1)
  state = rad_jax.state_of(params, optimizer, jax.random.key(0))
  method = rad_jax.Method(
    OBJECTIVES["ddpm"],
    rad_jax.as_predictor(lambda params, x_t, t: params["scale"] * x_t),
    rad_jax.schedules.flow(),
  )
  step = rad_jax.make_train_step(method, optimizer, 0.9)
  after, _ = jax.jit(step, donate_argnums=0)(state, {"x_0": points(4)})
  assert state.params["scale"].is_deleted()
  assert params["scale"] == 1.0 != after.params["scale"]


OWN_STEPS = 800


@pytest.fixture(
  scope="module",
  params=[40, pytest.param(OWN_STEPS, marks=pytest.mark.slow)],
  ids=["shortened", "whole"],
)
def page(request, tmp_path_factory):
  """What the page's blocks leave behind, run one after the other."""
  folder = tmp_path_factory.mktemp("page")
  own = f"num_steps={OWN_STEPS}"
  assert PAGE.count(own) == 1
  text = PAGE.replace(own, f"num_steps={request.param}")
  found = {"__name__": "page", "num_steps": request.param}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
      if "import equinox" in code and not importlib.util.find_spec("equinox"):
        continue
      exec(code, found)
  return found


@pytest.mark.parametrize("network", ["linen", "nnx", "equinox"])
def test_page_trains_any_network(page, network):
  if network == "equinox":
    pytest.importorskip("equinox")
  samples = page[f"{network}_samples"]
  assert samples.shape == (1000, 3)
  world, distance = rad_jax.synthetic.oblique_plane(), page["distance"]
  relative = distance(samples) / distance(page["dirty"])
  if page["num_steps"] < OWN_STEPS:
    # Without training it is above 900.
    assert relative < 5
    return
  assert relative < 0.6
  _, covariance = rad_jax.measures.moments(world.project(np.asarray(samples)))
  spread = rad_jax.measures.spread_ratio(covariance, world.covariance)
  assert 0.7 < spread < 1.1


def test_page_s_data(page):
  clean, dirty = page["clean"], page["dirty"]
  assert clean.shape == dirty.shape == (5000, 3)
  assert 0.88 < np.mean(np.any(clean != dirty, axis=1)) < 0.92


def test_page_trains_on_images(page):
  assert len(page["losses"]) == 100
  assert page["losses"][-1] < 0.5 * page["losses"][0]
  assert page["state"].params["output"]["kernel"].shape == (128, 64)


def test_page_s_table_names_what_there_is():
  """Each cell of code is one, of what `import rad_jax` has."""
  names = {name: getattr(rad_jax, name) for name in NAMES}
  for code in re.findall(r"^\| `\w+` \| .*$", PAGE, re.MULTILINE):
    field, *examples = re.findall(r"`([^`]+)`", code)
    assert field in rad_jax.Method._fields
    for example in examples:
      for module, member in re.findall(r"\b([a-z]\w+)\.(\w+)", example):
        if module in names:
          assert hasattr(names[module], member), example
