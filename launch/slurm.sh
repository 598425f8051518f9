#!/usr/bin/env bash
# Trains on SLURM:
#
#   sbatch launch/slurm.sh --config=configs/stage1.py --config.data.path=/shared/clips --workdir=/shared/runs/stage1
#
# All arguments are passed to `python -m videomar_jax.main`; the workdir must be a folder that all nodes see. The processes
# find each other by SLURM's variables. Before the time limit, and when the job is preempted, they save and end with
# exit code 75; the job is then queued again and continues, at most RETRIES times. Any other code ends the job with it.

# What to edit: the job ...
#SBATCH --job-name=videomar
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8  # one task per GPU; 1 for a task that drives all GPUs of its node
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300  # to the tasks, so many seconds before the end: a step and a checkpoint must fit
#SBATCH --output=videomar-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

# ... and, here or in the environment, the rest.
RETRIES=${RETRIES:-100}
PYTHON=${PYTHON:-python}

cd "${SLURM_SUBMIT_DIR:-.}"                           # the repository
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not inherit it by itself
cancelled=0
trap 'cancelled=1' TERM # scancel signals this script too, the approaching end only the tasks

# A task that has saved and ended must not cost the others their orderly end.
code=0
srun --kill-on-bad-exit=0 "$PYTHON" -m videomar_jax.main "$@" || code=$?

restarts=${SLURM_RESTART_COUNT:-0}
if ((code != 75 || cancelled)); then
  exit "$code"
elif ((restarts >= RETRIES)); then
  echo "launch: stopped and saved after $restarts restarts; submit the same command again to continue" >&2
  exit "$code"
fi
echo "launch: stopped and saved; queueing again ($((restarts + 1)) of $RETRIES)" >&2
scontrol requeue "$SLURM_JOB_ID"
