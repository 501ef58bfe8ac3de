#!/bin/sh
# Prepare Multi30k German-English for train.py; --help lists the options. The interpreter is PYTHON if that is set, else
# that of the active environment, else of the repository's .venv, else python3.
here=$(dirname -- "$0")
own=${VIRTUAL_ENV:-${CONDA_PREFIX:-$here/../../.venv}}/bin/python
[ -x "$own" ] || own=python3
exec "${PYTHON:-$own}" "$here/prepare.py" multi30k "$@"
