#!/usr/bin/env bash
# Training on Cloud TPU slices and multislices: queued resources, ssh to all workers. See README.md.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly ABOUT="tpu_setup/tpu.sh COMMAND --name=N --project=P --zone=Z ...: training on Cloud TPU slices

  up       all of it: creates, installs, launches, and watches; after a preemption or a crash it begins again
  create   requests the slices; nothing if they exist
  install  sends the commit to all workers and installs it
  launch   installs, and starts the training; refuses while one runs
  resume   the same, unless it runs on all workers
  stop     SIGTERM to the training, which saves; the slices stay
  tail     follows the log of a worker
  status   of the request, the slices and the workers
  delete   the slices and the request; nothing if there are none"

# The software that the machines of each generation boot (Google's list of TPU software versions).
declare -A RUNTIMES=(
  [v2]=tpu-ubuntu2204-base [v3]=tpu-ubuntu2204-base [v4]=tpu-ubuntu2204-base
  [v5litepod]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e
)

readonly HEALTHY=1800 # seconds of training after which earlier failures are forgotten

declare_flags() {
  common_flags
  flag name "" "$NAME_RULE" "of the run and its slices"
  flag project "" '^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$' "Google Cloud project id"
  flag zone "" '^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$' "such as us-central2-b"
  flag type "" '^[a-z][a-z0-9]*(-[0-9]+|:[0-9]+(x[0-9]+){1,2})$' "accelerator type (v5litepod-16), topology (v5p:8x8x8)"
  flag slices 1 "$NUMBER_RULE" "how many of them"
  flag runtime-version "" '^[a-z0-9.-]+$' "what boots; by default the generation's"
  switch spot "Spot VMs: cheaper, and may be preempted"
  switch best-effort "the best-effort tier (gcloud alpha)"
  flag valid-until-duration "" '^[0-9]+[smhd]$' "give the request up after this time, such as 6h"
  several create-option '^--[a-z]' "further flag of gcloud's create, such as --network=N; may be repeated"
  several ssh-option '^--[a-z]' "further flag of gcloud's ssh and scp, such as --tunnel-through-iap; may be repeated"
  training_flags
  flag bucket "" '^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$' "mounted by gcsfuse as the folder bucket of the source code"
  flag setup "" '^[^-].*$' "script that every worker runs before it installs; one from outside goes along"
  flag worker 0 "$SECONDS_RULE" "worker of the slice, for tail"
  flag slice 0 "$SECONDS_RULE" "slice, for tail"
  flag lines 50 "$NUMBER_RULE" "lines to begin with, for tail"
  flag grace 120 "$SECONDS_RULE" "seconds that a training has to save when it is stopped"
  flag poll 60 "$SECONDS_RULE" "seconds between two looks, for up"
  flag max-failures 5 "$NUMBER_RULE" "crashes in a row (not preemptions) after which up gives up"
  switch delete-when-done "up deletes the slices after the last step"
}

settle() {
  need name project zone
  NAME=${FLAGS[name]}
  [[ ! $NAME =~ -slice-[0-9]+$ ]] || misuse "--name=$NAME: names that end in -slice-<number> are the slices'"
  ROOT=transfusion/$NAME # below the home folder on every worker
  QUEUE=(gcloud compute tpus queued-resources)
  WHERE=(--project="${FLAGS[project]}" --zone="${FLAGS[zone]}")
  values ssh-option
  REMOTE=("${WHERE[@]}" "${VALUES[@]}")
  ASSUMED_STATE=ACTIVE ASSUMED_JOB=NONE # the answers that --dry-run assumes
}

# --- slices -----------------------------------------------------------------------------------------------------------

# queue_state: sets STATE to the state of the request, or ABSENT.
queue_state() {
  local name state
  retry ask "$NAME"$'\t'"$ASSUMED_STATE" "${QUEUE[@]}" list "${WHERE[@]}" \
    --format='value(name.basename(),state.state)' || return 1
  STATE=ABSENT
  while IFS=$'\t' read -r name state; do
    [[ $name != "$NAME" ]] || STATE=$state
  done <<<"$REPLY"
}

