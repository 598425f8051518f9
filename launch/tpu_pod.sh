#!/usr/bin/env bash
# Trains on a TPU pod slice with one process on each of its hosts, which find each other by themselves:
#
#   TPU=my-v5e-64 ZONE=us-west4-a launch/tpu_pod.sh --config=configs/stage3.py --config.data.path=/mnt/shared/clips \
#     --config.init_from=/mnt/shared/runs/stage2 --workdir=/mnt/shared/runs/stage3
#
# All arguments are passed to `python -m videomar_jax.main`; the workdir must be a folder that all hosts see. Every host
# needs the repository and its packages first (docs/launch.md). Each host starts its process again on exit code 75 (asked to
# stop, state saved), at most RETRIES times; any other code ends the script with it.
set -euo pipefail

# What to edit, or to set in the environment.
TPU=${TPU:?the name of the TPU VM}
ZONE=${ZONE:?its zone}
PROJECT=${PROJECT:-}                # empty: gcloud's current project
DIRECTORY=${DIRECTORY:-videomar_jax} # the repository on the hosts, from the home folder
PYTHON=${PYTHON:-.venv/bin/python}
RETRIES=${RETRIES:-10}

command=$(printf '%q ' env "RETRIES=$RETRIES" launch/retry.sh "$PYTHON" -m videomar_jax.main "$@")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all \
  --command="cd $(printf '%q' "$DIRECTORY") && exec $command"
