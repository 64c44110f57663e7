"""--mode=study: its cells and its groups, from end to end."""

import functools
import json

import numpy as np
import pytest
import tiny
from browser import assert_whole_and_fetches_nothing

from rad_jax import checks
from rad_jax import config as configs
from rad_jax.data import builders
from rad_jax.experiments import engine, study, table
from rad_jax.reports import experiment
from rad_jax.run import build as run_of
from rad_jax.training import together


@functools.cache
def all_entries():
  """Of the whole study; not to be changed."""
  return study.entries(tiny.load("study"))


# ---- Cells ----


def test_every_combination_is_a_run_and_no_two_are_the_same():
  runs = all_entries()
  # 3 data sets, 3 seeds; 6 methods under 6 corruptions, noise_aware under 4.
  assert len(runs) == 3 * 3 * (5 * 6 + 4)
  assert len({run.name for run in runs}) == len(runs)
  prints = {table.fingerprint(run.config.to_dict()) for run in runs}
  assert len(prints) == len(runs)
  for run in runs:
    checks.validate(run.config)
    assert run.labels["seed"] == run.config.seed
    assert run.labels["objective"] == run.config.objective.name
    assert run.labels["lam"] in (None, run.config.objective.lam)
    portrayed = "portrait" in run.config.evaluation.protocols
    assert portrayed == (run.config.seed == 0)


def test_cells_are_what_they_are_called():
  (run,) = [
    run
    for run in all_entries()
    if run.name == "digits-p50-s0.1-robust_adv-lam1-seed2"
  ]
  corruption = run.config.data.corruption
  assert (corruption.kind, corruption.fraction) == ("gaussian", 0.5)
  assert (corruption.sigma, run.config.objective.lam) == (0.1, 1.0)
  assert (run.config.data.name, run.config.data.linear_rank) == ("digits", 16)


@pytest.mark.parametrize("axis", ["data", "corruptions", "methods"])
@pytest.mark.parametrize("names", [("moon",), ()])
def test_unknown_or_no_names_are_refused(axis, names):
  config = tiny.load("study")
  config.study[axis] = names
  with pytest.raises(configs.ConfigError, match=f"study.{axis}.*one|some"):
    study.entries(config)


def test_a_study_without_a_cell_is_refused():
  config = tiny.load(
    "study",
    study__methods=("noise_aware",),
    study__corruptions=("clean", "outliers"),
  )
  with pytest.raises(configs.ConfigError, match="no cell.*noise_aware"):
    study.entries(config)


def test_a_set_of_images_needs_their_folder():
  config = tiny.load("study", study__data=("colour",))
  with pytest.raises(configs.ConfigError, match="colour.*data.path"):
    study.entries(config)
  config.data.path = "somewhere"
  assert study.entries(config)[0].config.data.path == "somewhere"
  config.study.data = ("oblique_plane",)
  assert study.entries(config)[0].config.data.path == ""


def test_groups_hold_one_program_each_and_every_run_once():
  runs = all_entries()
  program = {run.name: together.program(run.config.to_dict()) for run in runs}
  groups, whole = engine.groups(runs, 10), engine.groups(runs, 1000)
  assert max(map(len, groups)) == 10
  for made in (groups, whole):
    assert sorted(run.name for group in made for run in group) == (
      sorted(run.name for run in runs)
    )
    for group in made:
      assert len({program[run.name] for run in group}) == 1
  assert len(set(program.values())) == len(whole) == 3 * 5  # one of both lams
  for group in whole:
    together.refuse([run_of(one.config) for one in (group[0], group[-1])])


# ---- From end to end ----


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """A tiny study and its rows."""
  workdir = tmp_path_factory.mktemp("study")
  builders.prepare("digits", str(workdir / "data"))
  config = tiny.load(
    "study",
    "smoke",
    data__data_dir=str(workdir / "data"),
    study__methods=("ddpm",),
    study__corruptions=("clean", "p90-s0.2"),
    study__processes=1,
    study__seeds=1,
  )
  return config, workdir, study.run(config, workdir)


@pytest.mark.slow
def test_study_runs_whole(done):
  _, workdir, rows = done
  assert len(rows) == 2 * 2
  for row in rows:
    assert np.isfinite(row["support_rms"])
    assert row["run"] == (
      f"{row['data']}-{row['corruption']}-{row['method']}-seed{row['seed']}"
    )
    folder = workdir / "runs" / row["run"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["measures"]["support_rms"] == row["support_rms"]
    assert evaluation["objective"] == row["objective"]


@pytest.mark.slow
def test_portrait_begins_in_noise_and_ends_in_samples(done):
  _, workdir, _ = done
  folder = workdir / "runs" / "oblique_plane-clean-ddpm-seed0"
  with np.load(folder / "portrait.npz") as saved:
    portrait = dict(saved)
  assert len(portrait["path"]) == len(portrait["path_sigma_t"]) + 1
  assert (np.diff(portrait["path_sigma_t"]) < 0).all()
  first = portrait["path"][0]
  assert 0.7 < first.std() < 1.3
  # The exact field points at the data: down from above, up from below.
  up = portrait["field_points"][:, 1] > 0.3
  down = portrait["field_points"][:, 1] < -0.3
  assert (portrait["field_exact"][:, up, 1] < 0).all()
  assert (portrait["field_exact"][:, down, 1] > 0).all()
  with np.load(
    workdir / "runs" / "digits-p90-s0.2-ddpm-seed0" / "portrait.npz"
  ) as saved:
    moved = np.abs(saved["dirty"] - saved["clean"]).max(axis=(1, 2, 3))
    assert 0 < (moved > 0).mean()
    assert not np.array_equal(saved["attacked"], saved["samples"])
    assert not np.array_equal(saved["purified"], saved["dirty"])


@pytest.mark.slow
def test_what_is_done_is_not_done_again(done, monkeypatch):
  config, workdir, rows = done
  monkeypatch.setattr(engine, "run_group", lambda job, workdir: pytest.fail())
  assert study.run(config, workdir) == rows


# ---- Its report ----


@pytest.fixture(scope="module")
def written(done):
  """The paths of its report."""
  _, workdir, rows = done
  return experiment.write(rows, workdir, "study")


@pytest.mark.slow
def test_report_has_its_files(written):
  names = {path.name for path in written}
  for name in (
    "report.html",
    "order.csv",
    "cells.csv",
    "errors.png",
    "oblique_plane-fields.png",
    "oblique_plane-trajectories.png",
    "digits-images.png",
    "digits-support_psnr_db.md",
  ):
    assert name in names
  assert "oblique_plane-support_psnr_db.md" not in names


@pytest.mark.slow
def test_notes_stand_in_the_report(done, tmp_path):
  _, workdir, rows = done
  notes = tmp_path / "notes.txt"
  notes.write_text("First, a\nlong line.\n\nSecond <b>.\n")
  path = experiment.write(rows, workdir, "study", notes=notes)[0]
  text = path.read_text()
  assert "First, a long line." in text
  assert "Second &lt;b&gt;." in text


@pytest.mark.slow
def test_report_in_a_browser(written, tmp_path):
  page = written[0]
  pictures = [path for path in page.parent.iterdir() if path.suffix == ".png"]
  assert_whole_and_fetches_nothing({page: len(pictures)}, tmp_path / "profile")


@pytest.mark.slow
def test_runs_whose_folders_are_gone_are_named(done, tmp_path):
  _, _, rows = done
  with pytest.raises(ValueError, match="lacks 4 of 4 runs.*rows.jsonl"):
    experiment.write(rows, tmp_path, "study")
  assert not (tmp_path / "report").exists()