# nodes: sets NODES to the state of each slice, SLICES to that of all together (READY, LOST or WAITING), and WORKERS to
# the number of their machines.
nodes() {
  local name state workers
  retry ask "$NAME"$'\t'READY$'\t'1 gcloud compute tpus tpu-vm list "${WHERE[@]}" \
    --format='value(name.basename(),state,networkEndpoints.len())' || return 1
  NODES=() WORKERS=0 SLICES=READY
  while IFS=$'\t' read -r name state workers; do
    [[ $name == "$NAME" || $name =~ ^"$NAME"-slice-[0-9]+$ ]] || continue
    NODES+=("$state")
    WORKERS=$((WORKERS + ${workers:-0}))
    case $state in
      READY) ;;
      PREEMPTED | TERMINATED | STOPPED) SLICES=LOST ;;
      *) [[ $SLICES == LOST ]] || SLICES=WAITING ;;
    esac
  done <<<"$REPLY"
  ((${#NODES[@]})) || SLICES=WAITING
}

create() {
  local type=${FLAGS[type]} generation
  local -a queue=("${QUEUE[@]}") request
  need type
  generation=${type%%[-:]*}
  [[ $generation != v5e ]] || generation=v5litepod
  [[ -n ${RUNTIMES[$generation]:-} ]] ||
    misuse "--type=$type: no generation '$generation' here; known: ${!RUNTIMES[*]} (others: gke.sh)"
  [[ -z ${FLAGS[spot]} || -z ${FLAGS[best-effort]} ]] || misuse "--spot and --best-effort exclude each other"
  queue_state || return 1
  [[ $STATE == ABSENT ]] || { say "$NAME exists already: $STATE"; return 0; }
  request=("${WHERE[@]}" --runtime-version="${FLAGS[runtime-version]:-${RUNTIMES[$generation]}}")
  case $type in
    *:*) # gcloud's stable version knows topologies of old generations only
      queue=(gcloud alpha "${QUEUE[@]:1}")
      request+=(--type="$generation" --topology="${type#*:}")
      ;;
    *) request+=(--accelerator-type="$generation-${type#*-}") ;;
  esac
  case ${FLAGS[slices]} in
    1) request+=(--node-id="$NAME") ;;
    *) request+=(--node-count="${FLAGS[slices]}" --node-prefix="$NAME-slice") ;;
  esac
  [[ -z ${FLAGS[spot]} ]] || request+=(--spot)
  [[ -z ${FLAGS[best-effort]} ]] || { request+=(--best-effort); queue=(gcloud alpha "${QUEUE[@]:1}"); }
  [[ -z ${FLAGS[valid-until-duration]} ]] || request+=(--valid-until-duration="${FLAGS[valid-until-duration]}")
  values create-option
  retry run "${queue[@]}" create "$NAME" "${request[@]}" "${VALUES[@]}" || return 1
  ASSUMED_STATE=ACTIVE
  say "$NAME is requested: ${FLAGS[slices]} x $type"
}

delete() {
  queue_state || return 1
  case $STATE in
    ABSENT) say "$NAME does not exist" ;;
    DELETING) say "$NAME is being deleted" ;;
    *)
      retry run "${QUEUE[@]}" delete "$NAME" "${WHERE[@]}" --force --quiet || return 1
      say "$NAME is deleted"
      ;;
  esac
}

# --- workers ----------------------------------------------------------------------------------------------------------

# on_workers ASSUMED COMMAND: runs the command on all workers, and sets ANSWERS to the answer of each one's worker.sh.
on_workers() {
  local line
  local -a words
  ANSWERS=()
  ask "transfusion-worker $NAME $1" \
    "${QUEUE[@]}" ssh "$NAME" "${REMOTE[@]}" --node=all --worker=all --command="$2" || return 1
  while IFS= read -r line; do
    read -ra words <<<"$line"
    [[ ${words[0]:-} != transfusion-worker ]] || ANSWERS+=("${words[*]:2}")
  done <<<"$REPLY"
}

