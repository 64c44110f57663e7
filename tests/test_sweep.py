"""Sweeps: which runs, how long, and that each is done once."""

import itertools
import json
import os
import shutil
import signal
import time
import types

import faulty
import jax
import jax.numpy as jnp
import pytest

from rad_jax import checks
from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.experiments import engine, pool, sweep, table
from rad_jax.robustness import method as methods
from rad_jax.training import hosts, loop


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
  checks.validate(config)
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
  runs = sweep.entries(config)
  # (1 + 2 + 1) pairs of objective and lam, 3 training sets, 2 seeds.
  assert len(runs) == 4 * 3 * 2
  assert len({run.name for run in runs}) == len(runs)
  assert len({table.fingerprint(run.config.to_dict()) for run in runs}) == 24
  for run in runs:
    assert tuple(run.labels) == table.LABELS
    assert run.labels["method"] == run.labels["objective"]
    fields = configs.flatten(run.config.to_dict())
    for axis, path in table.AXES.items():
      assert run.labels[axis] in (None, fields[path])
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
  assert [run.name for run in sweep.entries(config)] == [
    "ddpm-fraction_0.9-seed_10",
    "robust_adv-lam_0.3-fraction_0.9-seed_10",
    "robust_adv-lam_3-fraction_0.9-seed_10",
  ]


def test_sweep_without_an_axis_is_the_frontier():
  """Its rows are on clean and on dirty data, which frontier.png needs."""
  config = tiny_config()
  config.lock()
  found = sweep.entries(sweep.with_axes(config))
  points = {(one.labels["lam"], one.labels["fraction"]) for one in found}
  dirty = config.data.corruption.fraction
  assert points == {(lam, x) for lam in (0.3, 1, 3) for x in (0, dirty)}
  assert not config.sweep.lam
  chosen = tiny_config(sweep__seed=(1, 2))
  assert sweep.with_axes(chosen) is chosen


