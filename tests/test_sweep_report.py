"""Table and figures of a sweep and of schemes, from their rows."""

import numpy as np
import pytest
from matplotlib.text import Text

from rad_jax.experiments import table as rows_table
from rad_jax.reports import frontier


def row(objective, lam, fraction, seed, frechet, **columns):
  """A row as the engine writes it, of a made-up measurement."""
  plain = objective == "ddpm"
  return {
    "run": f"{objective}-lam_{lam}-fraction_{fraction}-seed_{seed}",
    "data": "oblique_plane",
    "corruption": None,
    "method": objective,
    "objective": objective,
    "lam": None if plain else lam,
    "radius": None if plain else "seed",
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


def drawn(axis):
  """{label: points [n, 2]} of the lines of an axis."""
  return {
    bars.get_label(): bars.lines[0].get_xydata() for bars in axis.containers
  }


def test_report_knows_the_axes_of_the_sweep():
  assert set(rows_table.AXES) - {"seed"} <= set(frontier.AXES)
  assert frontier.measures_of(made_rows()) == ["frechet"]


def test_table():
  lines = frontier.markdown_table(
    [*made_rows(), failed_row(), row("robust_adv", 30.0, 0.9, 1, 5e-4)],
    ["frechet"],
  ).splitlines()
  assert lines == [
    "All runs: radius seed, beta 0.1, sigma 0.2, steps 300.",
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
  only_failed = frontier.markdown_table([failed_row()], ["frechet"])
  assert "| failed | 0 of 1 |" in only_failed


def test_frontier():
  figure = frontier.frontier_figure([*made_rows(), failed_row()])
  (axis,) = figure.axes
  lines = drawn(axis)
  assert lines.keys() == {"DDPM", "Robust_adv"}
  np.testing.assert_allclose(lines["DDPM"], [[1, 8]])
  np.testing.assert_allclose(lines["Robust_adv"], [[2, 6], [3, 5], [4, 2]])
  assert {text.get_text(): text.xy for text in axis.texts} == {
    "0.3": (2, 6),
    "1": (3, 5),
    "3": (4, 2),
  }
  across, up = axis.containers[1].lines[2]
  np.testing.assert_allclose(across.get_segments()[0], [[1.75, 6], [2.25, 6]])
  np.testing.assert_allclose(up.get_segments()[0], [[2, 5.25], [2, 6.75]])


def test_frontier_has_a_panel_for_each_dirty_set():
  more = [
    r | {"fraction": 0.5, "frechet": 2 * r["frechet"]}
    for r in made_rows()
    if r["fraction"]
  ]
  figure = frontier.frontier_figure(made_rows() + more)
  found = {axis.get_title(): drawn(axis)["DDPM"] for axis in figure.axes}
  assert found.keys() == {"fraction 0.9, sigma 0.2", "fraction 0.5, sigma 0.2"}
  np.testing.assert_allclose(found["fraction 0.5, sigma 0.2"], [[1, 16]])


def test_runs_of_another_beta_are_another_line():
  others = [
    r | {"beta": 0.2, "frechet": 2 * r["frechet"]}
    for r in made_rows()
    if r["lam"]
  ]
  figure = frontier.frontier_figure(made_rows() + others)
  lines = drawn(figure.axes[0])
  assert lines.keys() == {
    "DDPM",
    "Robust_adv, beta 0.1",
    "Robust_adv, beta 0.2",
  }
  np.testing.assert_allclose(
    lines["Robust_adv, beta 0.2"], [[4, 12], [6, 10], [8, 4]]
  )


def test_error_against_lambda():
  dirty = [r for r in made_rows() if r["fraction"]]
  figure = frontier.error_figure(dirty)
  lines = drawn(figure.axes[0])
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
def test_files_of_the_report(tmp_path, kept, name):
  rows = [r for r in made_rows() if kept(r)] + [failed_row()]
  paths = frontier.write(rows, tmp_path)
  assert [path.name for path in paths] == ["table.md"] + [name] * bool(name)
  assert sorted(tmp_path.iterdir()) == sorted(paths)
  table = paths[0].read_text()
  assert table == frontier.markdown_table(rows, ["frechet"]) + "\n"
  assert all(path.stat().st_size > 10_000 for path in paths[1:])


def study_rows():
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
      "frechet": factor * mean * (1 + (seed - 0.5) / 4),
    }
    for data, factor in (("digits", 1), ("oblique_plane", 0.1))
    for scheme, objective, passes, mean in schemes
    for seed in (0, 1)
  ]


def test_scheme_figure():
  figure = frontier.scheme_figure(study_rows(), "cost", "frechet")
  assert [axis.get_title() for axis in figure.axes] == [
    "digits",
    "oblique_plane",
  ]
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
      assert axis.bbox.count_contains(box.corners()) == 4
    bars = axis.containers[0].lines[2][1].get_segments()[0]
    np.testing.assert_allclose(bars[:, 1], np.array([7, 9]) * factor)


def test_study(tmp_path):
  paths = frontier.write_study(study_rows(), tmp_path, "cost", "frechet")
  assert [path.name for path in paths] == ["study.md", "study.png"]
  table = paths[0].read_text()
  assert "| digits | full | Robust_adv | 2.667 | 2.000 ± 0.250 | 2 |" in table
  assert paths[1].stat().st_size > 10_000


def test_cost_needs_ddpm():
  rows = [r for r in study_rows() if r["objective"] != "ddpm"]
  with pytest.raises(ValueError, match="no run of ddpm on digits"):
    frontier.relative_cost(rows)
