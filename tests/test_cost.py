"""What a step costs: in FLOPs as XLA counts them, passes and memory."""

import json

import jax
import jax.numpy as jnp
import pytest
import tiny

from rad_jax import run as runs
from rad_jax.experiments import cost
from rad_jax.training import chips
from rad_jax.training.state import num_parameters


def shallow_config(objective: str):
  """CIFAR-10's with a U-Net of fewer blocks, which compiles in less time."""
  return tiny.load(
    "cifar10",
    objective__name=objective,
    model__unet__channel_multipliers=(1,),
    model__unet__num_res_blocks=1,
    model__unet__attention_resolutions=(),
  )


def flops(function, *arguments) -> float:
  lowered = jax.jit(function).lower(*arguments)
  compiled = lowered.compile({"xla_backend_optimization_level": 0})
  return compiled.cost_analysis()["flops"]


def step_flops(objective: str) -> float:
  config = shallow_config(objective)
  # Draws cost the same whatever the objective and are slow to compile.
  state = jax.eval_shape(runs.build(config).initial_state)
  batch = {
    "x_0": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8),
    "index": jax.ShapeDtypeStruct((1,), jnp.int32),
  }
  return flops(runs.build(config).train_step(True), state, batch)


@pytest.mark.slow
def test_cost_of_the_objectives():
  """Random 6F and FGSM 8F against DDPM's 3F: 2 and 2.67 in passes."""
  config = shallow_config("ddpm")
  one_pass = flops(
    runs.build(config).network.apply,
    jax.eval_shape(runs.build(config).initial_state).params,
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    jax.ShapeDtypeStruct((1,), jnp.int32),
  )
  ddpm = step_flops("ddpm")
  assert ddpm == pytest.approx(3 * one_pass, rel=0.05)
  assert 1.9 < step_flops("robust_ran") / ddpm <= 2.02
  assert 2.5 < step_flops("robust_adv") / ddpm <= 2.70


# --mode=cost. On an MLP whose matrix products outweigh all else.


def wide_config(**fields):
  """Robust_adv's, on clean data: draws are slow to compile."""
  own = {
    "data__corruption__fraction": 0.0,
    "objective__lam": 0.3,  # as DDPM has it beside this: one step's config
    "model__mlp__width": 512,
    "model__mlp__depth": 2,
    "train__num_steps": 100,
    "train__batch_size": 64,
  }
  return tiny.plane(**(own | fields))


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
  """Compilation is the cost of these tests: each step's config, once."""
  found, own = {}, cost._compile

  def compile_once(config, regularised=True):
    key = json.dumps(config.to_dict(), sort_keys=True), regularised
    if key not in found:
      found[key] = own(config, regularised)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cost, "_compile", compile_once)
    yield


def cost_of(**fields):
  return cost.cost(wide_config(**fields))


@pytest.fixture(scope="module")
def robust_adv():
  return cost_of()


@pytest.fixture(scope="module")
def robust_ran():
  return cost_of(objective__name="robust_ran")


def test_robust_adv_beside_ddpm(robust_adv):
  """A whole training with the regulariser has neither "off" nor "mean"."""
  ddpm, on = robust_adv["ddpm"], robust_adv["on"]
  assert list(robust_adv) == ["ddpm", "on"]
  assert (ddpm["passes"], on["passes"]) == (3, 8)
  assert 2.2 < on["flops"] / ddpm["flops"] < 2.8
  # Parameters, their average and Adam's two moments, in float32, at least.
  state = jax.eval_shape(runs.build(wide_config()).initial_state)
  assert 16 * num_parameters(state) < ddpm["memory"] < on["memory"]


def test_ddpm_costs_what_ddpm_does(robust_adv):
  rows = cost_of(objective__name="ddpm")
  assert rows["on"] == rows["ddpm"] == robust_adv["ddpm"]


def test_cheaper_schemes_are_means_over_the_timetable(robust_adv):
  """From step 75 of 100 on each second one: 13 of them."""
  rows = cost_of(regulariser__start=0.75, regulariser__every_steps=2)
  on, off, mean = rows["on"], rows["off"], rows["mean"]
  assert on == robust_adv["on"]
  assert off == rows["ddpm"]
  assert mean["passes"] == pytest.approx(0.13 * 8 + 0.87 * 3)
  flops = 0.13 * on["flops"] + 0.87 * off["flops"]
  assert mean["flops"] == pytest.approx(flops)
  assert mean["memory"] == max(on["memory"], off["memory"])