# all_workers WORD COMMAND: does the same, and fails unless each worker answers WORD; gcloud itself ignores workers that
# it cannot reach.
all_workers() {
  local answer
  on_workers "$1" "$2" || return 1
  ((${#ANSWERS[@]} == WORKERS)) || { printf '%d of %d workers answered\n' "${#ANSWERS[@]}" "$WORKERS" >&2; return 1; }
  for answer in "${ANSWERS[@]}"; do
    [[ $answer == "$1" ]] || { printf 'a worker answered: %s\n' "$answer" >&2; return 1; }
  done
}

# job_state: sets JOB to NONE, RUNNING, DONE, STOPPED or FAILED ... if all workers agree, else PARTIAL or UNREACHABLE.
job_state() {
  local answer script=$ROOT/worker.sh
  local command="if [ -f $script ]; then bash $script status $ROOT; else echo transfusion-worker new NONE; fi"
  JOB=UNREACHABLE
  on_workers "$ASSUMED_JOB" "$command" || return 0
  ((${#ANSWERS[@]} == WORKERS)) || return 0
  JOB=${ANSWERS[0]}
  for answer in "${ANSWERS[@]}"; do
    [[ $answer != FAILED* ]] || { JOB=$answer; return 0; }
    case "$JOB $answer" in
      "$answer $answer") ;;
      "RUNNING DONE" | "DONE RUNNING") JOB=RUNNING ;; # some workers have made their last step
      *) JOB=PARTIAL ;;
    esac
  done
}

# active: fails unless all slices are there and ready.
active() {
  queue_state || fail "$NAME: gcloud does not answer"
  nodes || fail "$NAME: gcloud does not answer"
  [[ $STATE == ACTIVE && $SLICES == READY ]] ||
    fail "$NAME is $STATE (slices: ${NODES[*]:-none}): 'status' shows when it is ACTIVE, 'up' waits and creates it anew"
}

install() {
  local archive
  pack || return 1
  archive=transfusion-$SOURCE.tar.gz
  retry run "${QUEUE[@]}" scp "$ARCHIVE" "$NAME:$archive" "${REMOTE[@]}" --node=all --worker=all || return 1
  unpack_command "$ROOT" "$archive" tpu
  retry all_workers INSTALLED "$REPLY" || return 1
  say "$SOURCE is installed on $WORKERS workers of $NAME"
}

# begin: stops what still runs on some workers, then installs and starts the training on all.
begin() {
  local -a order
  [[ $JOB == NONE ]] || end || return 1
  install || return 1
  if [[ -n ${FLAGS[env-file]} ]]; then # the folder is there now; the file keeps its mode
    environment_file
    retry run "${QUEUE[@]}" scp "$ENVIRONMENT_FILE" "$NAME:$ROOT/env" "${REMOTE[@]}" --node=all --worker=all || return 1
  fi
  training_arguments
  # Without JAX_PLATFORMS, a worker whose TPU does not start would train on its CPU.
  order=(bash "$ROOT/worker.sh" start "$ROOT" "$SOURCE" "JAX_PLATFORMS=tpu,cpu" "${VALUES[@]}" -- "${ARGUMENTS[@]}")
  all_workers STARTED "$(quoted "${order[@]}")" || return 1
  ASSUMED_JOB=DONE
  say "$NAME trains"
}

end() {
  on_workers STOPPED "$(quoted bash "$ROOT/worker.sh" stop "$ROOT" "${FLAGS[grace]}")"
}

launch() {
  active
  job_state
  case $JOB in
    RUNNING | PARTIAL) fail "$NAME: a training is $JOB on its workers: see 'tail', or 'stop' it, or 'resume'" ;;
    UNREACHABLE) fail "$NAME: ${#ANSWERS[@]} of $WORKERS workers answered" ;;
  esac
  begin || fail "$NAME could not be launched on all workers"
}

resume() {
  active
  job_state
  case $JOB in
    RUNNING) say "$NAME runs already" ;;
    UNREACHABLE) fail "$NAME: ${#ANSWERS[@]} of $WORKERS workers answered" ;;
    *) begin || fail "$NAME could not be launched on all workers" ;;
  esac
}

