"""`python -m paper`: its commands, and mistakes."""

import runpy
import subprocess
import sys

import pytest

from lab import cli
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


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_module_of_a_command_is_that_command(monkeypatch, name):
    started = []
    monkeypatch.setattr(cli, "launch", lambda main, prog: started.append((main.__name__, prog)))
    runpy.run_module(f"paper.{COMMANDS[name] or name}", run_name="__main__")
    assert started == [("main", f"python -m paper {name}")]


def test_an_unknown_command():
    done = paper("stauts")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "no command stauts" in line and line.endswith("did you mean status?")
