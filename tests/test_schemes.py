"""Named schemes: what their runs are, and one table from end to end."""

import pathlib

import pytest
import tiny

from rad_jax import config as configs
from rad_jax.experiments import engine, schemes, study, table

NAMES = ("demo", "cheap", "baselines", "readings", "attacks")
SETS = ("digits", "oblique_plane")


def entries(name, workdir, variant="", seeds=1):
  config = tiny.load("demo", variant, study__seeds=seeds)
  return schemes.entries(config, schemes.SCHEMES[name], workdir)


def updates(config):
  return config.train.num_steps * config.regulariser.free_replays


def test_tables_are_those_of_this_file():
  assert tuple(schemes.SCHEMES) == tuple(schemes.ACROSS) == NAMES


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_runs_differ(name, variant, tmp_path):
  runs = entries(name, tmp_path, variant, seeds=2)
  assert len(runs) == len(schemes.SCHEMES[name]) * len(SETS) * 2
  for run in runs:
    assert run.config.data.name == run.labels["data"]
    assert run.config.seed == run.labels["seed"]
    assert run.config.objective.name == run.labels["objective"]
  # What tells two runs apart: a row's labels and folder, and its training.
  for differing in (
    [run.name for run in runs],
    [(r.labels["data"], r.labels["method"], r.labels["seed"]) for r in runs],
    [table.fingerprint(run.config.to_dict()) for run in runs],
  ):
    assert len(set(differing)) == len(runs)
  assert all(" " not in run.name and "/" not in run.name for run in runs)


@pytest.mark.parametrize("name", NAMES)
def test_schemes_change_the_config_of_their_data_as_they_say(name, tmp_path):
  """Besides: where samples go, and of free replays the steps."""
  unused = ("model.unet", "purify", "study", "sweep", "evaluation.attack_steps")
  for run in entries(name, tmp_path):
    plain = tiny.load(run.labels["data"])
    changes = configs.flatten(schemes.SCHEMES[name][run.labels["method"]])
    ours, theirs = (
      configs.flatten(config.to_dict()) for config in (run.config, plain)
    )
    differing = {
      path
      for path in ours
      if ours[path] != theirs[path] and not path.startswith(unused)
    }
    free = {"train.num_steps"} if "regulariser.free_replays" in changes else {}
    assert differing <= {*changes, *free}
    stand = {path for path in changes if ours[path] == changes[path]}
    assert stand | ({"train.init_from"} & changes.keys()) == set(changes)


def test_smoke_stays_small(tmp_path):
  for name in NAMES:
    for run in entries(name, tmp_path, "smoke"):
      assert run.config.train.num_steps <= 20
      assert run.config.sampling.num_steps <= 10
      assert run.config.train.batch_size == 16


@pytest.mark.parametrize("name", NAMES)
def test_all_schemes_make_equally_many_updates(name, tmp_path):
  runs = entries(name, tmp_path)
  scratch = [run for run in runs if not run.config.train.init_from]
  for run in scratch:
    plain = tiny.load(run.labels["data"])
    assert updates(run.config) == plain.train.num_steps
  replayed = [r for r in scratch if r.config.regulariser.free_replays > 1]
  assert len(replayed) == {"cheap": 2, "baselines": 2}.get(name, 0)


def test_what_starts_from_a_run_stands_behind_it(tmp_path):
  # First in the dict, and its source last.
  made = {
    "on": {"train.init_from": "a, b = c"},
    "else": {},
    "a, b = c": {"objective.name": "ddpm"},
  }
  for chosen in (made, schemes.SCHEMES["baselines"]):
    config = tiny.load("demo", study__seeds=2)
    runs = schemes.entries(config, chosen, tmp_path)
    folders = {tmp_path / "runs" / run.name: run for run in runs}
    place = {run.name: i for i, run in enumerate(runs)}
    started = [run for run in runs if run.config.train.init_from]
    assert len(started) == 4
    for run in started:
      source = folders[pathlib.Path(run.config.train.init_from)]
      changes = chosen[run.labels["method"]]
      assert source.labels["method"] == changes["train.init_from"]
      for label in ("data", "seed"):
        assert source.labels[label] == run.labels[label]
      assert source.config.diffusion == run.config.diffusion
      assert source.config.model == run.config.model
      assert place[source.name] < place[run.name]


def test_unknown_names_are_refused(tmp_path):
  config = tiny.load("demo", study__data=("moon",))
  with pytest.raises(configs.ConfigError, match=r"study\.data=.*some of"):
    schemes.run(config, tmp_path, "cheap")
  with pytest.raises(configs.ConfigError, match=r"study\.schemes='dear'.*demo"):
    schemes.run(config, tmp_path, "dear")
  assert set(SETS) < set(study.DATA)


@pytest.mark.slow
def test_a_table_from_end_to_end(monkeypatch, tmp_path):
  made = {
    "on": {"train.init_from": "DDPM", "regulariser.warmup_steps": 5},
    "DDPM": {"objective.name": "ddpm"},
    "FGSM": {},
  }
  monkeypatch.setitem(schemes.SCHEMES, "demo", made)
  config = tiny.load(
    "demo",
    "smoke",
    study__data=("oblique_plane",),
    study__seeds=1,
    study__processes=1,
  )
  rows = schemes.run(config, tmp_path, "demo")
  by_method = {row["method"]: row for row in rows}
  assert list(by_method) == ["DDPM", "FGSM", "on"]
  assert not any("error" in row for row in rows)
  assert all(0 < row["step_seconds"] < 1 for row in rows)
  # Started from the end of a run, it ends elsewhere than one that did not.
  assert by_method["on"]["support_rms"] != by_method["FGSM"]["support_rms"]
  assert by_method["FGSM"]["passes"] == 8 / 3 * by_method["DDPM"]["passes"]
  # A second call reads what is there.
  before = (tmp_path / "rows.jsonl").read_bytes()
  for trained in ("run_alone", "step_seconds"):
    monkeypatch.setattr(engine, trained, lambda *given: pytest.fail())
  assert schemes.run(config, tmp_path, "demo") == rows
  assert (tmp_path / "rows.jsonl").read_bytes() == before
