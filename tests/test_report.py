"""The report of runs: what it shows of real ones, and what it says if not."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import tiny
from begun import begin
from browser import assert_whole_and_fetches_nothing
from test_page import HOSTILE, Outline, sections

from rad_jax import run as rad_run
from rad_jax.data import builders
from rad_jax.evaluation import evaluate, sampling
from rad_jax.reports import curves, figures, page, panels, runs, tables
from rad_jax.reports.tables import Table
from rad_jax.training import loop


def make_run(name, **fields):
  """Of a shared config, with some fields of its own."""
  own = {
    "train__num_steps": 10,
    "train__log_every_steps": 5,
    "sampling__num_samples": 16,
    "sampling__batch_size": 16,
    "evaluation__num_samples": 64,
    "evaluation__num_step_samples": 16,
  }
  if name == "digits":
    own |= {
      "data__name": "digits",
      "data__image_size": 8,
      "data__num_channels": 1,
      "data__flip": False,
      "data__linear_rank": 16,
    }
  return rad_run.build(tiny.plane(**(own | fields)))


LEVELS = {
  "sigma_t": [0.9, 0.5, 0.1],
  "reconstruction_rms": [1.0, 0.5, 0.25],
  "reconstruction_psnr_db": [6.0, 12.0, 18.0],
}
DIAGNOSIS = {
  "step": 10,
  "objective": "robust_adv",
  "data": "oblique_plane",
  "levels": [
    {
      "sigma_t": sigma_t,
      "radius": 0.1,
      "equivariance_random": 0.1,
      "equivariance_adversarial": None,
      "invariance_random": 0.9,
      "invariance_adversarial": 1.0,
      "lipschitz_mean": 1.0,
      "lipschitz_max": 2 * sigma_t,
    }
    for sigma_t in (0.9, 0.1)
  ],
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
  """A run on the oblique plane, with curves and a diagnosis."""
  workdir = tmp_path_factory.mktemp("runs") / "plane"
  run = make_run(
    "oblique_plane",
    evaluation__protocols=("truth", "training_set", "steps"),
    evaluation__samplers=("ddim",),
    evaluation__step_counts=(3,),
  )
  loop.train(run, workdir)
  sampling.sample(run, workdir)
  evaluate.evaluate(run, workdir)
  edit(
    workdir / "evaluation.json",
    protocols={"reconstruction": {"measures": {}, "curves": LEVELS}},
  )
  (workdir / "diagnosis.json").write_text(json.dumps(DIAGNOSIS))
  return workdir


@pytest.fixture(scope="module")
def digits(plane, tmp_path_factory):
  """A run on digits, with closest pairs and purified images, not sampled.

  It has the other's curves of training.
  """
  folder = tmp_path_factory.mktemp("runs")
  workdir = folder / "digits"
  builders.prepare("digits", str(folder / "data"))
  run = make_run(
    "digits",
    data__data_dir=str(folder / "data"),
    objective__name="ddpm",
    evaluation__protocols=("truth", "memorisation"),
  )
  begin(run, workdir, step=10)
  shutil.copy(plane / "metrics.jsonl", workdir)
  evaluate.evaluate(run, workdir)
  with np.load(workdir / "training_examples.npz") as file:
    images = np.concatenate([file["dirty"], file["clean"]])
  (workdir / "purified").mkdir()
  np.savez(workdir / "purified/samples.npz", x_0=images)
  return workdir


@pytest.fixture(scope="module")
def report(plane, digits, tmp_path_factory):
  """The folder of both runs' report."""
  folder = tmp_path_factory.mktemp("report")
  runs.write([plane, digits], folder)
  return folder


@pytest.fixture
def twins(plane, tmp_path):
  """The plane's run, and the same under another objective, and better."""
  for name in ("adv", "ddpm"):
    shutil.copytree(plane, tmp_path / name)
  edit(tmp_path / "ddpm/config.json", objective={"name": "ddpm"}, seed=3)
  result = json.loads((plane / "evaluation.json").read_text())
  measures = result["measures"]
  better = {
    "support_rms": measures["support_rms"] / 2,
    "frechet": measures["frechet"] * 2,
    "spread_ratio": 1.0,
  }
  for name, changes in (("adv", {}), ("ddpm", better)):
    path = tmp_path / name / "evaluation.json"
    edit(path, measures=changes, alarms=[])
  return [tmp_path / "adv", tmp_path / "ddpm"]


