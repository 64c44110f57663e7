#!/usr/bin/env bash
# Makes .venv with the exact pins of requirements.txt, each file by its hash;
# done once, then quick.
# PYTHON=python3.12 chooses the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "rad_jax needs Python 3.11 or newer: set PYTHON=python3.12, say" >&2
  exit 1
fi

stamp=.venv/installed
if ! cmp --silent requirements.txt "$stamp"; then
  echo "Setting up .venv (about a minute) ..."
  [[ -x .venv/bin/python ]] || "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --require-hashes -r requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --no-deps -e .
  cp requirements.txt "$stamp"
fi
