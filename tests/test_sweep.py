"""Sweeps: which runs, how long, done once each, and what is drawn of them."""

import json
import os
import shutil
import signal
import time

import faulty
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.text import Text

from rad_jax import config as configs
from rad_jax import validation
from rad_jax.experiments import sweep
from rad_jax.reports import frontier
from rad_jax.training import build, hosts, loop


def tiny_config(**fields):
  """A run of seconds; fields are set at "a.b" written as a__b."""
  config = configs.default()
  config.data.update(name="oblique_plane", num_examples=40)
  config.data.corruption.update(fraction=0.9, sigma=0.2)
  config.diffusion.num_timesteps = 50
  config.model.name = "mlp"
  config.model.mlp.update(width=8, depth=1)
  config.optimizer.update(learning_rate=1e-2, warmup_steps=1, ema_decay=0.9)
  config.train.update(num_steps=6, batch_size=8, log_every_steps=2)
  config.checkpoint.update(every_steps=4, keep=2)
  config.sampling.update(num_steps=5, num_samples=8, batch_size=16)
  config.evaluation.num_samples = 16
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  validation.validate(config)
  return config


# ---- Which runs ----


def test_grid_is_the_product_without_doubles():
  config = tiny_config(
    sweep__objective=("ddpm", "robust_adv", "true_noise_only"),
    sweep__lam=(0.3, 3),
    sweep__fraction=(0, 0.9),
    sweep__sigma=(0.1, 0.2),
    sweep__seed=(0, 1),
  )
  runs = sweep.grid(config)
  # (1 + 2 + 1) pairs of objective and lam, 3 training sets, 2 seeds.
  assert len(runs) == 4 * 3 * 2
  assert len({run.name for run in runs}) == len(runs)
  assert len({sweep.fingerprint(run.config.to_dict()) for run in runs}) == 24
  for run in runs:
    assert run.labels.keys() == sweep.AXES.keys()
    fields = configs.flatten(run.config.to_dict())
    for axis, value in run.labels.items():
      assert value is None or fields[sweep.AXES[axis]] == value
    assert (run.labels["lam"] is None) == (
      run.labels["objective"] != "robust_adv"
    )
    assert (run.labels["sigma"] is None) == (run.labels["fraction"] == 0)


def test_names_are_readable_and_hold_what_is_swept():
  config = tiny_config(
    sweep__objective=("ddpm", "robust_adv"),
    sweep__lam=(0.3, 3, 3.0),
    sweep__fraction=(0.9,),
    sweep__seed=(10,),
  )
  assert [run.name for run in sweep.grid(config)] == [
    "ddpm-fraction_0.9-seed_10",
    "robust_adv-lam_0.3-fraction_0.9-seed_10",
    "robust_adv-lam_3-fraction_0.9-seed_10",
  ]


def test_empty_axes_are_the_configs_own():
  config = tiny_config(objective__lam=0.7, seed=5)
  before = config.to_dict()
  (run,) = sweep.grid(config)
  assert run.name == "robust_adv"
  assert run.labels == {
    "objective": "robust_adv",
    "lam": 0.7,
    "radius": "falling",
    "beta": 8 / 255,
    "fraction": 0.9,
    "sigma": 0.2,
    "seed": 5,
  }
  assert run.config.to_dict() == before
  run.config.objective.lam = 9.0
  assert config.to_dict() == before


@pytest.mark.parametrize(
  "axis, values, message",
  [
    (
      "beta",
      (0.1, 2.0),
      r"run robust_adv-beta_2: config\.objective\.beta=2\.0",
    ),
    ("objective", ("robust",), r"run robust: config\.objective\.name='robust'"),
    ("lam", ("much",), "run robust_adv-lam_much: .*much"),
    ("seed", (0.5,), r"run robust_adv-seed_0\.5: .*0\.5"),
  ],
)
def test_bad_combination_is_named(axis, values, message):
  config = tiny_config(**{f"sweep__{axis}": values})
  with pytest.raises(configs.ConfigError, match=message):
    sweep.grid(config)


def test_settings_of_the_attack_do_not_reach_what_has_none():
  config = tiny_config(
    attack__name="pgd",
    regulariser__free_replays=2,
    sweep__objective=("ddpm", "robust_adv"),
  )
  ddpm, robust = sweep.grid(config)
  assert ddpm.config.attack.name == ""
  assert (robust.config.attack.name, robust.config.objective.name) == (
    "pgd",
    "robust_adv",
  )


