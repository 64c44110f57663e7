#!/usr/bin/env bash
# Shows the paper's effect: trains DDPM, invariance, Robust_ran and Robust_adv
# on noised digits and on the noised oblique plane, prints one table and draws
# its figures into runs/demo. Further flags are those of rad_jax.main, such as
# --workdir=DIR, --config.study.seeds=1 or --config.study.processes=1;
# SMOKE=1 shrinks it to seconds, without a result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
# Networks this small gain nothing from an accelerator, nor from a second
# thread; what was compiled for one run serves the next.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
config="configs/demo.py${SMOKE:+:smoke}"
exec .venv/bin/python -m rad_jax.main --config="$config" --mode=demo "$@"
