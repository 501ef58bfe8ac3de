#!/bin/sh
# Install the project, write the experiment scripts, and optionally try it out:
#
#   sh setup.sh                  install into the active virtual or conda environment, else into .venv; write the scripts
#   sh setup.sh quickstart       ... and see in about two minutes what the methods do
#   sh setup.sh test             ... and check the code and run the tests
#   sh setup.sh test ARG...      ... and run some of the tests: the arguments go to pytest
#   sh setup.sh docs             ... and build the documentation into site/
#
# Stops at the first failure, saying what failed. A second run takes seconds.
set -eu

fail() {
    echo "setup.sh: $1" >&2
    exit "${2:-1}"
}

usage="use: sh setup.sh [quickstart | docs | test [ARG...]]"
mode=${1:-install}
case $mode in
install | quickstart | docs) [ $# -le 1 ] || fail "$mode takes no arguments; $usage" 2 ;;
test) shift ;;
*) fail "unknown word '$mode'; $usage" 2 ;;
esac

cd "$(dirname "$0")" || fail "cannot enter its own folder"

if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment=$VIRTUAL_ENV
elif [ -n "${CONDA_PREFIX:-}" ]; then
    environment=$CONDA_PREFIX
else
    environment=$PWD/.venv
    # Without pip it is what an interrupted call has left.
    if ! "$environment/bin/python" -m pip --version >/dev/null 2>&1; then
        command -v python3 >/dev/null || fail "python3 is not installed; Python 3.10 or later is needed"
        python3 -m venv --clear "$environment" || fail "python3 -m venv failed; on Debian install the package python3-venv"
    fi
fi
python=$environment/bin/python
[ -x "$python" ] || fail "no python in the active environment $environment"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or later is needed"

# Installing again is only needed when these files, or the place of the project, have changed.
install() {
    stamp=$environment/.factorized-$1
    state=$(pwd && cksum pyproject.toml requirements.txt)
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ]; then
        echo "installing the $1 into $environment"
        shift
        "$python" -m pip install --quiet --disable-pip-version-check "$@" || fail "pip install $* failed"
        echo "$state" >"$stamp"
    fi
}
install project -r requirements.txt
[ "$mode" != test ] || install tests -e '.[dev]'
[ "$mode" != docs ] || install documentation -e '.[docs]'

"$python" -m paper scripts --quiet || fail "writing the experiment scripts failed"

case $mode in
quickstart)
    "$python" -m paper quickstart || fail "the quickstart failed"
    ;;
docs)
    NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict || fail "mkdocs build failed"
    echo "the documentation begins at site/index.html; \"$python\" -m mkdocs serve shows it in a browser"
    ;;
test)
    if [ $# -eq 0 ]; then
        "$python" -m ruff check . || fail "ruff check failed"
        "$python" -m ruff format --check . || fail "ruff format --check failed"
        "$python" -m mypy || fail "mypy failed"
    fi
    "$python" -m pytest "$@" || fail "the tests failed"
    ;;
install)
    echo "ready. Activate the environment with: . '$environment/bin/activate'"
    ;;
esac