def test_empty_axes_are_the_configs_own():
  config = tiny_config(objective__lam=0.7, seed=5)
  before = config.to_dict()
  (run,) = sweep.entries(config)
  assert run.name == "robust_adv"
  assert run.labels == {
    "data": "oblique_plane",
    "corruption": None,
    "method": "robust_adv",
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
    sweep.entries(config)


def test_settings_of_the_attack_do_not_reach_what_has_none():
  config = tiny_config(
    attack__name="pgd",
    regulariser__free_replays=2,
    sweep__objective=("ddpm", "robust_adv"),
  )
  ddpm, robust = sweep.entries(config)
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
  def program(**fields):
    """What XLA gets, where nothing is that no loss depends on."""
    run = runs.build(tiny_config(objective__name=objective, **fields))

    def losses(params, x_0, key):
      draws = methods.draw(run.method, x_0, jnp.full(8, 0.1), key)
      return methods.losses(run.method, params, draws)

    params = jax.eval_shape(run.initial_state).params
    x_0 = jax.ShapeDtypeStruct((8, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(losses).lower(params, x_0, key).as_text()

  own = program()
  changed = {"lam": 5.0, "radius": "constant", "beta": 0.5}
  same = {
    axis
    for axis, value in changed.items()
    if program(**{f"objective__{axis}": value}) == own
  }
  assert same == table.ignores(objective)


# ---- How long ----


def steps_of(runs):
  return {run.config.objective.name: run.config.train.num_steps for run in runs}


def test_matched_passes(tmp_path):
  config = tiny_config(
    train__num_steps=3000,
    optimizer__decay="cosine",
    sweep__objective=("ddpm", "robust_ran", "robust_adv", "noise_aware"),
  )
  found = engine.matched(sweep.entries(config), "passes", tmp_path)
  assert steps_of(found) == {
    "ddpm": 3000,
    "robust_ran": 1500,
    "robust_adv": 1125,
    "noise_aware": 3000,
  }
  for one in found:
    run = runs.build(one.config)
    assert run.train.num_steps * run.step_passes == 9000
    last = run.learning_rate(run.train.num_steps)
    assert float(last) == pytest.approx(0, abs=1e-6)
  unmatched = engine.matched(sweep.entries(config), "steps", tmp_path)
  assert set(steps_of(unmatched).values()) == {3000}


def test_matched_passes_count_the_steps_that_go_without(tmp_path):
  config = tiny_config(train__num_steps=3000, regulariser__every_steps=2)
  runs = engine.matched(sweep.entries(config), "passes", tmp_path)
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

  monkeypatch.setattr(engine, "step_seconds", step_seconds)
  runs = engine.matched(sweep.entries(config), "seconds", tmp_path)
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
  engine.matched(sweep.entries(config), "seconds", tmp_path)
  assert measured[4:] == [("robust_adv", False), ("robust_adv", True)]
  config.attack.norm = "linf"

  monkeypatch.setattr(engine, "step_seconds", None)
  again = engine.matched(sweep.entries(config), "seconds", tmp_path)
  assert [run.config.to_dict() for run in again] == [
    run.config.to_dict() for run in runs
  ]


def test_time_of_a_step_is_a_mean_over_the_training(monkeypatch):
  alone = lambda run, regularised: {True: 8.0, False: 3.0}[regularised]
  monkeypatch.setattr(engine, "_measured_seconds", alone)
  assert engine.step_seconds(tiny_config()) == 8
  halved = tiny_config(train__num_steps=8, regulariser__start=0.75)
  assert engine.step_seconds(halved) == 8 / 4 + 3 * 3 / 4


def test_step_is_timed(monkeypatch):
  """By a clock that goes on by 1 s at each look: in rounds of 20 steps."""
  ticks = itertools.count()
  clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
  monkeypatch.setattr(engine, "time", clock)
  config = small_grid()[0].config
  assert engine.step_seconds(config) == pytest.approx(1 / 20)


# ---- Running them ----


def small_grid(**fields):
  return sweep.entries(
    tiny_config(
      sweep__objective=("ddpm", "robust_adv"), sweep__lam=(0.3, 3.0), **fields
    )
  )


def without_seconds(rows):
  return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  """A whole sweep of three runs: its folder and its rows."""
  workdir = tmp_path_factory.mktemp("sweep")
  return workdir, engine.run_all(small_grid(), workdir)


def test_whole_sweep(swept):
  workdir, rows = swept
  assert table.read(workdir) == rows
  assert [row["run"] for row in rows] == [
    "ddpm",
    "robust_adv-lam_0.3",
    "robust_adv-lam_3",
  ]
  for row, run in zip(rows, small_grid(), strict=True):
    result = json.loads(
      (workdir / "runs" / row["run"] / "evaluation.json").read_text()
    )
    assert list(row) == [
      *("run", *table.LABELS, "config", "steps", "passes", "seconds"),
      *result["measures"],
    ]
    assert run.labels.items() <= row.items()
    assert result["measures"].items() <= row.items()
    assert result["step"] == row["steps"] == 6
    assert row["passes"] == 6 * {"ddpm": 3, "robust_adv": 8}[row["objective"]]
    assert 0 < row["seconds"] < 60
  assert len({row["support_rms"] for row in rows}) == 3


@pytest.mark.slow
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
      pool._logged(sample, small_grid()[:1], tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGTERM, before)
  log = tmp_path / "runs" / "ddpm" / "log.txt"
  assert log.read_text() == "asked to stop\n"


@pytest.mark.slow
def test_process_that_dies_is_told(tmp_path):
  with pytest.raises(hosts.HostError, match=r"a process died.*log\.txt"):
    jobs = [[run] for run in small_grid()]
    list(pool.work_off(jobs, dying, tmp_path, processes=2))


def dying(job, workdir):
  os._exit(9)


def test_interrupted_sweep_goes_on(swept, tmp_path):
  """After one row and half of the second; the third run never began."""
  workdir, rows = swept
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  path = tmp_path / "rows.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(lines[0] + lines[1][:40])
  assert table.read(tmp_path) == rows[:1]
  for run in ("ddpm", "robust_adv-lam_3"):
    shutil.rmtree(tmp_path / "runs" / run)

  again = engine.run_all(small_grid(), tmp_path)
  assert without_seconds(again) == without_seconds(rows)
  assert table.read(tmp_path) == again
  assert again[0] == rows[0]
  assert not (tmp_path / "runs" / "ddpm").exists()


def test_nothing_is_left_to_do(swept, monkeypatch):
  workdir, rows = swept
  monkeypatch.setattr(engine, "run_alone", lambda job, workdir: pytest.fail())
  moved = small_grid(data__data_dir="elsewhere", data__num_threads=3)
  assert engine.run_all(moved, workdir) == rows
  assert engine.run_all(moved[::-2], workdir) == rows[::-2]


def test_another_config_is_refused(swept, tmp_path):
  workdir, _ = swept
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  before = (tmp_path / "rows.jsonl").read_text()
  changed = small_grid(train__num_steps=7)
  with pytest.raises(configs.ConfigError) as error:
    engine.run_all(changed, tmp_path)
  message = str(error.value)
  assert "ddpm" in message
  assert "(train.num_steps: 6 -> 7)" in message
  assert "--workdir" in message
  assert "\n" not in message
  assert (tmp_path / "rows.jsonl").read_text() == before

  # By its row alone, and by its folder alone.
  shutil.move(tmp_path / "runs", tmp_path / "moved")
  with pytest.raises(configs.ConfigError, match="ddpm"):
    engine.run_all(changed, tmp_path)
  shutil.move(tmp_path / "moved", tmp_path / "runs")
  (tmp_path / "rows.jsonl").unlink()
  with pytest.raises(configs.ConfigError, match="num_steps: 6 -> 7"):
    engine.run_all(changed, tmp_path)


@pytest.mark.filterwarnings("ignore:overflow")
def test_failed_run_is_a_row_and_the_others_go_on(
  swept, tmp_path, capsys, monkeypatch
):
  _, rows = swept
  honest = engine.run_alone
  monkeypatch.setattr(
    engine,
    "run_alone",
    lambda job, workdir: (
      rows[:1] if job[0].name == "ddpm" else honest(job, workdir)
    ),
  )
  (bad,) = sweep.entries(
    tiny_config(sweep__lam=(1e39,))
  )  # above float32's range
  runs = [bad, small_grid()[0]]
  failed, done = engine.run_all(runs, tmp_path)
  assert failed["run"] == "robust_adv-lam_1e+39"
  assert "at step 1" in failed["error"]
  assert failed.keys() & {"seconds", "support_rms"} == set()
  assert done == rows[0]
  printed = capsys.readouterr().out.splitlines()
  assert printed[0] == f"{failed['run']}: {failed['error']}"
  assert printed[1].startswith("ddpm: support_rms ")
  assert engine.run_all(runs, tmp_path) == [failed, done]


def test_other_errors_stop_the_sweep(tmp_path, monkeypatch):
  def train(run, folder):
    raise OSError("disk full")

  monkeypatch.setattr(engine.loop, "train", train)
  with pytest.raises(OSError, match="disk full"):
    engine.run_all(small_grid(), tmp_path)
  assert table.read(tmp_path) == []


@pytest.mark.slow
def test_processes_measure_the_same(swept, tmp_path, capfd):
  _, rows = swept
  found = engine.run_all(small_grid()[::2], tmp_path, processes=2)
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
  assert sorted(row["run"] for row in table.read(tmp_path)) == [
    "ddpm",
    "robust_adv-lam_3",
  ]


def test_time_of_an_interrupted_training_is_whole(tmp_path):
  """Two windows of 2 steps, then one of 1 step at half the speed."""
  (tmp_path / "metrics.jsonl").write_text(
    "".join(
      json.dumps({"step": step, "speed/images_per_second": speed}) + "\n"
      for step, speed in ((2, 16.0), (4, 16.0), (5, 8.0))
    )
  )
  seconds = engine.training_seconds(tmp_path, batch_size=8)
  assert seconds == pytest.approx(4 * 0.5 + 1 * 1.0)
