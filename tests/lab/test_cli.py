"""Command lines: exit statuses, one line for a mistake, numbers within bounds."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy
import pytest
import torch

from lab import cli
from lab.cli import Parser, RunError, UserError, launch, number


@pytest.fixture(autouse=True)
def _keep_warnings(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def raised(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "main, status, printed",
    [
        (lambda: None, 0, ""),
        (raised(UserError("two\n  lines")), 2, "prog: error: two lines\n"),
        (raised(RunError("no luck")), 1, "prog: error: no luck\n"),
        (raised(OSError(errno.ENOSPC, "", "a.th")), 1, "prog: error: cannot write a.th: the disk is full\n"),
        (raised(OSError(errno.EDQUOT, "")), 1, "prog: error: cannot write a file: the quota is used up\n"),
        (raised(KeyboardInterrupt()), 130, "prog: interrupted\n"),
        (raised(UserError("no caf\udce9 \x1b[31m\u202e")), 2, "prog: error: no caf\\xe9 \\x1b[31m\\u202e\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5), 143, "prog: terminated\n"),
        (lambda: open("x" * 5000), 2, f"prog: error: {'x' * 5000}: File name too long\n"),
        (lambda: open(__file__ + "/a"), 2, f"prog: error: {__file__}/a: Not a directory\n"),
        (lambda: open("/"), 2, "prog: error: /: Is a directory\n"),
        (lambda: os.stat(b"/nowhere\xe9"), 2, "prog: error: /nowhere\\xe9: No such file or directory\n"),
        (
            lambda: int(1e308 * 10),
            2,
            "prog: error: a number is out of range: cannot convert float infinity to integer\n",
        ),
        (lambda: range(10**90)[10**89 :].__len__(), 2, "prog: error: a number is out of range: Python int too large"),
        (lambda: torch.empty(2**40, 2**40), 2, "prog: error: a number is out of range: Storage size calculation"),
        (lambda: torch.empty(10**30), 2, "prog: error: a number is out of range: empty(): argument 'size'"),
        (lambda: torch.zeros(1).add_(torch.ones(1), alpha=-1e308), 2, "prog: error: a number is out of range: value"),
        (raised(MemoryError()), 2, "prog: error: out of memory: use a smaller network, batch or data set\n"),
        (lambda: torch.empty(10**15), 2, "prog: error: out of memory (4000000000000000 bytes were asked for): use"),
        (lambda: numpy.empty(10**15), 2, "prog: error: out of memory (7.11 PiB were asked for): use a smaller"),
        (
            raised(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")),
            2,
            "prog: error: out of memory (2.00 GiB",
        ),
        (lambda: json.loads("[" * 100_000), 2, "prog: error: a JSON file is nested too deep to be read\n"),
    ],
)
def test_exit_status(main, status, printed, capsys):
    with pytest.raises(SystemExit) as exit:
        launch(main, "prog")
    out, err = capsys.readouterr()
    assert exit.value.code == status and not out
    assert err.startswith(printed) and err.count("\n") == (printed > "")


@pytest.mark.parametrize("defect", [ZeroDivisionError(), RuntimeError("shapes differ"), RecursionError("in a call")])
def test_a_defect_of_ours_keeps_its_traceback(defect):
    with pytest.raises(type(defect)):
        launch(raised(defect), "prog")


@pytest.mark.parametrize(
    "text", ["[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1", "NCCL error in: x"]
)
def test_the_loss_of_another_process_is_one_line(text, capsys, monkeypatch):
    with pytest.raises(RuntimeError):
        launch(raised(RuntimeError(text)), "prog")  # of a single process that is a defect
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as exit:
        launch(raised(RuntimeError(text)), "prog")
    assert exit.value.code == 1 and "prog: error: another process of this run has ended" in capsys.readouterr().err


def warn():
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind\n this", stacklevel=1)


def test_warnings_are_one_line(capsys):
    with pytest.raises(SystemExit):
        launch(warn, "prog")
    assert capsys.readouterr().err == "prog: warning: mind this\n"


@pytest.mark.parametrize(
    "main, status, printed",
    [
        (raised(UserError("shared")), 2, ""),
        (warn, 0, ""),
        (raised(RunError("may be mine alone")), 1, "prog: error: may be mine alone\n"),
    ],
)
def test_one_process_of_several_prints_what_all_have_in_common(main, status, printed, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as exit:
        launch(main, "prog")
    assert exit.value.code == status
    assert capsys.readouterr().err == printed


ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(cli.__file__).parent.parent)}


def python(program: str, after: str = "") -> subprocess.CompletedProcess:
    """Run a program in Python from a shell, followed by a redirection."""
    command = ["bash", "-c", f'"$0" -c "$1" {after}; exit "${{PIPESTATUS[0]}}"', sys.executable, program]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "printed"), [("5 \u20ac", "5 \u20ac"), ("\\udce9", "\\udce9")], ids=["a sign", "a byte of a file name"]
)
def test_output_is_utf8_whatever_the_locale(text, printed):
    done = python(f"from lab.cli import launch; launch(lambda: print('{text}'), 'prog.py')")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{printed}\n", b"")


@pytest.mark.parametrize("lines", [3, 100_000])
def test_a_reader_that_has_had_enough_is_no_error(lines):
    program = f"from lab.cli import launch\ndef main():\n for n in range({lines}): print(n)\nlaunch(main, 'prog.py')"
    done = python(program, "| head -1")
    assert done.stderr == b"" and done.stdout == b"0\n" and done.returncode in ((0, 1) if lines == 3 else (1,))
    done = python(program, "2>&1 | true")
    assert done.stderr == b"" and done.returncode in (0, 1)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(closed):
    program = "from lab.cli import launch, UserError\ndef main():\n print('x', flush=True); raise UserError('y')\n"
    assert python(program + "launch(main, 'prog.py')", closed).returncode == 2


def test_interrupted_while_modules_are_imported():
    # Programs in the background may have inherited that interrupts are ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    done = python(heard + "import lab.cli, os, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)")
    assert (done.returncode, done.stderr) == (130, b"-c: interrupted\n")
    assert b"ZeroDivisionError" in python("import lab.cli; 1 / 0").stderr


def test_children_of_a_program_die_of_sigterm_as_usual():
    program = """
