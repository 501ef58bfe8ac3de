"""What a run leaves in its folder: events, results, figures, tables."""

import json
import subprocess

import pytest

from lab.record import Record, revision
from tests.harness import HEAD, events
from tests.lab.summaries import summary


def test_only_the_main_process_writes(tmp_path, capsys):
    record = Record(tmp_path, is_main=False)
    record.scalars({"a": 1.0}, 0)
    record.line("text")
    record.results(summary(), {})
    record.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_later_parts_hide_what_they_do_again(tmp_path):
    for first, values in ((0, [1, 2, 3, 9]), (3, [4, 5])):
        record = Record(tmp_path, is_main=True, first_epoch=first)
        for step, value in enumerate(values, first):
            record.scalars({"a": value}, step)
        record.close()
    assert events(tmp_path) == {"a": ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5])}


def test_parts_within_a_second_are_read_in_order(tmp_path, monkeypatch):
    """Of event files of the same second, the number of the process decides."""
    for number, (first, pid) in enumerate(((0, 200), (1, 100), (2, 1000))):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        record = Record(tmp_path, is_main=True, first_epoch=first)
        record.scalars({"a": number}, first)
        record.scalars({"a": -1}, first + 1)
        record.close()
    assert events(tmp_path)["a"] == ([0, 1, 2, 3], [0, 1, 2, -1])


def test_results_begin_alike_and_count_the_time_of_earlier_parts(tmp_path):
    record = Record(tmp_path, is_main=True, seconds=100.0)
    record.results(summary(), {"accuracy": 1.5})
    record.close()
    results = json.loads((tmp_path / "results.json").read_text())
    assert tuple(results) == (*HEAD, "accuracy", "torch", "python")
    assert 100 <= results["seconds"] < 110 and results["seconds per epoch"] == pytest.approx(25, abs=2.5)
    assert results["ratio"] == 0.5 and results["versions"]["torch"] == results["torch"]
    assert results["peak memory"] > 2**20


def test_events_of_a_beginning_that_is_made_again_are_hidden(tmp_path):
    for values in ([1, 2], [3]):
        record = Record(tmp_path, is_main=True)
        for step, value in enumerate(values):
            record.scalars({"a": value}, step)
        record.close()
    assert events(tmp_path)["a"] == ([0], [3])


def git(folder, *command: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *author, *command], check=True, capture_output=True)


def test_the_revision_is_that_of_the_checkout_itself(tmp_path):
    assert revision(tmp_path) is None
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "x")
    (tmp_path / "inside").mkdir()
    assert revision(tmp_path) and revision(tmp_path / "inside") is None
    (tmp_path / "new").touch()
    git(tmp_path, "add", "new")
    assert revision(tmp_path).endswith("-dirty")


def test_progress_is_told_at_most_once_a_second_until_the_results_are_there(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    record = Record(tmp_path, is_main=True)
    path = tmp_path / "progress.json"
    told = []
    for clock[0], done in ((100.0, 50), (100.9, 51), (104.0, 60), (110.0, 75)):
        record.progress(done, 200, "epochs")
        told.append(json.loads(path.read_text()))
    assert told[0] == told[1] == {"done": 50, "total": 200, "unit": "epochs", "rate": 0.0}
    # The 50 epochs of an earlier part do not count: 10 in 4 s, then 25 in 10 s.
    assert [(state["done"], state["rate"]) for state in told[2:]] == [(60, 2.5), (75, 2.5)]
    record.results(summary(), {})
    record.close()
    assert not path.exists()
