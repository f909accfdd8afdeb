#!/usr/bin/env bash
# Stands in for gcloud, xpk, kubectl, Slurm's programs, ssh and what workers have, under the name it is called by. $FAKE
# is a folder: calls (one a line, words ended by \x1f), fails/<part of a call> (how often it fails), queue/<name> (states
# of a queued resource, one per look; the last stays), lives/<n> (the next ones to be created), training (what the n-th
# attempt of a machine does: sleep, done, crash, mistake), shape (slices, workers, reachable workers, state of the slices),
# answers/<program> (what it prints), cluster (the name of one), machines/<slice>-<worker> (home folders).
program=${0##*/} call="${0##*/} $*"
[[ $program == hostname ]] && echo "${FAKE_HOST:-laptop}" && exit
{ printf '%s\x1f' "$program" "$@"; echo; } >>"$FAKE/calls"
for file in "$FAKE"/fails/*; do
  [[ -e $file && $call == *"${file##*/}"* ]] || continue
  read -r count <"$file"
  ((count)) || continue
  echo $((count - 1)) >"$file"
  echo "ERROR: ${file##*/}" >&2
  exit 1
done
[[ ! -e $FAKE/answers/$program ]] || cat "$FAKE/answers/$program"
slices=1 workers=1 reached=1 state=READY
[[ ! -e $FAKE/shape ]] || read -r slices workers reached state <"$FAKE/shape"

# option NAME: sets REPLY to its value in the call, or to 0.
option() {
  local word
  REPLY=0
  for word in "${words[@]}"; do [[ $word != "--$1="* ]] || REPLY=${word#*=}; done
}

# machines: sets HOMES to the home folders of those that the call means.
machines() {
  local i j node
  HOMES=()
  option node; node=$REPLY
  option worker
  for ((i = 0; i < slices; i++)); do
    for ((j = 0; j < reached; j++)); do
      [[ ($node == all || $node == "$i") && ($REPLY == all || $REPLY == "$j") ]] || continue
      mkdir -p "$FAKE/machines/$i-$j"
      HOMES+=("$FAKE/machines/$i-$j")
    done
  done
}

on_machine() { (cd "$1" && HOME=$1 FAKE_HOST=${1##*/} bash -c "$2"); }

queued() {
  local file name=$2 states
  case $1 in
    list)
      for file in "$FAKE"/queue/*; do
        [[ -e $file ]] || continue
        mapfile -t states <"$file"
        printf '%s\t%s\n' "${file##*/}" "${states[0]}"
        ((${#states[@]} == 1)) || printf '%s\n' "${states[@]:1}" >"$file"
      done
      ;;
    create)
      mkdir -p "$FAKE/queue"
      echo ACTIVE >"$FAKE/queue/$name"
      for file in "$FAKE"/lives/*; do [[ ! -e $file ]] || { mv "$file" "$FAKE/queue/$name"; break; }; done
      ;;
    delete)
      for file in "$FAKE"/machines/*/transfusion/*/pid; do [[ ! -e $file ]] || kill -KILL -- "-$(<"$file")" 2>/dev/null; done
      rm -rf "$FAKE/machines" "$FAKE/queue/$name"
      ;;
    scp)
      machines
      for file in "${HOMES[@]}"; do cp "$name" "$file/${3#*:}"; done
      ;;
    ssh)
      local code=0
      machines
      option command
      for file in "${HOMES[@]}"; do on_machine "$file" "$REPLY" || code=$?; done
      exit "$code"
      ;;
  esac
}

nodes() {
  local i
  for ((i = 0; i < slices; i++)); do printf '%s\t%s\t%s\n' "run$( ((slices == 1)) || echo "-slice-$i")" "$state" "$workers"; done
  printf 'run-other\tCREATING\t8\n'
}

words=("$@")
case $call in
  "gcloud compute tpus queued-resources "* | "gcloud alpha compute tpus queued-resources "*)
    [[ $2 != compute ]] || shift
    queued "$4" "${@:5}"
    ;;
  "gcloud compute tpus tpu-vm list "*) nodes ;;
  "gcloud container clusters list "*) printf 'other\tus-east5\tERROR\n'; [[ ! -e $FAKE/cluster ]] || printf '%s\tus-central2\tRUNNING\n' "$(<"$FAKE/cluster")" ;;
  "xpk cluster create "*) option cluster; echo "$REPLY" >"$FAKE/cluster" ;;
  "xpk cluster delete "*) rm "$FAKE/cluster" ;;
  "xpk workload create "*) option workload; mkdir -p "$FAKE/answers"; echo "$REPLY " >"$FAKE/answers/kubectl"; option script-dir; ls "$REPLY" >"$FAKE/sent" ;;
  "xpk workload delete "*) rm "$FAKE/answers/kubectl" ;;
  "ssh "*) mkdir -p "$FAKE/machines/login"; on_machine "$FAKE/machines/login" "$2" ;;
  "tail "*) PATH=/usr/bin:/bin tail "${@/-F/-q}" ;; # to the end of the file, where -F would wait for more
  "scancel --signal="*) kill -TERM "$(<"$FAKE/step")" ;;
  "srun "*)
    while [[ $1 == -* ]]; do shift; done
    "$@" &
    echo $! >"$FAKE/step"
    wait $!
    ;;
  "uv venv "*) # a training that acts as told, and leaves its environment and its arguments
    python=${!#}/bin/python
    mkdir -p "${python%/*}"
    cat >"$python" <<'END'
#!/usr/bin/env bash
trap 'kill $! 2>/dev/null; exit 0' TERM
echo "$JAX_PLATFORMS $LIBTPU_INIT_ARGS $*" >>"$FAKE/trained-$FAKE_HOST"
mapfile -t attempts <"$FAKE/trained-$FAKE_HOST"
mapfile -t acts <"$FAKE/training"
case ${acts[${#attempts[@]} - 1]} in
  crash) echo "RuntimeError: out of luck"; exit 1 ;;
  mistake) exit 2 ;;
  sleep) sleep 60 & wait ;;
esac
END
    chmod +x "$python"
    ;;
esac
