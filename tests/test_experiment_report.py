"""What is written and drawn of an experiment's rows."""

import json

import numpy as np
import pytest
from matplotlib.text import Text

from rad_jax.reports import charts, experiment, looks, study, tables

# ---- Sweeps ----


def row(objective, lam, fraction, seed, frechet, **columns):
  """A row as the engine writes it, of a made-up measurement."""
  plain = objective == "ddpm"
  return {
    "run": f"{objective}-lam_{lam}-fraction_{fraction}-seed_{seed}",
    "objective": objective,
    "lam": None if plain else lam,
    "radius": None if plain else "falling",
    "beta": None if plain else 0.1,
    "fraction": fraction,
    "sigma": None if fraction == 0 else 0.2,
    "seed": seed,
    "config": "0123456789ab",
    "steps": 300,
    "passes": 900.0 if plain else 2400.0,
    "seconds": 1.0,
    "frechet": frechet,
  } | columns


def made_rows():
  """Seeds at mean - 1/8 and mean + 1/8 of it; lambda not in its order."""
  means = {
    ("ddpm", None): (1.0, 8.0),
    ("robust_adv", 3.0): (4.0, 2.0),
    ("robust_adv", 0.3): (2.0, 6.0),
    ("robust_adv", 1.0): (3.0, 5.0),
  }
  return [
    row(objective, lam, fraction, seed, mean * (1 + (seed - 0.5) / 4))
    for (objective, lam), (clean, dirty) in means.items()
    for fraction, mean in ((0.0, clean), (0.9, dirty))
    for seed in (0, 1)
  ]


def failed_row():
  columns = row("robust_adv", 30.0, 0.9, 0, 0.0)
  del columns["frechet"], columns["seconds"]
  return columns | {"error": "loss is nan at step 3"}


def frontier_of(rows):
  return charts.frontier_figure(
    [r for r in rows if r["fraction"] == 0],
    [r for r in rows if r["fraction"] > 0],
    "frechet",
  )


def drawn(axis):
  """{label: points [n, 2]} of the lines of an axis."""
  return {
    line.get_label(): line.get_xydata()
    for line in axis.lines
    if not line.get_label().startswith("_")
  }


def bars(axis, container):
  """The segments of error bars, across (if any) and up."""
  return [
    np.array(bar.get_segments()) for bar in axis.containers[container].lines[2]
  ]


def test_table():
  rows = [*made_rows(), failed_row(), row("robust_adv", 30.0, 0.9, 1, 5e-4)]
  assert experiment.summary(rows).splitlines() == [
    "All runs: radius falling, beta 0.1, sigma 0.2, steps 300.",
    "",
    "| objective | lam | fraction | frechet | seeds |",
    "|---|---|---|---|---|",
    "| DDPM |  | 0 | 1.000 ± 0.125 | 2 |",
    "| DDPM |  | 0.9 | 8.000 ± 1.000 | 2 |",
    "| Robust_adv | 3 | 0 | 4.000 ± 0.500 | 2 |",
    "| Robust_adv | 3 | 0.9 | 2.000 ± 0.250 | 2 |",
    "| Robust_adv | 0.3 | 0 | 2.000 ± 0.250 | 2 |",
    "| Robust_adv | 0.3 | 0.9 | 6.000 ± 0.750 | 2 |",
    "| Robust_adv | 1 | 0 | 3.000 ± 0.375 | 2 |",
    "| Robust_adv | 1 | 0.9 | 5.000 ± 0.625 | 2 |",
    "| Robust_adv | 30 | 0.9 | 0.0005000 | 1 of 2 |",
    "",
    "Failed:",
    "",
    "- robust_adv-lam_30.0-fraction_0.9-seed_0: loss is nan at step 3",
  ]
  only_failed = experiment.summary([failed_row()])
  assert "| 0 of 1 |" in only_failed


def test_a_failed_group_says_so():
  rows = [*made_rows(), failed_row()]
  assert "| 30 | 0.9 | failed | 0 of 1 |" in experiment.summary(rows)


@pytest.mark.parametrize(
  "found, expected",
  [
    ([1.0, 3.0], "2.000 ± 1.000"),
    ([1234.5, 1235.5], "1235 ± 0"),
    ([0.0, 0.0], "0.000"),
    ([np.nan], "nan ± nan"),
    ([], ""),
  ],
)
def test_mean_and_deviation(found, expected):
  assert tables.mean_std(np.array(found)) == expected


