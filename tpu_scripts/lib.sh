# shellcheck shell=bash
# What the scripts beside this file share. Nothing here runs by being sourced, but for reading env.sh.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tpu_scripts/env.sh
source "$here/env.sh"

attempts=4         # of everything that goes over SSH
at_once=32         # workers that are spoken to at a time
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
  [[ $PROTLM_TYPE =~ ^([a-z0-9]+)-0*([1-9][0-9]{0,5})$ ]] ||
    fail "PROTLM_TYPE is '$PROTLM_TYPE': e.g. v3-8"
  PROTLM_TYPE=${BASH_REMATCH[1]}-${BASH_REMATCH[2]} # bash takes 08 for an octal number
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

# The hosts of a pod write one run into the bucket itself, where a checkpoint is complete when its
# folder gets its name: that is one act only in a bucket with a hierarchical namespace.
require_bucket_of_folders() {
  local answer
  [[ $dry_run == no ]] && (($(hosts) > 1)) || return 0
  answer=$(gcloud storage buckets describe "gs://$PROTLM_BUCKET" --project="$PROTLM_PROJECT" \
    --format="value(hierarchical_namespace.enabled)" </dev/null) ||
    fail "gs://$PROTLM_BUCKET cannot be read, see above"
  [[ ${answer,,} == true ]] || fail "$PROTLM_TYPE has $(hosts) hosts, which need a bucket with a" \
    "hierarchical namespace, and gs://$PROTLM_BUCKET has none: see docs/tpu.md, \"Pods\""
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

# every FUNCTION ARGUMENT...: calls FUNCTION WORKER ARGUMENT... for all workers, many at a time. Fails
# when all have ended, where one has failed.
every() {
  local worker pid pids=() failed=0
  for ((worker = 0; worker < $(hosts); worker++)); do
    if [[ $dry_run == yes ]]; then
      "$1" "$worker" "${@:2}"
      continue
    fi
    ("$1" "$worker" "${@:2}") &
    pids+=($!)
    (((worker + 1) % at_once == 0 || worker + 1 == $(hosts))) || continue
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    pids=()
  done
  return "$failed"
}

# Fills `states` with what each worker is doing; in a dry run with what would be asked.
read_states() {
  local worker folder
  folder=$(mktemp -d)
  every note_state "$folder" || { rm -rf "$folder" && return 1; }
  states=()
  for ((worker = 0; worker < $(hosts); worker++)); do states+=("$(cat "$folder/$worker")"); done
  rm -rf "$folder"
}

note_state() { worker_state "$1" >"$2/$1"; }

# Sends the repository's files (tracked, and new ones that git does not ignore) to every worker.
sync_code() {
  local folder
  folder=$(mktemp -d)
  (cd "$here/.." && git ls-files -z --cached --others --exclude-standard) |
    while IFS= read -r -d '' file; do [[ ! -e $here/../$file ]] || printf '%s\0' "$file"; done |
    tar --create --gzip --file="$folder/code.tgz" --directory="$here/.." --null --no-recursion \
      --files-from=- || fail "the code could not be packed: is $here in a git checkout?"
  say "code: $(du -h "$folder/code.tgz" | cut -f1) to each worker of $PROTLM_NAME"
  every receive_code "$folder/code.tgz" || fail "the code is not on every worker, see above"
  rm -rf "$folder"
}

receive_code() {
  local copy=(gcloud --quiet compute tpus tpu-vm scp "$2" "$PROTLM_NAME:code.tgz" "${place[@]}"
    --worker="$1")
  if [[ $dry_run == yes ]]; then run "${copy[@]}"; else retried "$1" "${copy[@]}"; fi
  on_worker "$1" sh -c "rm -rf $code.new && mkdir $code.new && tar xzf code.tgz -C $code.new &&
    rm -rf $code && mv $code.new $code"
}

# Nothing is replaced under a run.
require_idle() {
  local worker
  read_states || exit 1
  for worker in "${!states[@]}"; do
    if [[ $dry_run == yes ]]; then
      echo "${states[worker]}"
    elif [[ ${states[worker]} == running* ]]; then
      fail "worker $worker of $PROTLM_NAME is ${states[worker]}: wait for its end, or $here/stop.sh"
    fi
  done
}

# launch_all RUN ARGUMENT...: refuses where a worker is busy, sends the code, starts everywhere.
launch_all() {
  require_idle
  sync_code
  every at_worker start "$RANDOM$RANDOM" "$PROTLM_BUCKET" "$(hosts)" "$@" || {
    every at_worker cancel || true # some wait for those that did not start
    fail "not launched on every worker, see above"
  }
}

# follow WORKER: the log as it grows, until the run ends. Stopping it does not stop the run.
follow() {
  run gcloud --quiet compute tpus tpu-vm ssh "$PROTLM_NAME" "${place[@]}" --worker="$1" \
    --command="$(quoted bash "$code/tpu_scripts/worker.sh" follow)" ||
    say "no longer connected; the run is not touched by that: $here/logs.sh --follow"
}