import multiprocessing, time, sys
from lab.cli import launch
def main():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start(); time.sleep(0.2); child.terminate(); child.join(); print(child.exitcode)
launch(main, "prog.py")"""
    done = python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"-15\n", b"")


def test_the_parser_takes_no_abbreviations_and_reports_mistakes():
    parser = Parser(prog="prog")
    parser.add_argument("--verbose", action="store_true")
    assert parser.parse_args(["--verbose"]).verbose
    with pytest.raises(UserError, match="--verb"):
        parser.parse_args(["--verb"])


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="prog")
    parser.add_argument("data", nargs="?")
    for flag in ("--epochs", "--batch_size", "--save-dir"):
        parser.add_argument(flag)
    parser.add_argument("--secret", help=argparse.SUPPRESS)
    return parser


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--epohcs", "; did you mean --epochs?"),
        ("--epoch=3", "; did you mean --epochs?"),
        ("--Batch-Size", "; did you mean --batch_size?"),
        ("--save_dirs", "; did you mean --save-dir?"),
        ("--secrets", ""),
        ("--colour", ""),
    ],
)
def test_a_flag_that_there_is_not(parser, typed, meant):
    with pytest.raises(UserError) as error:
        parser.parse_args(["here", typed, "3"])
    assert str(error.value) == f"unrecognized arguments: {typed}{meant}"


@pytest.mark.parametrize(
    "arguments", [["--batch-size", "3", "--save_dir=a_b"], ["--batch_size=3", "--save-dir", "a_b"]]
)
def test_dashes_and_underscores_are_alike_in_flags_alone(parser, arguments):
    args = parser.parse_args([*arguments, "--", "--save_it"])
    assert (args.batch_size, args.save_dir, args.data) == ("3", "a_b", "--save_it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save-dir", ""], "argument --save-dir: must not be empty"),
        (["--save_dir="], "argument --save-dir: must not be empty"),
        ([""], "an argument is empty"),
    ],
)
def test_empty_arguments(parser, arguments, message):
    with pytest.raises(UserError, match=message):
        parser.parse_args(arguments)


def test_help_still_works(capsys):
    with pytest.raises(SystemExit) as exit:
        launch(lambda: Parser(prog="prog", description="does things").parse_args(["--help"]), "prog")
    assert exit.value.code == 0 and "does things" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind, bounds, text, value",
    [
        (int, {"least": 0}, "0", 0),
        (int, {"least": 1, "most": 3}, "3", 3),
        (float, {"above": 0}, "1e-300", 1e-300),
        (float, {}, "-2.5", -2.5),
    ],
)
def test_numbers_within_bounds(kind, bounds, text, value):
    parsed = number(kind, **bounds)(text)
    assert parsed == value and type(parsed) is kind


@pytest.mark.parametrize(
    "kind, bounds, text, message",
    [
        (int, {"least": 0}, "-1", "must be an integer at least 0, not -1"),
        (int, {}, "1.5", "must be an integer, not 1.5"),
        (int, {"least": 1, "most": 3}, "9" * 400, "an integer at least 1 and at most 3"),
        (float, {"above": 0}, "0", "must be a number above 0, not 0"),
        (float, {"least": 0}, "nan", "must be a number at least 0, not nan"),
        (float, {"least": 0}, "inf", "must be a number at least 0, not inf"),
        (float, {}, "-inf", "must be a number, not -inf"),
        (float, {}, "one", "must be a number, not one"),
    ],
)
def test_numbers_out_of_bounds(kind, bounds, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        number(kind, **bounds)(text)
