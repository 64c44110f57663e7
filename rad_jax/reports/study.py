"""The report of a study: tables and pictures, world by world.

A study's folder (experiments.study) holds sweep.jsonl, a row for each run,
and runs/<name>/ with evaluation.json, training_examples.npz, samples and, of
the first seed, portrait.npz. Pictures are of the first seed, tables of all.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from rad_jax.data import subspace, synthetic
from rad_jax.reports import figures, methods, page, panels, saved
from rad_jax.reports.methods import Method
from rad_jax.reports.page import Picture, Section, Table, Text
from rad_jax.reports.panels import Line, Panel, View

Row: TypeAlias = dict[str, Any]

# Measures of the tables, by what they are called there, and where best is.
MEASURES: dict[str, tuple[str, Callable[[float], float]]] = {
  "support_rms": ("error: RMS distance from the true support", lambda v: v),
  "spread_ratio": (
    "spread inside the support over the truth's; 1 is right",
    lambda v: abs(v - 1),
  ),
  "score_error": ("error of eps_hat, mean over noise levels", lambda v: v),
  "support_psnr_db": ("PSNR against the true support, dB", lambda v: -v),
  "frechet": ("Frechet distance of the moments", lambda v: v),
}
_LABELS = ("run", "world", "corruption", "method", "objective", "lam", "seed")
_RECORD = ("config", "steps", "passes", "error")
# How far a difference must stand out, in standard errors.
_CLEAR = 2.0
_SHOWN_PATHS = 40


class Study(NamedTuple):
  """What is known of a study.

  rows: of sweep.jsonl. folder: of its runs.
  worlds, corruptions: in their order. looks: of each method, in its order.
  dirtiest: the corruption that pictures are of.
  """

  rows: list[Row]
  folder: pathlib.Path
  worlds: list[str]
  corruptions: list[str]
  looks: dict[str, Method]
  dirtiest: str


def write(
  rows: list[Row], workdir: pathlib.Path, notes: pathlib.Path | None = None
) -> list[pathlib.Path]:
  """Writes workdir/report; returns the paths, the page first.

  Args:
    rows: of experiments.study.run, in the order of worlds and methods.
    workdir: the study's folder.
    notes: a text of paragraphs, parted by empty lines, that discusses it.

  Raises:
    OSError: there are no such notes.
    ValueError: a file of the study is damaged, or a run's folder is gone.
  """
  runs = workdir / "runs"
  gone = [row["run"] for row in rows if not (runs / row["run"]).is_dir()]
  if gone:
    raise ValueError(
      f"{runs} lacks {len(gone)} of {len(rows)}"
      f" runs, {gone[0]} the first: bring them back, or take their lines out of"
      f" {workdir / 'sweep.jsonl'} for the study to run them again"
    )
  study = gather(rows, runs)
  order = order_table(study)
  found: list[page.Part] = [Text(line) for line in outcome(order)]
  if notes:
    paragraphs = notes.read_text().strip().split("\n\n")
    found += [Text(" ".join(text.split())) for text in paragraphs]
  sections = [
    Section("What was found", [*found, order, _errors(study)]),
    Section("Clean against dirty", [_frontier(study)]),
  ]
  sections += [_world(study, world) for world in study.worlds]
  sections.append(Section("All cells", [cells_table(study)]))
  seeds = len({row["seed"] for row in study.rows})
  return page.write(
    "Adversarial training of diffusion models on worlds with known truth",
    f"{len(study.rows)} runs: {len(study.worlds)} worlds under"
    f" {len(study.corruptions)} corruptions, {len(study.looks)} methods,"
    f" {seeds} seeds; means and standard deviations over seeds. p90-s0.2 is"
    " Gaussian noise of sigma 0.2 on 90% of the training examples, and so on;"
    " outliers, a tenth of them replaced by uniform noise. A model is held"
    " against the clean truth, which it has not seen.",
    sections,
    workdir / "report",
  )


def gather(rows: list[Row], folder: pathlib.Path) -> Study:
  """The rows of a study, whose runs lie in a folder."""
  unique = lambda name: list(dict.fromkeys(row[name] for row in rows))
  corruptions = _in_order(unique("corruption"))
  return Study(
    rows,
    folder,
    unique("world"),
    corruptions,
    _looks(rows),
    max(
      (c for c in corruptions if c != "outliers"),
      key=_dirt,
      default="outliers",
    ),
  )


def _in_order(corruptions: list[str]) -> list[str]:
  return sorted(corruptions, key=lambda c: (c == "outliers", _dirt(c)))


def _dirt(corruption: str) -> tuple[float, ...]:
  """Numbers in a name, p90-s0.2 as (90, 0.2)."""
  parts = corruption.split("-")
  return tuple(float(part[1:]) for part in parts if part[1:2].isdigit())


def _looks(rows: list[Row]) -> dict[str, Method]:
  """An objective's colour; its lambdas, where there are several, by size."""
  found: dict[str, Method] = {}
  for row in sorted(
    rows, key=lambda row: list(methods.METHODS).index(row["objective"])
  ):
    if row["method"] in found:
      continue
    lams = {r["lam"] for r in rows if r["objective"] == row["objective"]}
    look = methods.of(row["objective"])
    if len(lams) > 1:
      look = look._replace(label=f"{look.label}, lambda {row['lam']:g}")
      if row["lam"] < max(lams):
        look = look._replace(marker="d", dashes=(0, (2, 1)))
    found[row["method"]] = look
  return found


