"""Command lines: exit statuses, one line for a mistake, numbers within bounds."""

import argparse
import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lab import cli
from lab.cli import Parser, RunError, UserError, number, run


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
    ],
)
def test_exit_status(main, status, printed, capsys):
    with pytest.raises(SystemExit) as exit:
        run(main, "prog")
    assert exit.value.code == status
    assert capsys.readouterr() == ("", printed)


@pytest.mark.parametrize("defect", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "", "a.th")])
def test_a_defect_of_ours_keeps_its_traceback(defect):
    with pytest.raises(type(defect)):
        run(raised(defect), "prog")


def warn():
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind\n this", stacklevel=1)


def test_warnings_are_one_line(capsys):
    with pytest.raises(SystemExit):
        run(warn, "prog")
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
        run(main, "prog")
    assert exit.value.code == status
    assert capsys.readouterr().err == printed


def test_output_is_utf8_whatever_the_locale():
    program = "from lab.cli import run; run(lambda: print('5 \u20ac'), 'prog.py')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "5 \u20ac\n", b"")


def test_the_parser_takes_no_abbreviations_and_reports_mistakes():
    parser = Parser(prog="prog")
    parser.add_argument("--verbose", action="store_true")
    assert parser.parse_args(["--verbose"]).verbose
    with pytest.raises(UserError, match="--verb"):
        parser.parse_args(["--verb"])


def test_help_still_works(capsys):
    with pytest.raises(SystemExit) as exit:
        run(lambda: Parser(prog="prog", description="does things").parse_args(["--help"]), "prog")
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
