"""Rows as Markdown, one table for each benchmark."""

_FORMATS = {
  "seconds": ("ms", lambda x: f"{1e3 * x:,.3g}"),
  "examples_per_second": ("examples/s", lambda x: f"{x:,.4g}"),
  "samples_per_second": ("samples/s", lambda x: f"{x:,.4g}"),
  "over_ddpm": ("over own DDPM", lambda x: f"{x:.2f}"),
  "passes_over_ddpm": ("floor", lambda x: f"{x:.2f}"),
  "over_rad_jax": ("over rad_jax", lambda x: f"{x:.2f}"),
  "torch_over_rad_jax": ("torch over rad_jax", lambda x: f"{x:.2f}"),
  "over_forwards": ("over its forwards", lambda x: f"{x:.2f}"),
  "tflops_per_second": ("TFLOP/s", lambda x: f"{x:.3g}"),
  "share_of_peak": ("of bf16 peak", lambda x: f"{100 * x:.0f}%"),
  "over_one": ("over one by one", lambda x: f"{x:.2f}"),
  "share_waiting": ("waiting", lambda x: f"{100 * x:.2f}%"),
  "megabytes": ("MB", lambda x: f"{x:,.0f}"),
  "imports": ("imports, s", lambda x: f"{x:.1f}"),
  "compilation": ("compilation, s", lambda x: f"{x:.1f}"),
  "first_step": ("first step, s", lambda x: f"{x:.1f}"),
}
_HIDDEN = ("benchmark", "quartiles")


def markdown(machine: dict[str, str], rows: list[dict]) -> str:
  """The machine in a line, and a table for each benchmark."""
  parts = [", ".join(f"{name} {value}" for name, value in machine.items())]
  for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
    group = [row for row in rows if row["benchmark"] == benchmark]
    parts.append(f"### {benchmark}\n\n{_table(group)}")
  return "\n\n".join(parts)


def _table(rows: list[dict]) -> str:
  names = dict.fromkeys(name for row in rows for name in row)
  columns = [name for name in names if name not in _HIDDEN]
  heads = [_FORMATS[c][0] if c in _FORMATS else c for c in columns]
  lines = [heads, ["---"] * len(columns)]
  lines += [[_cell(row, column) for column in columns] for row in rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict, column: str) -> str:
  value = row.get(column)
  if value is None:
    return ""
  return _FORMATS[column][1](value) if column in _FORMATS else str(value)