# ---- Numbers ----


def values(
  study: Study, world: str, corruption: str, method: str, measure: str
) -> np.ndarray:
  """A cell's measure, over the seeds that have it."""
  cell = (world, corruption, method)
  return np.array(
    [
      row[measure]
      for row in study.rows
      if (row["world"], row["corruption"], row["method"]) == cell
      and row.get(measure) is not None
    ]
  )


def verdict(smaller: np.ndarray, larger: np.ndarray) -> str:
  """Whether the mean of `smaller` is below that of `larger`.

  "yes" or "no" if they are two standard errors of the difference apart, else
  "unclear".
  """
  difference = larger.mean() - smaller.mean()
  error = np.sqrt(
    sum(v.var(ddof=1) / len(v) if len(v) > 1 else 0 for v in (smaller, larger))
  )
  if abs(difference) <= _CLEAR * error:
    return "unclear"
  return "yes" if difference > 0 else "no"


def order_table(study: Study) -> Table:
  """The paper's order of errors, cell by cell."""
  claims = [
    ("Robust_ran below DDPM", "robust_ran", "ddpm"),
    ("Robust_adv below Robust_ran", _strongest(study), "robust_ran"),
    ("DDPM below invariance", "ddpm", "invariance"),
  ]
  claims = [c for c in claims if {*c[1:]} <= study.looks.keys()]
  rows: list[list[page.Cell]] = []
  for world in study.worlds:
    for corruption in study.corruptions:
      found = []
      for _, *pair in claims:
        of = [values(study, world, corruption, m, "support_rms") for m in pair]
        found.append(verdict(*of) if all(map(len, of)) else None)
      rows.append([f"{world}, {corruption}", *found])
  return Table(
    "order",
    ["world, corruption", *(claim for claim, *_ in claims)],
    rows,
    "Whether the paper's order of errors holds: yes or no where the means are"
    " two standard errors apart over seeds, else unclear.",
  )


def outcome(order: Table) -> list[str]:
  """How far each claim of the order holds, and where it does not."""
  lines = []
  for column, claim in enumerate(order.head[1:], 1):
    of = {row[0]: row[column] for row in order.rows if row[column]}
    against = [f"{cell} ({of[cell]})" for cell in of if of[cell] != "yes"]
    line = f"{claim}: in {len(of) - len(against)} of {len(of)} cells"
    lines.append(
      f"{line}; not in {', '.join(against)}." if against else f"{line}."
    )
  return lines