def test_each_step_of_an_attack_costs_the_same(robust_ran, robust_adv):
  """XLA counts the body of PGD's loop once, however often it is run."""
  pgd = cost_of(attack__name="pgd", attack__num_steps=4)
  none, one, four = (rows["on"] for rows in (robust_ran, robust_adv, pgd))
  assert [row["passes"] for row in (none, one, four)] == [6, 8, 14]
  a_step = one["flops"] - none["flops"]
  # A pass forward and one back, without the embedding of the level.
  assert 1.5 < 3 * a_step / pgd["ddpm"]["flops"] < 2
  assert four["flops"] == pytest.approx(none["flops"] + 4 * a_step, rel=1e-3)


def test_each_free_replay_costs_what_a_random_w_does(robust_ran):
  """The gradient by w is a by-product."""
  free = cost_of(regulariser__free_replays=3)["on"]
  assert free["passes"] == 3 * robust_ran["on"]["passes"] == 18
  flops = 3 * robust_ran["on"]["flops"]
  assert free["flops"] == pytest.approx(flops, rel=1e-3)


def test_the_table_has_ratios_to_ddpm():
  table = cost.table(
    {
      "ddpm": {"passes": 3.0, "flops": 2e9, "memory": 5e6},
      "on": {"passes": 8.0, "flops": 5e9, "memory": 2e7},
    }
  )
  assert [line.split() for line in table.splitlines()] == [
    ["passes", "GFLOP", "memory,", "MB"],
    ["ddpm", "3", "(1.00x)", "2", "(1.00x)", "5", "(1.00x)"],
    ["on", "8", "(2.67x)", "5", "(2.50x)", "20", "(4.00x)"],
  ]
  assert len({len(line) for line in table.splitlines()}) == 1


def test_memory_is_a_line_over_the_batch(robust_adv):
  config = wide_config()
  fixed, each = cost.memory(config, robust_adv["on"]["memory"])
  # The same line by batches of 128 and 256.
  config = wide_config(train__batch_size=128)
  found = cost.memory(config, fixed + 128 * each)
  four = found[0] + 256 * found[1]
  assert fixed + 256 * each == pytest.approx(four, rel=0.1)
  state = jax.eval_shape(runs.build(config).initial_state)
  assert fixed > 16 * num_parameters(state)
  limit = 2.5 * four
  largest = cost.largest_batch(fixed, each, limit)
  assert fixed + largest * each <= limit
  assert fixed + (largest + 1) * each > limit
  assert cost.largest_batch(fixed, each, fixed / 2) == 0


def test_forecast_is_of_the_whole_run(monkeypatch, robust_adv):
  flops = 100 * robust_adv["on"]["flops"] / jax.device_count()
  monkeypatch.setattr(cost, "product_rate", lambda dtype: flops / (3 * 3600))
  parameters, run, time, memory = cost.forecast(
    wide_config(), robust_adv
  ).splitlines()
  state = jax.eval_shape(runs.build(wide_config()).initial_state)
  assert parameters.split() == [
    "parameters:",
    f"{num_parameters(state):,}",
  ]
  assert "100 steps, 800 passes" in run
  assert "3 hours at the least" in time
  assert "the largest batch: " in memory


def test_rate_of_products_is_of_this_machine():
  assert 1e8 < cost.product_rate("float32") < 1e16


# ---- Options of the compiler ----

KNOWN, UNKNOWN = "xla_cpu_enable_fast_math", "xla_of_another_version"


@pytest.fixture
def options(monkeypatch):
  """What compiler_options gives, if this is asked for and that is set."""

  def given(asked, flags=""):
    monkeypatch.setattr(chips, "_COMPILER_OPTIONS", {"cpu": asked})
    monkeypatch.setenv("XLA_FLAGS", flags)
    chips.compiler_options.cache_clear()
    return chips.compiler_options()

  yield given
  chips.compiler_options.cache_clear()


def test_option_that_this_xla_does_not_know_is_left_out(options):
  assert options({KNOWN: False, UNKNOWN: True}) == {KNOWN: False}


def test_option_of_the_environment_stays_as_it_is_there(options):
  assert options({KNOWN: False}, f"--{KNOWN}=true") == {}


def test_options_are_the_platforms_own(monkeypatch, options):
  monkeypatch.setattr(chips, "_COMPILER_OPTIONS", {"gpu": {KNOWN: False}})
  chips.compiler_options.cache_clear()
  assert chips.compiler_options() == {}