@pytest.mark.parametrize(
  "objective",
  [
    "ddpm",
    "noise_aware",
    "robust_ran",
    "true_noise_only",
    "input_perturbation",
  ],
)
def test_ignored_axes_and_no_others_make_no_difference(objective):
  def loss(**fields):
    config = tiny_config(objective__name=objective, **fields)
    state = build.state(config)
    # The network's last layer starts at zero, where too little would differ.
    state = state._replace(params=jax.tree.map(lambda p: p + 0.1, state.params))
    index = jnp.arange(8)
    x_0 = jnp.asarray(build.training_set(config).fetch(np.arange(8)))
    _, metrics = build.train_step(config)(state, {"x_0": x_0, "index": index})
    return float(metrics["loss"])

  own = loss()
  changed = {"lam": 5.0, "radius": "constant", "beta": 0.5}
  same = {
    axis
    for axis, value in changed.items()
    if loss(**{f"objective__{axis}": value}) == own
  }
  assert same == sweep.ignores(objective)


# ---- How long ----


def steps_of(runs):
  return {run.config.objective.name: run.config.train.num_steps for run in runs}


def test_matched_passes(tmp_path):
  config = tiny_config(
    train__num_steps=3000,
    optimizer__decay="cosine",
    sweep__objective=("ddpm", "robust_ran", "robust_adv", "noise_aware"),
  )
  runs = sweep.matched(sweep.grid(config), "passes", tmp_path)
  assert steps_of(runs) == {
    "ddpm": 3000,
    "robust_ran": 1500,
    "robust_adv": 1125,
    "noise_aware": 3000,
  }
  for run in runs:
    assert build.total_passes(run.config) == 9000
    last = build.learning_rate(run.config)(run.config.train.num_steps)
    assert float(last) == pytest.approx(0, abs=1e-6)
  unmatched = sweep.matched(sweep.grid(config), "steps", tmp_path)
  assert set(steps_of(unmatched).values()) == {3000}


def test_matched_passes_count_the_steps_that_go_without(tmp_path):
  config = tiny_config(train__num_steps=3000, regulariser__every_steps=2)
  runs = sweep.matched(sweep.grid(config), "passes", tmp_path)
  assert steps_of(runs) == {"robust_adv": round(3000 * 3 / 5.5)}


def test_matched_seconds_are_measured_once_and_kept(tmp_path, monkeypatch):
  config = tiny_config(
    train__num_steps=3000,
    sweep__objective=("ddpm", "robust_adv"),
    sweep__lam=(0.3, 3.0),
    sweep__seed=(0, 1),
    sweep__fraction=(0.0, 0.5, 0.9),
  )
  measured = []

  def step_seconds(config):
    dirty = config.data.corruption.fraction > 0
    measured.append((config.objective.name, dirty))
    ddpm = config.objective.name == "ddpm"
    return (0.01 if ddpm else 0.02) * (1.5 if dirty and ddpm else 1)

  monkeypatch.setattr(sweep, "step_seconds", step_seconds)
  runs = sweep.matched(sweep.grid(config), "seconds", tmp_path)
  assert sorted(measured) == [
    ("ddpm", False),
    ("ddpm", True),
    ("robust_adv", False),
    ("robust_adv", True),
  ]
  assert len(runs) == (1 + 2) * 2 * 3
  for run in runs:
    dirty = run.labels["fraction"] > 0
    expected = (
      3000
      if run.labels["objective"] == "ddpm"
      else {False: 1500, True: 2250}[dirty]
    )
    assert run.config.train.num_steps == expected

  # Another attack is another program, held against the same DDPM.
  config.attack.norm = "l2"
  sweep.matched(sweep.grid(config), "seconds", tmp_path)
  assert measured[4:] == [("robust_adv", False), ("robust_adv", True)]
  config.attack.norm = "linf"

  monkeypatch.setattr(sweep, "step_seconds", None)
  again = sweep.matched(sweep.grid(config), "seconds", tmp_path)
  assert [run.config.to_dict() for run in again] == [
    run.config.to_dict() for run in runs
  ]


def test_time_of_a_step_is_a_mean_over_the_training(monkeypatch):
  alone = lambda config, regularised: {True: 8.0, False: 3.0}[regularised]
  monkeypatch.setattr(sweep, "_measured_seconds", alone)
  assert sweep.step_seconds(tiny_config()) == 8
  halved = tiny_config(train__num_steps=8, regulariser__start=0.75)
  assert sweep.step_seconds(halved) == 8 / 4 + 3 * 3 / 4


