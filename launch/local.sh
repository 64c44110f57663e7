#!/usr/bin/env bash
# Trains on all devices of this machine, and after a pre-emption goes on.
#   bash launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
exec .venv/bin/python -m rad_jax.main "$@"
