# shellcheck shell=bash disable=SC2034 # what it sets, the programs read
# Shared by the programs of this folder: flags, one-line errors, --dry-run, retries, and the source code as a commit.
# A program declares its flags with `flag` and `switch`, calls `parse "$@"`, and reads ${FLAGS[name]}.
set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }      # an operation did not work
misuse() { printf 'error: %s\n' "$*" >&2; exit 2; }    # what was asked cannot work
say() { printf '%s%s\n' "${FLAGS[dry-run]:+# }" "$*"; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || misuse "bash $BASH_VERSION is too old: 4.4 or newer is needed"

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly REPOSITORY
readonly NAME_RULE='^[a-z]([a-z0-9-]{0,36}[a-z0-9])?$'
readonly NUMBER_RULE='^[1-9][0-9]{0,5}$'
readonly SECONDS_RULE='^(0|[1-9][0-9]{0,6})$' # bash takes numbers that begin with 0 as octal
readonly MOST_NEW=102400 # KiB of new files, for --allow-dirty
readonly VARIABLE_RULE='^[A-Za-z_][A-Za-z0-9_]*='

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
  switch allow-dirty "send uncommitted changes and new files, too, but for those that .gitignore names"
  flag retry-seconds 5 "$SECONDS_RULE" "wait before the first of 4 further attempts; doubles each time"
}