def edit(path, **changes):
  """Changes fields of a JSON file; dicts are merged."""
  tree = json.loads(path.read_text())
  for name, value in changes.items():
    tree[name] = tree[name] | value if isinstance(value, dict) else value
  path.write_text(json.dumps(tree))


def rows_of(folder, table):
  with (folder / f"{table}.csv").open() as file:
    return {row[0]: row[1:] for row in csv.reader(file)}


def titles(folder):
  text = (folder / "report.html").read_text()
  return re.findall(r"<h2[^>]*>(.*?)</h2>", text)


# What is shown.


def test_all_there_is_has_its_section(report):
  assert titles(report) == [
    "Alarms",
    "Samples",
    "The runs",
    "Measures",
    "Against the training set alone",
    "Training",
    "Protocols",
    "Closest training examples",
    "Purification",
    "Diagnosis",
    "Left out",
    "Versions",
  ]
  pictures = {path.stem for path in report.glob("*.png")}
  assert pictures == {
    *("training", "samples", "samples_2", "reconstruction", "steps"),
    *("memorisation_digits", "purified_digits", "diagnosis"),
  }


def test_what_is_missing_is_said(report):
  text = Outline((report / "report.html").read_text()).text
  assert "No purified examples of plane (purified/, by --mode=purify)." in text
  assert "No diagnosis of digits (diagnosis.json, by --mode=diagnose)." in text
  assert "No samples of digits (samples/, by --mode=sample)." in text
  assert "No training" not in text


def test_facts_are_the_runs_own(report):
  facts = rows_of(report, "runs")
  assert facts["run"] == ["plane", "digits"]
  assert facts["data"] == ["oblique_plane", "digits"]
  assert facts["objective"] == ["robust_adv", "ddpm"]
  assert facts["trained"] == ["10 of 10 steps"] * 2
  assert facts["evaluated at step"] == ["10", "10"]
  assert facts["corruption"] == ["90% gaussian, sigma 0.2"] * 2
  assert "jax" in rows_of(report, "versions")


def test_measures_are_those_of_the_evaluation(report, plane, digits):
  table = rows_of(report, "measures")
  alone = rows_of(report, "training_set")
  assert not table.keys() & alone.keys() - {"measure"}
  head = table["measure"]
  assert head[:2] == ["plane", "digits"]
  for column, workdir in enumerate((plane, digits)):
    result = json.loads((workdir / "evaluation.json").read_text())
    shown = {n: row[column] for n, row in (table | alone).items()}
    del shown["measure"]
    found = {n: float(cell) for n, cell in shown.items() if cell}
    assert found == result["measures"]
  # The runs differ in their data: each has its own, beside both.
  for workdir, name in ((plane, "plane"), (digits, "digits")):
    result = json.loads((workdir / "evaluation.json").read_text())
    shown = head.index(f"training set of {name}")
    found = {
      n: float(row[shown])
      for n, row in table.items()
      if row[shown] and n != "measure"
    }
    assert found == result["baselines"]["training set"]


def test_numbers_on_other_data_are_not_compared(report):
  text = (report / "report.html").read_text()
  assert "<strong>" not in text
  assert "the runs differ in their clean data" in text


def test_best_of_runs_is_bold(twins):
  *_, table = runs.measures(runs.read(twins))
  bold = bold_of(table)
  assert bold["support_rms"] == [2]
  assert bold["frechet"] == [1]
  assert bold["spread_ratio"] == [2]
  data = ["clean, held out", "training set"]
  assert table.head == ["measure", "adv", "ddpm", *data]


def bold_of(table):
  """name -> columns of its bold cells."""
  return {
    row[0]: sorted(j for i, j in table.best if i == place)
    for place, row in enumerate(table.rows)
  }


