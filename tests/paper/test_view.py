"""The changing lines of a sweep, as a terminal of some size has them on its screen."""

import io
import os
import re
import sys
from types import SimpleNamespace

import pytest

from paper import view
from paper.trial import Progress


class Trial:
    """What a view asks of a trial."""

    def __init__(self, name: str, progress: Progress | None, markers: int = 1):
        self.name, self.markers = name, [None] * markers
        self.progress = lambda: progress

    def __str__(self) -> str:
        return self.name

    def finished(self) -> int:
        return 0


class Terminal(io.StringIO):
    """A screen without an upper end, that wraps lines anew when its width changes."""

    def isatty(self) -> bool:
        return True

    def rows(self, columns: int) -> list[str]:
        rows: list[str] = []
        place = 0
        for up, text, rest in re.findall(r"\x1b\[(\d+)F|\x1b\[K([^\n\x1b]*)\n|(\x1b\[J)", self.getvalue()):
            if up:
                place -= int(up)
                assert place >= 0, "lines are taken away that were never drawn"
            elif rest:
                del rows[place:]
            else:
                new = [text[at : at + columns] for at in range(0, max(len(text), 1), columns)]
                rows[place : place + len(new)] = new
                place += len(new)
        return rows


NAME = "cifar10-resnet110-scale_0.333-decay_1E-4-spectral+frob"
HALF = Progress(100.0, 200.0, "epochs", 1 / 60)


@pytest.fixture
def terminal(monkeypatch):
    """Return the screen, and what sets its size."""
    screen = Terminal()
    monkeypatch.setattr(view, "sys", SimpleNamespace(stderr=screen, stdout=screen, maxsize=sys.maxsize))
    monkeypatch.setattr(view, "_DRAW", 0)

    def resize(columns: int, rows: int = 24) -> None:
        monkeypatch.setattr(view.shutil, "get_terminal_size", lambda: os.terminal_size((columns, rows)))

    resize(80)
    return screen, resize


HEAD = "12 of 168 finished, 2 running, 1 failed; 12.3 % of the work, 12 min, about 90 min left"
TRIALS = [Trial(f"{NAME} 1", HALF), Trial(f"{NAME}+square 2", None), Trial("cifar10-resnet20 1", HALF, 3)]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_are_not_wrapped_and_keep_what_matters(terminal, columns):
    screen, resize = terminal
    resize(columns)
    view.View().show(lambda: HEAD, TRIALS)
    rows = screen.rows(columns)
    assert len(rows) == (4 if columns > len(HEAD) else 5) and max(map(len, rows)) < columns
    assert "".join(rows[:-3]).split()[-3:] == HEAD.split()[-3:]
    first, second, third = rows[-3:]
    assert "100 of 200 epochs" in first and first.endswith("100 min left")
    assert second.split("  ")[1].endswith("2") and second.endswith("starting")
    assert "(1 of 3)" in third
    assert (NAME in first, "epochs/min" in first) == (columns == 120, columns == 120)
    assert first.index("100 of") == third.index("100 of") == second.index("starting")


def test_a_drawing_takes_the_place_of_the_one_before(terminal):
    screen, _ = terminal
    shown = view.View()
    shown.show(lambda: "first", TRIALS)
    shown.say("stays")
    shown.show(lambda: "second", TRIALS[:1])
    shown.show(lambda: "third", [])
    assert screen.rows(80) == ["stays", "third"]
    shown.close()
    assert screen.rows(80) == ["stays"]


@pytest.mark.parametrize(("before", "after"), [(120, 60), (60, 120), (80, 20)])
def test_nothing_is_left_behind_when_the_width_changes(terminal, before, after):
    """The rows of the earlier drawing are those that it has after the change, in which the screen is read."""
    screen, resize = terminal
    resize(before)
    shown = view.View()
    shown.say("stays")
    shown.show(lambda: HEAD, TRIALS)
    resize(after)
    shown.show(lambda: "later", [])
    assert screen.rows(after) == ["stays", "later"]


def test_a_low_terminal_shows_some_of_the_trials(terminal):
    screen, resize = terminal
    resize(120, 8)
    view.View().show(lambda: "head", [Trial(f"trial {n}", HALF) for n in range(9)])
    rows = screen.rows(120)
    assert len(rows) == 5 and rows[-1] == "  ... and 6 more"


def test_what_is_printed_into_a_file_is_a_line_for_each_event(terminal, monkeypatch, capsys):
    """Even if errors go to a terminal: `python -m paper run ... > log` and `| tee log` keep what stays."""
    screen, _ = terminal
    monkeypatch.setattr(view.sys, "stdout", io.StringIO())
    shown = view.View()
    shown.say("stays")
    shown.show(lambda: "first", TRIALS)
    assert capsys.readouterr().out == "stays\n" and screen.getvalue() == ""
