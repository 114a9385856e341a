#!/usr/bin/env bash
# Installs this repository, as it is here, on every worker of the TPU VM: Python 3.12, the versions
# of requirements/, and JAX for TPUs. May be repeated; takes minutes the first time.
#
#   tpu_scripts/install.sh [--dry_run]
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

options "" "$@"
((${#rest[@]} == 0)) || fail "unexpected: ${rest[*]}; see $0 --help"
require_settings
require_idle
sync_code
every at_worker install || fail "not installed on every worker, see above"
[[ $dry_run == yes ]] || say "installed on $(hosts) worker(s): $here/launch.sh RUN --config configs/tiny.py:bert"
