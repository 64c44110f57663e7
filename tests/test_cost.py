"""What a step costs: in FLOPs as XLA counts them, passes and memory."""

import json

import jax
import jax.numpy as jnp
import pytest
import tiny

from rad_jax import memory
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

  def compile_once(config):
    key = json.dumps(config.to_dict(), sort_keys=True)
    if key not in found:
      found[key] = own(config)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cost, "_compile", compile_once)
    yield


def test_memory_is_a_line_over_the_batch():
  config = wide_config()
  fixed, each = cost.memory_line(config)
  state = jax.eval_shape(runs.build(config).initial_state)
  # Parameters, their average and Adam's two moments, in float32, at least.
  assert fixed > 16 * num_parameters(state)
  # The same line by batches of 128 and 256.
  other = cost.memory_line(wide_config(train__batch_size=128))
  four = other[0] + 256 * other[1]
  assert fixed + 256 * each == pytest.approx(four, rel=0.1)
  limit = 2.5 * four
  largest = cost.largest_batch(fixed, each, limit)
  assert fixed + largest * each <= limit
  assert fixed + (largest + 1) * each > limit
  assert cost.largest_batch(fixed, each, fixed / 2) == 0


@pytest.mark.parametrize(
  "once, twice, state", [(10.0, 30.0, 4.0), (10.0, 9.0, 4.0), (10.0, 12.0, 4.0)]
)
def test_what_is_fixed_is_never_less_than_the_state(
  monkeypatch, once, twice, state
):
  """Nor is an example free; both agree on the batch that was compiled."""
  sizes = {64: once, 128: twice}
  monkeypatch.setattr(
    cost, "_memory", lambda config: (sizes[config.train.batch_size], state)
  )
  fixed, each = cost.memory_line(wide_config())
  assert fixed >= state
  assert each > 0
  assert fixed + 64 * each == pytest.approx(once, abs=1.0)


def said(monkeypatch, **fields):
  """`cost.lines`, without the compilation: those before it, those after."""
  config = wide_config(**fields)
  monkeypatch.setattr(cost, "product_rate", lambda dtype: 1e9)
  found = cost.lines(config)
  before = [next(found)]
  while not before[-1].startswith("memory"):
    before.append(next(found))
  monkeypatch.setattr(cost, "memory_line", lambda config: (2e6, 1e3))
  return before[:-1], list(found)


def test_what_needs_no_compilation_is_said_first(monkeypatch):
  monkeypatch.setattr(cost, "_compile", lambda config: pytest.fail("compiled"))
  monkeypatch.setattr(memory, "available", lambda: 5e6)
  (parameters, step, whole, time), after = said(monkeypatch)
  state = jax.eval_shape(runs.build(wide_config()).initial_state)
  assert parameters == f"parameters: {num_parameters(state):,}"
  # Of the MLP: 2 FLOP a weight and example, 64 examples, 8 and 3 passes.
  flops = 2 * num_parameters(state) * 64
  assert "8 passes of the network" in step
  ours, ddpm = (float(part.split()[-1]) for part in step.split(" MFLOP")[:2])
  assert ours == pytest.approx(8 * flops / 1e6, rel=0.1)
  assert ddpm == pytest.approx(3 * flops / 1e6, rel=0.1)
  assert "100 steps, " in whole
  seconds = 100 * ours / 1e3 / jax.device_count()
  assert cost.duration(seconds).split()[1] in time
  assert after[0].split() == "2.06 MB a step: 2 MB, and 1 kB an example".split()
  assert "the largest batch: 3,000 in the 5 MB free here, " in after[1]


def test_passes_are_a_mean_over_the_timetable(monkeypatch):
  """From step 75 of 100 on each second one: 13 of them."""
  fields = {"regulariser__start": 0.75, "regulariser__every_steps": 2}
  lines, _ = said(monkeypatch, **fields)
  assert "on average: 3.65 passes" in lines[2]


@pytest.mark.parametrize(
  "seconds, expected",
  [
    (1.8e8, "5.7 years"),
    (3 * 86_400.0, "3 days"),
    (7200.0, "2 hours"),
    (119.0, "119 seconds"),
    (0.5, "0.5 seconds"),
  ],
)
def test_duration(seconds, expected):
  assert cost.duration(seconds) == expected


@pytest.mark.parametrize(
  "number, expected",
  [(0.0, "0 B"), (999.0, "999 B"), (999.9, "1 kB"), (2.5e6, "2.5 MB")]
  + [(1.234e19, "12.3 EB")],
)
def test_amount(number, expected):
  assert cost.amount(number, "B") == expected


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
