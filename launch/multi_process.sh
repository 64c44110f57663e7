#!/usr/bin/env bash
# One run as N processes of this machine; of a CPU, with D devices each.
#   bash launch/multi_process.sh N [--devices=D] --config=configs/digits.py ...
# Ends as the first process to fail does, and takes the others along. SIGTERM
# and Ctrl-C are passed on: the run saves, and ends with code 75.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/multi_process.sh N [--devices=D] --config=... [...]" >&2
  exit 2
fi
count=$1
shift
if [[ "${1:-}" == --devices=* ]]; then
  export JAX_NUM_CPU_DEVICES="${1#--devices=}"
  shift
fi

python="${PYTHON:-.venv/bin/python}"
port=$("$python" -c \
  'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

set -m # A group each: Ctrl-C reaches them through the trap alone.
pids=()
for ((id = 0; id < count; id++)); do
  "$python" -m rad_jax.main --coordinator="localhost:$port" \
    --num_processes="$count" --process_id="$id" "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

status=0
for ((left = count; left > 0; left--)); do
  code=0
  wait -n || code=$?
  while ((code > 128)) && (($(jobs -pr | wc -l) == left)); do
    code=0 # A signal came, and no process has ended yet.
    wait -n || code=$?
  done
  if ((code && !status)); then
    status=$code
    if ((code != 75)); then
      echo "a process ended with code $code: the others are ended" >&2
      kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  fi
done
exit "$status"