def test_a_run_with_an_alarm_is_never_the_best(twins, tmp_path):
  """The best of the others is; and the alarm stands above all else."""
  shutil.copytree(twins[1], tmp_path / "third")
  measures = {"support_rms": 1e9}
  edit(tmp_path / "third/evaluation.json", measures=measures)
  edit(twins[1] / "evaluation.json", alarms=["it shrinks", "wait"])
  three = [*twins, tmp_path / "third"]
  *_, table = runs.measures(runs.read(three))
  bold = bold_of(table)
  assert bold["support_rms"] == [1]
  assert bold["spread_ratio"] == [3]
  assert "of the runs without an alarm" in table.caption
  runs.write(three, tmp_path / "report")
  text = Outline((tmp_path / "report/report.html").read_text()).text
  assert "ddpm has collapsed, it seems: it shrinks; wait." in text
  assert titles(tmp_path / "report")[0] == "Alarms"
  # What is left of two is alone.
  *_, table = runs.measures(runs.read(twins))
  assert not table.best
  assert "alarms leave nothing to compare" in table.caption


def test_measures_that_disagree_are_first_and_explained(twins):
  order = runs.disagreeing(
    [
      ["mean_error", 1.0, 1.0],
      ["support_rms", 2.0, 1.0],
      ["frechet", 1.0, 2.0],
      ["recall", 0.9, 0.8],
      ["kid", None, 0.1],
      ["density", 3.0, 4.0],
    ]
  )
  assert order == {"frechet": [0, 1], "recall": [0, 1], "support_rms": [1, 0]}
  assert not runs.disagreeing([["frechet", 1.0, 2.0], ["recall", 0.9, 0.8]])
  lead, *said, table = runs.measures(runs.read(twins))
  assert "disagree" in lead
  (first,) = [text for text in said if text.startswith("adv before ddpm: ")]
  assert f"frechet ({tables.SEES['frechet']})" in first
  (other,) = [text for text in said if text.startswith("ddpm before adv: ")]
  assert "support_rms" in other
  assert table.rows[-1][0] not in first + other
  assert table.rows[0][0] in first + other


def test_every_measure_that_is_marked_is_explained():
  assert tables.SEES.keys() == tables.BETTER.keys()


def test_clean_truth_is_not_claimed_of_images_as_they_are(digits, tmp_path):
  """Without a corruption of ours, the training set is all that is known."""
  run = shutil.copytree(digits, tmp_path / "own")
  (table,) = runs.measures(runs.read([run]))
  assert "before they were corrupted" in table.caption
  config = json.loads((run / "config.json").read_text())
  config["data"]["corruption"]["fraction"] = 0.0
  (run / "config.json").write_text(json.dumps(config))
  with np.load(run / "training_examples.npz") as file:
    clean = file["clean"]
  np.savez(run / "training_examples.npz", clean=clean, dirty=clean)
  (table,) = runs.measures(runs.read([run]))
  assert "no cleaner ones are known" in table.caption
  ((picture, *_),) = [figures.beside_truth([(run, runs.read([run])[0].look)])]
  assert picture[0] == "training set"


def test_runs_are_compared_where_they_were_measured_alike(twins):
  def alike(**changes):
    adv, ddpm = runs.read(twins)
    evaluation = ddpm.evaluation["evaluation"] | changes
    edited = ddpm.evaluation | {"evaluation": evaluation}
    *_, table = runs.measures([adv, ddpm._replace(evaluation=edited)])
    return bool(table.best)

  assert alike()
  assert alike(protocols=["truth"], a_new_field=1)
  assert not alike(num_samples=65)


@pytest.mark.parametrize(
  "values, better, expected",
  [
    ([1.0, 2.0], "lower", [0]),
    ([1.0, 2.0], "higher", [1]),
    ([0.5, 1.2, 1.9], "near 1", [1]),
    ([1.0, 2.0], None, []),
    ([None, 2.0, 2.0, 3.0], "lower", [1, 2]),
    ([float("nan"), 2.0], "higher", [1]),
    ([2.0, 2.0], "lower", []),
    ([None, None], "lower", []),
  ],
)
def test_best(values, better, expected):
  assert tables.best_of(values, better) == expected


def test_only_differing_fields_are_listed(twins):
  _, table = runs.facts(runs.read(twins))
  assert table.rows == [
    ["objective.name", "robust_adv", "ddpm"],
    ["seed", 0, 3],
  ]
  assert len(runs.facts(runs.read(twins[:1]))) == 1