training_flags() {
  flag config "" '^[^-].*$' "config file as for transfusion.train (configs/digits.py:ddpm); one from outside goes along"
  flag workdir "" '^[^-].*$' "folder of the run that outlives the machines: absolute, URL, or bucket/... with --bucket"
  several env "$VARIABLE_RULE" "NAME=VALUE in the environment of the training; may be repeated"
  flag env-file "" '^[^-].*$' "file of lines NAME=VALUE, such as keys, which goes to the machines as a file"
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

# parse ARGUMENT...: fills FLAGS and EXTRA_FLAGS, and checks every value.
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
    [[ ${KINDS[$name]} != several || -n $value ]] || misuse "--$name needs a value: ${NOTES[$name]}"
    [[ ${KINDS[$name]} != several ]] || value=${FLAGS[$name]:+${FLAGS[$name]}$'\n'}$value
    FLAGS[$name]=$value
    shift
  done
  for name in "${NAMES[@]}"; do # again, as they may come from the environment
    if [[ ${KINDS[$name]} == several ]]; then
      values "$name"
      for value in "${VALUES[@]}"; do
        [[ -n $value ]] || misuse "--$name has an empty line: ${NOTES[$name]}"
        _check "$name" "$value"
      done
    else
      [[ ${FLAGS[$name]} != *$'\n'* ]] || misuse "--$name holds a line break"
      _check "$name" "${FLAGS[$name]}"
    fi
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

# training_arguments: sets ARGUMENTS to those of transfusion.train, and VALUES to its environment; @env in it stands for
# the lines of --env-file, which the machines have as a file.
training_arguments() {
  ARGUMENTS=(--config "${FLAGS[config]}" --workdir "${FLAGS[workdir]}" "${EXTRA_FLAGS[@]}")
  values env
  [[ -z ${FLAGS[env-file]} ]] || VALUES+=(@env)
}

# values NAME: sets VALUES to the values of a flag that may be repeated.
values() {
  VALUES=()
  [[ -z ${FLAGS[$1]} ]] || mapfile -t VALUES <<<"${FLAGS[$1]}"
}

# need_training: requires a config, a workdir that outlives the machines, and variables with proper names, none of which
# is a key on a command line. An error in --env-file gives the number of the line only, because it may hold a key.
need_training() {
  local workdir=${FLAGS[workdir]} file=${FLAGS[env-file]} line value name count=0
  need config workdir
  [[ $workdir == /* || $workdir == *://* || (-n ${FLAGS[bucket]:-} && $workdir == bucket/*) ]] ||
    misuse "--workdir=$workdir would be lost with the machine: ${NOTES[workdir]}"
  values env
  for value in "${VALUES[@]}"; do
    name=${value%%=*}
    [[ ! ${name^^} =~ (KEY|TOKEN|SECRET|PASSWORD)$ ]] ||
      misuse "--env=$name=...: others can read command lines: put it into a file, and give --env-file"
  done
  [[ -n $file ]] || return 0
  [[ -f $file && -r $file ]] || misuse "--env-file: there is no file $file that can be read"
  while IFS= read -r line || [[ -n $line ]]; do
    count=$((count + 1))
    [[ $line =~ ^[[:space:]]*(#|$) || ($line =~ $VARIABLE_RULE && $line != *$'\r'*) ]] ||
      misuse "--env-file: line $count of $file is not NAME=VALUE, or holds a carriage return"
  done <"$file"
}

# environment_file: sets ENVIRONMENT_FILE to a copy of --env-file without its comments, which only this user can read.
environment_file() {
  scratch
  ENVIRONMENT_FILE=$SCRATCH/env
  [[ ! -e $ENVIRONMENT_FILE ]] || return 0
  (umask 077 && { grep -E "$VARIABLE_RULE" "${FLAGS[env-file]}" || true; } >"$ENVIRONMENT_FILE")
}

# --- running ----------------------------------------------------------------------------------------------------------

dry() { [[ -n ${FLAGS[dry-run]} ]]; }

quoted() { local line; printf -v line '%q ' "$@"; printf '%s' "${line% }"; }

# run COMMAND...: runs it, or prints it so that it can be pasted into a shell.
run() {
  if dry; then printf '%s\n' "$(quoted "$@")"; else "$@"; fi
}

# run_from FILE COMMAND...: does the same with FILE as the command's input.
run_from() {
  local file=$1
  shift
  if dry; then printf '%s\n' "$(quoted "$@") < $(quoted "$file")"; else "$@" <"$file"; fi
}

# ask ASSUMED COMMAND...: sets REPLY to the output of the command; with --dry-run to ASSUMED, and prints the command.
ask() {
  local assumed=$1
  shift
  if dry; then run "$@"; REPLY=$assumed; else REPLY=$("$@"); fi
}

# retry COMMAND...: runs it up to 5 times, until it works, with waits that double.
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

# source_commit: sets COMMIT to the commit that is sent, and SOURCE to its name. It holds only files that git tracks, so
# no data and no keys.
source_commit() {
  local changes new
  git -C "$REPOSITORY" rev-parse --quiet --verify HEAD >/dev/null || misuse "$REPOSITORY is not a git repository"
  changes=$(git -C "$REPOSITORY" status --porcelain --untracked-files=all)
  COMMIT=$(git -C "$REPOSITORY" rev-parse HEAD)
  SOURCE=${COMMIT:0:12}
  if [[ -n $changes ]]; then
    [[ -n ${FLAGS[allow-dirty]} ]] ||
      misuse "$REPOSITORY has uncommitted changes ($(summary "$changes")): commit them, or give --allow-dirty"
    new=$(grep '^??' <<<"$changes" || true)
    [[ -z $new ]] || new_files "$new"
    in_index git -C "$REPOSITORY" add --all "$(git -C "$REPOSITORY" rev-parse --show-cdup)." ||
      fail "git cannot add the changed files"
    COMMIT=$(in_index git -C "$REPOSITORY" write-tree)
    SOURCE=dirty-${COMMIT:0:12}
  fi
  go_along setup
  go_along config
  go_not_along env-file
}

# new_files LINES: lists files of git status that are sent although git does not know them; refuses too many bytes.
new_files() {
  local kibibytes total=0
  while read -r kibibytes _; do
    total=$((total + kibibytes))
  done < <(cd "$REPOSITORY" && git ls-files -z --others --exclude-standard ":(top)" | xargs -0 du -k --)
  ((total <= MOST_NEW)) ||
    misuse "new files of $((total / 1024)) MiB would be sent ($(summary "$1")): commit them, or name them in .gitignore"
  say "sends new files, too: $(summary "$1")"
}

# summary LINES: prints the files in lines of git status; if there are many, the first three.
summary() {
  local -a lines
  mapfile -t lines <<<"$1"
  printf '%s' "${lines[0]:3}${lines[1]:+, ${lines[1]:3}}${lines[2]:+, ${lines[2]:3}}"
  [[ -z ${lines[3]:-} ]] || printf ' and %d more' $((${#lines[@]} - 3))
}

# in_index COMMAND...: runs git with an index of its own, which begins with the content of COMMIT. The user's index does
# not change.
in_index() {
  scratch
  [[ -e $SCRATCH/index ]] || GIT_INDEX_FILE=$SCRATCH/index git -C "$REPOSITORY" read-tree "$COMMIT"
  GIT_INDEX_FILE=$SCRATCH/index "$@"
}

# found FILE: sets FOUND to the whole path of a file whose path is relative to the repository or to the current folder.
found() {
  FOUND=$1
  [[ $FOUND == /* ]] || { FOUND=$REPOSITORY/$1; [[ -f $FOUND ]] || FOUND=$PWD/$1; }
  [[ -f $FOUND && -r $FOUND ]] || return 1
  FOUND=$(realpath -- "$FOUND")
}

# inside PATH: sets INSIDE to the path within the repository, and fails if it is elsewhere.
inside() {
  local root
  root=$(realpath -- "$REPOSITORY")
  INSIDE=${1#"$root"/}
  [[ $INSIDE != "$1" ]]
}

is_sent() { git -C "$REPOSITORY" cat-file -e "$COMMIT:./$1" 2>/dev/null; }

# go_along FLAG: makes sure that the file of a flag is sent, and sets the flag to its path there. A file from outside of
# the repository is added as sent-along/FLAG/<its name>.
go_along() {
  local name=$1 value=${FLAGS[$1]:-} file form='' prefix blob
  [[ -n $value ]] || return 0
  file=$value
  [[ $name != config ]] || { file=${value%%:*}; form=${value:${#file}}; }
  found "$file" || misuse "--$name: there is no $file in $REPOSITORY, nor here"
  if inside "$FOUND"; then
    [[ $INSIDE =~ ^[^-:[:cntrl:]][^:[:cntrl:]]*$ ]] || misuse "--$name: '$INSIDE' is no name for a file that is sent"
    is_sent "$INSIDE" ||
      misuse "--$name: $INSIDE would not be sent, as git ignores it: add it to git, or move it out of $REPOSITORY"
    FLAGS[$name]=$INSIDE$form
    return
  fi
  file=${FOUND##*/}
  [[ $file =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
    misuse "--$name: '$file' can only go along under a name of letters, digits, _ . -"
  ! is_sent "sent-along/$name" || misuse "--$name: $REPOSITORY holds a sent-along/$name, which is where $file would go"
  prefix=$(git -C "$REPOSITORY" rev-parse --show-prefix)
  blob=$(git -C "$REPOSITORY" hash-object -w --no-filters -- "$FOUND") || fail "git cannot add $FOUND"
  # Paths in the index are relative to the top folder.
  in_index git -C "$REPOSITORY/$(git -C "$REPOSITORY" rev-parse --show-cdup)" update-index --add \
    --cacheinfo "100644,$blob,${prefix}sent-along/$name/$file"
  COMMIT=$(in_index git -C "$REPOSITORY" write-tree)
  SOURCE=${SOURCE%-with-*}-with-${COMMIT:0:12}
  FLAGS[$name]=sent-along/$name/$file$form
}

# go_not_along FLAG: refuses a flag's file that would be sent, because it holds keys.
go_not_along() {
  local value=${FLAGS[$1]:-}
  [[ -n $value && -f $value ]] || return 0
  if inside "$(realpath -- "$value")" && is_sent "$INSIDE"; then
    misuse "--$1: $INSIDE would be sent with the source code: move it out of $REPOSITORY, or into .gitignore"
  fi
}

# pack: sets ARCHIVE to a file with the source code. Call source_commit before.
pack() {
  scratch
  ARCHIVE=$SCRATCH/transfusion-$SOURCE.tar.gz
  [[ -e $ARCHIVE ]] || run git -C "$REPOSITORY" archive --format=tar.gz --output="$ARCHIVE" "$COMMIT"
}

# unpack_command FOLDER ARCHIVE EXTRA: sets REPLY to the shell command that unpacks and installs on a machine. It can be
# run again on all machines after it has failed on some. An ARCHIVE of '-' is standard input; EXTRA is the package's.
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