def _strongest(study: Study) -> str:
  """The method of Robust_adv's largest lambda."""
  lams = {
    row["method"]: row["lam"]
    for row in study.rows
    if row["objective"] == "robust_adv"
  }
  return max(lams, key=lambda method: lams[method], default="")


def measure_table(study: Study, world: str, measure: str) -> Table | None:
  """A measure by method and corruption; None if no run of the world has it."""
  title, badness = MEASURES[measure]
  rows: list[list[page.Cell]] = []
  bad = np.full((len(study.looks), len(study.corruptions)), np.inf)
  for i, (method, look) in enumerate(study.looks.items()):
    cells: list[page.Cell] = [look.label]
    for j, corruption in enumerate(study.corruptions):
      found = values(study, world, corruption, method, measure)
      cells.append(_mean_std(found) if len(found) else None)
      if len(found):
        bad[i, j] = badness(found.mean())
    rows.append(cells)
  if np.isinf(bad).all():
    return None
  best = {
    (int(i), j + 1)
    for j in range(bad.shape[1])
    for i in np.flatnonzero(bad[:, j] == bad[:, j].min())
    if np.isfinite(bad[i, j])
  }
  return Table(
    f"{world}-{measure}",
    ["method", *study.corruptions],
    rows,
    f"{world}: {title}. The best of a column is bold; noise-aware training is"
    " DDPM on clean data and not defined on outliers.",
    best,
  )


def cells_table(study: Study) -> Table:
  """Mean and standard deviation of every measure of every cell."""
  names = [
    name
    for name in dict.fromkeys(name for row in study.rows for name in row)
    if name not in (*_LABELS, *_RECORD)
  ]
  rows: list[list[page.Cell]] = []
  for world in study.worlds:
    for corruption in study.corruptions:
      for method in study.looks:
        of = [values(study, world, corruption, method, name) for name in names]
        if not any(map(len, of)):
          continue
        numbers = [
          number
          for found in of
          for number in (
            (float(found.mean()), float(found.std()))
            if len(found)
            else (None, None)
          )
        ]
        rows.append([world, corruption, method, len(of[0]), *numbers])
  head = ["world", "corruption", "method", "seeds"]
  for name in names:
    head += [name, f"{name} std"]
  return Table("cells", head, rows, "Every number, over seeds.")


def _mean_std(found: np.ndarray) -> str:
  return f"{found.mean():.3g} ± {found.std():.1g}"


# ---- Pictures of all worlds ----


def _errors(study: Study) -> Picture:
  places = np.arange(len(study.corruptions))
  shown = []
  for world in study.worlds:
    lines = []
    for n, (method, look) in enumerate(study.looks.items()):
      found = [
        values(study, world, corruption, method, "support_rms")
        for corruption in study.corruptions
      ]
      mean = [v.mean() if len(v) else np.nan for v in found]
      shift = 0.1 * (n - (len(study.looks) - 1) / 2)
      style = methods.style(look) | {"linestyle": "none", "markersize": 6}
      lines.append(Line(places + shift, mean, style))
    shown.append(Panel(world, "corruption", lines, log_y=False))
  figure = panels.line_figure(shown)
  for axis in figure.axes:
    axis.set_xticks(places, study.corruptions, rotation=40, ha="right")
    for place in places[1:]:
      axis.axvline(place - 0.5, color="0.9", linewidth=1, zorder=0)
  figure.axes[0].set_ylabel("error (RMS)")
  return Picture(
    "errors",
    figure,
    "The dirtier the data, the farther DDPM is from the truth and the more"
    " Robust_adv (green) gains; every mark is a mean over seeds.",
  )


