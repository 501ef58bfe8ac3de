"""`setup.sh`: mistakes are found before anything is installed."""

import subprocess

import pytest

from tests.resnet.tiny import REPOSITORY


def setup(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", REPOSITORY / "setup.sh", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words, problem", [(["everything"], "unknown word 'everything'"), (["test", "test"], "one word")]
)
def test_mistakes(words, problem):
    ran = setup(*words)
    assert ran.returncode == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("setup.sh: ") and problem in line and "sh setup.sh [quickstart|test]" in line


def test_the_shell_accepts_it():
    assert subprocess.run(["sh", "-n", REPOSITORY / "setup.sh"]).returncode == 0
