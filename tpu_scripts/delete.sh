#!/usr/bin/env bash
# Deletes the TPU VM (and its request, where queued) with everything on its disk; what is in the
# bucket stays. gcloud asks before it does so, unless --yes is given. stop.sh first: a run that is
# cut off loses what it has not yet kept.
#
#   tpu_scripts/delete.sh [--dry_run] [--yes]
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

yes=no
options "yes" "$@"
((${#rest[@]} == 0)) || fail "unexpected: ${rest[*]}; see $0 --help"
require_settings
command=(gcloud)
[[ $yes == no ]] || command+=(--quiet)
if [[ $PROTLM_QUEUED == yes ]]; then
  run "${command[@]}" compute tpus queued-resources delete "$PROTLM_NAME" "${place[@]}" --force
else
  run "${command[@]}" compute tpus tpu-vm delete "$PROTLM_NAME" "${place[@]}"
fi