def _frontier(study: Study) -> Picture:
  shown = []
  for world in study.worlds:
    lines = []
    for method, look in study.looks.items():
      x, y = (
        values(study, world, corruption, method, "support_rms")
        for corruption in (study.corruptions[0], study.dirtiest)
      )
      if len(x) and len(y):
        style = methods.style(look) | {"linestyle": "none", "markersize": 8}
        lines.append(Line([x.mean()], [y.mean()], style))
    path = [
      tuple(
        values(study, world, corruption, method, "support_rms").mean()
        for corruption in (study.corruptions[0], study.dirtiest)
      )
      for method in _by_lambda(study)
    ]
    style = {"color": "0.6", "linewidth": 1, "zorder": 0}
    x_path, y_path = np.transpose(path)
    lines.append(Line(x_path, y_path, style))
    title = f"{world}, trained on {study.corruptions[0]} data: error"
    shown.append(Panel(world, title, lines, log_y=False))
  figure = panels.line_figure(shown)
  for axis in figure.axes:
    axis.set_xlabel("error, trained on clean data")
    axis.set_ylabel(f"error, trained on\n{study.dirtiest}")
    axis.set_xlim(left=0)
  return Picture(
    "frontier",
    figure,
    "The grey line follows lambda from DDPM (0) to Robust_adv's largest:"
    " downwards is robustness, to the left is clean data learnt better.",
  )


def _by_lambda(study: Study) -> list[str]:
  """DDPM, then Robust_adv by rising lambda."""
  lams = {
    row["method"]: row["lam"] if row["objective"] == "robust_adv" else 0.0
    for row in study.rows
    if row["objective"] in ("ddpm", "robust_adv")
  }
  return sorted(lams, key=lambda method: lams[method])


# ---- Pictures of a world ----


def _world(study: Study, world: str) -> Section:
  tables = [measure_table(study, world, measure) for measure in MEASURES]
  parts: list[page.Part] = [table for table in tables if table]
  parts += [_samples(study, world), _levels(study, world)]
  portraits = {
    method: found
    for method in study.looks
    if (found := saved.arrays(_run(study, world, method) / "portrait.npz"))
  }
  pair = {m: portraits[m] for m in _pair(study) if m in portraits}
  if pair:
    parts.append(_trajectories(study, world, pair))
    if next(iter(pair.values()))["path"].shape[-1] == 3 and not _has_images(
      pair
    ):
      parts.append(_trajectories_3d(study, world, pair))
  if pair and not _has_images(pair):
    parts.append(_fields(study, world, pair))
  if portraits and _has_images(portraits):
    parts.append(_image_rows(study, world, portraits))
  title = f"{world.replace('_', ' ')}, pictures trained on {study.dirtiest}"
  return Section(title[0].upper() + title[1:], parts)


def _pair(study: Study) -> tuple[str, str]:
  return ("ddpm", _strongest(study))


def _run(study: Study, world: str, method: str) -> pathlib.Path:
  """The folder of a method's first seed under the dirtiest corruption."""
  found = [
    row
    for row in study.rows
    if (row["world"], row["corruption"], row["method"])
    == (world, study.dirtiest, method)
  ]
  if not found:
    return study.folder / "none"
  return study.folder / min(found, key=lambda row: row["seed"])["run"]


def _has_images(portraits: dict[str, dict[str, np.ndarray]]) -> bool:
  return next(iter(portraits.values()))["path"].ndim == 5


def _samples(study: Study, world: str) -> Picture:
  views: list[View] = []
  for method, look in study.looks.items():
    run = _run(study, world, method)
    found = saved.arrays(run / "training_examples.npz")
    if found and not views:
      views += [
        View("clean truth", found["clean"]),
        View(f"training set, {study.dirtiest}", found["dirty"]),
      ]
    drawn = saved.samples(run)
    if drawn:
      error = values(study, world, study.dirtiest, method, "support_rms").mean()
      title = f"{look.label}: error {error:.3g}"
      views.append(View(title, drawn["x_0"], look.colour))
  return Picture(
    f"{world}-samples",
    panels.example_figure(views),
    "Samples beside the clean truth and the training set: DDPM repeats the"
    " noise it was shown, Robust_adv draws nearer to the clean support.",
  )


_CURVES = (
  ("score", "score_error", "error of eps_hat"),
  (
    "reconstruction",
    "reconstruction_support_rms",
    "noised and back: distance from support",
  ),
  ("flow", "estimate_to_centroid", "clean estimate to centroid"),
)


