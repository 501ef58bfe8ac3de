"""Collation of runs: what an entry holds, and folders that hold none."""

import json

import collate_results
import pytest
from deficient.networks import Config, count

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


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match="no runs of main.py"):
        collate_results.main([str(tmp_path)])
