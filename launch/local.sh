#!/usr/bin/env bash
# Trains on one machine with several processes: one per GPU, or PROCESSES of them on CPU.
#
#   launch/local.sh --config=configs/stage1.py --config.data.path=CLIPS --workdir=runs/stage1
#
# All arguments are passed to `python -m videomar_jax.main`. When the processes were asked to stop and have saved (exit
# code 75), they are started again, at most RETRIES times. When one ends with another code, the others are killed, and
# this script ends with that code. Ctrl-C or SIGTERM to the script stops the run: it saves, and the same command
# continues it.
set -euo pipefail

# What to edit, or to set in the environment.
PROCESSES=${PROCESSES:-} # empty: one per GPU, or one
RETRIES=${RETRIES:-10}
GRACE=${GRACE:-60} # seconds for the others, once one process has stopped and saved
PYTHON=${PYTHON:-python}

devices=()
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -r -a devices <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t devices < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
PROCESSES=${PROCESSES:-$((${#devices[@]} > 0 ? ${#devices[@]} : 1))}
if ((${#devices[@]} % PROCESSES)); then
  echo "launch: $PROCESSES processes cannot share ${#devices[@]} GPUs evenly; set PROCESSES" >&2
  exit 2
fi
share=$((${#devices[@]} / PROCESSES))

pids=()
stopped=0

signal_all() { # signals the remaining processes and their children
  local pid
  for pid in "${pids[@]}"; do
    kill "-$1" -- "-$pid" 2>/dev/null || kill "-$1" "$pid" 2>/dev/null || true
  done
}

stop() {
  if ((stopped)); then
    signal_all KILL
  else
    stopped=1
    signal_all TERM
  fi
}
trap stop INT TERM
trap 'signal_all KILL' EXIT

start_all() {
  local port i
  port=$("$PYTHON" -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
  pids=()
  for ((i = 0; i < PROCESSES; i++)); do
    (
      if ((share)); then
        mine=("${devices[@]:i * share:share}")
        CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}")
        export CUDA_VISIBLE_DEVICES
      fi
      # In its own session, so that Ctrl-C reaches this script alone.
      exec setsid "$PYTHON" -m videomar_jax.main "$@" \
        --coordinator="localhost:$port" --num_processes="$PROCESSES" --process_id="$i"
    ) &
    pids+=($!)
  done
}

wait_all() { # sets code to the exit code of the first process that fails, else 0
  local i ended deadline=0
  code=0
  while ((${#pids[@]})); do
    for i in "${!pids[@]}"; do
      kill -0 "${pids[i]}" 2>/dev/null && continue
      ended=0
      { wait "${pids[i]}" || ended=$?; } 2>/dev/null # bash would report every kill
      unset "pids[i]"
      if ((ended && !code)); then
        code=$ended
        deadline=$((code == 75 ? SECONDS + GRACE : SECONDS))
        if ((code != 75)); then
          echo "launch: process $i ended with exit code $code; ending the others" >&2
        fi
      fi
    done
    if ((code && SECONDS >= deadline)); then
      signal_all KILL
    fi
    sleep 0.2 || true
  done
}

for ((try = 1; ; try++)); do
  start_all "$@"
  wait_all
  if ((code != 75 || stopped)); then
    exit "$code"
  elif ((try > RETRIES)); then
    echo "launch: stopped and saved, now after $try attempts; the same command continues" >&2
    exit "$code"
  fi
  echo "launch: stopped and saved; starting again ($try of $RETRIES)" >&2
done
