"""Reading runs and records of runs, keeping them, and comparing two."""

import json
from pathlib import Path

import pytest

from lab.cli import UserError
from lab.lock import Lock
from lab.record import Record
from paper import diff, keep, reading, results
from paper.method import method_of
from paper.runs import find
from paper.studies import STUDIES
from tests.harness import HEAD
from tests.paper.samples import ARGUMENTS, FD, RESULTS, SI, make_run


def printed(capsys, command, *argv) -> str:
    capsys.readouterr()
    command.main([str(arg) for arg in argv])
    return capsys.readouterr().out


def test_what_is_asked_of_results_is_in_all_of_them():
    assert set(reading._HEAD) <= set(HEAD)


def test_a_record_gives_what_its_run_gives(tmp_path, capsys):
    folder = make_run(tmp_path / "runs/plain/1", {"normalize": "/home/me/norms.tensor"}, data="/home/me/cifar10-jpeg")
    out = printed(capsys, keep, tmp_path / "runs", "--to", tmp_path / "kept")
    record = tmp_path / "kept" / "plain-1.json"
    assert out.startswith(f"kept 1 runs in {record.parent}, 2 kB each")
    ((run,), (kept,)) = (find([path]).runs for path in (folder, record))
    assert kept.results == {**run.results, "data": "cifar10-jpeg"}
    assert (kept.data, kept.method, kept.name, kept.identity) == (run.data, run.method, run.name, run.identity)
    assert kept.curves["valid/accuracy"] == run.curves["valid/accuracy"] == ([0, 1, 2, 3], [20.0, 40.0, 71.0, 70.0])
    assert kept.curves["layers/nuclear-over-bound"][1] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert "valid/acc" in run.curves and "valid/acc" not in kept.curves
    text = record.read_text()
    assert "/home" not in text and str(tmp_path) not in text
    assert kept.arguments == {**ARGUMENTS, "data_dir": "data", "save_dir": "1", "normalize": "norms.tensor"}
    before = record.stat().st_mtime_ns
    printed(capsys, keep, folder, "--to", tmp_path / "kept")  # the run alone has the same record
    assert record.read_text() == text and record.stat().st_mtime_ns > before
    assert len(find([tmp_path]).runs) == 1  # a run and its record count once


