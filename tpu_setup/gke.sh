#!/usr/bin/env bash
# Training on TPU slices of Google Kubernetes Engine through xpk. See README.md.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly ABOUT="tpu_setup/gke.sh COMMAND --name=N --cluster=C --project=P --zone=Z ...: training on GKE through xpk

  up              creates the cluster, and launches; Kubernetes begins again after a preemption or a crash
  create          the cluster; nothing if it exists
  launch          builds an image from the commit, and submits the training; refuses while one runs
  resume          submits it again, unless it runs or waits
  tail            follows the log of a worker
  status          of the cluster and the training
  delete          the training; nothing if there is none
  delete-cluster  the cluster with all that runs on it; nothing if there is none"

declare_flags() {
  common_flags
  flag name "" "$NAME_RULE" "of the run"
  flag cluster "" "$NAME_RULE" "of the machines"
  flag project "" '^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$' "Google Cloud project id"
  flag zone "" '^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$' "such as us-central2-b"
  flag type "" '^[a-z][a-z0-9]*-[0-9]+$' "TPU type as xpk names it (v5litepod-16, v5p-128, v6e-256)"
  flag slices 1 "$NUMBER_RULE" "how many of them"
  switch spot "Spot machines: cheaper, and may be preempted"
  several create-option '^--[a-z]' "further flag of xpk cluster create, such as --reservation=R; may be repeated"
  several launch-option '^--[a-z]' "further flag of xpk workload create, such as --priority=high; may be repeated"
  training_flags
  flag image python:3.11 '^[^-].*$' "what the commit is added to; has Python 3.11 and pip"
  flag restarts 100 "$NUMBER_RULE" "preemptions and crashes after which Kubernetes gives up"
  flag grace 120 "$SECONDS_RULE" "seconds that a training has to save when it is stopped"
  flag worker 0 "$SECONDS_RULE" "worker of the slice, for tail"
  flag slice 0 "$SECONDS_RULE" "slice, for tail"
  flag lines 50 "$NUMBER_RULE" "lines to begin with, for tail"
}

settle() {
  need cluster project zone
  NAME=${FLAGS[name]} CLUSTER=${FLAGS[cluster]}
  WHERE=(--project="${FLAGS[project]}" --zone="${FLAGS[zone]}" --cluster="$CLUSTER")
  ASSUMED_CLUSTER=RUNNING ASSUMED_JOB="" # the answers that --dry-run assumes
}

# cluster_state: sets STATE to the state of the cluster, or ABSENT, and LOCATION to its region or zone.
cluster_state() {
  local name location state
  retry ask "$CLUSTER"$'\t'"${FLAGS[zone]%-*}"$'\t'"$ASSUMED_CLUSTER" \
    gcloud container clusters list --project="${FLAGS[project]}" --format='value(name,location,status)' ||
    fail "$CLUSTER: gcloud does not answer"
  STATE=ABSENT LOCATION=''
  while IFS=$'\t' read -r name location state; do
    [[ $name != "$CLUSTER" ]] || { STATE=$state LOCATION=$location; }
  done <<<"$REPLY"
}

# job_state: sets JOB to ABSENT, RUNNING (which includes waiting), Completed or Failed; a JobSet ends in the last two.
job_state() {
  cluster_state
  JOB=ABSENT
  [[ $STATE != ABSENT ]] || return 0
  retry run gcloud container clusters get-credentials "$CLUSTER" --project="${FLAGS[project]}" --location="$LOCATION" ||
    fail "$CLUSTER cannot be reached"
  retry ask "$ASSUMED_JOB" kubectl get jobset "$NAME" --ignore-not-found \
    -o 'jsonpath={.metadata.name} {.status.conditions[?(@.status=="True")].type}' || fail "$CLUSTER cannot be reached"
  case " $REPLY " in
    *" Completed "*) JOB=Completed ;;
    *" Failed "*) JOB=Failed ;;
    *" $NAME "*) JOB=RUNNING ;;
  esac
}

create() {
  need type
  cluster_state
  [[ $STATE == ABSENT ]] || { say "$CLUSTER exists already: $STATE"; return 0; }
  values create-option
  run xpk cluster create "${WHERE[@]}" --tpu-type="${FLAGS[type]}" --num-slices="${FLAGS[slices]}" \
    ${FLAGS[spot]:+--spot} "${VALUES[@]}"
  ASSUMED_CLUSTER=RUNNING
  say "$CLUSTER is created"
}

