"""The report of a study: whole, in a browser, and its verdicts."""

import pathlib

import numpy as np
import pytest
from browser import assert_whole_and_fetches_nothing
from test_controlled_study import study_config

from rad_jax.data import builders
from rad_jax.experiments import study
from rad_jax.reports import methods
from rad_jax.reports import study as report

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """A tiny study, its rows and its report's paths."""
  workdir = tmp_path_factory.mktemp("study")
  builders.prepare("digits", str(workdir / "data"))
  config = study_config(
    "smoke",
    data__data_dir=str(workdir / "data"),
    study__methods=("ddpm",),
    study__corruptions=("clean", "p90-s0.2"),
    study__processes=1,
    study__seeds=1,
  )
  rows = study.run(config, workdir)
  return config, workdir, rows, report.write(rows, workdir)


def test_report_has_its_files(done):
  paths = done[3]
  names = {path.name for path in paths}
  for name in (
    "report.html",
    "order.csv",
    "cells.csv",
    "errors.png",
    "oblique_plane-fields.png",
    "oblique_plane-trajectories-3d.png",
    "digits-images.png",
    "digits-support_psnr_db.md",
  ):
    assert name in names
  assert "oblique_plane-support_psnr_db.md" not in names


def test_notes_stand_in_the_report(done, tmp_path):
  _, workdir, rows, _ = done
  notes = tmp_path / "notes.txt"
  notes.write_text("First, a\nlong line.\n\nSecond <b>.\n")
  path = report.write(rows, workdir, notes)[0]
  text = path.read_text()
  assert "First, a long line." in text
  assert "Second &lt;b&gt;." in text


def test_report_in_a_browser(done, tmp_path):
  page = done[3][0]
  pictures = [path for path in page.parent.iterdir() if path.suffix == ".png"]
  assert_whole_and_fetches_nothing({page: len(pictures)}, tmp_path / "profile")


def test_committed_report_in_a_browser(tmp_path):
  page = ROOT / "docs" / "report" / "report.html"
  pictures = page.read_text().count("<svg")
  assert_whole_and_fetches_nothing({page: pictures}, tmp_path / "profile")


def test_runs_whose_folders_are_gone_are_named(done, tmp_path):
  _, _, rows, _ = done
  with pytest.raises(ValueError, match="lacks 4 of 4 runs.*rows.jsonl"):
    report.write(rows, tmp_path)
  assert not (tmp_path / "report").exists()


# ---- Verdicts ----


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
  assert report.verdict(np.array(smaller), np.array(larger)) == expected


def test_order_is_read_off_the_errors():
  rows = rows_of(
    ddpm=[3.0, 3.1],
    invariance=[2.0, 2.1],
    robust_ran=[2.5, 2.6],
    robust_adv_lam3=[1.0, 1.1],
  )
  table = report.order_table(report.gather(rows, pathlib.Path("none")))
  assert table.rows == [["plane, p90-s0.2", "yes", "yes", "no"]]
  lines = report.outcome(table)
  assert lines[0].endswith("in 1 of 1 cells.")
  assert lines[2].endswith("in 0 of 1 cells; not in plane, p90-s0.2 (no).")


def test_best_of_a_column_is_bold_by_what_is_better():
  rows = rows_of(ddpm=[3.0], robust_ran=[1.0], noise_aware=[2.0])
  for row, spread in zip(rows, [0.5, 1.2, 0.9], strict=True):
    row["spread_ratio"] = spread
  gathered = report.gather(rows, pathlib.Path("none"))
  error = report.measure_table(gathered, "plane", "support_rms")
  spread = report.measure_table(gathered, "plane", "spread_ratio")
  assert [error.rows[i][0] for i, _ in error.best] == ["Robust_ran"]
  assert [spread.rows[i][0] for i, _ in spread.best] == ["noise-aware"]
  assert report.measure_table(gathered, "plane", "score_error") is None


def test_first_seed_is_the_one_that_is_shown():
  """It alone has a portrait."""
  rows = rows_of(ddpm=[3.0, 1.0, 2.0])[::-1]
  gathered = report.gather(rows, pathlib.Path("none"))
  assert report._run(gathered, "plane", "ddpm").name == "ddpm0"


def test_two_lambdas_share_a_colour_and_are_told_apart():
  rows = rows_of(robust_adv_lam3=[1.0])
  rows += [row | {"method": "robust_adv-lam1", "lam": 1.0} for row in rows]
  looks = report.gather(rows, pathlib.Path("none")).looks
  one, other = looks["robust_adv-lam1"], looks["robust_adv_lam3"]
  assert one.colour == other.colour == methods.of("robust_adv").colour
  assert one.label != other.label
  assert (one.marker, one.dashes) != (other.marker, other.dashes)
