"""launch/study.py: what its runs are, and one study from end to end."""

import importlib
import pathlib

import pytest

from rad_jax import config as configs
from rad_jax import validation
from rad_jax.data import builders
from rad_jax.experiments import sweep

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
STUDIES = ("cheap", "baselines", "readings")


@pytest.fixture
def study(monkeypatch):
  """The module, which finds its neighbour demo.py as a script does."""
  monkeypatch.syspath_prepend(str(LAUNCH))
  return importlib.import_module("study")


def updates(config):
  return config.train.num_steps * config.regulariser.free_replays


def test_studies_are_those_of_this_file(study):
  assert tuple(study.STUDIES) == tuple(study.ACROSS) == STUDIES


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", STUDIES)
def test_runs_are_valid_and_differ(study, name, smoke, tmp_path):
  schemes = study.STUDIES[name]
  runs = study.study_runs(schemes, 2, tmp_path, smoke)
  assert len(runs) == len(schemes) * len(study.WORLDS) * 2
  for run in runs:
    validation.validate(run.config)
    assert run.config.data.name == run.labels["data"]
    assert run.config.seed == run.labels["seed"]
    assert run.config.objective.name == run.labels["objective"]
  # What tells two runs apart: a row's labels and folder, and its training.
  for differing in (
    [run.name for run in runs],
    [(r.labels["data"], r.labels["scheme"], r.labels["seed"]) for r in runs],
    [sweep.fingerprint(run.config.to_dict()) for run in runs],
  ):
    assert len(set(differing)) == len(runs)
  assert all(" " not in run.name and "/" not in run.name for run in runs)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", STUDIES)
def test_schemes_change_the_worlds_config_as_they_say(
  study, name, smoke, tmp_path
):
  """Besides: the seed, the folders, and of free replays the steps."""
  kept = {"model", "optimizer", "checkpoint", "evaluation"}
  for run in study.study_runs(study.STUDIES[name], 1, tmp_path, smoke):
    plain = study.load_config(run.labels["data"], "smoke" if smoke else "")
    changes = study.STUDIES[name][run.labels["scheme"]]
    ours, theirs = (
      configs.flatten(config.to_dict()) for config in (run.config, plain)
    )
    differing = {path for path in ours if ours[path] != theirs[path]}
    free = {"train.num_steps"} if "regulariser.free_replays" in changes else {}
    assert differing <= {*changes, "data.data_dir", *free}
    assert not {path.split(".")[0] for path in differing} & kept
    # The shrinking goes over the changes; in a full run all of them stand.
    stand = {path for path in changes if ours[path] == changes[path]}
    stand |= {"train.init_from"} & changes.keys()
    assert smoke or stand == set(changes)


@pytest.mark.parametrize("name", STUDIES)
def test_all_schemes_make_equally_many_updates(study, name, tmp_path):
  runs = study.study_runs(study.STUDIES[name], 1, tmp_path, False)
  scratch = [run for run in runs if not run.config.train.init_from]
  for run in scratch:
    plain = study.load_config(run.labels["data"])
    assert updates(run.config) == plain.train.num_steps
  replayed = [r for r in scratch if r.config.regulariser.free_replays > 1]
  assert len(replayed) == {"cheap": 2, "baselines": 2, "readings": 0}[name]


def test_what_starts_from_a_run_stands_behind_it(study, tmp_path):
  # First in the dict, and its source last.
  schemes = {
    "on": {"train.init_from": "a, b = c"},
    "else": {},
    "a, b = c": {"objective.name": "ddpm"},
  }
  for chosen in (schemes, study.BASELINES):
    runs = study.study_runs(chosen, 2, tmp_path, False)
    folders = {tmp_path / "runs" / run.name: run for run in runs}
    place = {run.name: i for i, run in enumerate(runs)}
    started = [run for run in runs if run.config.train.init_from]
    assert len(started) == 4
    for run in started:
      source = folders[pathlib.Path(run.config.train.init_from)]
      changes = chosen[run.labels["scheme"]]
      assert source.labels["scheme"] == changes["train.init_from"]
      for label in ("data", "seed"):
        assert source.labels[label] == run.labels[label]
      assert source.config.diffusion == run.config.diffusion
      assert source.config.model == run.config.model
      assert place[source.name] < place[run.name]


def test_a_study_from_end_to_end(study, monkeypatch, tmp_path, capsys):
  schemes = {
    "on": {"train.init_from": "DDPM", "regulariser.warmup_steps": 5},
    "DDPM": {"objective.name": "ddpm"},
    "FGSM": {},
  }
  monkeypatch.setitem(study.STUDIES, "cheap", schemes)
  # An empty one of scikit-learn's digits: half of the time goes into them.
  monkeypatch.setattr(study, "WORLDS", ("oblique_plane",))
  monkeypatch.setattr(builders, "prepare", lambda name, data_dir: None)
  # It is for the processes of the runs, and would outlive the test.
  monkeypatch.setattr(study, "small_networks_on_cpu", lambda workdir: None)
  arguments = ["cheap", "--smoke", "--seeds=1", "--processes=1"]
  command = ["study.py", *arguments, f"--workdir={tmp_path}"]
  monkeypatch.setattr("sys.argv", command)
  study.main()
  rows = {row["method"]: row for row in sweep.read(tmp_path)}
  assert list(rows) == ["DDPM", "FGSM", "on"]
  assert not any("error" in row for row in rows.values())
  # Started from the end of a run, it ends elsewhere than one that did not.
  assert rows["on"]["support_rms"] != rows["FGSM"]["support_rms"]
  table = (tmp_path / "table.md").read_text()
  heads, _, *lines = (
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in table.splitlines()
    if line.startswith("|")
  )
  cells = {line[0]: dict(zip(heads, line, strict=True)) for line in lines}
  assert list(cells) == list(rows)
  for name, cost in {"DDPM": 1, "FGSM": 8 / 3, "on": 8 / 3}.items():
    assert float(cells[name]["cost"]) == pytest.approx(cost, rel=1e-3)
    for measure in ("support_rms", "spread_ratio"):
      assert float(cells[name][measure]) == pytest.approx(
        rows[name][measure], rel=1e-3
      )
  assert (tmp_path / "schemes.png").read_bytes().startswith(b"\x89PNG")
  assert table in capsys.readouterr().out
  # A second call reads what is there.
  before = (tmp_path / "rows.jsonl").read_bytes()
  for trained in ("run_one", "_logged"):
    monkeypatch.delattr(sweep, trained)
  study.main()
  assert (tmp_path / "rows.jsonl").read_bytes() == before
  assert (tmp_path / "table.md").read_text() == table
