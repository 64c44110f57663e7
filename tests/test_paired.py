"""Methods at their best: how knobs are chosen, what is said of the result."""

import itertools

import numpy as np
import pytest
import scipy.stats
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rad_jax.experiments import compare
from rad_jax.reports import experiment, paired

WAY = {"sampler": "heun", "num_steps": 50, "temperature": 1.0}


def row(method, knobs, stop, seed, tuning, frechet, **measures):
  return {
    "data": "plane",
    "method": method,
    "knobs": knobs,
    "seed": seed,
    "passes": 900.0,
    "stop_sigma": stop,
    "tuning": tuning,
    "frechet": frechet,
    "support_rms": frechet / 2,
    "sliced_wasserstein": frechet / 4,
    "spread_ratio": 1 - frechet / 8,
    **WAY,
    **measures,
  }


def made_rows():
  """DDPM is best stopped at 0.2, Robust_adv at lambda 3 and 0.1."""
  means = {
    ("DDPM", "", 0.0): 1.0,
    ("DDPM", "", 0.2): 0.6,
    ("Robust_adv", "lambda 1", 0.0): 0.7,
    ("Robust_adv", "lambda 3", 0.0): 0.5,
    ("Robust_adv", "lambda 3", 0.2): 0.4,
  }
  rows = []
  for (method, knobs, stop), mean in means.items():
    for seed, tuning in itertools.product(range(4), (True, False)):
      off = 0.01 * ((seed * 7 + len(method)) % 5)
      rows.append(row(method, knobs, stop, seed, tuning, mean + off))
  best = compare.choose([r for r in rows if r["tuning"]])
  chosen = lambda r: best["plane", r["method"]] == compare._setting(r)
  return [r | {"chosen": chosen(r)} for r in rows]


def test_the_least_mean_on_tuning_seeds_is_chosen():
  best = compare.choose([r for r in made_rows() if r["tuning"]])
  assert best["plane", "DDPM"] == ("", "heun", 50, 0.2, 1.0)
  assert best["plane", "Robust_adv"] == ("lambda 3", "heun", 50, 0.2, 1.0)


def test_a_setting_that_diverged_on_a_seed_is_not_chosen():
  rows = [row("a", "", 0.0, s, True, 0.1) for s in (0, 1)]
  rows[1]["frechet"] = None
  rows += [row("a", "", 0.2, s, True, 5.0) for s in (0, 1)]
  assert compare.choose(rows)["plane", "a"][3] == 0.2


def test_a_run_that_failed_has_no_way_to_sample(tmp_path, monkeypatch):
  labels = {"data": "oblique_plane", "method": "DDPM", "seed": 0}
  entry = compare.Entry("lost", labels, None)
  failed = {"run": "lost", "passes": 3.0, "error": "loss is nan at step 3"}
  monkeypatch.setattr(compare.schemes, "entries", lambda *args: [entry])
  monkeypatch.setattr(compare.schemes, "run_all", lambda *args: [failed])
  config = tiny.load("compare", "smoke")
  found = compare._rows(config, tmp_path, [], {("DDPM", "")}, range(1))
  assert list(found) == []


def row_of(table, name):
  return next(cells for cells in table.rows if cells[0] == name)


def test_tables_are_of_the_seeds_that_did_not_choose():
  rows = made_rows()
  for r in rows:
    r["frechet"] += 10 * r["tuning"]
  table = paired.best_table(rows, "plane")
  _, knobs, way, _, frechet, *_ = row_of(table, "Robust_adv")
  assert (knobs, way) == ("lambda 3", "0.2, 1")
  values = [
    r["frechet"]
    for r in rows
    if (r["knobs"], r["stop_sigma"], r["tuning"]) == ("lambda 3", 0.2, False)
  ]
  low, high = scipy.stats.t.interval(
    0.95, 3, np.mean(values), scipy.stats.sem(values)
  )
  assert frechet == f"{np.mean(values):.3g} ± {(high - low) / 2:.2g}"


