"""One run in one folder: whether it may begin, where it goes on, what it writes, and what it leaves."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lab import checkpoint, lock
from lab.cli import Terminated, UserError
from lab.devices import Computing
from lab.earlier import is_in
from lab.run import Run
from tests.harness import REPOSITORY, environment
from tests.lab.summaries import summary

FILES = ("model.th", "best.th")
ALONE = Computing(torch.device("cpu"), None, False, torch.contiguous_format)


def arguments(**values):
    fields = {"resume": "", "overwrite": False, "lr": 0.1, "epochs": 3, "device": "cpu", **values}
    return dataclasses.make_dataclass("Arguments", fields, frozen=True)(**fields)


def open_run(folder: Path, options: dict | None = None, **values) -> Run:
    return Run.open(folder, arguments(**values), ALONE, FILES, **(options or {}))


def leave_run(folder: Path, *names: str, **values) -> dict[str, bytes]:
    """Let a run begin in `folder`, and leave files of it; return what is there then."""
    with open_run(folder, **values) as run:
        run.begin()
    for name in names:
        (folder / name).write_bytes(name.encode())
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("events.")}


# Where it begins


def test_a_folder_is_touched_when_the_run_begins(tmp_path):
    with open_run(tmp_path / "a" / "b"):
        pass
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with open_run(tmp_path / "a" / "b", lr=0.5) as run:
        run.begin()
        assert names(run.folder) == {"args.json", ".lock"}
    assert names(tmp_path / "a" / "b") == {"args.json"}
    assert json.loads((tmp_path / "a" / "b" / "args.json").read_text())["lr"] == 0.5


def test_which_checkpoint_is_continued(tmp_path):
    def found(**values):
        with open_run(tmp_path, **values) as run:
            return run.source

    assert found() is None and found(resume="auto") is None
    leave_run(tmp_path, "model.th")
    before = content(tmp_path)
    assert found(resume="auto") == tmp_path / "model.th"
    assert found(resume="auto", device="0") == tmp_path / "model.th"  # another device computes the same
    assert found(overwrite=True) is None
    assert found(resume=str(tmp_path / "model.th"), epochs=5) == tmp_path / "model.th"
    for values, message in [
        ({"resume": "auto", "lr": 0.2}, "lr 0.1, not 0.2"),
        ({"resume": "auto", "epochs": 5}, "epochs 3, not 5"),
        ({"resume": str(tmp_path / "model.th"), "lr": 0.2}, "lr 0.1, not 0.2"),
        ({}, "already holds a run"),
        ({"resume": "nothing"}, "--resume nothing: no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            found(**values)
    assert content(tmp_path) == before
    (tmp_path / "args.json").unlink()
    with pytest.raises(UserError, match="no args.json that says which; use another folder or --overwrite"):
        found(resume="auto")
    leave_run(tmp_path, overwrite=True, resume="")
    old = json.loads((tmp_path / "args.json").read_text())
    (tmp_path / "args.json").write_text(json.dumps({**old, "resume": "b.th"}))
    with pytest.raises(UserError, match="began with b.th"):
        found(resume="auto")


@pytest.mark.parametrize("text", ["[]", "3", '{"lr": 0.1', "[" * 100_000, "\xff", '[["lr", 0.1]]'])
def test_arguments_that_are_none(tmp_path, text):
    leave_run(tmp_path, "model.th")
    (tmp_path / "args.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="args.json cannot be read; use another folder or --overwrite"):
        open_run(tmp_path, resume="auto")


def test_a_finished_run_is_finished(tmp_path, capsys):
    before = leave_run(tmp_path, "model.th", "results.json")
    with pytest.raises(SystemExit) as stop:
        open_run(tmp_path, resume="auto")
    assert not stop.value.code and "holds this run, finished" in capsys.readouterr().out
    assert content(tmp_path) == before
    with open_run(tmp_path, {"free": ("epochs",)}, resume="auto", epochs=5) as run:
        assert content(tmp_path) != before  # the lock
        assert run.source == tmp_path / "model.th"
        run.begin()
        assert "results.json" not in names(tmp_path) and "model.th" in names(tmp_path)


def test_only_overwrite_deletes_and_only_when_the_run_begins(tmp_path):
    before = leave_run(tmp_path, "model.th", "best.th", "results.json", "notes.txt")
    with pytest.raises(ZeroDivisionError), open_run(tmp_path, overwrite=True):
        raise ZeroDivisionError
    assert content(tmp_path) == before
    with open_run(tmp_path, overwrite=True) as run:
        run.begin()
    assert names(tmp_path) == {"args.json", "notes.txt"}


def test_a_run_without_checkpoint_begins_again_and_deletes_nothing(tmp_path):
    before = leave_run(tmp_path, "best.th")
    with open_run(tmp_path, resume="auto") as run:
        assert run.source is None
        run.begin()
    assert {name: content(tmp_path)[name] for name in before if name != "args.json"} == {
        name: value for name, value in before.items() if name != "args.json"
    }


def test_links_to_checkpoints(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere.th"
    leave_run(folder, "best.th")
    elsewhere.write_bytes(b"old")
    (folder / "model.th").symlink_to(elsewhere)
    before = content(folder)
    with open_run(folder, resume="auto") as run:
        assert run.source == folder / "model.th"
        run.begin()
        run.save({"model.th": {"epoch": 1}})
    assert before.keys() <= content(folder).keys() and (folder / "best.th").read_bytes() == b"best.th"
    assert (folder / "model.th").is_symlink() and checkpoint.load(elsewhere) == {"epoch": 1}
    elsewhere.unlink()
    with pytest.raises(UserError, match="link to .*elsewhere.th, which is not there"):
        open_run(folder, resume="auto")
    assert (folder / "best.th").exists()


def test_is_in_a_folder_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_in(tmp_path / "x", tmp_path / "." / "y" / "..")
    assert not is_in(tmp_path / "y" / "x", tmp_path) and not is_in(None, tmp_path)


# The lock


def test_two_runs_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as first:
        holder = f"process {os.getpid()} on "
        with pytest.raises(UserError, match=f"run is in use by {holder}"):
            open_run(folder, seed=1)
        first.begin()
        for values in ({}, {"resume": "auto"}, {"resume": "auto", "lr": 0.2}, {"overwrite": True}):
            with pytest.raises(UserError, match=holder):
                open_run(folder, **values)
        with open_run(folder, {"next_free": True}) as other:
            assert other.folder == tmp_path / "run.1"
    assert names(tmp_path) == {"run"}
    with open_run(folder, resume="auto"):
        pass


HOLDER = """
import dataclasses, sys, time, pathlib, torch
from lab.devices import Computing
from lab.run import Run
fields = dict(resume="auto", lr=0.1, epochs=3, overwrite=False, device="cpu")
args = dataclasses.make_dataclass("Arguments", fields)(**fields)
with Run.open(pathlib.Path(sys.argv[1]), args, Computing(torch.device("cpu"), None, False, None), ("model.th",)) as run:
    import os
    if os.fork():
        print("open", flush=True)
    time.sleep(100)
