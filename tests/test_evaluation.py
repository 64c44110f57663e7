"""Protocols: what they measure, what they keep, and what they refuse."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from begun import begin
from PIL import Image

from rad_jax import checks
from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.data import subspace, synthetic
from rad_jax.diffusion import samplers, schedules
from rad_jax.evaluation import (
  baselines,
  evaluate,
  measures,
  purify,
  reference,
  sampling,
  subject,
)
from rad_jax.evaluation.protocols import (
  attack,
  levels,
  memorisation,
  quality,
  steps,
  training_set,
  truth,
)

# Without the slowest.
RUN = tuple(name for name in evaluate.PROTOCOLS if name != "attack")


def make_config(world="oblique_plane", **evaluation):
  config = configs.default()
  config.data.name = world
  config.data.corruption.update(fraction=0.9, sigma=0.2)
  config.model.name = "mlp"
  config = configs.variant(config, "smoke")
  config.model.mlp.update(width=8, depth=1)
  config.sampling.clip_x_0 = 0.0
  config.evaluation.update(
    {
      "protocols": RUN,
      "samplers": ("heun", "dpm_solver"),
      "step_counts": (3,),
      "num_levels": 2,
      **evaluation,
    }
  )
  checks.validate(config)
  return config


def make_run(world="oblique_plane", **evaluation):
  return runs.build(make_config(world, **evaluation))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  begin(make_run(), workdir)
  return workdir


@pytest.fixture(scope="module")
def result(run):
  return evaluate.evaluate(make_run(), run)


# The file.


def test_unknown_protocols_are_refused(tmp_path):
  with pytest.raises(configs.ConfigError, match=r"protocols=.*among truth, t"):
    evaluate.evaluate(make_run(protocols=("truth", "fid")), tmp_path)


def test_file_says_what_it_is_of(run, result):
  saved = json.loads((run / "evaluation.json").read_text())
  assert saved == json.loads(json.dumps(result))
  assert saved["step"] == 20
  assert saved["weights"] == "ema"
  assert saved["versions"]["jax"] == jax.__version__
  assert list(saved["protocols"]) == list(RUN)
  for protocol in saved["protocols"].values():
    lengths = {len(values) for values in protocol["curves"].values()}
    assert len(lengths) <= 1
    assert protocol["measures"].items() <= saved["measures"].items()
  numbers = [v for v in saved["measures"].values()]
  assert len(numbers) > 20
  assert np.isfinite(numbers).all()


def test_what_is_done_is_kept_and_the_rest_goes_on(
  run, result, tmp_path, monkeypatch
):
  run = shutil.copytree(run, tmp_path / "run")
  before = (run / "evaluation.json").read_bytes()

  def fail(subject):
    raise AssertionError("measured again")

  with monkeypatch.context() as patch:
    for name in evaluate.PROTOCOLS:
      patch.setitem(evaluate.PROTOCOLS, name, fail)
    assert evaluate.evaluate(make_run(), run) == json.loads(before)
  assert (run / "evaluation.json").read_bytes() == before
  # Interrupted in the third protocol: the first two stay.
  names = ("truth", "quality", "score")
  config = make_config(protocols=names)
  config.sampling.ema = False
  raw = runs.build(config)
  with monkeypatch.context() as patch:
    patch.setitem(evaluate.PROTOCOLS, "score", fail)
    with pytest.raises(AssertionError, match="measured again"):
      evaluate.evaluate(raw, run)
    left = json.loads((run / "evaluation.json").read_text())
    assert list(left["protocols"]) == ["truth", "quality"]
    assert left["weights"] == "raw"
    patch.undo()
    for name in ("truth", "quality"):
      patch.setitem(evaluate.PROTOCOLS, name, fail)
    whole = evaluate.evaluate(raw, run)
  assert list(whole["protocols"]) == list(names)
  assert whole["parameters"] != result["parameters"]
  # Another setting: all is measured anew.
  again = evaluate.evaluate(make_run(protocols=names), run)
  assert list(again["protocols"]) == list(names)
  for name in names:
    assert again["protocols"][name]["measures"] == pytest.approx(
      result["protocols"][name]["measures"]
    )


def test_samples_are_drawn_once(run, monkeypatch):
  model = sampling.newest_model(make_run(), run)
  first = sampling.draw(model, 20)
  with monkeypatch.context() as patch:
    patch.setattr(sampling, "sampler", lambda run: lambda *args: 1 / 0)
    np.testing.assert_array_equal(sampling.draw(model, 32)[:20], first)
    with pytest.raises(ZeroDivisionError):  # Of other parameters.
      sampling.draw(model._replace(digest="another"), 20)
    with pytest.raises(ZeroDivisionError):
      sampling.draw(model, 20, num_steps=4)
  scaled = jax.tree.map(lambda x: 2 * x, model.params)
  assert sampling.digest(scaled) != sampling.digest(model.params)
  assert sampling.digest(model.params) == model.digest


def test_a_torn_batch_of_samples_is_drawn_anew(run, tmp_path, caplog):
  run = shutil.copytree(run, tmp_path / "run")
  model = sampling.newest_model(make_run(), run)
  shutil.rmtree(model.samples_folder, ignore_errors=True)
  whole = sampling.draw(model, 20)
  paths = sorted(model.samples_folder.glob("*/*.npy"))
  for path, content in zip(paths, (b"", None), strict=False):
    torn = path.read_bytes()[:-8] if content is None else content
    path.write_bytes(torn)
  np.testing.assert_array_equal(sampling.draw(model, 20), whole)
  assert caplog.text.count("drawn anew") == 2
  caplog.clear()
  np.testing.assert_array_equal(sampling.draw(model, 20), whole)
  assert not caplog.text


# Truths in closed form.


@pytest.mark.parametrize("name", synthetic.WORLDS)
@pytest.mark.parametrize("sigma", [0.05, 0.4, 3.0])
def test_worlds_denoise_as_their_posterior_mean(name, sigma):
  world = synthetic.WORLDS[name]()
  generator = np.random.default_rng(0)
  alpha = 0.8
  x_0 = world.sample(generator, 3).astype(np.float64)
  x_t = alpha * x_0 + sigma * generator.normal(size=x_0.shape)
  # Self-normalised importance sampling with many points of the world.
  many = world.sample(generator, 400_000)
  for point, found in zip(x_t, world.denoise(x_t, alpha, sigma), strict=True):
    weight = np.exp(
      -np.sum((point - alpha * many) ** 2, axis=1) / (2 * sigma**2)
    )
    expected = weight @ many / weight.sum()
    size = weight.sum() ** 2 / np.sum(weight**2)
    np.testing.assert_allclose(
      found, expected, atol=5 * min(1, sigma / alpha) / np.sqrt(size) + 1e-3
    )


def test_worlds_denoise_far_from_their_support():
  world = synthetic.oblique_plane()
  far = 50 * synthetic.PLANE_BASIS[:1]
  np.testing.assert_allclose(
    world.denoise(far, 1.0, 0.1), synthetic.PLANE_BASIS[:1], atol=1e-3
  )


def test_a_finite_sets_posterior_mean_is_the_weighted_mean():
  generator = np.random.default_rng(0)
  x_0, x_t = generator.normal(size=(7, 4)), generator.normal(size=(600, 4))
  found = reference.empirical_mean(x_0, x_t, 0.7, 0.5)
  for i in (0, 499, 500, 599):
    weight = np.exp(-np.sum((x_t[i] - 0.7 * x_0) ** 2, axis=1) / (2 * 0.25))
    np.testing.assert_allclose(found[i], weight @ x_0 / weight.sum())
  np.testing.assert_allclose(
    reference.empirical_mean(x_0, 0.7 * x_0, 0.7, 1e-3), x_0
  )


def test_sliced_wasserstein_of_a_shift():
  # Along a direction d, a shift s moves by |s d|: on average 2 |s| / pi.
  x = np.random.default_rng(0).normal(size=(500, 2))
  found = measures.sliced_wasserstein(x, x + [3.0, 0.0], num_directions=2000)
  assert found == pytest.approx(6 / math.pi, rel=0.03)
  assert measures.sliced_wasserstein(x, x[::-1]) < 1e-12


def test_mode_shares():
  centres = np.array([[0.0, 0], [10, 0]])
  x = np.array([[0.5, 0], [9.5, 0], [10, 0.9], [10, 1.1], [5, 0]])
  shares, rest = measures.mode_shares(x, centres, 1.0)
  np.testing.assert_allclose(shares, [0.2, 0.4])
  assert rest == pytest.approx(0.4)


# Level by level.


@pytest.fixture
def exact(run):
  """A subject whose network is exact for three_gaussians."""
  world = synthetic.three_gaussians()

  def predict(params, x_t, level, dropout_key=None):
    a, s = level.alpha[:, None], level.sigma[:, None]
    variance = (a * 0.05) ** 2 + s**2
    offset = x_t[:, None] - a[..., None] * world.modes[None]
    logits = -jnp.sum(offset**2, axis=-1) / (2 * variance)
    share = jax.nn.softmax(logits)[..., None]
    return s * jnp.sum(share * offset, axis=1) / variance

  config = make_config("three_gaussians")
  config.sampling.num_steps = 100
  config.evaluation.update(num_levels=4, num_level_examples=200)
  built = _with_predictor(runs.build(config), predict)
  model = sampling.newest_model(make_run(), run)._replace(run=built)
  training_set = built.open_training_set()
  return subject.Subject(model, training_set, reference.of_world(world))


def _with_predictor(run, predict):
  return run._replace(method=run.method._replace(predictor=predict))


def test_the_exact_network_has_the_exact_score(exact):
  found = levels.score(exact)
  assert found.curves["sigma_t"][0] > 0.99
  assert max(found.curves["score_error"]) < 1e-3


def test_score_error_is_the_root_of_the_mean_square(exact):
  predict = exact.run.method.predictor
  run = _with_predictor(exact.run, lambda *args: predict(*args) + 0.5)
  found = levels.score(exact._replace(model=exact.model._replace(run=run)))
  np.testing.assert_allclose(found.curves["score_error"], 0.5, rtol=1e-3)


def test_reconstruction_by_the_exact_network(exact):
  curves = levels.reconstruction(exact).curves
  rms = curves["reconstruction_rms"]
  # From noise alone it is another point of the data, from little noise the
  # example itself; between, the mode is kept.
  spread = np.sqrt(2 * np.trace(exact.reference.covariance) / 2)
  assert rms[0] == pytest.approx(spread, rel=0.15)
  assert rms[-1] < 0.02
  assert sorted(rms, reverse=True) == pytest.approx(rms, abs=0.05)
  assert max(curves["reconstruction_support_rms"]) < 0.02
  np.testing.assert_allclose(
    curves["reconstruction_psnr_db"], 10 * np.log10(4 / np.square(rms))
  )


def test_flow_of_the_exact_network(exact):
  found = levels.flow(exact)
  curves = found.curves
  # The estimate goes from the centroid out to the modes, at 0.8 of it.
  assert curves["estimate_to_centroid"][0] < 0.1
  assert curves["estimate_to_centroid"][-1] == pytest.approx(0.8, abs=0.03)
  assert curves["state_to_centroid"][0] == pytest.approx(2**0.5, rel=0.1)
  assert 0 < found.measures["path_straightness"] <= 1


def test_flow_measures_of_known_paths():
  grid = schedules.flow().grid(3)
  straight = np.linspace([[0.0, 0]], [[3, 4]], 4)  # One example.
  corner = np.array([[[0.0, 0]], [[3, 0]], [[3, 2]], [[3, 4]]])
  for states, length in [(straight, 5), (corner, 7)]:
    path = samplers.Path(states[:3], np.ones((3, 1, 2)) * states[3])
    found, curves = levels.flow_measures(
      path, grid, np.array([3.0, 0]), np.array([0, 2])
    )
    assert found["path_length"] == pytest.approx(length)
    assert found["path_straightness"] == pytest.approx(5 / length)
    assert curves["estimate_to_centroid"] == pytest.approx([4, 4])
    offset = states[2, 0] - float(grid.alpha[2]) * np.array([3, 0])
    assert curves["state_to_centroid"][1] == pytest.approx(
      np.linalg.norm(offset)
    )


def test_flow_measures_are_means_over_examples():
  """Ratios' means, and roots of mean squares."""
  straight = np.linspace([[0.0, 0]], [[3, 4]], 4)
  corner = 2 * np.array([[[0.0, 0]], [[3, 0]], [[3, 2]], [[3, 4]]])
  states = np.concatenate([straight, corner], axis=1)
  path = samplers.Path(states[:3], np.ones((3, 1, 1)) * states[3])
  found, curves = levels.flow_measures(
    path, schedules.flow().grid(3), np.array([3.0, 0]), np.array([2])
  )
  assert found["path_length"] == pytest.approx((5 + 14) / 2)
  assert found["path_straightness"] == pytest.approx((1 + 10 / 14) / 2)
  assert curves["estimate_to_centroid"] == pytest.approx(
    [math.sqrt((4**2 + (3**2 + 8**2)) / 2)]
  )


