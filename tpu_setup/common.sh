# shellcheck shell=bash disable=SC2034 # what it sets, the programs read
# What the programs of this folder share: flags, one-line errors, --dry-run, retries, and the source code as a commit.
# A program declares its flags with `flag` and `switch`, calls `parse "$@"`, and reads ${FLAGS[name]}.
set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }      # an operation did not work
misuse() { printf 'error: %s\n' "$*" >&2; exit 2; }    # what was asked cannot work
say() { printf '%s%s\n' "${FLAGS[dry-run]:+# }" "$*"; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || misuse "bash $BASH_VERSION is too old: 4.4 or newer is needed"

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly REPOSITORY
readonly NAME_RULE='^[a-z]([a-z0-9-]{0,36}[a-z0-9])?$'
readonly NUMBER_RULE='^[1-9][0-9]*$'
readonly SECONDS_RULE='^[0-9]+$'

# --- flags ------------------------------------------------------------------------------------------------------------

declare -A FLAGS=() RULES=() NOTES=() KINDS=()
declare -a NAMES=() EXTRA_FLAGS=()

# flag NAME DEFAULT RULE NOTE: a flag with a value that fits the regular expression RULE, or is empty.
flag() { _declare one "$@"; }
# several NAME RULE NOTE: a flag that may be repeated; its values stand one a line.
several() { _declare several "$1" "" "$2" "$3"; }
# switch NAME NOTE: a flag without a value.
switch() { _declare switch "$1" "" '^(true)?$' "$2"; }

_declare() {
  local kind=$1 name=$2 default=$3 rule=$4 note=$5 variable
  variable=TRANSFUSION_${name^^}
  variable=${variable//-/_}
  NAMES+=("$name")
  KINDS[$name]=$kind RULES[$name]=$rule NOTES[$name]=$note
  FLAGS[$name]=${!variable:-$default}
}

common_flags() {
  switch dry-run "print the commands and run none of them"
  switch allow-dirty "send uncommitted changes of tracked files, too"
  flag retry-seconds 5 "$SECONDS_RULE" "wait before the first of 4 further attempts; doubles each time"
}

training_flags() {
  flag config "" '^[^-].*$' "config file of the repository, as for transfusion.train (configs/digits.py:ddpm)"
  flag workdir "" '^[^-].*$' "folder of the run that outlives the machines: absolute, URL, or bucket/... with --bucket"
  several env '^[A-Za-z_][A-Za-z0-9_]*=' "NAME=VALUE in the environment of the training; may be repeated"
}

# usage TEXT: what the program is for, its commands, and the declared flags.
usage() {
  local name
  printf '%s\n\n' "$1"
  printf 'flags (also from the environment, as TRANSFUSION_<NAME>; what follows -- goes to transfusion.train):\n'
  for name in "${NAMES[@]}"; do
    printf '  --%-20s %s%s\n' "$name" "${NOTES[$name]}" "${FLAGS[$name]:+ [${FLAGS[$name]}]}"
  done
}

# parse ARGUMENT...: fills FLAGS and EXTRA_FLAGS, checks every value.
parse() {
  local name value
  while (($#)); do
    case $1 in
      --) shift; EXTRA_FLAGS=("$@"); break ;;
      --*) ;;
      *) misuse "unexpected argument '$1': flags have the form --name=value, training flags stand behind --" ;;
    esac
    name=${1#--} name=${name%%=*}
    [[ -n ${KINDS[$name]:-} ]] || misuse "there is no flag --$name; known: $(printf -- '--%s ' "${NAMES[@]}")"
    if [[ $1 == *=* ]]; then
      value=${1#*=}
    elif [[ ${KINDS[$name]} == switch ]]; then
      value=true
    else
      (($# > 1)) || misuse "--$name needs a value: ${NOTES[$name]}"
      value=$2
      shift
    fi
    [[ $value != *$'\n'* ]] || misuse "--$name holds a line break"
    _check "$name" "$value"
    [[ ${KINDS[$name]} != several ]] || value=${FLAGS[$name]:+${FLAGS[$name]}$'\n'}$value
    FLAGS[$name]=$value
    shift
  done
  for name in "${NAMES[@]}"; do
    [[ ${KINDS[$name]} == several ]] || _check "$name" "${FLAGS[$name]}"
  done
}

_check() {
  [[ -z $2 || $2 =~ ${RULES[$1]} ]] || misuse "--$1 cannot be '$2': ${NOTES[$1]} (${RULES[$1]})"
}

# need NAME...: these flags must have a value.
need() {
  local name
  for name; do
    [[ -n ${FLAGS[$name]} ]] || misuse "--$name is missing: ${NOTES[$name]}"
  done
}

# training_arguments: sets ARGUMENTS to those of transfusion.train, and VALUES to its environment.
training_arguments() {
  ARGUMENTS=(--config "${FLAGS[config]}" --workdir "${FLAGS[workdir]}" "${EXTRA_FLAGS[@]}")
  values env
}

# values NAME: sets VALUES to the values of a flag that may be repeated.
values() {
  VALUES=()
  [[ -z ${FLAGS[$1]} ]] || mapfile -t VALUES <<<"${FLAGS[$1]}"
}

# need_training: a config of the repository, and a workdir that outlives the machines.
need_training() {
  local workdir=${FLAGS[workdir]} file=${FLAGS[config]%%:*}
  need config workdir
  [[ -f $REPOSITORY/$file ]] || misuse "--config: there is no $file in $REPOSITORY"
  [[ $workdir == /* || $workdir == *://* || (-n ${FLAGS[bucket]:-} && $workdir == bucket/*) ]] ||
    misuse "--workdir=$workdir would be lost with the machine: ${NOTES[workdir]}"
}

# --- running ----------------------------------------------------------------------------------------------------------

dry() { [[ -n ${FLAGS[dry-run]} ]]; }

quoted() { local line; printf -v line '%q ' "$@"; printf '%s' "${line% }"; }

# run COMMAND...: runs it, or prints it so that it can be pasted into a shell.
run() {
  if dry; then printf '%s\n' "$(quoted "$@")"; else "$@"; fi
}

# run_from FILE COMMAND...: with FILE as its input.
run_from() {
  local file=$1
  shift
  if dry; then printf '%s\n' "$(quoted "$@") < $(quoted "$file")"; else "$@" <"$file"; fi
}

# ask ASSUMED COMMAND...: sets REPLY to what the command prints; with --dry-run to ASSUMED, and prints the command.
ask() {
  local assumed=$1
  shift
  if dry; then run "$@"; REPLY=$assumed; else REPLY=$("$@"); fi
}

# retry COMMAND...: up to 5 times, with waits that double.
retry() {
  local attempt wait=${FLAGS[retry-seconds]}
  for attempt in 1 2 3 4 5; do
    if "$@"; then return 0; fi
    ((attempt < 5)) || break
    printf 'failed (attempt %d of 5), again in %d s: %s\n' "$attempt" "$wait" "$(quoted "$@")" >&2
    sleep "$wait"
    wait=$((2 * wait))
  done
  return 1
}

scratch() {
  [[ -z ${SCRATCH:-} ]] || return 0
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
}

# --- the source code --------------------------------------------------------------------------------------------------

# source_commit: sets COMMIT to what is sent, and SOURCE to its name: only what git tracks, so no data and no keys.
source_commit() {
  local changes
  git -C "$REPOSITORY" rev-parse --quiet --verify HEAD >/dev/null || misuse "$REPOSITORY is not a git repository"
  changes=$(git -C "$REPOSITORY" status --porcelain)
  if [[ -z $changes ]]; then
    COMMIT=$(git -C "$REPOSITORY" rev-parse HEAD)
    SOURCE=${COMMIT:0:12}
  elif [[ -n ${FLAGS[allow-dirty]} ]]; then
    COMMIT=$(git -C "$REPOSITORY" stash create)
    COMMIT=${COMMIT:-HEAD}
    SOURCE=dirty-$(git -C "$REPOSITORY" rev-parse --short=12 "$COMMIT^{tree}")
  else
    changes=${changes%%$'\n'*}
    misuse "$REPOSITORY has uncommitted changes (${changes:3} ...): commit them, or give --allow-dirty"
  fi
}

# pack: sets ARCHIVE to a file with the source code. Call source_commit before.
pack() {
  scratch
  ARCHIVE=$SCRATCH/transfusion-$SOURCE.tar.gz
  [[ -e $ARCHIVE ]] || run git -C "$REPOSITORY" archive --format=tar.gz --output="$ARCHIVE" "$COMMIT"
}

# unpack_command FOLDER ARCHIVE EXTRA: sets REPLY to the shell command that unpacks and installs on a machine. It may be
# tried again on all when it failed on some. An ARCHIVE of '-' is standard input; EXTRA is the package's extra.
unpack_command() {
  local folder=$1 archive target=$1/src-$SOURCE
  archive=$(quoted "$2")
  REPLY="mkdir -p $(quoted "$target") && "
  case $2 in
    -) REPLY+="tar -xz -C $(quoted "$target") && " ;;
    *) REPLY+="if [ -f $archive ]; then tar -xzf $archive -C $(quoted "$target") && rm -f $archive; fi && " ;;
  esac
  REPLY+=$(quoted bash "$target/tpu_setup/worker.sh" install \
    "$folder" "$SOURCE" "$3" "${FLAGS[setup]}" "${FLAGS[bucket]:-}")
}