def test_step_is_timed():
  assert 0 < sweep.step_seconds(tiny_config(objective__name="ddpm")) < 1


# ---- Running them ----


def small_grid(**fields):
  return sweep.grid(
    tiny_config(
      sweep__objective=("ddpm", "robust_adv"), sweep__seed=(0, 1), **fields
    )
  )


def without_seconds(rows):
  return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  """A whole sweep of four runs: its folder and its rows."""
  workdir = tmp_path_factory.mktemp("sweep")
  return workdir, sweep.run_all(small_grid(), workdir)


def test_whole_sweep(swept):
  workdir, rows = swept
  assert sweep.read(workdir) == rows
  assert [row["run"] for row in rows] == [
    "ddpm-seed_0",
    "ddpm-seed_1",
    "robust_adv-seed_0",
    "robust_adv-seed_1",
  ]
  for row, run in zip(rows, small_grid(), strict=True):
    result = json.loads(
      (workdir / "runs" / row["run"] / "evaluation.json").read_text()
    )
    assert list(row) == [
      *("run", *sweep.AXES, "config", "steps", "passes", "seconds"),
      *result["measures"],
    ]
    assert run.labels.items() <= row.items()
    assert result["measures"].items() <= row.items()
    assert result["step"] == row["steps"] == 6
    assert row["passes"] == 6 * {"ddpm": 3, "robust_adv": 8}[row["objective"]]
    assert 0 < row["seconds"] < 60
  assert len({row["support_rms"] for row in rows}) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_all_processes(number, tmp_path):
  """SIGTERM saves what is in training, as well."""
  process = faulty.start(
    faulty.command(
      tmp_path,
      "--mode=sweep",
      "--config.sweep.seed=(0, 1, 2)",
      "--config.sweep.objective=('ddpm',)",
      sweep__processes=2,
      train__num_steps=10**6,
      checkpoint__every_steps=10**5,
    )
  )
  folders = [tmp_path / "runs" / f"ddpm-seed_{seed}" for seed in range(3)]
  while not all((f / "metrics.jsonl").exists() for f in folders[:2]):
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)
  process.send_signal(number)
  # Until the last process that could write is gone.
  printed, _ = process.communicate(timeout=60)
  assert not folders[2].exists()
  if number == signal.SIGKILL:
    return
  assert process.returncode == faulty.INTERRUPTED, printed
  assert "the same command goes on" in printed.splitlines()[-1]
  for folder in folders[:2]:
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert int(checkpoint.name) > 0
    assert f"step {checkpoint.name} of" in (folder / "log.txt").read_text()