# Steps and attacks.


def test_steps_are_counted_in_network_evaluations(result):
  curves = result["protocols"]["steps"]["curves"]
  names = ["sampler", "num_steps", "stop_sigma", "temperature", "evaluations"]
  assert list(curves)[:5] == names
  rows = list(zip(*(curves[name] for name in names), strict=True))
  assert rows == [("heun", 3, 0.0, 1.0, 5), ("dpm_solver", 3, 0.0, 1.0, 3)]


def test_ways_to_sample_are_all_combinations(run):
  """Each is what the run's own protocol `truth` says with these fields."""
  model = sampling.newest_model(make_run(), run)
  changed = make_run(
    samplers=(),
    step_counts=(3,),
    stop_sigmas=(0.0, 0.5),
    temperatures=(0.0, 1.0),
  )
  found = steps.measure(subject.open_subject(changed, run)).curves
  ways = list(zip(found["stop_sigma"], found["temperature"], strict=True))
  assert ways == [(0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.5, 1.0)]
  count = changed.evaluation.num_step_samples
  x_0 = sampling.draw(
    model, count, num_steps=3, stop_sigma=0.5, temperature=0.0
  )
  reference = subject.open_subject(changed, run).reference
  expected = measures.support_rms(x_0, reference.project)
  assert found["support_rms"][2] == pytest.approx(expected)
  assert len(set(found["support_rms"])) == 4


