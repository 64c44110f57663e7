#!/usr/bin/env bash
# A run on all workers of a Cloud TPU slice, through gcloud.
#   export TPU=rad ZONE=us-central2-b
#   BUCKET=b bash launch/tpu_pod.sh create v4-32   mounts the bucket /mnt/bucket
#   bash launch/tpu_pod.sh install                 this commit, on all workers
#   bash launch/tpu_pod.sh run --config=configs/cifar10.py \
#     --workdir=/mnt/bucket/cifar10
#   bash launch/tpu_pod.sh stop                    all workers save, and end
#   bash launch/tpu_pod.sh delete
# `run` again goes on from the newest checkpoint. DRY_RUN=1 prints the commands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

call() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all() {
  call gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="$1"
}

[[ $# -ge 1 ]] || usage
what=$1
shift
: "${TPU:?name of the slice: TPU=rad ...}" "${ZONE:?its zone: ZONE=us-central2-b ...}"

case "$what" in
  create)
    [[ $# -eq 1 ]] || usage
    : "${BUCKET:?the bucket for workdirs that all workers share: BUCKET=b ...}"
    call gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" \
      --accelerator-type="$1" --version="${RUNTIME:-tpu-ubuntu2204-base}" \
      --metadata="bucket=$BUCKET" \
      --metadata-from-file=startup-script=launch/tpu_startup.sh ${SPOT:+--spot}
    ;;
  install)
    archive=$(mktemp -t rad_jax.XXXXXX.tar.gz)
    trap 'rm -f "$archive"' EXIT
    call git archive --format=tar.gz --output="$archive" HEAD
    call gcloud compute tpus tpu-vm scp "$archive" "$TPU:rad_jax.tar.gz" \
      --zone="$ZONE" --worker=all
    on_all "mkdir -p rad_jax && tar -xzf rad_jax.tar.gz -C rad_jax && cd rad_jax \
&& python3 -m venv .venv && .venv/bin/python -m pip install --quiet '.[tpu]'"
    ;;
  run)
    [[ $# -ge 1 ]] || usage
    on_all "cd rad_jax && .venv/bin/python -m rad_jax.main$(printf ' %q' "$@")"
    ;;
  stop)
    on_all "pkill -TERM -f rad_jax.main || true"
    ;;
  delete)
    call gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE" --quiet
    ;;
  *) usage ;;
esac
