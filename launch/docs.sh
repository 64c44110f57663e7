#!/usr/bin/env bash
# Builds the documentation into site/, strictly: a broken link is an error.
# The first call makes .venv-docs from requirements-docs.txt; the build itself
# needs no network. Arguments go to mkdocs build, or, as `launch/docs.sh serve`,
# to mkdocs serve. Pages link to files of the repository if its address is given:
#   REPO_URL=https://github.com/OWNER/rad_jax bash launch/docs.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
stamp=.venv-docs/installed
if ! cmp --silent requirements-docs.txt "$stamp"; then
  echo "Setting up .venv-docs ..."
  [[ -x .venv-docs/bin/python ]] || "$PYTHON" -m venv .venv-docs
  .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check \
    -r requirements-docs.txt
  cp requirements-docs.txt "$stamp"
fi

# MkDocs 1 is pinned, and so is all that could be moved by its successor.
export NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true
if [[ "${1:-}" == serve ]]; then
  exec .venv-docs/bin/python -m mkdocs "$@"
fi
exec .venv-docs/bin/python -m mkdocs build --strict --clean "$@"
