#!/usr/bin/env bash
# Lint, types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
.venv/bin/shellcheck launch/*.sh .ci/run
exec .venv/bin/python -m pytest -n auto --dist loadfile \
  --no-loadscope-reorder "$@"
