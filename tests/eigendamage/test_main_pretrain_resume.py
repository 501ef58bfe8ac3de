"""Runs that are killed and continued end as if nothing had happened."""

import pytest
import torch

from lab import checkpoint
from lab.cli import UserError
from tests.eigendamage import tiny
from tests.harness import VARYING, killed, results, snapshot, stopped_at_write

# Without --spectral: LAPACK's last digits depend on its number of threads, which the processes here do not share.
FLAGS = "--target-ratio 0.1 --wd2fd --epoch 6 --seed 3"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    return tiny.train(tmp_path_factory.mktemp("whole") / "run", FLAGS)


def assert_same_run(folder, whole):
    """Weights, momentum and results are equal to the last bit."""
    for name in ("checkpoint.t7", "best.t7"):
        ours, theirs = tiny.checkpoint(folder, name), tiny.checkpoint(whole, name)
        assert all(torch.equal(ours["net"][key], theirs["net"][key]) for key in theirs["net"])
        assert (ours["best_acc"], ours["loss"], ours["epoch"]) == (theirs["best_acc"], theirs["loss"], theirs["epoch"])
    ours, theirs = (tiny.checkpoint(run)["optimizer"]["state"] for run in (folder, whole))
    assert all(torch.equal(ours[i]["momentum_buffer"], theirs[i]["momentum_buffer"]) for i in theirs)
    ours, theirs = results(folder), results(whole)
    assert ours | dict.fromkeys(VARYING) == theirs | dict.fromkeys(VARYING)


def test_a_killed_run_ends_as_the_whole_run(tmp_path, whole):
    """It dies in the middle of the second epoch of three steps, then the same command."""
    folder = tmp_path / "run"
    argv = [*tiny.BASE, *FLAGS.split(), "--auto-resume", "--log_dir", str(folder)]
    killed(tiny.command_line, argv, tmp_path / "log", 4.5)
    assert tiny.checkpoint(folder)["epoch"] == 1
    assert not (folder / "results.json").exists()
    tiny.train(folder, f"{FLAGS} --auto-resume")
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    ("name", "occasion", "flag"),
    [
        ("best.t7", 2, "--auto-resume"),
        ("checkpoint.t7", 3, "--auto-resume"),
        ("checkpoint.t7", 6, "--resume"),
        ("results.json", 1, "--auto-resume"),
    ],
)
def test_a_run_stopped_while_it_saves(tmp_path, whole, name, occasion, flag):
    """Whichever file is written last, whole or not at all, the run goes on from there."""
    with stopped_at_write(name, occasion):
        tiny.train(tmp_path, FLAGS)
    tiny.train(tmp_path, f"{FLAGS} {flag}")
    assert_same_run(tmp_path, whole)


def test_a_finished_run_is_kept(whole, capsys):
    before = snapshot(whole)
    with pytest.raises(SystemExit) as stopped:
        tiny.train(whole, f"{FLAGS} --auto-resume")
    assert stopped.value.code == 0
    assert "finished" in capsys.readouterr().out
    assert snapshot(whole) == before


def test_auto_resume_starts_afresh_where_there_is_nothing(tmp_path):
    assert results(tiny.train(tmp_path / "run", "--epoch 1 --auto-resume"))


def test_a_checkpoint_continues_in_another_folder(tmp_path, whole, monkeypatch):
    """All that matters is in the file: momentum and random numbers, too."""
    save = checkpoint.save

    def keep_third(path, state):
        save(path, state)
        if path.name == "checkpoint.t7" and state["epoch"] == 3:
            save(tmp_path / "third.t7", state)

    monkeypatch.setattr(checkpoint, "save", keep_third)
    assert_same_run(tiny.train(tmp_path / "first", FLAGS), whole)
    folder = tiny.train(tmp_path / "second", f"{FLAGS} --load_path {tmp_path / 'third.t7'}")
    ours, theirs = tiny.checkpoint(folder)["net"], tiny.checkpoint(whole)["net"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_seed_is_another_run(tmp_path, whole):
    other = tiny.checkpoint(tiny.train(tmp_path / "other", f"{FLAGS} --epoch 1 --seed 4"))["net"]
    assert not torch.equal(other["conv1.weight"], tiny.checkpoint(whole)["net"]["conv1.weight"])


def test_other_arguments_are_refused(whole):
    with pytest.raises(UserError, match="weight_decay 0.0001, not 0.5"):
        tiny.train(whole, f"{FLAGS} --auto-resume --weight_decay 0.5")
