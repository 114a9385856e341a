# shellcheck shell=bash
# What the scripts beside this file share. Nothing here runs by being sourced, but for reading env.sh.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tpu_scripts/env.sh
source "$here/env.sh"

max_hosts=1        # raise when `protlm train` runs as one program on several hosts
attempts=4         # of everything that goes over SSH
code=protlm_jax    # folder of the repository on a worker, in its home
dry_run=no

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

# Prints the comment at the top of the calling script: its help.
show_help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# options NAME...: reads --help, --dry_run and the flags named; leaves what follows them in `rest`
# and sets a variable for each flag.
options() {
  local flags=" $1 "
  shift
  while (($#)); do
    case $1 in
      --help | -h) show_help && exit 0 ;;
      --dry_run) dry_run=yes ;;
      --*)
        [[ $flags == *" ${1#--} "* ]] || fail "unknown option $1; see $0 --help"
        printf -v "${1#--}" yes
        ;;
      *) break ;;
    esac
    shift
  done
  rest=("$@")
}

# Any words as one line that a POSIX shell reads back as the same words.
quoted() {
  local word line='' q="'"
  for word in "$@"; do
    if [[ -z $word || $word == *[!A-Za-z0-9_./:=@%+,-]* ]]; then
      word=$q${word//$q/"$q\\$q$q"}$q
    fi
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# Runs a command, or only prints it.
run() {
  if [[ $dry_run == yes ]]; then
    printf '+ %s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# Refuses in one line where a setting is missing or makes no sense.
require_settings() {
  local name missing=()
  for name in PROTLM_PROJECT PROTLM_ZONE PROTLM_BUCKET PROTLM_NAME PROTLM_TYPE; do
    [[ -n ${!name} ]] || missing+=("$name")
  done
  ((${#missing[@]} == 0)) ||
    fail "not set: ${missing[*]} (write into $here/env.sh, or export)"
  for name in PROTLM_SPOT PROTLM_QUEUED; do
    [[ ${!name} =~ ^(yes|no)$ ]] || fail "$name is '${!name}': yes or no is meant"
  done
  [[ $PROTLM_TYPE =~ ^[a-z0-9]+-[0-9]+$ ]] || fail "PROTLM_TYPE is '$PROTLM_TYPE': e.g. v3-8"
  PROTLM_TYPE=${PROTLM_TYPE/#v5e-/v5litepod-}
  PROTLM_BUCKET=${PROTLM_BUCKET#gs://} PROTLM_BUCKET=${PROTLM_BUCKET%/}
  [[ -n $PROTLM_RUNTIME ]] || PROTLM_RUNTIME=$(default_runtime)
  place=(--project="$PROTLM_PROJECT" --zone="$PROTLM_ZONE")
  [[ $dry_run == yes ]] || command -v gcloud >/dev/null || fail "gcloud is not installed here"
}

# https://cloud.google.com/tpu/docs/runtimes
default_runtime() {
  case $PROTLM_TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# How many hosts (workers) the type has. The number in it counts cores up to v4 and on v5p, with
# eight to a host, and chips otherwise, with up to eight on a single host and four on each of many.
hosts() {
  local size=${PROTLM_TYPE##*-}
  case $PROTLM_TYPE in
    v5litepod-* | v6e-*) ((size <= 8)) && echo 1 || echo $(((size + 3) / 4)) ;;
    *) echo $(((size + 7) / 8)) ;;
  esac
}

require_one_host() {
  (($(hosts) <= max_hosts)) || fail "$PROTLM_TYPE has $(hosts) hosts, and protlm train does not" \
    "run on several yet: take v3-8, v4-8, v5e-8 or v6e-8"
}

require_run_name() {
  [[ ${1-} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    fail "'${1-}' is not a name for a run (letters, digits, '.', '_', '-'); see $0 --help"
}

# The words after the run's name, which go to `protlm train`.
require_training() {
  local word
  (($#)) || fail "no arguments for protlm train, such as --config configs/tiny.py:bert"
  for word in "$@"; do
    [[ $word != --workdir* ]] || fail "--workdir is given by the launcher: ~/runs/RUN on the VM"
  done
}

# described KIND FIELD: what gcloud says of our VM or request; NONE where there is none. Fails where
# gcloud does not say (no network, no permission).
described() {
  local answer
  if answer=$(gcloud compute tpus "$1" describe "$PROTLM_NAME" "${place[@]}" \
    --format="value($2)" </dev/null 2>&1); then
    printf '%s\n' "$answer" | tail -n 1
  elif [[ $answer == *NOT_FOUND* || $answer == *"not found"* ]]; then
    echo NONE
  else
    say "$answer"
    return 1
  fi
}

# READY, CREATING, PREEMPTED, ...
vm_state() { described tpu-vm state; }

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED (its VM was taken away), FAILED, ...
request_state() { described queued-resources state.state; }

# retried WORKER COMMAND...: tries again where it fails, since new VMs refuse SSH for a while.
# Status 3 is an answer of worker.sh, not a failure to reach it.
retried() {
  local worker=$1 try status
  shift
  for ((try = 1; try <= attempts; try++)); do
    status=0
    "$@" </dev/null || status=$?
    ((status != 0)) || return 0
    ((status != 3)) || fail "worker $worker of $PROTLM_NAME refused, see above"
    ((try == attempts)) || {
      say "worker $worker of $PROTLM_NAME: attempt $try of $attempts failed (exit $status)"
      sleep $((5 * try))
    }
  done
  fail "worker $worker of $PROTLM_NAME cannot be reached, or fails: gave up after $attempts" \
    "attempts (exit $status) of: $(quoted "$@")"
}

# on_worker WORKER WORD...: runs the words there, each arriving as it is.
on_worker() {
  local worker=$1
  shift
  local command=(gcloud --quiet compute tpus tpu-vm ssh "$PROTLM_NAME" "${place[@]}"
    --worker="$worker" --command="$(quoted "$@")")
  if [[ $dry_run == yes ]]; then run "${command[@]}"; else retried "$worker" "${command[@]}"; fi
}

# at_worker WORKER VERB ARGUMENT...: one verb of worker.sh.
at_worker() { on_worker "$1" bash "$code/tpu_scripts/worker.sh" "${@:2}"; }

# What a worker is doing, see worker.sh; "none" before the code is there.
worker_state() {
  local script=$code/tpu_scripts/worker.sh
  on_worker "$1" sh -c "if [ -e $script ]; then exec bash $script state; else echo none; fi"
}

# Sends the repository's files (tracked, and new ones that git does not ignore) to every worker.
sync_code() {
  local worker folder copy
  folder=$(mktemp -d)
  (cd "$here/.." && git ls-files -z --cached --others --exclude-standard) |
    while IFS= read -r -d '' file; do [[ ! -e $here/../$file ]] || printf '%s\0' "$file"; done |
    tar --create --gzip --file="$folder/code.tgz" --directory="$here/.." --null --no-recursion \
      --files-from=- || fail "the code could not be packed: is $here in a git checkout?"
  say "code: $(du -h "$folder/code.tgz" | cut -f1) to each worker of $PROTLM_NAME"
  for ((worker = 0; worker < $(hosts); worker++)); do
    copy=(gcloud --quiet compute tpus tpu-vm scp "$folder/code.tgz" "$PROTLM_NAME:code.tgz"
      "${place[@]}" --worker="$worker")
    if [[ $dry_run == yes ]]; then run "${copy[@]}"; else retried "$worker" "${copy[@]}"; fi
    on_worker "$worker" sh -c "rm -rf $code.new && mkdir $code.new && tar xzf code.tgz -C $code.new &&
      rm -rf $code && mv $code.new $code"
  done
  rm -rf "$folder"
}

install_all() {
  local worker
  for ((worker = 0; worker < $(hosts); worker++)); do
    at_worker "$worker" install
  done
}

# Nothing is replaced under a run.
require_idle() {
  local worker state
  for ((worker = 0; worker < $(hosts); worker++)); do
    state=$(worker_state "$worker") || exit 1
    if [[ $dry_run == yes ]]; then
      echo "$state"
    elif [[ $state == running* ]]; then
      fail "worker $worker of $PROTLM_NAME is $state: wait for its end, or $here/stop.sh"
    fi
  done
}

# launch_all RUN ARGUMENT...: refuses where a worker is busy, sends the code, starts everywhere.
launch_all() {
  local worker token=$RANDOM$RANDOM
  require_idle
  sync_code
  for ((worker = 0; worker < $(hosts); worker++)); do
    at_worker "$worker" start "$token" "$PROTLM_BUCKET" "$@"
  done
}

# follow WORKER: the log as it grows, until the run ends. Stopping it does not stop the run.
follow() {
  run gcloud --quiet compute tpus tpu-vm ssh "$PROTLM_NAME" "${place[@]}" --worker="$1" \
    --command="$(quoted bash "$code/tpu_scripts/worker.sh" follow)" ||
    say "no longer connected; the run is not touched by that: $here/logs.sh --follow"
}
