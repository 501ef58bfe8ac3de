"""Bad input to the commands over results: one line that says what is wrong, and nothing lost."""

import json
import re
from pathlib import Path

import pytest

from lab.cli import UserError
from paper import diff, figures, keep, report, results, summary
from tests.paper.samples import RESULTS, make_run


def write(path: Path, text: str | bytes | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        text if isinstance(text, bytes) else (json.dumps(text) if isinstance(text, dict) else text).encode()
    )
    return path


def record(tmp_path: Path, **changed) -> dict:
    make_run(tmp_path / "x/1")
    keep.main([str(tmp_path / "x/1"), "--to", str(tmp_path / "k")])
    return {**json.loads((tmp_path / "k/x-1.json").read_text()), **changed}


STUDY = "pytorch_resnet_cifar10"

# What is passed over, beside a run that is read: the file, what is in it, and why.
PASSED = {
    "empty": ("bad/1/results.json", "", "is not JSON"),
    "truncated": ("bad/1/results.json", '{"study": "pytorch_res', "is not JSON"),
    "no text": ("bad/1/results.json", b"\xff\xfe\x00", "is not JSON"),
    "nested": ("bad/1/results.json", "[" * 100_000, "is not JSON"),
    "a list": ("bad/1/results.json", "[1, 2]", "holds a list, not the fields of a run"),
    "foreign": ("bad/1/results.json", {"accuracy": 93.0}, "is not of a run: it has no study"),
    "old": ("bad/1/results.json", {"final test accuracy": 1.0, "compression ratio": 1.0}, "by an earlier version"),
    "not finite": ("bad/1/results.json", {**RESULTS, "final": float("nan")}, "its final is nan, not a number"),
    "text": ("bad/1/results.json", {**RESULTS, "best": "93"}, "its best is '93', not a number"),
    "truth": ("bad/1/results.json", {**RESULTS, "seed": True}, "its seed is True, not a whole number"),
    "other study": ("bad/1/results.json", {**RESULTS, "study": "mine"}, "of the study mine, which is none of"),
    "foreign JSON": ("bad/package.json", {"name": "x"}, "is no record of a run: it has no field record"),
    "later": ("bad/r.json", {"record": 2}, "is a record of format 2, and this version reads format 1 only"),
    "no curves": ("bad/r.json", {"record": 1, "results": {}, "arguments": {}, "name": "x"}, "its curves is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSED)
def test_passed_over_by_name(tmp_path, capsys, case):
    name, content, why = PASSED[case]
    path = write(tmp_path / name, content)
    make_run(tmp_path / "good/1")
    results.main(["--from", str(tmp_path)])
    named, *_, last = capsys.readouterr().out.splitlines()
    where = path.parent if path.name == "results.json" else path
    assert named.startswith(f"passed over: {where} ") and why in named
    assert last.endswith(str(tmp_path / "good/1"))


@pytest.mark.parametrize("name", ["args.json", "bleu.log.json"])
def test_damaged_files_beside_results(tmp_path, capsys, name):
    write(make_run(tmp_path / "bad/1") / name, "{")
    make_run(tmp_path / "good/1", seed=2)
    results.main(["--from", str(tmp_path)])
    assert f"passed over: {tmp_path}/bad/1 is damaged: its {name} is not JSON" in capsys.readouterr().out


ODD: dict[str, object] = {
    "target_ratio": "x",
    "decay_budget": [4],
    "weight_decay": None,
    "lr": {"a": 1},
    "normalize": 3,
}


@pytest.mark.parametrize("name", ODD)
def test_arguments_of_other_kinds(tmp_path, capsys, name):
    """They come from a file that anybody may have edited: rows are still made, and records."""
    make_run(tmp_path / "odd/1", {name: ODD[name]}, merged_test_accuracy=float("nan"), decay_budget="much")
    make_run(tmp_path / "good\x1b[31m/2", seed=2)
    summary.main([STUDY, "--from", str(tmp_path)])
    results.main(["--from", str(tmp_path)])
    keep.main([str(tmp_path / "odd/1"), "--to", str(tmp_path / "kept")])
    out = capsys.readouterr().out
    assert "kept 1 runs" in out and "\x1b" not in out
    assert json.loads((tmp_path / "kept/odd-1.json").read_text())["results"]["merged test accuracy"] is None


@pytest.mark.parametrize("curves, why", [
    ([{"steps": [0, 1], "values": {"a": [1.0]}}], "a has 1 values for 2 steps"),
    ([{"steps": [0], "values": {"a": ["x"]}}], "its curves are no numbers"),
    ([7], "its curves are no numbers"),
])  # fmt: skip
def test_damaged_curves(tmp_path, curves, why):
    path = write(tmp_path / "r.json", record(tmp_path, curves=curves))
    with pytest.raises(UserError, match=why):
        diff.main([str(path), str(path)])


def empty(folder: Path) -> list:
    folder.mkdir()
    return [folder]


MISTAKES = {
    "results of nowhere": (results, lambda d: ["--from", d / "nowhere"], "no such file or folder: .*nowhere"),
    "results of an empty folder": (results, lambda d: ["--from", *empty(d / "e")], "there is no such run"),
    "an unknown study": (results, lambda d: ["--study", "resnet"], "invalid choice: 'resnet'"),
    "an unknown state": (results, lambda d: ["--status", "done"], "invalid choice: 'done'"),
    "keep of nowhere": (keep, lambda d: [d / "nowhere"], "no such file or folder"),
    "keep of an empty folder": (keep, lambda d: empty(d / "e"), "there is no finished run in "),
    "keep of an unfinished run": (keep, lambda d: [write(d / "r/args.json", "{}").parent], "as it is stopped"),
    "keep of a damaged run": (keep, lambda d: [write(d / "r/results.json", "{").parent], "is not JSON"),
    "keep without arguments": (keep, lambda d: [write(d / "r/results.json", RESULTS).parent], "has no args.json"),
    "keep of a record": (keep, lambda d: [write(d / "r.json", record(d))], "is a record already"),
    "keep into a file": (
        keep, lambda d: [make_run(d / "r"), "--to", write(d / "file", "")], "--to .*file is a file"),
    "keep over a foreign file": (
        keep, lambda d: [make_run(d / "a/r"), "--to", write(d / "to/a-r.json", "{}").parent], "no record.*move it"),
    "keep of damaged events": (
        keep, lambda d: [write(make_run(d / "r") / "events.out.tfevents.9.x", b"\xff" * 99).parent, "--to", d / "k"],
        None),
    "diff of one": (diff, lambda d: [make_run(d / "r")], "required: B"),
    "diff with a foreign file": (diff, lambda d: [make_run(d / "r"), write(d / "x.json", "{}")], "no record of a run"),
    "table of an unknown study": (summary, lambda d: ["resnet"], "invalid choice: 'resnet'"),
    "table of nowhere": (summary, lambda d: [STUDY, "--from", d / "nowhere"], "no such file or folder"),
    "table of an empty folder": (summary, lambda d: [STUDY, "--from", *empty(d / "e")], "no run and no setting"),
    "table of another study": (
        summary, lambda d: ["deficient-efficient", "--from", make_run(d / "r")], "no run and no setting of deficient"),
    "table of nothing so named": (
        summary, lambda d: [STUDY, "--from", make_run(d / "r"), "--only", "x*"], "is named like x"),
    "an unknown column": (
        summary, lambda d: [STUDY, "--from", make_run(d / "r"), "--columns", "f1"], "no column f1, only budget"),
    "an unknown form": (summary, lambda d: [STUDY, "--format", "html"], "invalid choice: 'html'"),
    "a mean of no epochs": (summary, lambda d: [STUDY, "--last", "0"], "must be an integer at least 1, not 0"),
    "grouped by nothing known": (
        summary, lambda d: [STUDY, "--from", make_run(d / "r"), "--by", "colour"], "no run has colour"),
    "against nothing known": (
        summary, lambda d: [STUDY, "--from", make_run(d / "r"), "--against", "adam"], "is of adam; there are plain"),
    "table into a folder": (
        summary, lambda d: [STUDY, "--from", make_run(d / "r"), "--out", d], "it is a folder"),
    "table into nowhere": (
        summary, lambda d: [STUDY, "--from", make_run(d / "r"), "--out", d / "n/t.md"], "cannot write .*t.md: No such"),
    "figures of an empty folder": (figures, lambda d: [STUDY, "--from", *empty(d / "e")], "no run and no setting"),
    "figures of nowhere": (figures, lambda d: [STUDY, "--from", d / "nowhere"], "no such file or folder"),
    "figures into a file": (
        figures, lambda d: [STUDY, "--from", make_run(d / "r"), "--out", write(d / "f", "")], "cannot write .*png"),
    "report of an empty folder": (report, lambda d: [*empty(d / "e"), "-o", d / "r.html"], "there are no runs in"),
    "report of nowhere": (report, lambda d: [d / "nowhere", "-o", d / "r.html"], "no such file or folder"),
    "report of a damaged run": (
        report, lambda d: [write(d / "r/results.json", "{").parent, "-o", d / "r.html"], "is not JSON"),
    "report into nowhere": (report, lambda d: [make_run(d / "r"), "-o", d / "n/r.html"], "cannot write .*r.html"),
    "a watch without time": (report, lambda d: [d, "--watch", "0"], "must be an integer at least 1, not 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(tmp_path, monkeypatch, case):
    command, argv, message = MISTAKES[case]
    monkeypatch.setattr(keep, "ROOT", tmp_path / "repository")
    arguments = [str(argument) for argument in argv(tmp_path)]
    if message is None:  # what can be read of it is kept
        command.main(arguments)
        return
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        command.main(arguments)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("part", "value"), [
    ("setting", 5), ("setting", ["a"]), ("evaluation", "x"), ("evaluation", [1]), ("name", None), ("curves", {}),
])  # fmt: skip
def test_a_part_of_a_record_of_the_wrong_kind(tmp_path, part, value):
    """Where nothing else is there, the line of a table or figure says why."""
    path = write(tmp_path / "records/r.json", record(tmp_path, **{part: value}))
    why = f"{re.escape(str(path))} is damaged: its {part} is missing or of the wrong kind$"
    with pytest.raises(UserError, match=why):
        summary.main([STUDY, "--from", str(path.parent)])
    with pytest.raises(UserError, match=why):
        figures.main([STUDY, "--from", str(path.parent), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=why):
        report.main([str(path.parent), "-o", str(tmp_path / "page.html")])
