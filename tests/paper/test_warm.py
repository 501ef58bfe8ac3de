"""The interpreter that has imported PyTorch: programs run in it as in any other."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paper import warm

PROGRAM = """
import os, sys, time
import beside
print(sys.argv[1:], os.getcwd(), os.environ.get("COLOR"), os.environ.get("OMP_NUM_THREADS"), __name__, beside.HERE)
print(input(), "torch" in sys.modules, file=sys.stderr)
if "fail" in sys.argv:
    raise RuntimeError("no")
if "wait" in sys.argv:
    try:
        print("waiting", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
sys.exit({"three": 3, "words": "last words"}.get(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def python():
    with warm.interpreter(1) as path:
        yield path


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("HERE = 5\n")
    return tmp_path


def run(python: str, home: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLOR": "räd", "OMP_NUM_THREADS": "1"}
    argv = [python, "program.py", *words]
    return subprocess.run(argv, cwd=home, env=environment, input="typed\n", capture_output=True, text=True)


@pytest.mark.parametrize("words", [["a b", ""], ["three"], ["words"]])
def test_a_program_runs_as_in_python_itself(python, home, words):
    done, expected = (run(each, home, *words) for each in (python, sys.executable))
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert done.stderr == expected.stderr.replace("False", "True")  # which has not imported PyTorch


def test_an_error_has_its_traceback(python, home):
    done = run(python, home, "fail")
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: no\n") and "Traceback" in done.stderr


def test_an_interrupt_reaches_the_program(python, home):
    process = subprocess.Popen(
        [python, "program.py", "wait"], cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdin.write("typed\n")
    process.stdin.flush()
    while process.stdout.readline() != "waiting\n":
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    process.stdin.close()
    process.stdout.close()


def test_it_ends_with_its_context(tmp_path):
    with warm.interpreter(1) as path:
        assert os.access(path, os.X_OK)
    assert not os.path.exists(path)
