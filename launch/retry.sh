#!/usr/bin/env bash
# Runs a command, and again while it ends with exit code 75: asked to stop, state saved. Any other code ends this too.
#
#   launch/retry.sh python -m videomar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
set -euo pipefail

# What to edit, or to set in the environment.
RETRIES=${RETRIES:-10}

if (($# == 0)); then
  echo "usage: $0 COMMAND..." >&2
  exit 2
fi
for ((try = 1; ; try++)); do
  code=0
  "$@" || code=$?
  if ((code != 75)); then
    exit "$code"
  elif ((try > RETRIES)); then
    echo "launch: stopped and saved, now after $try attempts; the same command goes on" >&2
    exit "$code"
  fi
  echo "launch: stopped and saved; starting again ($try of $RETRIES)" >&2
done