def test_signal_ends_a_job_outside_training(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  sample = lambda job, workdir: signal.raise_signal(signal.SIGTERM)
  try:
    with pytest.raises(loop.Interrupted):
      sweep._logged(sample, small_grid()[:1], tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGTERM, before)
  log = tmp_path / "runs" / "ddpm-seed_0" / "log.txt"
  assert log.read_text() == "asked to stop\n"


def test_process_that_dies_is_told(tmp_path):
  with pytest.raises(hosts.HostError, match=r"a process died.*log\.txt"):
    sweep.run_all(small_grid(), tmp_path, processes=2, work=dying)


def dying(job, workdir):
  os._exit(9)


def test_interrupted_sweep_goes_on(swept, tmp_path):
  """After two rows and half of the third; the fourth run never began."""
  workdir, rows = swept
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  table = tmp_path / "sweep.jsonl"
  lines = table.read_text().splitlines(keepends=True)
  table.write_text("".join(lines[:2]) + lines[2][:40])
  assert sweep.read(tmp_path) == rows[:2]
  for run in ("ddpm-seed_0", "robust_adv-seed_1"):
    shutil.rmtree(tmp_path / "runs" / run)

  again = sweep.run_all(small_grid(), tmp_path)
  assert without_seconds(again) == without_seconds(rows)
  assert sweep.read(tmp_path) == again
  assert again[:2] == rows[:2]
  assert not (tmp_path / "runs" / "ddpm-seed_0").exists()


def test_nothing_is_left_to_do(swept, monkeypatch):
  workdir, rows = swept
  monkeypatch.setattr(sweep, "run_one", None)
  moved = small_grid(data__data_dir="elsewhere", data__num_threads=3)
  assert sweep.run_all(moved, workdir) == rows
  assert sweep.run_all(moved[::-2], workdir) == rows[::-2]


def test_another_config_is_refused(swept, tmp_path):
  workdir, _ = swept
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  before = (tmp_path / "sweep.jsonl").read_text()
  changed = small_grid(train__num_steps=7)
  with pytest.raises(configs.ConfigError) as error:
    sweep.run_all(changed, tmp_path)
  message = str(error.value)
  assert "ddpm-seed_0" in message
  assert "(train.num_steps: 6 -> 7)" in message
  assert "--workdir" in message
  assert "\n" not in message
  assert (tmp_path / "sweep.jsonl").read_text() == before

  # By its row alone, and by its folder alone.
  shutil.move(tmp_path / "runs", tmp_path / "moved")
  with pytest.raises(configs.ConfigError, match="ddpm-seed_0"):
    sweep.run_all(changed, tmp_path)
  shutil.move(tmp_path / "moved", tmp_path / "runs")
  (tmp_path / "sweep.jsonl").unlink()
  with pytest.raises(configs.ConfigError, match="num_steps: 6 -> 7"):
    sweep.run_all(changed, tmp_path)


@pytest.mark.filterwarnings("ignore:overflow")
def test_failed_run_is_a_row_and_the_others_go_on(swept, tmp_path, capsys):
  workdir, rows = swept
  shutil.copytree(workdir / "runs", tmp_path / "runs")
  (bad,) = sweep.grid(tiny_config(sweep__lam=(1e39,)))  # above float32's range
  runs = [bad, small_grid()[0]]
  failed, done = sweep.run_all(runs, tmp_path)
  assert failed["run"] == "robust_adv-lam_1e+39"
  assert "at step 1" in failed["error"]
  assert failed.keys() & {"seconds", "support_rms"} == set()
  assert done == rows[0]
  printed = capsys.readouterr().out.splitlines()
  assert printed[0] == f"{failed['run']}: {failed['error']}"
  assert printed[1].startswith("ddpm-seed_0: support_rms ")
  assert sweep.run_all(runs, tmp_path) == [failed, done]


def test_other_errors_stop_the_sweep(tmp_path, monkeypatch):
  def train(config, workdir):
    raise OSError("disk full")

  monkeypatch.setattr(sweep.loop, "train", train)
  with pytest.raises(OSError, match="disk full"):
    sweep.run_all(small_grid(), tmp_path)
  assert sweep.read(tmp_path) == []


def test_processes_measure_the_same(swept, tmp_path, capfd):
  _, rows = swept
  found = sweep.run_all(small_grid()[::2], tmp_path, processes=2)
  for row, alone in zip(found, rows[::2], strict=True):
    assert row.keys() == alone.keys()
    for name in row.keys() - {"seconds"}:
      assert row[name] == (
        pytest.approx(alone[name], rel=1e-5)
        if isinstance(row[name], float)
        else alone[name]
      )
    log = tmp_path / "runs" / row["run"] / "log.txt"
    assert f"train {row['objective']}" in log.read_text()
  assert "train ddpm" not in capfd.readouterr().err
  assert sorted(row["run"] for row in sweep.read(tmp_path)) == [
    "ddpm-seed_0",
    "robust_adv-seed_0",
  ]


def test_time_of_an_interrupted_training_is_whole(tmp_path):
  """Two windows of 2 steps, then one of 1 step at half the speed."""
  (tmp_path / "metrics.jsonl").write_text(
    "".join(
      json.dumps({"step": step, "speed/images_per_second": speed}) + "\n"
      for step, speed in ((2, 16.0), (4, 16.0), (5, 8.0))
    )
  )
  seconds = sweep.training_seconds(tmp_path, batch_size=8)
  assert seconds == pytest.approx(4 * 0.5 + 1 * 1.0)


# ---- Table and figures ----


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


def drawn(axis):
  """{label: points [n, 2]} of the lines of an axis."""
  return {
    bars.get_label(): bars.lines[0].get_xydata() for bars in axis.containers
  }


def test_report_knows_the_axes_of_the_sweep():
  assert set(sweep.AXES) - {"seed"} <= set(frontier.AXES)
  assert frontier.measures_of(made_rows()) == ["frechet"]


def test_measures_of_real_rows(swept):
  _, rows = swept
  assert frontier.measures_of(rows) == [
    "support_rms",
    "frechet",
    "mean_error",
    "spread_ratio",
    "sliced_wasserstein",
  ]


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
      "scheme": scheme,
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
