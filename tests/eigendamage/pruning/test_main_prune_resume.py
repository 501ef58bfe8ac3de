"""A pruning run that was stopped, at any point, ends with the bits of one that was not."""

import shutil

import main_prune
import pytest
import torch
from eigendamage.pruning.rounds import Rounds

from lab import checkpoint
from lab.cli import UserError
from lab.run import Run
from tests.eigendamage import tiny
from tests.eigendamage.pruning.tiny_prune import BASE, prune
from tests.harness import results

FLAGS = "--method eigendamage --target-ratio 0.05 --rounds 2 --epochs 4"


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def whole(dense, tmp_path_factory):
    return prune(dense, tmp_path_factory.mktemp("whole") / "run", FLAGS)


# After how many saves the run is stopped: a removal saves once, an epoch once, and the end of a round once.
@pytest.mark.parametrize("saves", [1, 2, 3, 4, 5, 6])
def test_a_stopped_run_ends_alike(dense, whole, tmp_path, saves, monkeypatch):
    folder, done = tmp_path / "run", []
    save = Run.save

    def save_and_stop(run, *args, **options):
        save(run, *args, **options)
        done.append(1)
        if len(done) == saves:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_stop)
        with pytest.raises(Stopped):
            prune(dense, folder, FLAGS)
    prune(dense, folder, f"{FLAGS} --resume auto")
    for name in ("checkpoint.t7", "best.t7", "pruned.t7", "round1.t7", "round2.t7"):
        one, other = (tiny.checkpoint(f, name) for f in (whole, folder))
        assert one["pruned"] == other["pruned"]
        assert all(torch.equal(value, other["net"][key]) for key, value in one["net"].items()), name
    expected, found = (results(f) for f in (whole, folder))
    for key in ("best", "final", "parameters", "rounds"):
        assert expected[key] == found[key]


def test_a_run_killed_while_it_prunes_begins_again(dense, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "_remove", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            prune(dense, folder, FLAGS)
    assert not (folder / "args.json").exists()
    prune(dense, folder, "--method magnitude --target-ratio 0.1 --epochs 0 --resume auto")
    assert (folder / "results.json").exists()


def test_a_finished_run_is_left_alone(dense, whole, capsys):
    before = (whole / "checkpoint.t7").read_bytes()
    prune(dense, whole, f"{FLAGS} --resume auto")
    assert "holds this run, finished" in capsys.readouterr().out
    assert (whole / "checkpoint.t7").read_bytes() == before


def test_another_run_is_not_continued(dense, whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "results.json").unlink()
    for changed in ("--target-ratio 0.06", "--rounds 3", "--lr 0.5", "--limit 0.9"):
        with pytest.raises(UserError, match="give the same arguments"):
            prune(dense, copy, f"{FLAGS} {changed} --resume auto")


def test_a_damaged_checkpoint_is_named(dense, whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "results.json").unlink()
    state = checkpoint.load(copy / "checkpoint.t7")
    state["pruned"]["units"].popitem()
    torch.save(state, copy / "checkpoint.t7")
    with pytest.raises(UserError, match="is damaged, or no checkpoint of this program"):
        main_prune.main([*BASE, "--from", str(dense), "--save-dir", str(copy), *FLAGS.split(), "--resume", "auto"])