def test_differences_of_nested_fields():
  first = {"a": {"b": [1, 2], "c": ""}, "d": True, "e": 1}
  other = {"a": {"b": [1, 3], "c": "x"}, "d": False, "e": 1}
  assert runs.differences([first, other, first]) == [
    ["a.b", "[1, 2]", "[1, 3]", "[1, 2]"],
    ["a.c", '""', "x", '""'],
    ["d", "true", "false", "true"],
  ]
  assert runs.differences([{"a": 1}, {}]) == [["a", 1, "unset"]]
  assert runs.differences([{"sweep": {"seed": [1]}}, {}]) == []
  assert runs.differences([first]) == []


# Curves.


def lines_of(picture):
  """(title, label) -> x, y of every line."""
  return {
    (axis.get_title(), line.get_label()): line.get_xydata()
    for axis in picture.figure.axes
    for line in axis.lines
  }


def test_training_curves_are_the_metrics(plane):
  (run,) = runs.read([plane])
  (picture,) = runs.training([run])
  lines = lines_of(picture)
  assert {title for title, _ in lines} == {
    *("loss", "loss of the clean branch", "loss of the perturbed branch"),
    *("gradient norm", "learning rate", "examples per second"),
  }
  expected = [[row["step"], row["train/grad_norm"]] for row in run.metrics]
  np.testing.assert_array_equal(lines["gradient norm", "plane"], expected)
  assert len(expected) == 2


def protocols(found):
  """The pictures of the runs' protocols."""
  return curves.protocol_pictures({run.look: run.evaluation for run in found})


def test_curves_over_levels_have_a_line_a_run(twins):
  found = {picture.name: picture for picture in protocols(runs.read(twins))}
  picture = found["reconstruction"]
  lines = lines_of(picture)
  assert {label for _, label in lines} == {"adv", "ddpm"}
  for name in LEVELS.keys() - {"sigma_t"}:
    np.testing.assert_array_equal(
      lines[name, "adv"], np.transpose([LEVELS["sigma_t"], LEVELS[name]])
    )


STEPS = {
  "sampler": ["ddim", "ddim", "heun", "heun"],
  "num_steps": [2, 3, 2, 3],
  "evaluations": [2, 3, 3, 5],
  "support_rms": [4.0, 3.0, 2.0, None],
  "frechet": [1.0, 2.0, 3.0, 4.0],
}
ATTACK = {
  "attack": ["random", "random", "joint", "joint"],
  "budget": [0.0, 0.1, 0.0, 0.1],
  "queries": [0, 0, 0, 20],
  "moved": [0.0, 0.1, 0.0, 0.2],
  "support_rms": [1.0, 1.0, 1.0, 2.0],
  "frechet": [1.0, 1.0, 1.0, 3.0],
}


@pytest.mark.parametrize(
  "name, columns", [("steps", STEPS), ("attack", ATTACK)]
)
def test_protocols_write_the_columns_that_are_drawn(name, columns):
  """Their docstrings list them."""
  module = getattr(evaluate, name)
  assert all(column in module.__doc__ for column in columns)


def test_real_steps_have_the_columns_assumed_here(plane):
  result = json.loads((plane / "evaluation.json").read_text())
  assert result["protocols"]["steps"]["curves"].keys() >= STEPS.keys()


def with_curves(workdirs, **found):
  """The runs, with these curves instead of theirs."""
  curves = {
    name: {"measures": {}, "curves": columns} for name, columns in found.items()
  }
  return [
    run._replace(evaluation=run.evaluation | {"protocols": curves})
    for run in runs.read(workdirs)
  ]


def test_series_of_one_run_are_lines(plane):
  steps, attack = protocols(with_curves([plane], steps=STEPS, attack=ATTACK))
  lines = lines_of(steps)
  assert {label for _, label in lines} == {"ddim", "heun"}
  np.testing.assert_array_equal(
    lines["support_rms", "ddim"], [[2, 4.0], [3, 3.0]]
  )
  # What did not come out is a gap, no number.
  np.testing.assert_array_equal(
    lines["support_rms", "heun"], [[3, 2.0], [5, np.nan]]
  )
  assert steps.figure.axes[0].get_xscale() == "log"
  lines = lines_of(attack)
  np.testing.assert_array_equal(lines["moved", "joint"], [[0, 0.0], [0.1, 0.2]])