# submit: adds the commit to the image as a layer, and submits a JobSet that starts again when a machine or the training
# fails.
submit() {
  local -a environment=() options
  local value
  pack
  run mkdir -p "$SCRATCH/source"
  run tar -xzf "$ARCHIVE" -C "$SCRATCH/source"
  values launch-option
  options=("${VALUES[@]}")
  training_arguments
  if [[ -n ${FLAGS[env-file]} ]]; then
    environment_file
    environment+=(--env-file="$ENVIRONMENT_FILE")
  fi
  for value in JAX_PLATFORMS=tpu,cpu "${VALUES[@]}"; do
    [[ $value == @env ]] || environment+=(--env="$value")
  done
  # Python ends with 1 after an error, also on machines that end because another one crashed. The JobSet starts again
  # after 1, and by default after 143 (stopped and saved) and other signals, but not after 2, a mistake in the config.
  run xpk workload create "${WHERE[@]}" --workload="$NAME" --tpu-type="${FLAGS[type]}" --num-slices="${FLAGS[slices]}" \
    --base-docker-image="${FLAGS[image]}" --script-dir="$SCRATCH/source" "${environment[@]}" \
    --max-restarts="${FLAGS[restarts]}" --restart-on-exit-codes=1 --termination-grace-period-seconds="${FLAGS[grace]}" \
    "${options[@]}" --command="exec $(quoted bash tpu_setup/worker.sh here tpu -- "${ARGUMENTS[@]}")"
  say "$NAME is submitted: $SOURCE on ${FLAGS[slices]} x ${FLAGS[type]}"
}

# plain_values: refuses values that xpk, which writes them between double quotes into YAML, would break.
plain_values() {
  local value
  values env
  for value in "${VALUES[@]}"; do
    [[ $value != *[\"\\]* ]] || misuse "--env=${value%%=*}=...: xpk takes no value with a double quote or a backslash"
  done
  [[ -z ${FLAGS[env-file]} ]] || ! grep -qE "$VARIABLE_RULE.*[\"\\\\]" "${FLAGS[env-file]}" ||
    misuse "--env-file: xpk takes no value with a double quote or a backslash"
}

withdraw() { run xpk workload delete "${WHERE[@]}" --workload="$NAME" --force; }

launch() {
  job_state
  [[ $STATE != ABSENT ]] || fail "there is no cluster $CLUSTER: 'create' makes it"
  [[ $JOB != RUNNING ]] || fail "$NAME runs or waits already: see 'tail' and 'status', or 'delete' it"
  [[ $JOB == ABSENT ]] || withdraw # the name is free only when the earlier workload is gone
  submit
}

resume() {
  job_state
  [[ $STATE != ABSENT ]] || fail "there is no cluster $CLUSTER: 'create' makes it"
  [[ $JOB != RUNNING ]] || { say "$NAME runs or waits already"; return 0; }
  [[ $JOB == ABSENT ]] || withdraw
  submit
}

up() {
  ASSUMED_CLUSTER=ABSENT
  create
  resume
}

status() {
  job_state
  say "cluster: $STATE; training: $JOB"
  [[ $JOB == ABSENT ]] || run kubectl get pods -o wide --selector="jobset.sigs.k8s.io/jobset-name=$NAME"
}

follow() {
  local pod="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=${FLAGS[slice]}"
  job_state
  [[ $JOB != ABSENT ]] || dry || fail "there is no training $NAME on $CLUSTER"
  run kubectl logs --follow --tail="${FLAGS[lines]}" \
    --selector="$pod,batch.kubernetes.io/job-completion-index=${FLAGS[worker]}"
}

delete() {
  ASSUMED_JOB=$NAME
  job_state
  [[ $JOB != ABSENT ]] || { say "$NAME does not exist"; return 0; }
  withdraw
  say "$NAME is deleted"
}

delete_cluster() {
  cluster_state
  [[ $STATE != ABSENT ]] || { say "$CLUSTER does not exist"; return 0; }
  run xpk cluster delete "${WHERE[@]}" --force
  say "$CLUSTER is deleted"
}

main() {
  local command=${1:-help}
  declare_flags
  case $command in
    help | --help | -h) usage "$ABOUT"; return 0 ;;
    up | create | launch | resume | tail | status | delete | delete-cluster) shift ;;
    *) misuse "there is no command '$command'; known: up create launch resume tail status delete delete-cluster" ;;
  esac
  parse "$@"
  settle
  case $command in
    create | delete-cluster) ;;
    up | launch | resume) need name type; need_training; plain_values; source_commit ;;
    *) need name ;;
  esac
  case $command in
    create) ASSUMED_CLUSTER=ABSENT create ;;
    tail) follow ;;
    *) "${command/-/_}" ;;
  esac
}

main "$@"
