#!/usr/bin/env bash
# Trains on one node of an LSF cluster that starts programs with jsrun, as Summit did, with all GPUs
# of the node. Hand it to bsub, in the folder of the repository, with an environment active that has
# `protlm` and JAX for the cluster's GPUs:
#
#   bsub -nnodes 1 -W 120 -P PROJECT tpu_scripts/lsf.sh WORKDIR ARGUMENT...
#   bsub -nnodes 1 -W 120 -P PROJECT tpu_scripts/lsf.sh runs/bert --config configs/tiny.py:bert
#   tpu_scripts/lsf.sh --dry_run runs/bert --config configs/tiny.py:bert        prints the command
#
# Arguments are those of `protlm train`. One process drives all GPUs of the node, so JAX needs no
# distributed set-up. Several nodes are refused: protlm train does not run on them as one program
# yet. The same command again continues from the last checkpoint, for which WORKDIR has to lie on a
# disk that all nodes share.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 1
}

case ${1-} in
  --help | -h | '') sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
  --dry_run) dry_run=yes && shift ;;
  -*) fail "the first argument is the run's folder, not $1; see $0 --help" ;;
  *) dry_run=no ;;
esac
(($# >= 2)) || fail "give a folder and arguments for protlm train; see $0 --help"
[[ -n ${LSB_MCPU_HOSTS-} || $dry_run == yes ]] || fail "this is no LSF job: bsub -nnodes 1 $0 ..."

# LSB_MCPU_HOSTS holds "host slots host slots ..."; a host named batch* only runs this script.
nodes=0
read -ra words <<<"${LSB_MCPU_HOSTS-}"
for ((i = 0; i < ${#words[@]}; i += 2)); do
  [[ ${words[i]} == batch* ]] || nodes=$((nodes + 1))
done
((nodes <= 1)) ||
  fail "the job has $nodes nodes, and protlm train does not run on several yet: bsub -nnodes 1"

command=(jsrun --nrs 1 --tasks_per_rs 1 --cpu_per_rs ALL_CPUS --gpu_per_rs ALL_GPUS --bind rs
  protlm train --workdir "$1" "${@:2}")
if [[ $dry_run == yes ]]; then
  printf '+%s\n' "$(printf ' %q' "${command[@]}")"
else
  exec "${command[@]}"
fi