@pytest.fixture(scope="module")
def attacked(run, tmp_path_factory):
  """A subject whose transfer is from a run of other parameters."""
  other = tmp_path_factory.mktemp("other")
  config = make_config()
  config.seed = 1
  begin(runs.build(config), other)
  built = make_run(
    attack_budgets=(0.0, 0.3), attack_steps=3, transfer_from=str(other)
  )
  return subject.open_subject(built, run)


def moved_by_kind(found):
  """(attack, budget) -> moved."""
  kinds = zip(found["attack"], found["budget"], strict=True)
  return dict(zip(kinds, found["moved"], strict=True))


ATTACKS = ["random", "greedy", "moved", "error", "frechet", "expected"]
ATTACKS += ["transfer"]


def test_table_of_attacks(attacked, monkeypatch):
  """Every kind at every budget, beside the samples of no attack."""
  shift = {kind: n for n, kind in enumerate([None, *ATTACKS])}

  def sampler(subject, kind):
    signs = np.array([1.0, -1.0, 1.0])
    return lambda budget, i: np.ones((16, 3)) + shift[kind] * budget * signs

  monkeypatch.setattr(attack, "sampler", sampler)
  found = attack.measure(attacked).curves
  expected = {(k, b): shift[k] * b for k in ATTACKS for b in (0.0, 0.3)}
  assert moved_by_kind(found) == pytest.approx(expected)
  queries = dict(zip(found["attack"], found["queries"], strict=True))
  # 4 levels, 3 steps forward and backward; `moved` has a sample to move from.
  assert queries["error"] == queries["frechet"] == 3 * 4 * 2
  assert queries["moved"] == 4 + queries["error"]
  assert queries["expected"] == 2 * queries["error"]
  assert queries["transfer"] == queries["random"] == 0


