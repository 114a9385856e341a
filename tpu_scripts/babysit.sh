#!/usr/bin/env bash
# Keeps a run going until it is complete: looks every minute, makes the TPU VM anew when it was taken
# away (or is not there yet), installs, and launches the same run again, which goes on from the last
# checkpoint in the bucket.
#
#   tpu_scripts/babysit.sh [--dry_run] RUN ARGUMENT...        (arguments as for launch.sh)
#
# Ends with 0 when the run is complete. Ends with 1 when the run fails by itself (launching it again
# would not help), when stop.sh stopped it, or when the VM holds another run. The VM is left as it is
# then, and costs: delete.sh. Runs on your machine, which must stay on; start it again any time.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

options "" "$@"
require_run_name "${rest[0]-}"
require_training "${rest[@]:1}"
require_settings
require_bucket_of_folders
name=${rest[0]}
launches=0 # on the present VM

# A new VM, after what is left of the old one, or of its request, is gone.
renew() {
  local left=$1
  [[ $PROTLM_QUEUED == no || $left != NONE ]] || left=$(request_state) || return
  case $left in
    PREEMPTED | TERMINATED | FAILED | SUSPENDED) "$here/delete.sh" --yes || return ;;
  esac
  "$here/create.sh"
}

# Looks at the run on a VM that is ready: returns 0 where it is complete, 1 where it goes on.
look() {
  local worker state exited running=0 complete=0 bare=0
  read_states || return 1
  for worker in "${!states[@]}"; do
    state=${states[worker]}
    say "worker $worker of $PROTLM_NAME: $state"
    case $state in
      "running $name") running=1 ;;
      running*) fail "the VM holds another run: $state" ;;
      "stopped $name") fail "$name was stopped by hand; launch it again yourself" ;;
      "ended $name 0") ((++complete)) ;;
      none) bare=1 ;; # a new VM, or one whose installation was cut short
    esac
  done
  ((complete < ${#states[@]})) || return 0
  ((!running)) || return 1 # a host that lost others ends within a minute
  for worker in "${!states[@]}"; do
    state=${states[worker]}
    [[ $state == "ended $name "* ]] || continue
    exited=${state##* } # from 128 on they are signals, 75 asks for another start: not the run's fault
    if ((exited > 0 && exited < 128 && exited != 75)); then
      at_worker "$worker" log >&2
      fail "$name failed by itself (worker $worker: $state)"
    fi
  done
  ((++launches <= 5)) || fail "$name was launched 5 times on this VM, and is now: ${states[*]}"
  ((!bare)) || "$here/install.sh" || return 1
  (launch_all "${rest[@]}") || say "not launched; trying again in a minute"
  return 1
}

if [[ $dry_run == yes ]]; then
  echo "every minute: describe $PROTLM_NAME; where it is PREEMPTED, TERMINATED or not there:"
  for script in "delete.sh --yes" create.sh install.sh; do
    read -ra words <<<"$script"
    "$here/${words[0]}" --dry_run "${words[@]:1}"
  done
  echo "and where $name does not run:"
  launch_all "${rest[@]}"
  exit 0
fi

while true; do
  state=$(vm_state) || state=unknown
  case $state in
    READY) look && break ;;
    NONE | PREEMPTED | TERMINATED)
      say "$PROTLM_NAME is $state: making it anew"
      launches=0
      if renew "$state"; then continue; fi
      say "no VM yet; trying again in a minute"
      ;;
    STOPPED) fail "$PROTLM_NAME was stopped by hand: gcloud compute tpus tpu-vm start, or delete.sh" ;;
    *) say "$PROTLM_NAME is $state" ;;
  esac
  sleep 60
done
say "$name is complete; the VM is still there and costs: $here/delete.sh"