def test_frontier():
  (axis,) = frontier_of(made_rows()).axes
  lines = drawn(axis)
  assert lines.keys() == {"DDPM", "Robust_adv"}
  np.testing.assert_allclose(lines["DDPM"], [[1, 8]])
  np.testing.assert_allclose(lines["Robust_adv"], [[2, 6], [3, 5], [4, 2]])
  points = {text.get_text(): text.xy for text in axis.texts}
  points.pop("", None)
  assert points == {"0.3": (2, 6), "1": (3, 5), "3": (4, 2)}
  across, up = bars(axis, 1)
  np.testing.assert_allclose(across[0], [[1.75, 6], [2.25, 6]])
  np.testing.assert_allclose(up[0], [[2, 5.25], [2, 6.75]])


def test_frontier_has_a_panel_for_each_dirty_set():
  more = [
    r | {"fraction": 0.5, "frechet": 2 * r["frechet"]}
    for r in made_rows()
    if r["fraction"]
  ]
  figure = frontier_of(made_rows() + more)
  found = {axis.get_title(): drawn(axis)["DDPM"] for axis in figure.axes}
  assert found.keys() == {"fraction 0.9, sigma 0.2", "fraction 0.5, sigma 0.2"}
  np.testing.assert_allclose(found["fraction 0.5, sigma 0.2"], [[1, 16]])


def test_runs_of_another_beta_are_another_line():
  others = [
    r | {"beta": 0.2, "frechet": 2 * r["frechet"]}
    for r in made_rows()
    if r["lam"]
  ]
  lines = drawn(frontier_of(made_rows() + others).axes[0])
  names = {"DDPM", "Robust_adv, beta 0.1", "Robust_adv, beta 0.2"}
  assert lines.keys() == names
  np.testing.assert_allclose(
    lines["Robust_adv, beta 0.2"], [[4, 12], [6, 10], [8, 4]]
  )


def test_error_against_lambda():
  dirty = [r for r in made_rows() if r["fraction"]]
  lines = drawn(charts.lambda_figure(dirty, "frechet").axes[0])
  np.testing.assert_allclose(lines["Robust_adv"], [[0.3, 6], [1, 5], [3, 2]])
  np.testing.assert_allclose(lines["DDPM"], [[0.3, 8], [3, 8]])


@pytest.mark.parametrize(
  "kept, name",
  [
    (lambda r: True, "frontier.png"),
    (lambda r: r["fraction"], "error.png"),
    (lambda r: r["fraction"] == 0, "error.png"),
    (lambda r: r["fraction"] and r["lam"] in (None, 3.0), None),
  ],
)
def test_files_of_a_sweep(tmp_path, kept, name):
  rows = [r for r in made_rows() if kept(r)] + [failed_row()]
  paths = experiment.write(rows, tmp_path, "sweep")
  assert [path.name for path in paths] == ["table.md"] + [name] * bool(name)
  assert sorted(tmp_path.iterdir()) == sorted(paths)
  assert paths[0].read_text() == experiment.summary(rows)
  assert all(path.stat().st_size > 10_000 for path in paths[1:])


def test_unknown_view_is_refused(tmp_path):
  with pytest.raises(ValueError, match="view='table'.*sweep, schemes"):
    experiment.write(made_rows(), tmp_path, "table")


# ---- Schemes ----


def scheme_rows():
  schemes = [
    ("ddpm", "ddpm", 900.0, 8.0),
    ("ddpm, longer", "ddpm", 2400.0, 7.5),
    ("full", "robust_adv", 2400.0, 2.0),
    ("every 2nd step", "robust_adv", 1650.0, 2.5),
    ("half the batch", "robust_adv", 1650.0, 2.52),
    ("low noise alone", "robust_adv", 1640.0, 2.51),
  ]
  return [
    {
      "run": f"{data}-{scheme}-{seed}",
      "data": data,
      "method": scheme,
      "objective": objective,
      "seed": seed,
      "config": "0123456789ab",
      "steps": 300,
      "passes": passes,
      "seconds": 1.0,
      "support_rms": factor * mean * (1 + (seed - 0.5) / 4),
    }
    for data, factor in (("digits", 1), ("oblique_plane", 0.1))
    for scheme, objective, passes, mean in schemes
    for seed in (0, 1)
  ]