def test_transfer_moves_the_run_by_what_was_made_for_another(attacked):
  plain, own, transfer = (
    attack.sampler(attacked, kind) for kind in (None, "error", "transfer")
  )
  still = plain(0.0, 0)
  np.testing.assert_array_equal(transfer(0.0, 0), still)
  error = lambda x_0: measures.support_rms(x_0, attacked.reference.project)
  assert error(still) < error(transfer(0.3, 0)) < error(own(0.3, 0))


@pytest.mark.slow
def test_each_measure_is_raised_most_by_the_attack_aimed_at_it(attacked):
  found = attack.measure(attacked)
  moved = moved_by_kind(found.curves)
  assert [moved[kind, 0.0] for kind in ATTACKS] == [0.0] * len(ATTACKS)
  strongest = lambda name: max(
    (value, kind)
    for kind, value in zip(
      found.curves["attack"], found.curves[name], strict=True
    )
  )
  assert strongest("support_rms")[1] == "error"
  assert strongest("frechet")[1] == "frechet"
  assert found.measures["attacked_frechet"] == strongest("frechet")[0]


@pytest.mark.slow
def test_transfer_from_the_network_itself_is_the_joint_attack(
  attacked, monkeypatch
):
  itself = attacked.model.params
  monkeypatch.setattr(attack, "_surrogate_params", lambda subject: itself)
  own, transfer = (attack.sampler(attacked, k) for k in ("error", "transfer"))
  np.testing.assert_allclose(transfer(0.3, 0), own(0.3, 0), atol=1e-3)


