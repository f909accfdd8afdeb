#!/usr/bin/env bash
# Training on the GPUs of a Slurm cluster, from its login node or (--login) from a laptop. See README.md.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly ABOUT="tpu_setup/slurm.sh COMMAND --name=N --folder=F [--login=HOST] ...: training on a Slurm cluster

  up       the same as resume
  install  sends the commit to the cluster and installs it
  launch   installs, and submits the training; refuses while one runs or waits
  resume   the same, unless one runs or waits
  tail     follows the log of a worker (one per GPU)
  status   of the job
  delete   cancels the job; nothing if there is none

A job that is preempted, fails or reaches its time limit saves and goes back into the queue by itself."

declare_flags() {
  common_flags
  flag name "" "$NAME_RULE" "of the run and its job"
  flag login "" '^([A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*$' "login node, reached by ssh; by default this machine"
  flag folder "" '^/[A-Za-z0-9/._-]+$' "folder that all nodes share; the run's folder is made in it"
  flag nodes 1 "$NUMBER_RULE" "how many"
  flag gpus 8 "$NUMBER_RULE" "per node; each is driven by a process of its own"
  flag time 24:00:00 '^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$' "limit after which the job goes back into the queue"
  flag partition "" '^[A-Za-z0-9_,.-]+$' "Slurm's"
  flag account "" '^[A-Za-z0-9_.-]+$' "Slurm's"
  several sbatch-option '^--[a-z]' "further flag of sbatch, such as --constraint=h100; may be repeated"
  training_flags
  flag setup "" '^[^-].*$' "script that runs before the installation; one from outside goes along"
  flag max-failures 5 "$NUMBER_RULE" "crashes after which the job is given up"
  flag grace 300 "$SECONDS_RULE" "seconds before the time limit at which the training saves"
  flag worker 0 "$SECONDS_RULE" "rank, for tail"
  flag lines 50 "$NUMBER_RULE" "lines to begin with, for tail"
}

settle() {
  need name folder
  NAME=${FLAGS[name]}
  ROOT=${FLAGS[folder]%/}/$NAME
  ASSUMED_JOB="" # the answer that --dry-run assumes
}

# there WITH ARGUMENT...: runs a command on the login node; WITH is one of run, ask ANSWER, run_from FILE.
there() {
  local -a with=("$1")
  shift
  [[ ${with[0]} == run ]] || { with+=("$1"); shift; }
  if [[ -n ${FLAGS[login]} ]]; then
    "${with[@]}" ssh "${FLAGS[login]}" "$(quoted "$@")"
  else
    "${with[@]}" "$@"
  fi
}

# job_state: sets JOBS to the numbers of this run's jobs in the queue, and JOB to their states or ABSENT.
job_state() {
  local name id state
  retry there ask "$ASSUMED_JOB" squeue --me --noheader --name="$NAME" --format='%i %T' || fail "squeue does not answer"
  JOBS=() JOB=""
  while read -r id state; do
    [[ -z $id ]] || { JOBS+=("$id"); JOB+="${JOB:+, }$state as job $id"; }
  done <<<"$REPLY"
  JOB=${JOB:-ABSENT}
}

install() {
  pack
  unpack_command "$ROOT" - gpu
  retry there run_from "$ARCHIVE" bash -c "$REPLY" || fail "$SOURCE cannot be installed in $ROOT"
  say "$SOURCE is installed in $ROOT"
}

submit() {
  local -a request
  install
  there run mkdir -p "$ROOT/logs"
  values sbatch-option
  request=(--parsable --job-name="$NAME" --nodes="${FLAGS[nodes]}" --ntasks-per-node="${FLAGS[gpus]}"
    # Not --gpus-per-task: every process must see all GPUs of its node, and JAX takes the one of its rank.
    --gpus-per-node="${FLAGS[gpus]}" --time="${FLAGS[time]}" --signal="B:USR1@${FLAGS[grace]}"
    --requeue --open-mode=append --chdir="$ROOT/src-$SOURCE" --output="$ROOT/logs/job.log")
  [[ -z ${FLAGS[partition]} ]] || request+=(--partition="${FLAGS[partition]}")
  [[ -z ${FLAGS[account]} ]] || request+=(--account="${FLAGS[account]}")
  request+=("${VALUES[@]}")
  if [[ -n ${FLAGS[env-file]} ]]; then
    environment_file
    there run_from "$ENVIRONMENT_FILE" bash -c "umask 077; rm -f $(quoted "$ROOT/env"); cat >$(quoted "$ROOT/env")" ||
      fail "$NAME: --env-file cannot be written to $ROOT"
  fi
  training_arguments
  there run sbatch "${request[@]}" "$ROOT/src-$SOURCE/tpu_setup/train.sbatch" "$ROOT" "${FLAGS[max-failures]}" \
    "${VALUES[@]}" -- "${ARGUMENTS[@]}" || fail "$NAME cannot be submitted"
  say "$NAME is submitted: $SOURCE on ${FLAGS[nodes]} x ${FLAGS[gpus]} GPUs"
}

launch() {
  job_state
  [[ $JOB == ABSENT ]] || fail "$NAME is $JOB already: see 'tail', or 'delete' it"
  submit
}

resume() {
  job_state
  [[ $JOB == ABSENT ]] || { say "$NAME is $JOB already"; return 0; }
  submit
}

delete() {
  ASSUMED_JOB="1 RUNNING"
  job_state
  [[ $JOB != ABSENT ]] || { say "$NAME does not exist"; return 0; }
  retry there run scancel "${JOBS[@]}" || fail "$NAME cannot be cancelled"
  say "$NAME is cancelled"
}

main() {
  local command=${1:-help}
  declare_flags
  case $command in
    help | --help | -h) usage "$ABOUT"; return 0 ;;
    up | install | launch | resume | tail | status | delete) shift ;;
    *) misuse "there is no command '$command'; known: up install launch resume tail status delete" ;;
  esac
  parse "$@"
  settle
  case $command in
    up | launch | resume) need_training; source_commit ;;
    install) source_commit ;;
  esac
  case $command in
    up) resume ;;
    tail) there run tail -n "${FLAGS[lines]}" -F "$ROOT/logs/worker-${FLAGS[worker]}.log" ;;
    status) job_state; say "training: $JOB" ;;
    *) "$command" ;;
  esac
}

main "$@"
