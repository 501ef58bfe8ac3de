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

# Of what has failed: the files that mark it, for the last line, and the trial of a setting whose other commands need it.
failed=()
broken=

# run DONE PROGRAM ARGUMENT...: run the program unless the file DONE exists, and log beside it. If it fails, the rest of
# the trial is left out and the script goes on with the next one. An interrupt ends the script.
run() {
  local marker=$1 folder=${1%/*} status=0 trial="${LOGDIR:-} ${TRIAL:-}"
  shift
  if [[ -e $marker ]]; then
    echo "finished already: $folder"
    return
  elif [[ $trial == "$broken" ]]; then
    echo "left out, as it needs the run that failed: $folder"
    return
  fi
  echo "running: $folder"
  mkdir -p -- "$folder"
  rm -f -- "$folder/failed"
  # tee -i: on an interrupt the program may still write
  "$PYTHON" "$@" 2>&1 | tee -a -i -- "$folder/log.txt" || status=$?
  if ((status > 128)); then
    exit "$status"
  elif ((status)) || [[ ! -e $marker ]]; then
    failed+=("$folder")
    broken=$trial
    if ((status)); then
      echo "${0##*/}: error: $1 failed with status $status, see $folder/log.txt" | tee -- "$folder/failed" >&2
    else
      echo "${0##*/}: error: $1 ended without writing $marker" | tee -- "$folder/failed" >&2
    fi
  fi
}

say_what_failed() {
  local status=$?
  if ((status == 0 && ${#failed[@]})); then
    echo "${0##*/}: error: ${#failed[@]} of its runs failed, and start again with it: ${failed[*]}" >&2
    exit 1
  fi
}
trap say_what_failed EXIT
