"""Tables and figures of an experiment, drawn from its rows and runs."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rad_jax import files
from rad_jax.reports import charts, looks, page, paired, panels, study, tables
from rad_jax.reports.tables import Row, Table

_AXES = (*tables.LABELS, "steps")
# Columns of the demo's table: the measure's name there, and its digits.
_DEMO = {
  "support_rms": ("error (RMS)", 3),
  "support_psnr_db": ("PSNR, dB", 1),
  "frechet": ("Frechet", 3),
  "spread_ratio": ("spread", 3),
}


def write(
  rows: Sequence[Row],
  folder: pathlib.Path,
  view: str,
  across: str = "cost",
  notes: pathlib.Path | None = None,
) -> list[pathlib.Path]:
  """Writes what a view shows of an experiment's rows; returns the paths.

  A table and figures: of a "sweep", over lambda; of "schemes", over `across`,
  "cost" or a measure; of a "demo", errors and samples; of "compare", fronts. A
  "study" is a page.
  """
  if view == "compare":
    return _compared(rows, folder)
  done = tables.finished(rows)
  beside = tables.rows_of_data(rows, folder / "runs")
  if view == "study":
    return study.write(rows, folder, notes)
  drawn: dict[str, Figure] = {}
  if view == "sweep":
    text = summary([*rows, *beside])
    clean = [row for row in done if row["fraction"] == 0]
    dirty = [row for row in done if row["fraction"] > 0]
    if clean and dirty:
      drawn["frontier"] = charts.frontier_figure(clean, dirty, "frechet")
    elif tables.varying(done, ("lam",)):
      drawn["error"] = charts.lambda_figure(done, "frechet")
  elif view == "schemes":
    rows = relative_cost(rows)
    done = tables.finished(rows)
    drawn["schemes"] = charts.scheme_figure(done, across, "support_rms")
    text = summary([*rows, *beside])
  elif view == "demo":
    text = tables.markdown(demo_table(done, beside))
    named = [row | {"method": row["objective"]} for row in done]
    corruptions = tables.distinct(done, "corruption") or [None]
    drawn["errors"] = charts.error_figure(named, corruptions)
    for (data,), peers in tables.groups(done, "data").items():
      cells = tables.groups(peers, "objective")
      of = {looks.of(name): group for (name,), group in cells.items()}
      name = f"samples_{page.file_name(data)}"
      drawn[name] = charts.sample_figure(of, folder / "runs")
  else:
    raise ValueError(
      f"view={view!r}: it must be sweep, schemes, demo, compare or study"
    )
  files.write_text(folder / "table.md", text)
  return [
    folder / "table.md",
    *(panels.save(drawn[name], folder / f"{name}.png") for name in drawn),
  ]


def _compared(rows: Sequence[Row], folder: pathlib.Path) -> list[pathlib.Path]:
  made = [
    table(rows, data)
    for data in tables.distinct(rows, "data")
    for table in paired.TABLES
  ]
  text = "\n".join(f"{one.caption}\n\n{tables.markdown(one)}" for one in made)
  files.write_text(folder / "table.md", text)
  figure = paired.front_figure(rows)
  return [folder / "table.md", panels.save(figure, folder / "fronts.png")]


def summary(rows: Sequence[Row]) -> str:
  """A Markdown table over seeds; constant labels above, failed runs below."""
  varying = tables.varying(rows, _AXES)
  same = [name for name in _AXES if len(tables.distinct(rows, name)) == 1]
  common = {name: tables.distinct(rows, name)[0] for name in same}
  measures = tables.measures_of(rows)
  lines = []
  for group in tables.groups(rows, *_AXES).values():
    done = tables.finished(group)
    line = [tables.label(axis, group[0].get(axis)) for axis in varying]
    for name in measures:
      found = tables.mean_std(tables.values(done, name))
      line.append(found if done else "failed")
    failed = f" of {len(group)}" if len(done) < len(group) else ""
    lines.append([*line, f"{len(done)}{failed}"])
  table = tables.markdown(Table("", [*varying, *measures, "seeds"], lines))
  above = f"All runs: {tables.title(common, _AXES)}.\n\n" if common else ""
  errors = [f"- {r['run']}: {r['error']}\n" for r in rows if "error" in r]
  return above + table + "\nFailed:\n\n" * bool(errors) + "".join(errors)


def relative_cost(rows: Sequence[Row]) -> list[Row]:
  """The rows with `cost`: passes over those of the data's shortest DDPM run."""
  costed = []
  for (data,), peers in tables.groups(rows, "data").items():
    ddpm = [row["passes"] for row in peers if row["objective"] == "ddpm"]
    if not ddpm:
      raise ValueError(f"no run of ddpm on {data}")
    costed += [{"cost": row["passes"] / min(ddpm)} | row for row in peers]
  return costed


def demo_table(rows: Sequence[Row], beside: Sequence[Row] = ()) -> Table:
  """A line a data set and objective; the cost is a step's time over DDPM's.

  beside: `tables.rows_of_data`, which come below their data set's, never bold.
  """
  lines: list[list[tables.Cell]] = []
  best = set()
  for (data,), peers in tables.groups(rows, "data").items():
    cells = tables.groups(peers, "objective")
    seconds = {k: tables.values(v, "step_seconds") for k, v in cells.items()}
    errors = [tables.values(c, "support_rms").mean() for c in cells.values()]
    best |= {(len(lines) + i, 2) for i in tables.best_of(errors, "lower")}
    of_data = [row for row in beside if row["data"] == data]
    for key, group in (cells | tables.groups(of_data, "objective")).items():
      found = [
        tables.mean_std(tables.values(group, name), digits=digits)
        for name, (_, digits) in _DEMO.items()
      ]
      ddpm = seconds.get(("ddpm",), np.empty(0))
      known = len(ddpm) and len(seconds.get(key, ()))
      cost = f"{seconds[key].mean() / ddpm.mean():.2f}" if known else ""
      lines.append([data, looks.of(key[0]).label, *found, cost])
  names = [name for name, _ in _DEMO.values()]
  return Table("", ["data", "objective", *names, "cost"], lines, "", best)