def test_damaged_events_are_not_kept_silently(tmp_path, capsys):
    folder = make_run(tmp_path / "runs/plain/1")
    assert "curves" not in printed(capsys, keep, folder, "--to", tmp_path / "kept")
    (events,) = folder.glob("events.out.*")
    events.write_bytes(events.read_bytes()[: events.stat().st_size // 2])
    short = "with curves that do not reach the last of 4 epochs, as events are lost or damaged"
    assert f"{short}: {tmp_path}/kept/plain-1.json\n" in printed(capsys, keep, folder, "--to", tmp_path / "kept")
    events.unlink()
    assert "without curves, as the run has no events" in printed(capsys, keep, folder, "--to", tmp_path / "kept")


def test_of_a_resumed_run_the_later_steps_are_kept_silently(tmp_path, caplog):
    folder = make_run(tmp_path / "runs/plain/1", curve=[20.0, 40.0, 50.0])
    record = Record(folder, is_main=True, first_epoch=2)
    for step, value in (2, 71.0), (3, 70.0):
        record.scalars({"valid/accuracy": value}, step)
    record.close()
    keep.main([str(folder), "--to", str(tmp_path / "kept")])
    assert not caplog.records
    (kept,) = find([tmp_path / "kept"]).runs
    assert kept.curves["valid/accuracy"] == ([0, 1, 2, 3], [20.0, 40.0, 71.0, 70.0])


def test_single_layers_are_averaged():
    curves = {"layers/a/norm": ([0, 1], [1.0, 2.0]), "layers/b/norm": ([0, 1], [3.0, 6.0]), "x/y/z": ([0], [1.0])}
    others = {"train_loss": ([0], [3.0]), "layers": ([0], [4.0])}
    assert keep.mean_over_layers(curves | others) == {
        "layers/norm": ([0, 1], [2.0, 4.0]),
        "x/y/z": ([0], [1.0]),
        **others,
    }


def test_translations_are_kept_with_their_scores(tmp_path, capsys):
    folder = make_run(tmp_path / "run", study="Transformer-PyTorch", metric="validation loss (bits a token)")
    (folder / "bleu.log.json").write_text(json.dumps({"path": ["/home/me/x.pt"], "tokenized BLEU": {"score": 34.5}}))
    printed(capsys, keep, folder, "--to", tmp_path / "kept")
    (kept,) = find([tmp_path / "kept"]).runs
    assert kept.evaluation == {"path": ["x.pt"], "tokenized BLEU": {"score": 34.5}}
    assert not kept.higher_is_better


def test_nothing_is_kept_if_one_record_would_be_lost(tmp_path, capsys):
    first, second = make_run(tmp_path / "a/plain/1"), make_run(tmp_path / "b/plain/1", lr=0.1)
    with pytest.raises(UserError, match="would both be"):
        keep.main([str(first), str(second), "--to", str(tmp_path / "kept")])
    printed(capsys, keep, first, "--to", tmp_path / "kept")
    other = make_run(tmp_path / "c/plain/1", {"lr": 0.5}, seconds=9.0)
    new = make_run(tmp_path / "c/plain/2")
    with pytest.raises(UserError, match=r"plain-1.json is of a run with lr 0.02, not 0.5; keep this one elsewhere"):
        keep.main([str(new), str(other), "--to", str(tmp_path / "kept")])
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["plain-1.json"]


def test_states_and_filters(tmp_path, capsys):
    tree = tmp_path / "results/resnet44-cifar10/0.0/1E-4/reglr"
    make_run(tree / "1", {"rank_scale": 0.0}, method="dense", rank_scale=0.0)
    make_run(tmp_path / "results/other/2", SI | FD, seed=2, final=80.5)
    for name in ("2", "3"):
        (tree / name).mkdir()
        (tree / name / "args.json").touch()
    (tree / "2/failed").write_text("error: out of memory")
    lock = Lock(tree / "3")
    every = printed(capsys, results, "--from", tmp_path).splitlines()
    lock.release()
    setting = "cifar10-resnet44-scale_0.0-decay_1E-4-reglr"
    assert [line.split()[:1] + line.split()[-1:] for line in every[1:]] == [
        ["resnet20", str(tmp_path / "results/other/2")], [setting, str(tree / "1")],
        [setting, str(tree / "2")], [setting, str(tree / "3")],
    ]  # fmt: skip
    assert "failed" in every[3] and "error: out of memory" in every[3] and "running" in every[4]

    def chosen(*flags: str) -> list[str]:
        lines = printed(capsys, results, "--from", tmp_path, *flags).splitlines()[1:]
        return [line.split()[-1].removeprefix(f"{tmp_path}/") for line in lines]

    assert chosen("--status", "failed") == ["results/resnet44-cifar10/0.0/1E-4/reglr/2"]
    assert chosen("--method", "SI*") == chosen("--seed", "2") == ["results/other/2"]
    assert len(chosen("--only", "*resnet44*")) == 3
    with pytest.raises(UserError, match="no such run"):
        chosen("--study", "Transformer-PyTorch")


def test_every_setting_is_known_by_the_folder_of_its_runs():
    for study in STUDIES.values():
        for setting in study.settings + study.additions:
            for marker in reading.markers(setting, [3], "/elsewhere/of/it"):
                assert reading.setting_of(study.folder, Path(marker).parent) == setting.name
        assert reading.setting_of(study.folder, Path("/elsewhere/resnet20/1")) is None


def test_differences(tmp_path, capsys):
    one, other = make_run(tmp_path / "a/1"), make_run(tmp_path / "b/1", SI, best=90.0)
    rows = [line.split() for line in printed(capsys, diff, one, other).splitlines()[1:]]
    assert rows == [["argument", "spectral", "False", "True"], ["result", "best", "71", "90"]]
    assert printed(capsys, diff, one, one) == "they are equal\n"
    with pytest.raises(UserError, match="holds 2 finished runs"):
        diff.main([str(one), str(tmp_path)])


FORMS = {name: False for name in ("spectral", "spectral_quekey", "spectral_outval", "wd2fd", "wd2fd_quekey")}
FORMS |= {"wd2fd_outval": False}
METHODS = [
    ({}, "plain"), (SI, "SI"), (FD, "FD"), (SI | FD, "SI & FD"), (FD | {"no_frob": True}, "no decay"),
    (SI | FD | {"no_frob": True, "normalize": "f"}, "SI & imposed norms"), ({"square": True} | FD, "deep FD"),
    (FD | {"normalize": "f"}, "FD & imposed norms"), (SI | {"normalize": "f"}, "SI & L2 & imposed norms"),
    ({"nocrswd": True}, "plain"), ({"nocrswd": False}, "CRS"), (SI | {"nocrswd": False}, "SI & CRS"),
    (FORMS | {"spectral_quekey": True}, "SI (qk)"), (dict.fromkeys(FORMS, True), "SI & FD"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, method", METHODS)
def test_methods(arguments, method):
    assert method_of(RESULTS, arguments) == method


def test_pruned_networks_have_the_name_of_the_pruning():
    assert method_of({"method": "pruned: EigenDamage, 3 rounds, L2 decay"}, {}) == "EigenDamage, 3 rounds"


def test_methods_of_dense_networks():
    dense = {**RESULTS, "method": "dense"}
    assert method_of(dense, {}) == "dense"
    assert method_of(dense, FORMS | {"wd2fd_quekey": True}) == "dense, FD (qk)"
    assert method_of(dense, FORMS | {"spectral_quekey": True, "spectral_outval": True}) == "dense, SI"
