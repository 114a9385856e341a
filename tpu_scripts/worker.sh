#!/usr/bin/env bash
# Runs on each worker of a TPU VM, called by the scripts beside it.
#
#   install                          uv, Python 3.12 and this package with its TPU extra
#   start TOKEN BUCKET HOSTS RUN ARG...    protlm train ARG... in tmux; refused while one runs
#   state                            running RUN | ended RUN CODE | stopped RUN | lost RUN | none
#   follow, log                      the log, while the run lasts; its last 100 lines
#   stop                             ends the run and keeps what it has saved
#   cancel                           ends it and forgets that it was started
#
# A run's log is ~/logs/RUN.log. On one host its folder is ~/runs/RUN; every five minutes and at the
# end, complete checkpoints and metrics go to gs://BUCKET/runs/RUN, and a VM without the folder fetches
# it from there. The hosts of a pod all mount the bucket, and the run's folder lies in it.
# Exit status 3 means: trying again does not help.
set -euo pipefail

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$HOME/protlm_venv
job=$HOME/protlm_job # of the last start: token, run, words, pid, child, stopped, exit
session=protlm

refuse() {
  printf 'error: %s\n' "$*" >&2
  exit 3
}

main() {
  local verb=${1-}
  case $verb in
    install | start | run | state | follow | log | stop | cancel) shift ;;
    *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 3 ;;
  esac
  "$verb" "$@"
}

install() {
  export PATH=$HOME/.local/bin:$PATH
  command -v tmux >/dev/null || sudo apt-get install --yes --quiet tmux
  command -v gcloud >/dev/null || refuse "no gcloud on this worker: take Google's TPU image"
  # The images bring an older Python than this package needs; uv fetches one.
  command -v uv >/dev/null || python3 -m pip install --user --quiet uv
  [[ -x $venv/bin/python ]] || uv venv --quiet --python 3.12 "$venv"
  uv pip install --quiet --python "$venv/bin/python" --constraint "$code/requirements/core.txt" \
    --constraint "$code/requirements/data.txt" --editable "${code}[data,tpu]"
  "$venv/bin/python" -c 'import jax; print(jax.local_device_count(), jax.devices()[0].device_kind)'
}

start() {
  local token=$1 bucket=$2 hosts=$3 run=$4
  shift
  mkdir -p "$HOME/logs"
  exec 9>"$HOME/.protlm_start" && flock 9 # of two at the same time, one comes second
  if busy; then
    # The same start again: its answer had been lost on the way.
    [[ $token == "$(cat "$job/token")" ]] || refuse "$(state)"
  else
    [[ -x $venv/bin/protlm ]] || refuse "not installed on this worker: run install.sh first"
    ((hosts == 1)) || mount_bucket "$bucket"
    rm -rf "$job" && mkdir "$job"
    printf '%s' "$token" >"$job/token"
    printf '%s' "$run" >"$job/run"
    # tmux would take a word that ends in ";" for the end of its command: words go by a file.
    printf '%s\0' "$@" >"$job/words"
    tmux new-session -d -s $session bash "$code/tpu_scripts/worker.sh" run 9>&-
  fi
  echo "started $run; log: ~/logs/$run.log"
}

busy() { tmux has-session -t "=$session" 2>/dev/null; }

state() {
  local run
  run=$(cat "$job/run" 2>/dev/null) || { echo none && return; }
  if busy; then
    echo "running $run"
  elif [[ -e $job/stopped ]]; then
    echo "stopped $run"
  elif [[ -e $job/exit ]]; then
    echo "ended $run $(cat "$job/exit")"
  else
    echo "lost $run" # the machine went down under it
  fi
}

current_log() {
  [[ -e $job/run ]] || refuse "nothing was launched on this worker"
  echo "$HOME/logs/$(cat "$job/run").log"
}

log() {
  local file
  file=$(current_log)
  tail -n 100 "$file"
}

follow() {
  local file waited=0
  file=$(current_log)
  while busy && [[ ! -e $job/pid ]] && ((waited++ < 30)); do sleep 1; done
  tail -n 100 --pid="$(cat "$job/pid")" -F "$file" 2>/dev/null || true
  state
}

stop() {
  local waited=0
  if busy; then
    touch "$job/stopped"
    kill -TERM "$(cat "$job/child" 2>/dev/null || cat "$job/pid")" || true
    while busy && ((waited++ < 600)); do sleep 1; done
    busy && tmux kill-session -t "=$session"
  fi
  state
}

cancel() {
  stop
  rm -rf "$job"
}

# All hosts see the same files at ~/buckets/BUCKET. Without caches: what one host has written, the
# others ask for at once.
mount_bucket() {
  local at=$HOME/buckets/$1
  ! mountpoint --quiet "$at" || return 0
  command -v gcsfuse >/dev/null || sudo apt-get install --yes --quiet gcsfuse ||
    refuse "no gcsfuse on this worker: https://cloud.google.com/storage/docs/cloud-storage-fuse/install"
  mkdir -p "$at"
  gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$at"
}