def _levels(study: Study, world: str) -> Picture:
  shown = []
  for protocol, name, title in _CURVES:
    lines = []
    for method, look in study.looks.items():
      path = _run(study, world, method) / "evaluation.json"
      if not path.exists():
        continue
      curves = json.loads(path.read_text())["protocols"][protocol]["curves"]
      lines.append(Line(curves["sigma_t"], curves[name], methods.style(look)))
    shown.append(Panel(title, "noise level sigma_t", lines, "logit", False))
  return Picture(
    f"{world}-levels",
    panels.line_figure(shown),
    "By noise level (0 clean, 1 noise). Left: error against the exact noise."
    " Middle: clean examples noised and denoised, where Robust_adv ends nearer"
    " to the support. Right: the clean estimate leaves the centroid of the data"
    " as the noise falls.",
  )


def _projected(portrait: dict[str, np.ndarray], clean: np.ndarray) -> tuple:
  """Paths [n, b, 2] and clean examples [m, 2], along two directions."""
  path = portrait["path"]
  if path.ndim == 3:
    view = synthetic.view(path.shape[-1])
    return path @ view.T, clean @ view.T
  plane = subspace.fit(clean, 2)
  flat = path.reshape(-1, *path.shape[2:])
  return (
    subspace.coordinates(plane, flat).reshape(*path.shape[:2], 2),
    subspace.coordinates(plane, clean),
  )


def _directions(clean: np.ndarray) -> tuple[str, str]:
  """What `_projected` shows."""
  if clean.ndim == 4:
    return "first principal component", "second principal component"
  return figures.VIEW_LABELS[clean.shape[1]]


def _clean(study: Study, world: str) -> np.ndarray:
  run = _run(study, world, next(iter(study.looks)))
  return saved.arrays(run / "training_examples.npz")["clean"]


def _trajectories(study: Study, world: str, portraits: dict) -> Picture:
  figure = Figure(figsize=(10, 4.4), layout="constrained")
  axes = figure.subplots(1, len(portraits), sharex=True, sharey=True)
  clean = _clean(study, world)
  labels = _directions(clean)
  for axis, (method, portrait) in zip(
    np.ravel(axes), portraits.items(), strict=True
  ):
    path, data = _projected(portrait, clean)
    path = path[:, :_SHOWN_PATHS]
    look = study.looks[method]
    axis.scatter(*data.T, s=5, color="0.75", linewidths=0, rasterized=True)
    axis.plot(path[:, :, 0], path[:, :, 1], color=look.colour, linewidth=0.6)
    axis.plot(*path[-1].T, ".", color="black", markersize=4)
    axis.set_title(look.label)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.label_outer()
    axis.set_aspect("equal")
    axis.spines[["top", "right"]].set_visible(False)
  return Picture(
    f"{world}-trajectories",
    figure,
    "The deterministic reverse flow from noise to samples (black dots), clean"
    " data in grey: Robust_adv's paths end nearer to it.",
  )


def _trajectories_3d(study: Study, world: str, portraits: dict) -> Picture:
  figure = Figure(figsize=(10, 4.6), layout="constrained")
  clean = _clean(study, world)
  for place, (method, portrait) in enumerate(portraits.items(), 1):
    axis: Any = figure.add_subplot(1, len(portraits), place, projection="3d")
    look = study.looks[method]
    axis.scatter(*clean.T, s=3, color="0.75", linewidths=0, rasterized=True)
    paths = portrait["path"][:, :_SHOWN_PATHS]
    for path in np.swapaxes(paths, 0, 1):
      axis.plot(*path.T, color=look.colour, linewidth=0.6)
    axis.scatter(*paths[-1].T, s=6, color="black", depthshade=False)
    axis.set_title(look.label)
    # Nearly along the plane x + y + z = 0.
    axis.view_init(elev=25, azim=-60)
    axis.set(xlabel="x", ylabel="y", zlabel="z")
    axis.set_box_aspect((1, 1, 1), zoom=1.15)
    axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), zlim=(-1.6, 1.6))
  return Picture(
    f"{world}-trajectories-3d",
    figure,
    "The same paths in space: the plane of clean data is grey, and black dots"
    " off it are the error.",
  )