def test_scheme_figure():
  rows = experiment.relative_cost(scheme_rows())
  figure = charts.scheme_figure(rows, "cost", "support_rms")
  figure.draw_without_rendering()  # lays the figure out
  titles = [axis.get_title() for axis in figure.axes]
  assert titles == ["digits", "oblique_plane"]
  for axis, factor in zip(figure.axes, (1, 0.1), strict=True):
    points = {text.get_text(): text.xy for text in axis.texts}
    assert points == {
      "ddpm": pytest.approx((1, 8 * factor)),
      "ddpm, longer": pytest.approx((8 / 3, 7.5 * factor)),
      "full": pytest.approx((8 / 3, 2 * factor)),
      "every 2nd step": pytest.approx((5.5 / 3, 2.5 * factor)),
      "half the batch": pytest.approx((5.5 / 3, 2.52 * factor)),
      "low noise alone": pytest.approx((1640 / 900, 2.51 * factor)),
    }
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    for i, box in enumerate(boxes):
      assert box.count_overlaps(boxes[:i]) == 0
      assert figure.bbox.count_contains(box.corners()) == 4
    up = bars(axis, 0)[1][0]
    np.testing.assert_allclose(up[:, 1], np.array([7, 9]) * factor)


def test_files_of_schemes(tmp_path):
  paths = experiment.write(scheme_rows(), tmp_path, "schemes")
  assert [path.name for path in paths] == ["table.md", "schemes.png"]
  table = paths[0].read_text()
  assert "| digits | full | Robust_adv | 2.667 | 2.000 ± 0.250 | 2 |" in table
  assert paths[1].stat().st_size > 10_000


def test_cost_needs_ddpm(tmp_path):
  rows = [r for r in scheme_rows() if r["objective"] != "ddpm"]
  with pytest.raises(ValueError, match="no run of ddpm on digits"):
    experiment.write(rows, tmp_path, "schemes")


# ---- The demo ----


@pytest.fixture
def demo(tmp_path):
  """The demo's rows on points, and the folder with their runs."""
  rows = []
  for objective, error, seconds in (("ddpm", 2.0, 0.1), ("robust_ran", 1, 0.2)):
    for seed in (1, 0):
      run = f"oblique_plane-{objective}-{seed}"
      folder = tmp_path / "runs" / run
      (folder / "samples" / "step_9").mkdir(parents=True)
      points = np.full((5, 3), seed + 0.5)
      np.savez(folder / "samples" / "step_9" / "samples.npz", x_0=points)
      clean = points[:4] / 2
      np.savez(folder / "training_examples.npz", clean=clean, dirty=clean)
      measures = {
        "support_rms": error + seed / 4,
        "frechet": 1.0,
        "spread_ratio": 0.9,
      }
      labels = {"data": "oblique_plane", "objective": objective, "seed": seed}
      timed = {"step_seconds": seconds} if seed == 0 else {}
      rows.append({"run": run, **labels, **timed, **measures})
  return rows, tmp_path


def test_table_of_the_demo(demo):
  rows, folder = demo
  table, *pictures = experiment.write(rows, folder, "demo")
  assert table.read_text().splitlines() == [
    "| data | objective | error (RMS) | PSNR, dB | Frechet | spread | cost |",
    "|---|---|---|---|---|---|---|",
    "| oblique_plane | DDPM | 2.125 ± 0.125 |  | 1.000 | 0.900 | 1.00 |",
    "| oblique_plane | Robust_ran | **1.125 ± 0.125** |  | 1.000 | 0.900"
    " | 2.00 |",
  ]
  names = [path.name for path in pictures]
  assert names == ["errors.png", "samples_oblique_plane.png"]
  assert all(path.stat().st_size > 5_000 for path in pictures)


def test_data_stands_below_the_runs_and_is_never_the_best(demo):
  """Clean data once, a training set for each seed; from what runs saved."""
  rows, folder = demo
  for r in rows:
    baselines = {
      "clean, held out": {"support_rms": 0.0},
      "training set": {"support_rms": 4.0 + r["seed"]},
    }
    path = folder / "runs" / r["run"] / "evaluation.json"
    path.write_text(json.dumps({"baselines": baselines}))
  table, *_ = experiment.write(rows, folder, "demo")
  *_, robust, clean, training = table.read_text().splitlines()
  assert "**1.125 ± 0.125**" in robust
  assert clean == "| oblique_plane | clean, held out | 0.000 |  |  |  |  |"
  assert training.startswith("| oblique_plane | training set | 4.500 ± 0.500 |")
  beside = tables.rows_of_data(rows, folder / "runs")
  text = experiment.summary([*rows, *beside]).splitlines()
  assert next(line for line in text if "clean" in line).endswith("| 1 |")
  assert next(line for line in text if "training" in line).endswith("| 2 |")
  labels = {"corruption": "p90-s0.2", "lam": 3.0}
  cells = study.gather([r | labels | {"method": r["objective"]} for r in rows])
  table = study.measure_table(cells, "oblique_plane", "support_rms", beside)
  assert [line[0] for line in table.rows[-2:]] == (
    ["clean, held out", "training set"]
  )
  assert table.rows[-2][1] == "0.00"
  assert table.best == {(1, 1)}