"""


def test_the_lock_is_freed_when_its_process_is_killed_though_a_child_lives_on(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(
        command, env=environment(""), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
            open_run(folder)
        process.kill()
        process.wait()
        with open_run(folder) as run:
            run.begin()
    finally:
        os.killpg(process.pid, 9)
        process.stdout.close()
    assert names(folder) == {"args.json"}


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks .*start no second run there"), open_run(tmp_path / "run") as run:
        run.begin()
    assert names(tmp_path / "run") == {"args.json"}


def test_a_run_that_began_in_spite_of_the_lock(tmp_path):
    for options in ({}, {"next_free": True}):
        folder = tmp_path / f"run{len(options)}"
        with pytest.raises(UserError, match="already holds a run|another run"), open_run(folder, options) as run:
            (folder / "args.json").write_text("{}")
            run.begin()
        assert (folder / "args.json").read_text() == "{}"


# What it writes


def test_the_checkpoint_to_continue_from_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, "save", lambda path, state: written.append((path.name, state)))
    with open_run(tmp_path) as run:
        run.begin()
        run.save({"model.th": 1, "best.th": 2, "other": 3})
    assert written == [("best.th", 2), ("other", 3), ("model.th", 1)]


def test_the_next_free_folder_is_named_in_the_arguments(tmp_path):
    leave_run(tmp_path / "run")
    args = arguments(out=tmp_path / "run")
    with Run.open(tmp_path / "run", args, ALONE, FILES, next_free=True) as run:
        run.begin()
    assert json.loads((tmp_path / "run.1" / "args.json").read_text())["out"] == str(tmp_path / "run.1")
    assert args.out == tmp_path / "run"


def test_the_next_free_folder_beside_the_current_one(tmp_path, monkeypatch):
    for name in ("run", "run.1"):
        leave_run(tmp_path / name)
    monkeypatch.chdir(tmp_path / "run")
    with open_run(Path("."), {"next_free": True}) as run:
        assert run.folder == tmp_path / "run.2"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_an_interrupt_says_how_to_go_on(tmp_path, kind):
    with pytest.raises(kind) as stop, open_run(tmp_path) as run:
        raise kind
    assert str(stop.value) == ""
    with pytest.raises(kind) as stop, open_run(tmp_path) as run:
        run.begin()
        raise kind
    assert str(stop.value) == (
        f"the same command with --resume auto goes on in {tmp_path}, from the beginning: there is no checkpoint yet"
    )
    with pytest.raises(kind) as stop, open_run(tmp_path, {"again": "-r"}, resume="auto") as run:
        run.begin()
        run.save({"model.th": 1})
        raise kind
    assert str(stop.value) == f"the same command goes on in {tmp_path}, from the last checkpoint"


def test_the_process_group_is_ended_whatever_happens(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(Computing, "close", lambda self: ended.append(True))
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "a"):
        raise ZeroDivisionError
    with pytest.raises(UserError):
        open_run(tmp_path / "a", resume="nothing")
    with open_run(tmp_path / "a") as run:
        run.begin()
        run.finish(summary(), {}, ["end"])
    assert len(ended) == 3


# What it restores


def saved(folder: Path, **values) -> Path:
    """Leave a run with a checkpoint of `values`."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with open_run(folder) as run:
        run.begin()
        state = checkpoint.training_state(model, optimizer, ALONE, **{"epoch": 2, "best_accuracy": 1.0, **values})
        run.save({"model.th": state})
    return folder / "model.th"