def test_differences_are_paired():
  """A shift that all seeds share is sure, however much seeds differ."""
  base = np.array([1.0, 5.0, 9.0, 20.0])
  found = paired.difference(base + [0.9, 1.0, 1.1, 1.0], base)
  assert found.mean == pytest.approx(1.0)
  assert 0.8 < found.low < 1 < found.high < 1.2 and found.p < 1e-3
  differences = np.array([-0.1, 0, 0.1, 0])
  assert found.effect == pytest.approx(1 / np.std(differences, ddof=1))
  back = paired.difference(base, base + [0.9, 1.0, 1.1, 1.0])
  assert (back.mean, back.p) == pytest.approx((-found.mean, found.p))


def test_holm_of_a_known_case():
  """Holm 1979: sorted p times n, n - 1, ...; never falling, at most 1."""
  found = paired.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(paired.holm([0.6, 0.9]), [1.0, 1.0])


unit = st.floats(0, 1.5)


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=8))
def test_hypervolume_is_the_dominated_share_of_the_square(points):
  points = np.array(points)
  grid = (np.arange(200) + 0.5) / 200
  x, y = np.meshgrid(grid, grid)
  dominated = (points[:, 0, None, None] <= x) & (points[:, 1, None, None] <= y)
  expected = dominated.any(axis=0).mean()
  assert paired.hypervolume(points) == pytest.approx(expected, abs=0.02)
  kept = paired.front(points)
  for point in points:
    assert np.any(np.all(kept <= point, axis=1))
  assert np.all(np.diff(kept[:, 0]) >= 0) and np.all(np.diff(kept[:, 1]) < 0)


def test_fronts_are_relative_to_plain_ddpm():
  table = paired.front_table(made_rows(), "plane")
  plain = np.mean([1.0 + 0.01 * ((s * 7 + 4) % 5) for s in range(4)])
  stopped = 0.6 - 1.0 + plain
  expected = (1 - stopped / plain) ** 2
  assert row_of(table, "DDPM")[1] == pytest.approx(expected)
  assert row_of(table, "Robust_adv")[1] > expected


def test_a_setting_that_diverged_on_a_seed_is_on_no_front():
  rows = made_rows()
  lost = next(r for r in rows if r["stop_sigma"] and r["method"] == "DDPM")
  assert lost["tuning"]
  lost["frechet"] = None
  assert row_of(paired.front_table(rows, "plane"), "DDPM")[1] == 0


def test_what_is_written(tmp_path):
  paths = experiment.write(made_rows(), tmp_path, "compare")
  assert [path.name for path in paths] == ["table.md", "fronts.png"]
  text = paths[0].read_text()
  assert "4 seeds" in text and "Holm" in text
  assert text.count("| Robust_adv |") == 3


def test_methods_have_configs_of_their_own():
  changes = [
    tuple(sorted(map(str, fields.items())))
    for knobs in compare.METHODS.values()
    for fields in knobs.values()
  ]
  assert len(set(changes)) == len(changes)


@pytest.mark.slow
def test_a_comparison_from_training_to_rows(tmp_path, monkeypatch):
  """Two methods: all knobs on the tuning seed, then the chosen on others."""
  methods = {name: compare.METHODS[name] for name in ("DDPM", "Robust_adv")}
  lams = dict(itertools.islice(methods["Robust_adv"].items(), 2))
  monkeypatch.setattr(compare, "METHODS", methods | {"Robust_adv": lams})
  config = tiny.load(
    "compare",
    "smoke",
    study__data=("oblique_plane",),
    study__seeds=2,
    study__tuning_seeds=1,
    study__processes=1,
    evaluation__stop_sigmas=(0.0, 0.3),
    evaluation__step_counts=(3,),
  )
  rows = compare.run(config, tmp_path)
  tried = [r for r in rows if r["tuning"]]
  assert len(tried) == 3 * 2 and {r["seed"] for r in tried} == {compare.TUNING}
  assert sum(r["chosen"] for r in tried) == 2
  compared = [r for r in rows if not r["tuning"]]
  assert len(compared) == 2 * 2 * 2 and {r["seed"] for r in compared} == {0, 1}
  for method in methods:
    least = min(r["frechet"] for r in tried if r["method"] == method)
    (best,) = (r for r in tried if r["method"] == method and r["chosen"])
    assert best["frechet"] == least
  trained = len(list((tmp_path / "runs").iterdir()))
  assert trained == 3 + 2 * 2
  assert compare.run(config, tmp_path) == rows
