"""What a run leaves in its folder: events, results, figures, tables."""

import argparse
import json

import pytest

from lab.cli import UserError
from lab.record import Record, find_checkpoint, is_in, open_folder
from paper.figures import scalars

FILES = ("model.th",)


def arguments(**values) -> argparse.Namespace:
    return argparse.Namespace(**{"resume": "", "overwrite": False, "lr": 0.1, "device": "cpu", **values})


def test_only_the_main_process_writes(tmp_path, capsys):
    record = Record(tmp_path, is_main=False)
    record.scalars({"a": 1.0}, 0)
    record.line("text")
    record.results({})
    record.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_later_parts_hide_what_they_do_again(tmp_path):
    for first, values in ((0, [1, 2, 3, 9]), (3, [4, 5])):
        record = Record(tmp_path, is_main=True, first_epoch=first)
        for step, value in enumerate(values, first):
            record.scalars({"a": value}, step)
        record.close()
    assert scalars(tmp_path, "a") == ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    with pytest.raises(KeyError):
        scalars(tmp_path, "b")


def test_parts_within_a_second_are_read_in_order(tmp_path, monkeypatch):
    """Of event files of the same second, the number of the process decides."""
    for number, (first, pid) in enumerate(((0, 200), (1, 100), (2, 1000))):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        record = Record(tmp_path, is_main=True, first_epoch=first)
        record.scalars({"a": number}, first)
        record.scalars({"a": -1}, first + 1)
        record.close()
    assert scalars(tmp_path, "a") == ([0, 1, 2, 3], [0, 1, 2, -1])


def test_results_count_the_time_of_earlier_parts(tmp_path):
    record = Record(tmp_path, is_main=True, seconds=100.0)
    record.results({"accuracy": 1.5})
    record.close()
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["accuracy", "seconds", "torch", "python", "machine", "revision"]
    assert 100 <= results["seconds"] < 110


def test_a_folder_is_opened_anew_or_kept(tmp_path):
    folder = tmp_path / "a" / "b"
    open_folder(folder, arguments(), keep=False, files=FILES)
    for name in ("model.th", "results.json", "notes.txt", "events.out.tfevents.1"):
        (folder / name).touch()
    open_folder(folder, arguments(), keep=True, files=FILES)
    assert {path.name for path in folder.iterdir()} == {"args.json", "model.th", "notes.txt", "events.out.tfevents.1"}
    open_folder(folder, arguments(lr=0.2), keep=False, files=FILES)
    assert {path.name for path in folder.iterdir()} == {"args.json", "notes.txt"}
    assert json.loads((folder / "args.json").read_text())["lr"] == 0.2


def test_which_checkpoint_is_continued(tmp_path):
    def found(**values):
        return find_checkpoint(arguments(**values), tmp_path, "model.th", FILES)

    assert found() is None and found(resume="auto") is None
    open_folder(tmp_path, arguments(), keep=False, files=FILES)
    (tmp_path / "model.th").touch()
    assert found(resume="auto") == tmp_path / "model.th"
    assert found(resume="auto", device="0") == tmp_path / "model.th"  # another device computes the same
    assert found(overwrite=True) is None
    assert found(resume=str(tmp_path / "model.th"), lr=0.2) == tmp_path / "model.th"
    with pytest.raises(UserError, match="lr 0.1, not 0.2"):
        found(resume="auto", lr=0.2)
    with pytest.raises(UserError, match="already holds a run"):
        found()
    with pytest.raises(UserError, match="no such file"):
        found(resume="nothing")
    (tmp_path / "args.json").unlink()
    with pytest.raises(UserError, match="no args.json that says which; use another folder or --overwrite"):
        found(resume="auto")
    open_folder(tmp_path, arguments(resume="begin.th"), keep=False, files=FILES)
    with pytest.raises(UserError, match="began with begin.th"):
        found(resume="auto")


def test_is_in_a_folder_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_in(tmp_path / "x", tmp_path / "." / "y" / "..")
    assert not is_in(tmp_path / "y" / "x", tmp_path) and not is_in(None, tmp_path)
