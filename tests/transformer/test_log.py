"""The progress bar of a run."""

import argparse
import sys

import pytest
from fairseq import training
from fairseq.log import Log

from tests.transformer import tiny


class Screen:
    """Standard error as a terminal."""

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("flags", "totals"),
    [
        ("--max-epoch 3", (0, 15)),  # an epoch has five updates
        ("--max-epoch 3 --update-freq 2", (0, 9)),
        ("--max-epoch 0 --max-update 7", (0, 7)),
        ("--max-epoch 3 --max-update 7", (0, 7)),
        ("--max-epoch 0 --lr-scheduler fixed --fa 1 --lr-shrink 0.01", (0, None)),
    ],
)
def test_the_bar_is_that_of_the_run(data, tmp_path, monkeypatch, flags, totals):
    """From the updates that are made to all there will be, if that is known."""
    bars = []

    class Seen(Log):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append(self._bar)
            self.begun = self._bar.n, self._bar.total

        def close(self):
            assert self.begun == totals
            assert totals[1] in (None, self._bar.n)
            super().close()

    monkeypatch.setattr(training, "Log", Seen)
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    tiny.train(data, tmp_path / "run", f"{flags} --no-diagnostics")
    assert len(bars) == 1
    assert ("epoch 1/3" in screen.written) == ("--max-epoch 3" in flags)
    assert "loss=" in screen.written and "wps=" in screen.written  # from the first batches


def test_a_continued_bar_begins_where_the_run_is(data, tmp_path, monkeypatch):
    run = tiny.train(data, tmp_path / "run", "--max-epoch 2 --no-diagnostics")
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    tiny.train(data, run, "--max-epoch 3 --no-diagnostics")
    assert "10/15" in screen.written and " 0/15" not in screen.written


def test_lines_need_no_bar():
    record = argparse.Namespace(is_main=True, line=None)
    assert list(Log(record, "simple", 10).follow("abc", 1)) == ["a", "b", "c"]