# Memorisation.


def test_copies_are_near_duplicates():
  generator = np.random.default_rng(0)
  train = generator.normal(size=(300, 16))
  copies = train[:50] + 1e-3 * generator.normal(size=(50, 16))
  distances, places = memorisation.nearest_two(copies, train)
  np.testing.assert_array_equal(places, np.arange(50))
  found = memorisation.compare(distances)
  assert found["near_duplicates"] == 1
  fresh = generator.normal(size=(50, 16))
  distances, places = memorisation.nearest_two(fresh, train)
  every = np.sort(np.linalg.norm(fresh[:, None] - train, axis=-1), axis=1)
  np.testing.assert_allclose(distances, every[:, :2])
  assert memorisation.compare(distances)["near_duplicates"] == 0


def test_share_of_near_duplicates_has_wilsons_interval():
  distances = np.ones((40, 2))
  distances[:10, 0] = 0.33
  distances[10:, 0] = 0.34
  found = memorisation.compare(distances)
  z, n, p = scipy.stats.norm.ppf(0.975), 40, 0.25
  middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
  assert found["nearest"] == 0.34
  assert found["near_duplicates"] == 0.25
  assert found["near_duplicates_low"] == pytest.approx(middle - half)
  assert found["near_duplicates_high"] == pytest.approx(middle + half)


def image_subject(run, folder, counts, linear_rank=0, **fields):
  """Of random 8 x 8 images in a folder, counts of them by split; the pixels.

  Its network is that of points, which no measure of data asks for.
  """
  generator = np.random.default_rng(0)
  pixels = {
    split: generator.integers(0, 256, (n, 8, 8), np.uint8)
    for split, n in counts.items()
  }
  for split, found in pixels.items():
    (folder / split / "label").mkdir(parents=True)
    for i, image in enumerate(found):
      path = folder / split / "label" / f"{i:03}.png"
      Image.fromarray(image).save(path)
  config = make_config()
  config.data.update(
    name="image_folder", path=str(folder), image_size=8, num_channels=1
  )
  config.data.linear_rank = linear_rank
  config.evaluation.update(fields)
  built = runs.build(config)
  model = sampling.newest_model(make_run(), run)._replace(run=built)
  training_set = built.open_training_set()
  truth = subject.reference_of(built, training_set)
  return subject.Subject(model, training_set, truth), pixels


