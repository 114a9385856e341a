#!/usr/bin/env bash
# Makes the TPU VM that env.sh describes, and waits until it is ready.
#
#   tpu_scripts/create.sh [--dry_run]
#
# PROTLM_SPOT=yes takes spare capacity, which Google may take back at any moment; PROTLM_QUEUED=yes
# waits in the queue of requests (hours, perhaps) instead of failing where there is none. Autocheckpoint
# (SIGTERM before a planned maintenance) is switched on where this gcloud knows it: in its alpha part,
# `gcloud components install alpha`. The VM costs money from now on: delete.sh ends that.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

options "" "$@"
((${#rest[@]} == 0)) || fail "unexpected: ${rest[*]}; see $0 --help"
require_settings
require_bucket_of_folders

command=(gcloud --quiet alpha compute tpus)
flags=(--autocheckpoint-enabled)
if [[ $dry_run == no ]]; then
  help=$("${command[@]}" tpu-vm create --help </dev/null 2>/dev/null) || help=
  if [[ $help != *autocheckpoint-enabled* ]]; then
    say "this gcloud has no autocheckpoint (gcloud components install alpha): created without it"
    command=(gcloud --quiet compute tpus)
    flags=()
  fi
fi
[[ $PROTLM_SPOT == no ]] || flags+=(--spot)
flags=("${place[@]}" --accelerator-type="$PROTLM_TYPE" ${flags[@]+"${flags[@]}"})

request=NONE
if [[ $PROTLM_QUEUED == no ]]; then
  run "${command[@]}" tpu-vm create "$PROTLM_NAME" --version="$PROTLM_RUNTIME" "${flags[@]}"
else
  [[ $dry_run == yes ]] || request=$(request_state)
  [[ $request != NONE ]] || # else it is there, and waits
    run "${command[@]}" queued-resources create "$PROTLM_NAME" --node-id="$PROTLM_NAME" \
      --runtime-version="$PROTLM_RUNTIME" "${flags[@]}"
fi
[[ $dry_run == no ]] || exit 0

while true; do
  state=$(vm_state) || state=unknown
  [[ $state != READY ]] || break
  [[ $PROTLM_QUEUED == no ]] || request=$(request_state) || request=unknown
  say "$PROTLM_NAME: VM $state, request $request"
  case "$state $request" in
    PREEMPTED* | TERMINATED* | *FAILED | *SUSPEND*)
      fail "$PROTLM_NAME was taken away, or refused: $here/delete.sh, then again"
      ;;
  esac
  sleep 30
done
say "$PROTLM_NAME ($PROTLM_TYPE) is ready: $here/install.sh"