status() {
  queue_state || fail "$NAME: gcloud does not answer"
  say "request: $STATE"
  [[ $STATE == ACTIVE ]] || return 0
  nodes || fail "$NAME: gcloud does not answer"
  job_state
  say "slices: ${NODES[*]:-none}; workers: ${#ANSWERS[@]} of $WORKERS answered; training: $JOB"
}

follow() {
  local last=$1
  shift
  run "${QUEUE[@]}" ssh "$NAME" "${REMOTE[@]}" --node="${FLAGS[slice]}" --worker="${FLAGS[worker]}" \
    --command="$(quoted tail -n "$last" "$@" "$ROOT/worker.log")"
}

# --- up ---------------------------------------------------------------------------------------------------------------

# look: makes one round of `up`, which brings the run one step further. Returns 0 when the training is done.
look() {
  SLICES=READY
  queue_state || { note "gcloud does not answer"; return 1; }
  [[ $STATE != ACTIVE ]] || nodes || { note "gcloud does not answer"; return 1; }
  case $STATE-$SLICES in
    ABSENT-*) create || failure "the slices cannot be requested" ;;
    ACTIVE-READY) tend && return 0 ;;
    ACTIVE-LOST | SUSPENDED-*) note "is preempted"; renew ;;
    ACTIVE-*) note "is ACTIVE, its slices are ${NODES[*]:-not there}" ;;
    FAILED-*) failure "the request failed"; renew ;;
    *) note "is $STATE" ;;
  esac
  return 1
}

renew() { { delete && create; } || failure "the slices cannot be requested"; }

# tend: starts the training, or starts it again, on slices that are there. Returns 0 when it is done.
tend() {
  job_state
  note "training is $JOB"
  case $JOB in
    DONE) return 0 ;;
    RUNNING)
      [[ -n $SINCE ]] || SINCE=$SECONDS
      ((SECONDS - SINCE < HEALTHY)) || FAILURES=0
      return 1
      ;;
    UNREACHABLE) return 1 ;;
    NONE | STOPPED) ;;
    *) failure "the training is $JOB" ;;
  esac
  SINCE=''
  begin || failure "the workers could not be set up"
  return 1
}

failure() {
  FAILURES=$((FAILURES + 1))
  say "$NAME: $1 (failure $FAILURES of ${FLAGS[max-failures]})"
  ((FAILURES < FLAGS[max-failures])) || {
    follow "${FLAGS[lines]}" || true
    fail "$NAME: $1, $FAILURES times; the slices are left as they are ('delete' removes them)"
  }
}

# note TEXT: prints the text if it differs from the last one.
note() {
  [[ $1 == "${NOTED:-}" ]] || say "$(date -u +%FT%TZ) $NAME $1"
  NOTED=$1
}

up() {
  FAILURES=0 SINCE='' ASSUMED_STATE=ABSENT
  until look; do
    dry || sleep "${FLAGS[poll]}"
  done
  say "$NAME is done"
  [[ -z ${FLAGS[delete-when-done]} ]] || delete
}

# ----------------------------------------------------------------------------------------------------------------------

main() {
  local command=${1:-help}
  declare_flags
  case $command in
    help | --help | -h) usage "$ABOUT"; return 0 ;;
    up | create | install | launch | resume | stop | tail | status | delete) shift ;;
    *) misuse "there is no command '$command'; known: up create install launch resume stop tail status delete" ;;
  esac
  parse "$@"
  settle
  case $command in
    up | launch | resume) need_training; source_commit ;;
    install) source_commit ;;
    create) ASSUMED_STATE=ABSENT ;;
  esac
  case $command in
    up) need type; up ;;
    install) active; install || fail "$NAME could not be installed on all workers" ;;
    stop) active; end || fail "$NAME could not be stopped on all workers" ;;
    tail) follow "${FLAGS[lines]}" -F ;;
    *) "$command" ;;
  esac
}

main "$@"
