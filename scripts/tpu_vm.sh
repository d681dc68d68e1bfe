#!/usr/bin/env bash
# One training on all hosts of a Cloud TPU slice, which find each other by themselves.
#   scripts/tpu_vm.sh NAME ZONE tutorial --batch-size 1024 --run-dir /shared/runs/first
# The hosts need this repository in ~/lstm_mnist_jax, and a file system that they share for the run folder.
set -euo pipefail
name=$1 zone=$2
shift 2
command=$(printf ' %q' .venv/bin/lstm-mnist train "$@")
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command \
  "cd lstm_mnist_jax && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]' &&$command"
