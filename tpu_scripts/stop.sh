#!/usr/bin/env bash
# Stops the run on every worker and waits until what it saved is in the bucket. The VM stays, and
# costs; launch.sh with the same RUN and arguments goes on from the last checkpoint.
#
#   tpu_scripts/stop.sh [--dry_run]
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

options "" "$@"
((${#rest[@]} == 0)) || fail "unexpected: ${rest[*]}; see $0 --help"
require_settings
every at_worker stop || fail "not stopped on every worker, see above"
