#!/usr/bin/env bash
# Says how the TPU VM is and what each of its workers does:
#
#   tpu_scripts/status.sh [--dry_run]
#
# running RUN; ended RUN CODE (0: complete; 1: an error, see logs.sh); stopped RUN (by stop.sh);
# lost RUN (the machine went down under it); none.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

options "" "$@"
((${#rest[@]} == 0)) || fail "unexpected: ${rest[*]}; see $0 --help"
require_settings
if [[ $dry_run == no ]]; then
  state=$(vm_state)
  echo "$PROTLM_NAME ($PROTLM_TYPE, $PROTLM_ZONE): $state"
  [[ $state == READY ]] || exit 0
fi
read_states
for worker in "${!states[@]}"; do
  if [[ $dry_run == yes ]]; then echo "${states[worker]}"; else echo "worker $worker: ${states[worker]}"; fi
done
