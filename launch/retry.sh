#!/usr/bin/env bash
# Runs a command, and repeats it while it ends with exit code 75 (asked to stop, state saved). Any other code ends this
# script with it.
#
#   launch/retry.sh python -m videomar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
#
# Ctrl-C, SIGTERM or a lost terminal stop the command for good: it receives SIGTERM, saves and ends, and is not started
# again. A second signal kills it.
set -euo pipefail

# What to edit, or to set in the environment.
RETRIES=${RETRIES:-10}

if (($# == 0)); then
  echo "usage: $0 COMMAND..." >&2
  exit 2
fi

child=""
stopped=0

kill_all() { # the command and its children
  if [[ -n $child ]]; then
    kill -KILL -- "-$child" 2>/dev/null || kill -KILL "$child" 2>/dev/null || true
  fi
}

stop() {
  if ((stopped)); then
    kill_all
  else
    stopped=1
    if [[ -n $child ]]; then
      kill -TERM "$child" 2>/dev/null || true
    fi
  fi
}
trap stop INT TERM HUP
trap kill_all EXIT

for ((try = 1; ; try++)); do
  setsid "$@" & # in its own session, so that Ctrl-C reaches this script alone
  child=$!
  if ((stopped)); then # while it was being started
    kill -TERM "$child" 2>/dev/null || true
  fi
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2 || true
  done
  code=0
  { wait "$child" || code=$?; } 2>/dev/null
  child=""
  if ((code != 75 || stopped)); then
    exit "$code"
  elif ((try > RETRIES)); then
    echo "launch: stopped and saved, now after $try attempts; the same command continues" >&2
    exit "$code"
  fi
  echo "launch: stopped and saved; starting again ($try of $RETRIES)" >&2
done
