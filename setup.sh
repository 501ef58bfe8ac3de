#!/bin/sh
# Install the project, write the experiment scripts, and optionally try it out:
#
#   sh setup.sh              install into the active virtual or conda environment, else into .venv; write the scripts
#   sh setup.sh quickstart   ... and train five small networks in about two minutes
#   sh setup.sh test         ... and run the tests
#
# Stops at the first failure, saying what failed. A second run takes seconds.
set -eu

fail() {
    echo "setup.sh: $1" >&2
    exit "${2:-1}"
}

mode=${1:-install}
case $mode in
install | quickstart | test) ;;
*) fail "unknown word '$mode'; use: sh setup.sh [quickstart|test]" 2 ;;
esac
[ $# -le 1 ] || fail "one word at most: sh setup.sh [quickstart|test]" 2

cd "$(dirname "$0")" || fail "cannot enter its own folder"

if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment=$VIRTUAL_ENV
elif [ -n "${CONDA_PREFIX:-}" ]; then
    environment=$CONDA_PREFIX
else
    environment=$PWD/.venv
    if [ ! -x "$environment/bin/python" ]; then
        command -v python3 >/dev/null || fail "python3 is not installed; Python 3.10 or later is needed"
        python3 -m venv "$environment" || fail "python3 -m venv failed; on Debian install the package python3-venv"
    fi
fi
python=$environment/bin/python
[ -x "$python" ] || fail "no python in the active environment $environment"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or later is needed"

# Installing again is only needed when these files, or the place of the project, have changed.
install() {
    stamp=$environment/.factorized-$1
    state=$(pwd && cksum pyproject.toml "$2")
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ]; then
        echo "installing $2 into $environment"
        shift 2
        "$python" -m pip install --quiet --disable-pip-version-check "$@" || fail "pip install $* failed"
        echo "$state" >"$stamp"
    fi
}
install project requirements.txt -r requirements.txt -e .
[ "$mode" != test ] || install tests requirements-test.txt -r requirements-test.txt

"$python" -m paper.scripts || fail "writing the experiment scripts failed"

case $mode in
quickstart)
    cd pytorch_resnet_cifar10
    "$python" quickstart.py || fail "the quickstart failed"
    ;;
test)
    "$python" -m pytest || fail "the tests failed"
    ;;
install)
    echo "ready. Activate the environment with: . '$environment/bin/activate'"
    ;;
esac