@pytest.mark.parametrize("copied", ["seen", "clean"])
def test_copies_of_the_training_set_are_found(
  run, tmp_path, monkeypatch, copied
):
  """All of them, of a set larger than the references; of the other, none."""
  opened, _ = image_subject(
    run, tmp_path, {"train": 90}, num_reference=40, extractor_dims=30
  )
  folder = opened.model._replace(workdir=tmp_path / "run")
  opened = opened._replace(model=folder)
  clean, seen = opened.pairs(np.arange(90))
  assert not np.array_equal(clean, seen)
  copies = {"seen": seen, "clean": clean}[copied]
  monkeypatch.setattr(subject.Subject, "samples", lambda self: copies[::3])
  # Parts that do not divide the set.
  monkeypatch.setattr(subject, "_PART", 40)
  found = memorisation.measure(opened).measures
  name = {"seen": "near_duplicates", "clean": "near_duplicates_clean"}[copied]
  assert found[name] == 1
  with np.load(tmp_path / "run/memorisation.npz") as pairs:
    if copied == "seen":
      np.testing.assert_array_equal(pairs["neighbours"], pairs["samples"])


# Baselines.


def test_held_out_images_are_projected_as_the_training_set_is(run, tmp_path):
  counts = {"train": 12, "test": 6}
  opened, pixels = image_subject(
    run, tmp_path, counts, held_out="test", linear_rank=2
  )
  plane = subspace.fit(pixels["train"] / 127.5 - 1, 2)
  expected = subspace.project(plane, pixels["test"][..., None] / 127.5 - 1)
  found = baselines.held_out(opened, 4)
  np.testing.assert_allclose(found, expected[[0, 1, 3, 5]], atol=1e-5)


@pytest.mark.parametrize(
  "num_reference, name", [(40, "held out"), (99, "half")]
)
def test_clean_examples_are_none_of_those_they_are_held_against(
  run, tmp_path, num_reference, name
):
  """They are the rest of the training set, or one half of the references."""
  opened, pixels = image_subject(
    run, tmp_path, {"train": 99}, num_reference=num_reference, num_samples=99
  )
  flat = pixels["train"].reshape(99, -1) / 127.5 - 1
  told, x, places = baselines.clean(opened)
  assert name in told
  against = opened.reference.examples[places]
  place = lambda rows: np.abs(rows[:, None] - flat).max(-1).argmin(1)
  found, others = place(x.reshape(len(x), -1)), place(against)
  assert set(found).isdisjoint(others)
  assert len(others) == (40 if name == "held out" else 50)
  assert len({*found, *others}) == 99
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(subject.Subject, "samples", lambda self: x)
    measured = truth.measure(opened).baselines[told]
  clean = subject.image_reference(opened.run, against)
  expected = truth.compare(x, clean, images=True)
  assert measured == pytest.approx(expected, rel=1e-5)


