#!/usr/bin/env bash
# Trains on the nodes of an LSF cluster that starts programs with jsrun, as Summit did, with all GPUs
# of each node. Hand it to bsub, in the folder of the repository, with an environment active that has
# `protlm` and JAX for the cluster's GPUs:
#
#   bsub -nnodes 1 -W 120 -P PROJECT tpu_scripts/lsf.sh WORKDIR ARGUMENT...
#   bsub -nnodes 1 -W 120 -P PROJECT tpu_scripts/lsf.sh runs/bert --config configs/tiny.py:bert
#   tpu_scripts/lsf.sh --dry_run runs/bert --config configs/tiny.py:bert        prints the command
#
# Arguments are those of `protlm train`. One process drives all GPUs of a node; of several nodes
# (bsub -nnodes 4 ...) the processes train as one, and WORKDIR has to lie on a disk that all share.
# The same command again continues from the last checkpoint. `bsub -wa TERM -wt 2 -Q 75` saves two
# minutes before the time is up, and queues the job again by itself.
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
nodes=()
read -ra words <<<"${LSB_MCPU_HOSTS-}"
for ((i = 0; i < ${#words[@]}; i += 2)); do
  [[ ${words[i]} == batch* ]] || nodes+=("${words[i]}")
done

command=(jsrun --nrs $((${#nodes[@]} > 1 ? ${#nodes[@]} : 1)) --tasks_per_rs 1 --cpu_per_rs ALL_CPUS
  --gpu_per_rs ALL_GPUS --bind rs)
if ((${#nodes[@]} > 1)); then
  port=$((20000 + ${LSB_JOBID:-0} % 20000)) # another for each job that may share the node
  # shellcheck disable=SC2016 # only the node knows which it is
  command+=(bash -c 'exec protlm train "$@" --host "$PMIX_RANK"' protlm
    --coordinator "${nodes[0]}:$port" --hosts "${#nodes[@]}" --workdir "$1" "${@:2}")
else
  command+=(protlm train --workdir "$1" "${@:2}")
fi
if [[ $dry_run == yes ]]; then
  printf '+%s\n' "$(printf ' %q' "${command[@]}")"
else
  exec "${command[@]}"
fi