def _fields(study: Study, world: str, portraits: dict) -> Picture:
  first = next(iter(portraits.values()))
  view = synthetic.view(first["path"].shape[-1])
  data = _clean(study, world) @ view.T
  rows = [
    (study.looks[m].label, study.looks[m].colour, p["field"])
    for m, p in portraits.items()
  ]
  rows.append(("exact, of clean data", "black", first["field_exact"]))
  sigmas = first["field_sigma_t"]
  figure = Figure(figsize=(10.4, 3.5 * len(rows)), layout="constrained")
  axes = figure.subplots(
    len(rows), len(sigmas), sharex=True, sharey=True, squeeze=False
  )
  for line, (label, colour, field) in zip(axes, rows, strict=True):
    for axis, sigma, arrows in zip(line, sigmas, field, strict=True):
      axis.scatter(*data.T, s=5, color="0.75", linewidths=0, rasterized=True)
      axis.quiver(
        *_thinned(first["field_points"]).T,
        *_thinned(arrows).T / 2,
        color=colour,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.004,
      )
      axis.set_title(f"{label}, sigma_t {sigma:.2g}", fontsize="medium")
      axis.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
      axis.spines[["top", "right"]].set_visible(False)
  return Picture(
    f"{world}-fields",
    figure,
    "From states on a grid, half the way to the clean estimate (sigma^2 times"
    " the score), clean data under it in grey: at low noise DDPM's arrows fade"
    " before they reach the data, Robust_adv's lead on, as the exact ones do.",
  )


def _thinned(grid: np.ndarray) -> np.ndarray:
  """Every second row and column of a square grid [k, 2]."""
  side = round(len(grid) ** 0.5)
  return grid.reshape(side, side, 2)[::2, ::2].reshape(-1, 2)


_IMAGE_ROWS = (
  ("samples", "samples"),
  ("nearest", "nearest training"),
  ("attacked", "samples, attacked"),
  ("dirty", "training, dirty"),
  ("purified", "the same, purified"),
)


def _image_rows(study: Study, world: str, portraits: dict) -> Picture:
  clean = _clean(study, world)
  figure = Figure(
    figsize=(10.4, 2.5 * -(-len(portraits) // 2)), layout="constrained"
  )
  axes = list(figure.subplots(-(-len(portraits) // 2), 2, squeeze=False).flat)
  for axis, (method, portrait) in zip(axes, portraits.items(), strict=False):
    shown = portrait | {"nearest": _nearest(portrait["samples"], clean)}
    rows = [shown[name] for name, _ in _IMAGE_ROWS]
    grid = figures.image_grid(np.concatenate(rows), columns=len(rows[0]))
    figures.draw_image(axis, grid)
    axis.set_axis_on()
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=8)
    tall = grid.shape[0] / len(rows)
    axis.set_yticks(
      tall * (np.arange(len(rows)) + 0.5), [text for _, text in _IMAGE_ROWS]
    )
    axis.set_xticks([])
    axis.set_title(study.looks[method].label, fontsize="medium")
  for axis in axes[len(portraits) :]:
    axis.remove()
  return Picture(
    f"{world}-images",
    figure,
    "Of each model: samples and the clean training images nearest to them;"
    " samples whose way was attacked; noised training images, and what"
    " purification by the model makes of them.",
  )


def _nearest(x: np.ndarray, clean: np.ndarray) -> np.ndarray:
  """Of each image the nearest of the clean ones, by pixels."""
  flat = clean.reshape(len(clean), -1)
  distance = np.linalg.norm(x.reshape(len(x), 1, -1) - flat[None], axis=-1)
  return clean[distance.argmin(axis=1)]
