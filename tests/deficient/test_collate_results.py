"""Collation of runs: what an entry holds, and folders that hold none."""

import json
import os
import shutil
import stat
from pathlib import Path

import collate_results
import pytest
from deficient.networks import Config, count

from lab import checkpoint
from lab.cli import UserError


def test_runs_are_collected(study, tmp_path, capsys):
    runs = study.folder / "results"
    study.run("teacher", "--conv", "Conv", "--target-ratio", 0.3, "--nocrswd", "-t", runs / "a" / "1")
    study.run("student", "--conv", "Sep", "-t", runs / "a" / "1", "-s", runs / "b", "--epochs", 1)
    (runs / "notes.txt").write_text("not a run")
    out = tmp_path / "collated.json"
    capsys.readouterr()
    collate_results.main([str(runs), "--out", str(out)])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2
    entries = json.loads(out.read_text())
    assert list(entries) == [str(runs / "a" / "1"), str(runs / "b")]
    low, student = entries.values()
    assert low["epoch"] == len(low["val_errors"]) == len(low["train_errors"]) == 2
    assert low["settings"] == {
        "student": False, "method": "Conv", "setting": 0.3, "decay": "reglr", "spectral": False, "seed": 0,
    }  # fmt: skip
    assert low["no_params"] == json.loads((runs / "a" / "1" / "results.json").read_text())["compressed parameter count"]
    assert student["settings"]["student"] and student["settings"]["decay"] == "crs"
    assert student["no_params"] == count(Config("WideResNet", tuple("abcde"), "Sep", depth=10, width=0.25))
    assert student["scatter"] == [
        student["no_params"], student["val_errors"][-1], student["train_errors"][-1], 1, student["flops"],
    ]  # fmt: skip
    collate_results.main([str(runs), "--out", str(out), "--match", "/b"])
    assert list(json.loads(out.read_text())) == [str(runs / "b")]
    with pytest.raises(UserError, match="no run has nothing"):
        collate_results.main([str(runs), "--match", "nothing"])
    (runs / "b" / "args.json").write_text("{")
    with pytest.raises(UserError, match="is not a run of main.py"):
        collate_results.main([str(runs), "--out", str(out)])


def test_a_file_that_only_a_checkpoint_names_is_not_run(study, tmp_path, capsys):
    module, marker, out = tmp_path / "module.py", tmp_path / "marker", str(tmp_path / "collated.json")
    module.write_text("from torch.nn import Conv2d as Conv\n")
    study.run("teacher", "--module", module, "-t", tmp_path / "runs" / "with module", "--epochs", 1)
    study.run("teacher", "--conv", "Sep", "-t", tmp_path / "runs" / "without", "--epochs", 1)
    module.write_text(f"from torch.nn import Conv2d as Conv\nopen({str(marker)!r}, 'w')\n")
    capsys.readouterr()
    collate_results.main([str(tmp_path / "runs"), "--out", out])
    assert len(json.loads(Path(out).read_text())) == 1 and not marker.exists()
    assert f"with module is left out: --module {module}, the file" in capsys.readouterr().err
    collate_results.main([str(tmp_path / "runs"), "--out", out, "--module", str(module)])
    assert len(json.loads(Path(out).read_text())) == 2


@pytest.fixture(scope="module")
def finished(study) -> Path:
    study.run("teacher", "--conv", "Conv", "-t", study.folder / "whole", "--epochs", 1)
    return study.folder / "whole"


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "change",
    [
        {"history": 3}, {"history": None}, {"history": []}, {"history": {}}, {"history": {"val_errors": {}}},
        *({"history": {"val_errors": values, "train_errors": [1.0]}} for values in
          ([], None, 3, "12", [None], [[1]], ["1"], [{}], [float("nan")], [1, float("inf")], {"0": 1})),
        {"history": {"val_errors": [1.0], "train_errors": "x"}},
        {"epoch": None}, {"epoch": "1"}, {"epoch": [1]}, {"epoch": float("nan")},
        *({"config": config} for config in (None, 3, [], {}, "x", {"network": "WideResNet"})),
        *({"config": {"network": "WideResNet", "classes": list("abc"), **wrong}} for wrong in
          ({"depth": "10"}, {"depth": 10.5}, {"depth": None}, {"width": "1"}, {"width": float("nan")}, {"width": [1]},
           {"splits": None}, {"conv": 3}, {"conv": "Nothing"}, {"network": None}, {"network": []}, {"classes": 3},
           {"classes": [[1]]}, {"rank_scale": "1"}, {"width": 1e300}, {"depth": 10, "width": 1e9})),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_checkpoint_holds_is_of_another_type(finished, tmp_path, change):
    state = checkpoint.load(finished / "checkpoint.t7")
    checkpoint.save(tmp_path / "checkpoint.t7", {**state, **change})
    shutil.copy(finished / "args.json", tmp_path)
    with pytest.raises(UserError, match="is not a run of main.py") as error:
        collate_results.main([str(tmp_path), "--out", str(tmp_path / "out.json")])
    assert "\n" not in str(error.value) and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("arguments", ["[]", "3", "null", "{}", '"x"', nested(100_000), '{"conv": {}}', "\0", ""])
def test_arguments_of_another_type(finished, tmp_path, arguments):
    shutil.copy(finished / "checkpoint.t7", tmp_path)
    (tmp_path / "args.json").write_text(arguments)
    with pytest.raises(UserError, match="is not a run of main.py"):
        collate_results.main([str(tmp_path), "--out", str(tmp_path / "out.json")])


def test_output_goes_through_links_and_never_over_devices(finished, tmp_path):
    (tmp_path / "link.json").symlink_to("there.json")
    collate_results.main([str(finished), "--out", str(tmp_path / "link.json")])
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "there.json").read_text())
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match=f"cannot write {path}: it is"):
            collate_results.main([str(finished), "--out", str(path)])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match="no runs of main.py"):
        collate_results.main([str(tmp_path)])
