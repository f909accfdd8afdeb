#!/usr/bin/env bash
# Runs on each machine: installs the source code, and runs one training. ROOT is the folder of the run; it holds
# src-<commit>/, worker.log, and lock, which is held as long as any process of the training lives.
#
#   worker.sh install ROOT SOURCE EXTRA SETUP BUCKET         what src-SOURCE needs; BUCKET mounted as src-SOURCE/bucket
#   worker.sh start   ROOT SOURCE [NAME=VALUE...] -- ARGUMENT...    transfusion.train, in a session of its own
#   worker.sh status  ROOT
#   worker.sh stop    ROOT SECONDS                           SIGTERM, so that it saves; SIGKILL after SECONDS
#   worker.sh here    EXTRA [NAME=VALUE...] -- ARGUMENT...   installs and trains in the foreground (in a container)
#
# @env among the NAME=VALUEs stands for the lines of the file ROOT/env, which no command line may show.
#
# Each answers one line "transfusion-worker <host> <INSTALLED|STARTED|NONE|RUNNING|DONE|STOPPED|FAILED ...>". A training
# that SIGTERM ended is STOPPED (code 143) although it has saved and ended with 0; DONE means that all steps are made.
set -euo pipefail

answer() { printf 'transfusion-worker %s %s\n' "$(hostname)" "$*"; }

install() {
  local root=$1 source=$2 extra=$3 setup=$4 bucket=$5 folder
  folder=$root/src-$source
  (
    flock 8 # one machine at a time, where several share the folder
    cd "$folder"
    [[ ! -e .installed ]] || exit 0
    [[ -z $setup ]] || bash "$setup"
    export PATH=$HOME/.local/bin:$PATH
    # The machines' own Python may be too old, and cannot always make virtual environments.
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    uv venv --quiet --clear --python 3.11 .venv
    uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable ".[$extra]"
    touch .installed
  ) 8>>"$root/install.lock"
  [[ -z $bucket ]] || mount_bucket "$root" "$folder" "$bucket"
  # The file is replaced as a whole, because the earlier one may be running.
  cp "$folder/tpu_setup/worker.sh" "$root/worker.sh.new"
  mv "$root/worker.sh.new" "$root/worker.sh"
  answer INSTALLED
}

mount_bucket() {
  local root=$1 folder=$2 bucket=$3
  command -v gcsfuse >/dev/null || { echo "error: no gcsfuse on $(hostname): install it by --setup" >&2; exit 1; }
  mkdir -p "$root/bucket"
  mountpoint -q "$root/bucket" || gcsfuse --implicit-dirs "$bucket" "$root/bucket"
  ln -sfn ../bucket "$folder/bucket"
}

start() {
  local root=$1 source=$2
  [[ -e $root/src-$source/.installed ]] || { answer "FAILED src-$source is not installed"; exit 1; }
  exec 9>>"$root/lock"
  flock -w 2 9 || { answer RUNNING; exit 1; }
  echo STARTING >"$root/state"
  setsid bash "$root/worker.sh" run "$@" </dev/null >>"$root/worker.log" 2>&1 & # inherits the lock
  echo $! >"$root/pid"
  for ((i = 0; i < 200; i++)); do # until the training listens for SIGTERM
    [[ $(cat "$root/state") == STARTING ]] || break
    sleep 0.05
  done
  answer STARTED
}

# run ROOT SOURCE [NAME=VALUE...] -- ARGUMENT...: the process that `start` leaves in the background.
run() {
  local root code=0
  hear_term
  root=$(cd "$1" && pwd)
  echo RUNNING >"$root/state"
  cd "$root/src-$2"
  shift 2
  printf '%s starts on %s: %s\n' "$(date -u +%FT%TZ)" "$(hostname)" "$*"
  train "$root/env" .venv/bin/python "$@" || code=$?
  case $code in
    0) echo DONE >"$root/state" ;;
    143) echo STOPPED >"$root/state" ;;
    *) echo "FAILED with code $code" >"$root/state" ;;
  esac
  printf '%s ends: %s\n' "$(date -u +%FT%TZ)" "$(cat "$root/state")"
}

# SIGTERM is passed on to the training, even if it comes before the training has begun.
child='' stopped=''
hear_term() { trap 'stopped=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM; }

# set_environment FILE [NAME=VALUE...]: sets the variables; @env stands for the lines of FILE.
set_environment() {
  local file=$1 word
  shift
  for word; do
    if [[ $word == @env ]]; then
      while IFS= read -r word || [[ -n $word ]]; do export "${word?}"; done <"$file" || return 1
    else
      export "${word?}"
    fi
  done
}

# train FILE PYTHON [NAME=VALUE...] -- ARGUMENT...: trains to the end; passes SIGTERM on, and then returns 143.
train() {
  local file=$1 python=$2 code
  local -a environment=()
  shift 2
  while [[ $1 != -- ]]; do environment+=("$1"); shift; done
  shift
  hear_term
  (set_environment "$file" "${environment[@]}" && exec "$python" -m transfusion.train "$@") &
  child=$!
  [[ -z $stopped ]] || kill -TERM "$child" 2>/dev/null || true
  while :; do
    code=0
    wait "$child" || code=$? # `wait` also ends at a signal, when the child may still be saving
    kill -0 "$child" 2>/dev/null || break
  done
  [[ -z $stopped ]] || return 143
  return "$code"
}

free() { (flock -n 9) 9>>"$1/lock"; }

status() {
  local state=NONE
  if [[ -e $1/lock ]]; then
    if ! free "$1"; then
      state=RUNNING
    else
      state=$(cat "$1/state" 2>/dev/null || echo NONE)
      [[ $state != RUNNING && $state != STARTING ]] || state="FAILED without a word" # killed, or started anew
    fi
  fi
  answer "$state"
}

stop() {
  local root=$1 grace=$2 pid
  if [[ -e $root/lock ]] && ! free "$root"; then
    pid=$(cat "$root/pid")
    kill -TERM "$pid" 2>/dev/null || true
    if ! flock -w "$grace" "$root/lock" true; then
      kill -KILL -- "-$pid" 2>/dev/null || true
      flock -w 10 "$root/lock" true || { answer "FAILED to stop"; exit 1; }
    fi
  fi
  status "$root"
}

here() {
  local extra=$1
  shift
  python3 -m pip install --quiet --constraint constraints.txt --editable ".[$extra]"
  train /dev/null python3 "$@"
}

command=$1
shift
case $command in
  install | start | run | status | stop | here) "$command" "$@" ;;
  *) echo "error: worker.sh knows install, start, status, stop, here" >&2; exit 2 ;;
esac
