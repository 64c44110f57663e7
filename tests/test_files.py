"""Rows and logs: added to alone, and read whatever befell them."""

from rad_jax import files
from rad_jax.training import metrics


def test_damaged_lines_are_left_out_and_told(tmp_path, caplog):
  path = tmp_path / "rows.jsonl"
  path.write_bytes(
    b'{"a": 1}\n{"a": \xff\n[1]\n{"a": "\xff"}\n3\n{"a": 2}\n{"a"'
  )
  assert [row["a"] for row in files.read_rows(path)] == [1, "\ufffd", 2]
  assert f"{path} is damaged: left out of it are lines 2, 3, 5, 7" in (
    caplog.text
  )


def test_row_after_a_torn_line_stands_by_itself(tmp_path):
  path = tmp_path / "rows.jsonl"
  files.append_row(path, {"a": 1})
  with path.open("a") as file:
    file.write('{"a": 2, "b')
  files.append_row(path, {"a": 3})
  files.append_row(path, {"a": 4})
  assert [row["a"] for row in files.read_rows(path)] == [1, 3, 4]


def test_a_new_start_loses_nothing_and_counts_from_its_step(tmp_path):
  """A kill at any byte of it leaves what was there before."""
  path = tmp_path / "metrics.jsonl"
  with metrics.writer(tmp_path, 0) as write:
    for step in (2, 4, 5):
      write(step, {"a": float(step)})
  before = path.read_bytes()
  with metrics.writer(tmp_path, 4) as write:
    write(6, {"a": 6.0})
  assert path.read_bytes().startswith(before)
  assert [row["step"] for row in metrics.read(tmp_path)] == [2, 4, 6]
  with metrics.writer(tmp_path, 0):
    pass
  assert metrics.read(tmp_path) == []


def test_rows_of_no_step_are_no_metrics(tmp_path):
  path = tmp_path / "metrics.jsonl"
  for row in ({"a": 1}, {"step": "2", "a": 1}, {"step": 3, "a": 1}):
    files.append_row(path, row)
  assert files.read_log(path) == [{"step": 3, "a": 1}]