# ---- The study's report ----


def rows_of(**errors):
  """Rows of one cell: support_rms of the seeds, by method."""
  objectives = {"robust_adv_lam3": ("robust_adv", 3.0)}
  return [
    {
      "run": f"{method}{seed}",
      "data": "plane",
      "corruption": "p90-s0.2",
      "method": method,
      "objective": objectives.get(method, (method, 3.0))[0],
      "lam": 3.0,
      "seed": seed,
      "support_rms": value,
    }
    for method, values in errors.items()
    for seed, value in enumerate(values)
  ]


def gathered(rows):
  return study.gather(rows)


@pytest.mark.parametrize(
  "smaller, larger, expected",
  [
    ([1.0, 1.1], [2.0, 2.1], "yes"),
    ([2.0, 2.1], [1.0, 1.1], "no"),
    ([1.0, 2.0], [1.1, 2.1], "unclear"),
    # Means 2 and 3, standard error sqrt(1/3 + 1/3) = 0.82: 1 < 1.63.
    ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], "unclear"),
    # Means 2 and 4: 2 > 1.63.
    ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0], "yes"),
    ([1.0], [2.0], "yes"),
  ],
)
def test_verdict(smaller, larger, expected):
  assert study.verdict(np.array(smaller), np.array(larger)) == expected


def test_order_is_read_off_the_errors():
  rows = rows_of(
    ddpm=[3.0, 3.1],
    invariance=[2.0, 2.1],
    robust_ran=[2.5, 2.6],
    robust_adv_lam3=[1.0, 1.1],
  )
  table = study.order_table(gathered(rows))
  assert table.rows == [["plane, p90-s0.2", "yes", "yes", "no"]]
  lines = study.outcome(table)
  assert lines[0].endswith("in 1 of 1 cells.")
  assert lines[2].endswith("in 0 of 1 cells; not in plane, p90-s0.2 (no).")


def test_best_of_a_column_is_bold_by_what_is_better():
  rows = rows_of(ddpm=[3.0], robust_ran=[1.0], noise_aware=[2.0])
  for r, spread in zip(rows, [0.5, 1.2, 0.9], strict=True):
    r["spread_ratio"] = spread
  error = study.measure_table(gathered(rows), "plane", "support_rms")
  spread = study.measure_table(gathered(rows), "plane", "spread_ratio")
  assert [error.rows[i][0] for i, _ in error.best] == ["Robust_ran"]
  assert [spread.rows[i][0] for i, _ in spread.best] == ["noise-aware"]
  assert study.measure_table(gathered(rows), "plane", "score_error") is None


def test_cells_have_every_number():
  table = study.cells_table(gathered(rows_of(ddpm=[3.0, 5.0])))
  assert table.head[:4] == ["data", "corruption", "method", "seeds"]
  assert table.head[4:] == ["support_rms", "support_rms std"]
  assert table.rows == [["plane", "p90-s0.2", "ddpm", 2, 4.0, 1.0]]


def test_first_seed_is_the_one_that_is_shown():
  """It alone has a portrait."""
  rows = rows_of(ddpm=[3.0, 1.0, 2.0])[::-1]
  cells = gathered(rows).cells
  assert [r["run"] for r in cells["plane", "p90-s0.2", "ddpm"]] == (
    ["ddpm0", "ddpm1", "ddpm2"]
  )


def test_corruptions_stand_by_their_strength_and_outliers_last():
  names = ["outliers", "p90-s0.1", "clean", "p50-s0.2", "p50-s0.1"]
  rows = [r | {"corruption": n} for n in names for r in rows_of(ddpm=[1.0])]
  found = gathered(rows)
  assert found.corruptions == [
    *("clean", "p50-s0.1", "p50-s0.2", "p90-s0.1", "outliers")
  ]
  assert found.dirtiest == "p90-s0.1"


def test_two_lambdas_share_a_colour_and_are_told_apart():
  rows = rows_of(robust_adv_lam3=[1.0])
  rows += [r | {"method": "robust_adv-lam1", "lam": 1.0} for r in rows]
  found = gathered(rows)
  one, other = found.looks["robust_adv-lam1"], found.looks["robust_adv_lam3"]
  assert one.color == other.color == looks.of("robust_adv").color
  assert {one.label, other.label} == {
    *("Robust_adv, lambda 1", "Robust_adv, lambda 3")
  }
  assert (one.marker, one.linestyle) != (other.marker, other.linestyle)
  assert found.strongest == "robust_adv_lam3"
