#!/usr/bin/env bash
# Trains on one node of a SLURM cluster, with all GPUs that the job was given. Hand it to sbatch, in
# the folder of the repository, with an environment active that has `protlm` and JAX for CUDA
# (pip install -e '.[cuda]'):
#
#   sbatch --gpus-per-node=4 --cpus-per-task=32 tpu_scripts/slurm.sh WORKDIR ARGUMENT...
#   sbatch --gpus-per-node=4 tpu_scripts/slurm.sh runs/bert --config configs/tiny.py:bert
#   tpu_scripts/slurm.sh --dry_run runs/bert --config configs/tiny.py:bert      prints the command
#
# Arguments are those of `protlm train`. One process drives all GPUs of a node; of several nodes
# (sbatch --nodes=4 ...) the processes train as one, and WORKDIR has to lie on a disk that all share.
# Two minutes before its time is up, or when it has to make room, the run saves and goes back into
# the queue; there it goes on from the last checkpoint.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail

# SLURM runs a copy of this file: it cannot read its neighbours.
fail() {
  echo "error: $*" >&2
  exit 1
}

case ${1-} in
  --help | -h | '') sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
  --dry_run) dry_run=yes && shift ;;
  -*) fail "the first argument is the run's folder, not $1; see $0 --help" ;;
  *) dry_run=no ;;
esac
(($# >= 2)) || fail "give a folder and arguments for protlm train; see $0 --help"
nodes=${SLURM_JOB_NUM_NODES-}
[[ -n $nodes || $dry_run == yes ]] || fail "this is no SLURM job: sbatch $0 ..."

command=(srun --nodes="${nodes:-1}" --ntasks="${nodes:-1}" --ntasks-per-node=1
  --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}")
if ((${nodes:-1} > 1)); then
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  port=$((20000 + ${SLURM_JOB_ID:-0} % 20000)) # another for each job that may share the node
  # shellcheck disable=SC2016 # only the node knows which it is
  command+=(bash -c 'exec protlm train "$@" --host "$SLURM_PROCID"' protlm
    --coordinator "$first:$port" --hosts "$nodes" --workdir "$1" "${@:2}")
else
  command+=(protlm train --workdir "$1" "${@:2}")
fi
if [[ $dry_run == yes ]]; then
  printf '+%s\n' "$(printf ' %q' "${command[@]}")"
  exit 0
fi
status=0
"${command[@]}" || status=$?
if ((status == 75)); then # told to end, and saved; or a node was lost
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