def test_series_of_several_runs_have_the_runs_colours(twins):
  found = with_curves(twins, attack=ATTACK)
  (picture,) = protocols(found)
  assert set(lines_of(picture)) == {
    (column, f"{run}: {attack}")
    for column in ("moved", "support_rms", "frechet")
    for attack in ("random", "joint")
    for run in ("adv", "ddpm")
  }
  colours = {
    line.get_label(): line.get_color() for line in picture.figure.axes[0].lines
  }
  for run in found:
    for attack in ("random", "joint"):
      assert colours[f"{run.name}: {attack}"] == run.look.color


def test_unknown_protocols_by_level_are_drawn_and_others_left(plane):
  columns = {"sigma_t": [0.1, 0.9], "new_error": [1.0, 2.0]}
  (picture,) = protocols(
    with_curves([plane], new=columns, other={"k": [1]}, none={})
  )
  assert picture.name == "new"
  assert set(lines_of(picture)) == {("new_error", "plane")}


def test_scales_do_not_hide_values():
  lines = [panels.Line([0, 1, 2], y, {}) for y in ([-1.0, 2.0, 5.0], [0, 0, 0])]
  wide = panels.Line([0, 1, 2], [1e-3, 1.0, 10.0], {})
  figure = panels.line_figure(
    [panels.Panel("", "", [line]) for line in [*lines, wide]]
  )
  figure.draw_without_rendering()
  for axis in figure.axes:
    low, high = axis.get_ylim()
    y = axis.lines[0].get_ydata()
    assert low < min(y) and max(y) < high
  assert [axis.get_yscale() for axis in figure.axes] == (
    ["linear", "linear", "log"]
  )


# Pictures of examples.


def test_samples_stand_beside_what_was_trained_on(twins, plane):
  (picture,) = runs.examples(runs.read(twins))
  axes = picture.figure.axes
  assert [axis.get_title() for axis in axes] == (
    ["clean truth", "as trained on", "adv", "ddpm"]
  )
  with np.load(plane / "training_examples.npz") as file:
    clean = file["clean"]
  assert len(axes[0].collections[0].get_offsets()) == len(clean)
  assert len({axis.get_xlim() + axis.get_ylim() for axis in axes}) == 1


def test_newest_samples_are_shown(tmp_path):
  for step in (9, 10, 100, 20):
    folder = tmp_path / f"samples/step_{step}"
    folder.mkdir(parents=True)
    np.savez(folder / "samples.npz", x_0=np.full((2, 3), step))
  assert figures.newest_samples(tmp_path)["x_0"][0, 0] == 100


def test_pairs_stand_one_above_the_other(digits, tmp_path):
  with np.load(digits / "memorisation.npz") as file:
    pairs = {name: file[name] for name in file}
  pairs["samples"][17] = 1.0
  pairs["neighbours"][17] = -1.0
  np.savez(tmp_path / "pairs.npz", **pairs)
  drawn = figures.pair_figure(tmp_path / "pairs.npz").axes
  pixels = [axis.images[0].get_array() for axis in drawn]
  assert [p.shape for p in pixels] == [(20, 16 * 9 + 1)] * 2
  # Pair 17 is the second of the second strip.
  assert np.all(pixels[1][1:9, 10:18] == 255)
  assert np.all(pixels[1][11:19, 10:18] == 0)
  labels = [label.get_text() for label in drawn[1].get_xticklabels()]
  assert labels[1] == f"{pairs['distances'][17]:.3g}"
  assert drawn[1].get_xticks()[1] == 10 - 0.5 + 4


def test_pairs_of_points_have_no_picture(tmp_path):
  points = np.zeros((3, 2))
  np.savez(
    tmp_path / "memorisation.npz",
    samples=points,
    neighbours=points,
    distances=points[:, 0],
  )
  assert figures.show_pairs(tmp_path) is None
  assert [path.name for path in tmp_path.iterdir()] == ["memorisation.npz"]


# What is missing, and errors.


def test_config_alone_is_enough(plane, tmp_path):
  (tmp_path / "bare").mkdir()
  shutil.copy(plane / "config.json", tmp_path / "bare")
  paths = runs.write([tmp_path / "bare"])
  assert paths[0] == tmp_path / "bare/report/report.html"
  assert titles(paths[0].parent) == ["The runs", "Left out"]
  text = Outline(paths[0].read_text()).text
  facts = rows_of(paths[0].parent, "runs")
  assert facts["trained"] == ["0 of 10 steps"]
  for file in (
    "metrics.jsonl",
    "evaluation.json",
    "samples/",
    "diagnosis.json",
  ):
    assert f"({file}" in text