# What tmux runs, with BUCKET HOSTS RUN ARG... in the file `words`.
run() {
  local bucket hosts name words=() word child due status=0
  mapfile -d '' words <"$job/words"
  bucket=${words[0]} hosts=${words[1]} name=${words[2]}
  set -- "${words[@]:3}"
  words=()
  folder=$HOME/runs/$name kept=gs://$bucket/runs/$name log=$HOME/logs/$name.log
  kept_log=gs://$bucket/logs/$name/$(date -u +%Y%m%dT%H%M%SZ)-$(hostname).log
  exec >>"$log" 2>&1 # stdin stays: tmux ends a session when nobody has its terminal open
  trap 'echo "$?" >"$job/exit"' EXIT
  echo $$ >"$job/pid"
  echo "=== $(date -u) on $(hostname): run $name"
  if ((hosts > 1)); then
    folder=$HOME/buckets/$bucket/runs/$name words=(--distributed)
  else
    fetch_run
  fi
  for word in "$@"; do
    case $word in
      --config.*fasta=gs://*) word=${word%%=*}=$(fetch "${word#*=}" cp) ;;
      --config.*prepared=gs://*) word=${word%%=*}=$(fetch "${word#*=}" rsync --recursive) ;;
    esac
    words+=("$word")
  done
  cd "$code"
  "$venv/bin/protlm" train --workdir="$folder" "${words[@]}" &
  child=$!
  echo "$child" >"$job/child"
  trap : TERM # a machine that goes down tells everybody; this script still keeps what there is
  due=$((SECONDS + 300))
  while sleep 5 || true; kill -0 "$child" 2>/dev/null; do
    ((SECONDS >= due)) || continue
    keep_run || echo "warning: not kept in $kept this time"
    due=$((SECONDS + 300))
  done
  wait "$child" || status=$?
  echo "=== protlm train ended with exit code $status"
  keep_run || keep_run || {
    echo "error: the end of the run is on this worker only, not in $kept"
    ((status != 0)) || status=1
  }
  return "$status"
}

# Copies what is complete to the bucket: first the new, then the list of what is whole, and only then
# goes what the run has removed itself. Whenever this is cut short, the list is true.
keep_run() {
  local stage=$HOME/runs/.stage-${folder##*/}
  if [[ $folder != "$HOME/runs/"* ]]; then # it lies in the bucket
    gcloud --quiet storage cp "$log" "$kept_log"
    return
  fi
  [[ -d $folder ]] || return 0
  rm -rf "$stage"
  cp -al "$folder" "$stage" || return 1 # links: nothing vanishes while it is copied
  find "$stage" -depth -name '*.orbax-checkpoint-tmp*' -exec rm -rf {} +
  checkpoints "$stage" >"$stage.list"
  gcloud --quiet storage rsync --recursive "$stage" "$kept" &&
    gcloud --quiet storage cp "$stage.list" "$kept.list" &&
    gcloud --quiet storage rsync --recursive --delete-unmatched-destination-objects \
      "$stage" "$kept" &&
    gcloud --quiet storage cp "$log" "$kept_log"
}

# Folders of checkpoints in a run, relative to it; a run in phases has several of them.
checkpoints() { (cd "$1" && find . -type d -path '*/checkpoints/*' -name '[0-9]*' -prune -print); }

# Brings the run back from the bucket onto a new VM.
fetch_run() {
  local answer part=$HOME/runs/.part-${folder##*/} step
  mkdir -p "$HOME/runs"
  [[ ! -d $folder ]] || return 0
  if ! answer=$(gcloud --quiet storage ls "$kept.list" 2>&1); then
    # Anything else than "there is none" must not begin the run anew over what is kept.
    [[ $answer == *"matched no objects"* ]] || { echo "$answer" && exit 75; }
    echo "nothing in $kept yet: a new run"
    return
  fi
  rm -rf "$part" && mkdir "$part"
  gcloud --quiet storage rsync --recursive "$kept" "$part" || exit 75
  gcloud --quiet storage cp "$kept.list" "$part.list" || exit 75
  checkpoints "$part" | while IFS= read -r step; do
    grep -qxF -- "$step" "$part.list" || rm -rf "${part:?}/$step"
  done
  mv "$part" "$folder"
  echo "fetched $kept with $(wc -l <"$part.list") checkpoint(s)"
}

# fetch URL COMMAND...: a file or folder in a bucket is copied to the VM once; prints where it lies.
fetch() {
  local there=${1%/} here=$HOME/data/${1#gs://}
  here=${here%/}
  if [[ ! -e $here ]]; then
    mkdir -p "$(dirname "$here")"
    [[ $2 != rsync ]] || mkdir -p "$here.part" # which rsync does not make itself
    gcloud --quiet storage "${@:2}" "$there" "$here.part" >&2 || exit 75
    mv "$here.part" "$here"
  fi
  printf '%s' "$here"
}

main "$@"
