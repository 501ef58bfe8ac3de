# Sourced by every generated script, which sets ROOT (the repository) and enters the folder of its study before.
#
# The arguments of a script are appended to each of its training commands, which run in that folder. From the
# environment:
#   PYTHON   the interpreter (default: of the active environment, else of the repository's .venv, else python3)
#   GPU      the device the programs get
#   RESULTS  where the results go; a relative path starts at the folder of the study, too
# For example, to try a script quickly: RESULTS=/tmp/try ./SCRIPT.sh --epochs 1 --data digits (compression: --epoch 1
# --dataset digits)

# A shortened run among the paper's results would count as finished ever after.
if (($#)) && [[ -z ${RESULTS:-} ]]; then
  echo "${0##*/}: error: extra flags change the runs, so say with RESULTS=DIR where their results belong" >&2
  exit 2
fi

for environment in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}" "$ROOT/.venv"; do
  if [[ -z ${PYTHON:-} && -n $environment && -x $environment/bin/python ]]; then
    PYTHON=$environment/bin/python
  fi
done
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 # the log is a pipe, and should show what happens when it happens

# run DONE PROGRAM ARGUMENT...: run the program unless the file DONE exists, and log beside it; stop if it fails.
run() {
  local marker=$1 folder=${1%/*} status=0
  shift
  if [[ -e $marker ]]; then
    echo "finished already: $folder"
    return
  fi
  echo "running: $folder"
  mkdir -p -- "$folder"
  # tee -i: on an interrupt the program may still write
  "$PYTHON" "$@" 2>&1 | tee -a -i -- "$folder/log.txt" || status=$?
  if ((status == 0)) && [[ ! -e $marker ]]; then
    echo "${0##*/}: error: $1 ended without writing $marker" >&2
    exit 1
  elif ((status)); then
    echo "${0##*/}: error: $1 failed with status $status, see $folder/log.txt" >&2
    exit "$status"
  fi
}
