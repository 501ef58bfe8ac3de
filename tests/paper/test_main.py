"""`python -m paper`: its commands, and mistakes."""

import subprocess
import sys

import pytest

from paper.__main__ import COMMANDS
from tests.harness import REPOSITORY


def paper(*argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "paper", *argv]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("argv", [(), ("--help",), *((name, "--help") for name in COMMANDS)])
def test_help(argv):
    done = paper(*argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m paper {argv[0] if argv and argv[0] in COMMANDS else ''}".strip() in done.stdout


def test_an_unknown_command():
    done = paper("stauts")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "no command stauts" in line and line.endswith("did you mean status?")
