"""JAX on one CPU, with broadcasts between ranks and reused keys as errors.

Programs are compiled with few of XLA's optimisations, here and in the
processes that tests start: most of the time of these tests is compilation.
Tests and runs share what they compiled; `pytest --cache-clear` forgets it.
`optimised` is for tests of what XLA makes of a program.
"""

import os
import pathlib
import shlex

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["RAD_JAX_DATA_CACHE"] = ""  # nothing is left in the home folder
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
  pathlib.Path(__file__).parent.parent / ".pytest_cache" / "d" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Of XLA's two ways to make code of fused loops, the one that is three times as
# quick; and in one piece, as workers fill the cores already.
os.environ["XLA_FLAGS"] = " ".join(
  (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
  )
)

import hypothesis
import jax
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(
  pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parent / "hypothesis"
)
hypothesis.settings.register_profile(
  "few", max_examples=10, derandomize=True, deadline=None, database=None
)
hypothesis.settings.register_profile(
  "many", max_examples=1000, deadline=None, database=None
)
hypothesis.settings.load_profile("few")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def optimised():
  """XLA's optimisations, as users have them, fused loops apart."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Else a worker ends with thousands of them, in gigabytes."""
  yield
  jax.clear_caches()


# By time. Files are handed out in this order, so that none of the long ones is
# begun last, while the other workers have nothing left to do.
LONGEST = (
  "test_hosts",
  "test_faults",
  "test_controlled_study",
  "test_docs",
  "test_main",
  "test_sweep",
  "test_cost",
)


def pytest_collection_modifyitems(items):
  rank = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_terminal_summary(terminalreporter):
  """Of each failure the line that runs it again, whatever its marks."""
  for report in (
    *terminalreporter.getreports("failed"),
    *terminalreporter.getreports("error"),
  ):
    test = shlex.quote(report.nodeid)
    terminalreporter.write_line(f'.venv/bin/python -m pytest -m "" {test}')
