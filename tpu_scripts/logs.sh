#!/usr/bin/env bash
# Shows the end of the log of the last run on a worker (0, if none is named).
#
#   tpu_scripts/logs.sh [--dry_run] [--follow] [WORKER]
#
# --follow goes on until the run ends. Logs are also kept in gs://BUCKET/logs/RUN/.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

follow=no
options "follow" "$@"
worker=${rest[0]-0}
[[ $worker =~ ^0*([0-9]{1,6})$ && ${#rest[@]} -le 1 ]] ||
  fail "unexpected: ${rest[*]}; see $0 --help"
worker=${BASH_REMATCH[1]} # bash takes 08 for an octal number
require_settings
((worker < $(hosts))) || fail "$PROTLM_TYPE has $(hosts) worker(s), counted from 0"
if [[ $follow == yes ]]; then follow "$worker"; else at_worker "$worker" log; fi
