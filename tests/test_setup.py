"""`setup.sh`: mistakes are found before anything is installed, and what follows `test` goes to pytest."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import REPOSITORY


def setup(*words: str, script: Path = REPOSITORY / "setup.sh", **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", script, *words], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


@pytest.mark.parametrize(
    "words, problem",
    [(["everything"], "unknown word 'everything'"), (["quickstart", "now"], "quickstart takes no arguments")],
)
def test_mistakes(words, problem):
    ran = setup(*words)
    assert ran.returncode == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert (
        line.startswith("setup.sh: ") and problem in line and "sh setup.sh [quickstart | docs | test [ARG...]]" in line
    )


PYTHON = """#!/bin/sh
case "$*" in
"-m pip --version") [ ! -e "$0.broken" ] ;;
-c*) ;;
*) echo "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout whose environment has a stand-in for Python, which prints what it is asked to run."""
    for name in ("setup.sh", "pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    write_python(tmp_path / ".venv")
    return tmp_path


def write_python(environment: Path) -> None:
    (environment / "bin").mkdir(parents=True, exist_ok=True)
    (environment / "bin" / "python").write_text(PYTHON)
    (environment / "bin" / "python").chmod(0o755)


def test_what_follows_test_goes_to_pytest(checkout):
    ran = setup("test", "tests/resnet", "-k", "a b", script=checkout / "setup.sh", VIRTUAL_ENV="", CONDA_PREFIX="")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-2:] == ["-m paper scripts --quiet", "-m pytest tests/resnet -k a b"]


def test_documentation(checkout):
    ran = setup("docs", script=checkout / "setup.sh", VIRTUAL_ENV="", CONDA_PREFIX="")
    assert ran.returncode == 0, ran.stderr
    assert any("-e .[docs]" in line for line in ran.stdout.splitlines())
    assert ran.stdout.splitlines()[-2] == "-m mkdocs build --strict"


def test_all_tests_come_after_the_checks(checkout):
    ran = setup("test", script=checkout / "setup.sh", VIRTUAL_ENV="", CONDA_PREFIX="")
    assert [line.split()[1] for line in ran.stdout.splitlines()[-4:]] == ["ruff", "ruff", "mypy", "pytest"]


def test_an_unfinished_environment_is_made_again(checkout):
    """An interrupted call leaves an environment without pip."""
    (checkout / ".venv" / "bin" / "python.broken").touch()
    (checkout / "bin").mkdir()
    made = checkout / "bin" / "python3"
    made.write_text(f'#!/bin/sh\necho "python3 $@"\nrm "{checkout}/.venv/bin/python.broken"\n')
    made.chmod(0o755)
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    ran = setup(script=checkout / "setup.sh", VIRTUAL_ENV="", CONDA_PREFIX="", PATH=path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == f"python3 -m venv --clear {checkout}/.venv"


def test_the_shell_accepts_it():
    assert subprocess.run(["sh", "-n", REPOSITORY / "setup.sh"]).returncode == 0