def restored(folder: Path, **values) -> dict:
    model = nn.Linear(3, 2)
    with open_run(folder, resume="auto", **values) as run:
        return run.restore(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


def test_restores(tmp_path):
    saved(tmp_path)
    state = restored(tmp_path)
    assert (state["epoch"], state["best_accuracy"]) == (2, 1.0)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epoch": 4}, "trained for 4 epochs already, --epochs is 3"),
        ({"epoch": -1}, "is damaged.*epoch is -1"),
        ({"epoch": "2"}, "is damaged.*epoch is '2'"),
        ({"epoch": True}, "is damaged.*epoch is True"),
        ({"best_accuracy": float("nan")}, "is damaged.*best_accuracy is nan"),
        ({"seconds": None}, "is damaged.*seconds is None"),
        ({"args": 3}, "is damaged"),
        ({"args": {"lr": 0.2}}, "of a run with lr 0.2, not 0.1"),
        ({"random": {}}, "is damaged"),
        ({"random": {"torch": 3}}, "is damaged"),
        ({"scaler": 3}, "is damaged"),
        ({"optimizer": None}, "is damaged"),
        ({"optimizer": {"param_groups": [{}]}}, "is damaged"),
        ({"optimizer": {"param_groups": [{"params": [0, 1]}], "state": {0: {"momentum_buffer": 3}}}}, "is damaged"),
        (
            {"optimizer": {"param_groups": [{"params": [0, 1]}], "state": {0: {"m": torch.ones(9)}}}},
            "another shape",
        ),
        (
            {
                "optimizer": {
                    "param_groups": [{"params": [0, 1]}],
                    "state": {1: {"m": torch.tensor([0, torch.inf])}},
                }
            },
            "not finite",
        ),
    ],
)
def test_states_that_no_run_leaves(tmp_path, values, message):
    path = saved(tmp_path)
    checkpoint.save(path, {**checkpoint.load(path), **values})
    before = content(tmp_path)
    with pytest.raises(UserError, match=message):
        restored(tmp_path)
    assert content(tmp_path) == before
