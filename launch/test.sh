#!/usr/bin/env bash
# Lint, types and tests; with --all the slow tests too. The rest goes to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
marks=()
if [[ "${1:-}" == --all ]]; then
  marks=(-m "")
  shift
fi
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
.venv/bin/shellcheck launch/*.sh .ci/run
exec .venv/bin/python -m pytest -n auto --dist loadfile \
  --no-loadscope-reorder "${marks[@]}" "$@"