def test_measures_of_data_have_closed_forms(run):
  """Fresh points lie on the plane; a training set is off it by its noise."""
  config = make_config(num_samples=2000)
  config.data.num_examples = 2000
  built = runs.build(config)
  opened = subject.open_subject(make_run(), run)
  points = np.random.default_rng(0).normal(size=(99, 3))
  opened = opened._replace(
    model=opened.model._replace(run=built),
    training_set=built.open_training_set(),
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(subject.Subject, "samples", lambda self: points)
    found = truth.measure(opened).baselines
  clean, dirty = found[baselines.HELD_OUT], found[baselines.TRAINING]
  assert clean["support_rms"] < 1e-6
  assert clean["spread_ratio"] == pytest.approx(1, abs=0.03)
  assert clean["frechet"] < 0.005
  # 90% of the points have noise of variance 0.2^2 along the normal.
  noise = math.sqrt(0.9) * 0.2
  assert dirty["support_rms"] == pytest.approx(noise, rel=0.05)


def test_training_examples_have_no_truth_in_their_protocol(run):
  opened = subject.open_subject(make_run(num_samples=400), run)
  seen = opened.seen()
  _, dirty = opened.first(512)
  np.testing.assert_array_equal(
    seen, dirty[np.linspace(0, 511, 400).astype(int)]
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(subject, "_CHUNK", 150)
    np.testing.assert_array_equal(opened.seen(), seen)
    patch.setattr(subject.Subject, "samples", lambda self: 2 * seen)
    opened = opened._replace(reference=None)
    found = training_set.measure(opened)
  assert found.measures["training_spread"] == pytest.approx(2)
  halves = found.baselines[baselines.TRAINING_HALVES]
  assert halves["training_spread"] == pytest.approx(1, abs=0.1)


def test_a_collapse_is_told_with_what_may_help(run, tmp_path, caplog):
  workdir = shutil.copytree(run, tmp_path / "run")
  opened = subject.open_subject(make_run(protocols=("training_set",)), workdir)
  built, seen = opened.run, opened.seen()
  built = built._replace(objective=built.objective._replace(lam=3.0))
  opened = opened._replace(model=opened.model._replace(run=built))

  def alarms(x_0):
    (workdir / "evaluation.json").unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(subject.Subject, "samples", lambda self: x_0)
      return evaluate.measure(opened)["alarms"]

  assert alarms(seen) == []
  assert "Collapsed" not in caplog.text
  spread, *_, advice = alarms(0.01 * seen)
  assert "spread" in spread
  assert advice == (
    "what may help: train anew with objective.lam=0.3, or train longer"
  )
  assert f"Collapsed, it seems: {spread}; " in caplog.text


# References.


def test_references_of_something_else_are_refused(run, tmp_path):
  path = tmp_path / "references.npz"
  built = make_run(reference=str(path))
  first = quality.measure(subject.open_subject(built, run))
  assert path.exists()
  again = quality.measure(subject.open_subject(built, run))
  assert again == first
  fewer = make_run(reference=str(path), num_reference=32)
  with pytest.raises(configs.ConfigError, match="count: 64 -> 32"):
    quality.measure(subject.open_subject(fewer, run))


def test_fid_without_weights_says_what_to_fetch(run):
  config = make_config()
  config.evaluation.extractor = "inception"
  with pytest.raises(ValueError, match=r"pt_inception.*inception_weights"):
    quality.measure(subject.open_subject(runs.build(config), run))
  with pytest.raises(configs.ConfigError, match="pca for oblique_plane"):
    checks.validate(config)


# Purification.


def test_purify_mode(run, result, tmp_path):
  config = make_config()
  folder = purify.purify(runs.build(config), run)
  with np.load(folder / "samples.npz") as saved:
    assert saved["x_0"].shape == (32, 3)
  said = json.loads((folder / "purification.json").read_text())
  assert said["t_star"] == 0.32
  # A few steps of training: it is but near its input, as t* is low.
  with np.load(run / "training_examples.npz") as saved:
    dirty = saved["dirty"]
  with np.load(folder / "samples.npz") as saved:
    np.testing.assert_allclose(saved["x_0"][:16], dirty[:16])

  path = tmp_path / "x.npz"
  for content, message in [
    ({"x": np.zeros((4, 3))}, "must be an .npz file that holds x_0"),
    ({"x_0": np.zeros((4, 2))}, r"holds examples of shape \(2,\)"),
  ]:
    np.savez(path, **content)
    config.purify.input = str(path)
    with pytest.raises(configs.ConfigError, match=message):
      purify.purify(runs.build(config), run)
  config.purify.input = str(tmp_path / "missing.npz")
  with pytest.raises(configs.ConfigError, match="cannot be read"):
    purify.purify(runs.build(config), run)
