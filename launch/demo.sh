#!/usr/bin/env bash
# Shows the paper's effect: trains DDPM, invariance, Robust_ran and Robust_adv
# on noised digits and on the noised oblique plane, prints one table and draws
# its figures into runs/demo. Arguments go to launch/demo.py (--help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
exec .venv/bin/python launch/demo.py "$@"
