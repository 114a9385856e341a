#!/usr/bin/env bash
# Trains on one node of a SLURM cluster, with all GPUs that the job was given. Hand it to sbatch, in
# the folder of the repository, with an environment active that has `protlm` and JAX for CUDA
# (pip install -e '.[data,cuda]'):
#
#   sbatch --gpus-per-node=4 --cpus-per-task=32 tpu_scripts/slurm.sh WORKDIR ARGUMENT...
#   sbatch --gpus-per-node=4 tpu_scripts/slurm.sh runs/bert --config configs/tiny.py:bert
#   tpu_scripts/slurm.sh --dry_run runs/bert --config configs/tiny.py:bert      prints the command
#
# Arguments are those of `protlm train`. One process drives all GPUs of the node, so JAX needs no
# distributed set-up. Several nodes are refused: protlm train does not run on them as one program
# yet. A job that goes back into the queue continues from the last checkpoint, for which WORKDIR has
# to lie on a disk that all nodes share.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
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
((${nodes:-1} == 1)) ||
  fail "the job has $nodes nodes, and protlm train does not run on several yet: sbatch --nodes=1"

command=(srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}"
  protlm train --workdir "$1" "${@:2}")
if [[ $dry_run == yes ]]; then
  printf '+%s\n' "$(printf ' %q' "${command[@]}")"
else
  exec "${command[@]}"
fi
