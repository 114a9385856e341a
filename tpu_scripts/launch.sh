#!/usr/bin/env bash
# Sends the code and starts `protlm train` on the TPU VM, in tmux, then shows its log.
#
#   tpu_scripts/launch.sh [--dry_run] RUN ARGUMENT...
#   tpu_scripts/launch.sh bert-1 --config configs/tiny.py:bert --config.train.steps=5000
#
# RUN names the run. With one host its folder is ~/runs/RUN on the VM, and what is complete goes to
# gs://BUCKET/runs/RUN every five minutes; the hosts of a pod, on all of which it starts, write there
# themselves. Logs are ~/logs/RUN.log on each worker. The same RUN with the same arguments goes on
# where it stopped, also on another VM. Arguments are those of `protlm train` without --workdir; what
# it reads may lie in a bucket: --config.data.fasta=gs://BUCKET/my.fasta.gz, or data.prepared=.
#
# Interrupting this (Ctrl-C) leaves the run alone: stop.sh stops it. A second launch while one runs is
# refused.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

options "" "$@"
require_run_name "${rest[0]-}"
require_training "${rest[@]:1}"
require_settings
require_bucket_of_folders
launch_all "${rest[@]}"
follow 0