def test_torn_last_line_of_metrics_is_left_out(twins):
  path = twins[0] / "metrics.jsonl"
  whole = runs.read(twins)[0].metrics
  path.write_text(path.read_text() + '{"step": 11, "train/lo')
  assert runs.read(twins)[0].metrics == whole


@pytest.mark.parametrize("name", ["config.json", "evaluation.json"])
def test_damaged_file_is_named(twins, name):
  (twins[1] / name).write_text('{"data": ')
  with pytest.raises(ValueError, match=f"ddpm/{name} is damaged"):
    runs.write(twins)


def test_workdir_without_a_run(plane, tmp_path):
  with pytest.raises(ValueError, match=f"no run in {tmp_path}"):
    runs.write([plane, tmp_path])
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [8, 9])
def test_sweep_stands_for_its_runs(plane, tmp_path, number):
  for n in range(number):
    (tmp_path / f"runs/r{n}").mkdir(parents=True)
    shutil.copy(plane / "config.json", tmp_path / f"runs/r{n}")
  if number == 8:
    names = [run.name for run in runs.read([tmp_path])]
    assert names == [f"r{n}" for n in range(8)]
  else:
    with pytest.raises(ValueError, match="9 runs, and a report shows 8"):
      runs.write([tmp_path])


def test_runs_of_the_same_folder_name_are_told_apart(twins, tmp_path):
  for parent in ("a", "b"):
    shutil.copytree(twins[0], tmp_path / parent / "adv")
  found = runs.read([tmp_path / "a/adv", tmp_path / "b/adv"])
  assert [run.name for run in found] == ["a/adv", "b/adv"]
  assert len(runs.read([tmp_path / "a/adv"] * 2)) == 1


def test_a_run_that_still_trains_has_its_curves(plane, tmp_path):
  """Never evaluated; the page says how far it is."""
  for file in ("config.json", "metrics.jsonl"):
    shutil.copy(plane / file, tmp_path)
  edit(tmp_path / "config.json", train={"num_steps": 900})
  runs.write([tmp_path])
  assert titles(tmp_path / "report") == ["The runs", "Training", "Left out"]
  assert rows_of(tmp_path / "report", "runs")["trained"] == ["10 of 900 steps"]
  assert (tmp_path / "report/training.png").stat().st_size > 5_000


NAMES = ["=a", "$\\frac$", "b,c", "[x](y)"]


def test_names_of_folders_do_no_harm(plane, tmp_path):
  """In spreadsheets, in Markdown, in formulas, and in the list of folders."""
  for name in NAMES:
    shutil.copytree(plane, tmp_path / name)
  text = ",".join(str(tmp_path / name) for name in NAMES)
  assert runs.folders(text) == [tmp_path / name for name in NAMES]
  assert runs.folders(f"{tmp_path}/none,{tmp_path}/nor,") == (
    [tmp_path / "none", tmp_path / "nor"]
  )
  runs.write(runs.folders(text), tmp_path / "report")
  head = rows_of(tmp_path / "report", "measures")["measure"]
  assert head[:4] == ["'=a", *NAMES[1:]]
  markdown = (tmp_path / "report/measures.md").read_text().splitlines()[0]
  assert "| =a | \\$\\\\frac\\$ | b,c | \\[x\\](y) |" in markdown
  page_text = Outline((tmp_path / "report/report.html").read_text()).text
  assert ", ".join(NAMES) in page_text
  (picture,) = runs.training(runs.read(runs.folders(text)))
  (legend,) = picture.figure.legends
  assert [entry.get_text() for entry in legend.get_texts()] == NAMES


# In a browser.


@pytest.mark.slow
def test_in_a_browser(report, tmp_path):
  """Everything is there, nothing is fetched, and it fits wide and narrow."""
  wide = Table("wide", ["x" * 30] * 12, [["y" * 30] * 12], "A wide table.")
  hostile = sections(HOSTILE) | {"w" * 200: [wide]}
  page.write("w" * 200, "w" * 200, hostile, tmp_path / "hostile")
  pages = {report / "report.html": 8, tmp_path / "hostile/report.html": 2}
  assert_whole_and_fetches_nothing(pages, tmp_path / "profile")
