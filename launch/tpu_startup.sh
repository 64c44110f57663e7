#!/usr/bin/env bash
# Run by Google's image on each worker at its start: mounts the bucket named in
# the metadata. One with hierarchical namespace renames folders at once, which
# is how a checkpoint is completed.
set -euo pipefail
key=/usr/share/keyrings/cloud.google.asc
curl --silent --show-error --output "$key" \
  https://packages.cloud.google.com/apt/doc/apt-key.gpg
echo "deb [signed-by=$key] https://packages.cloud.google.com/apt \
gcsfuse-$(lsb_release --codename --short) main" \
  >/etc/apt/sources.list.d/gcsfuse.list
apt-get update --quiet=2
apt-get install --yes --quiet=2 gcsfuse
bucket=$(curl --silent --header "Metadata-Flavor: Google" \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/bucket)
mkdir -p /mnt/bucket
gcsfuse -o allow_other --implicit-dirs "$bucket" /mnt/bucket
