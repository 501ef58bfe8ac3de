"""Runs that are killed, stopped or continued end as if nothing had happened."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import trainer

from lab.cli import launch
from tests.harness import VARYING, events, killed, results, snapshot, start
from tests.resnet import tiny

FLAGS = "--rank-scale 0.111 --wd2fd --spectral --dump-frobnorms --epochs 6 --save-every 1 --seed 3".split()
TAGS = ("metric/FrobNorm", "hyper/lr", "train/loss", "valid/loss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never stopped."""
    return tiny.train(tmp_path_factory.mktemp("whole") / "run", *FLAGS)


def assert_same_run(folder: Path, whole: Path):
    """Weights, optimizer state, recorded norms, results and events are equal to the last bit."""
    for name in ("model.th", "best.th"):
        for key, value in tiny.weights(whole, name).items():
            assert torch.equal(tiny.weights(folder, name)[key], value), f"{name} {key}"
    ours, theirs = (torch.load(f / "checkpoint.th", weights_only=True)["optimizer"]["state"] for f in (folder, whole))
    assert all(torch.equal(ours[i]["momentum_buffer"], theirs[i]["momentum_buffer"]) for i in theirs)
    assert torch.equal(*(torch.load(f / "frobnorms.tensor", weights_only=True) for f in (folder, whole)))
    ours, theirs = results(folder), results(whole)
    assert ours | dict.fromkeys(VARYING) == theirs | dict.fromkeys(VARYING)
    assert all(events(folder)[tag] == events(whole)[tag] for tag in TAGS)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_random_moments_ends_as_the_whole_run(folder, whole, seed):
    moments, log = random.Random(seed), Path(f"{folder}.log")
    argv = [*tiny.BASE, "--save-dir", str(folder), *FLAGS, "--resume", "auto"]
    for most in (7, 5, 5):  # of the 18 steps
        killed(tiny.command_line, argv, log, moments.uniform(1, most))
    process = start(tiny.command_line, argv, log)
    process.join(300)
    assert process.exitcode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert_same_run(folder, whole)


def test_an_interrupted_run_is_continued_in_its_folder(folder, whole):
    tiny.stopped_after(3, folder, *FLAGS)
    assert not (folder / "results.json").exists()
    tiny.train(folder, *FLAGS, "--resume", "auto")
    assert_same_run(folder, whole)


def test_the_folder_can_be_moved_and_named_in_another_way(folder, whole, monkeypatch):
    moved = tiny.stopped_after(3, folder, *FLAGS).rename(folder.with_name("moved"))
    monkeypatch.chdir(moved)
    tiny.train(Path("../moved"), *FLAGS, "--resume", str(moved / "checkpoint.th"))
    assert_same_run(moved, whole)
    assert events(moved)["train/loss"][0] == list(range(6))  # the earlier part's events were kept


def test_a_checkpoint_is_continued_in_another_folder(folder, whole, tmp_path):
    tiny.stopped_after(3, folder, *FLAGS)
    before = snapshot(folder)
    other = tiny.train(tmp_path / "other", *FLAGS, "--resume", str(folder / "checkpoint.th"))
    assert snapshot(folder) == before
    for name, value in tiny.weights(whole).items():
        assert torch.equal(tiny.weights(other)[name], value)
    assert torch.equal(*(torch.load(f / "frobnorms.tensor", weights_only=True) for f in (other, whole)))
    assert events(other)["train/loss"][0] == [3, 4, 5]


def test_a_run_without_checkpoint_starts_afresh(folder, whole):
    tiny.stopped_after(1, folder, *FLAGS)  # the first checkpoint is that of epoch 1
    assert not (folder / "checkpoint.th").exists()
    tiny.train(folder, *FLAGS, "--resume", "auto")
    assert_same_run(folder, whole)


def test_a_run_stopped_between_checkpoint_and_results_is_finished(folder, whole):
    shutil.copytree(whole, folder)
    (folder / "results.json").unlink()
    tiny.train(folder, *FLAGS, "--resume", "auto")
    assert_same_run(folder, whole)


def test_a_finished_run_is_left_alone(folder, whole, capsys):
    shutil.copytree(whole, folder)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    with pytest.raises(SystemExit) as exit:
        launch(lambda: tiny.train(folder, *FLAGS, "--resume", "auto"), "trainer.py")
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"{folder} holds this run, finished\n"
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before


def test_a_finished_run_is_prolonged(folder, whole, monkeypatch):
    """While it goes on it does not count as finished."""
    shutil.copytree(whole, folder)
    (folder / "frobnorms.tensor").unlink()
    flags = [flag for flag in FLAGS if flag != "--dump-frobnorms"] + ["--epochs", "7"]
    evaluate = trainer.Classifier.evaluate

    def watched(*args):
        assert not (folder / "results.json").exists()
        return evaluate(*args)

    monkeypatch.setattr(trainer.Classifier, "evaluate", watched)
    tiny.train(folder, *flags, "--resume", str(folder / "checkpoint.th"))
    assert json.loads((folder / "args.json").read_text())["epochs"] == 7
    assert events(folder)["train/loss"][0] == list(range(7))
    assert (folder / "results.json").exists()


def test_the_latest_network_is_accepted_too(folder, tmp_path):
    """It has no momentum, so the continuation is another run, but it starts from these weights in this epoch."""
    tiny.stopped_after(3, folder, *FLAGS)
    flags = [flag for flag in FLAGS if flag != "--dump-frobnorms"]
    other = tiny.train(tmp_path / "other", *flags, "--resume", str(folder / "model.th"), "--lr", "0")
    assert events(other)["train/loss"][0] == [3, 4, 5]
    for name, value in tiny.weights(folder).items():
        if name.endswith((".U", ".VT", "linear.weight")):
            assert torch.equal(tiny.weights(other)[name], value)


def test_a_later_start_keeps_to_the_schedule(folder):
    tiny.train(folder, "--epochs", "4", "--start-epoch", "2", *tiny.FACTORIZED, "--dump-frobnorms")
    assert events(folder)["hyper/lr"][1][:2] == pytest.approx([0.01, 0.001])
    recorded = torch.load(folder / "frobnorms.tensor", weights_only=True)
    assert (recorded[:2] == 0).all() and (recorded[2:] > 0).all()


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path, capfd):
    """Exit status 1, one line, and no checkpoint of it."""
    tiny.stopped_after(3, folder, *FLAGS)
    capfd.readouterr()
    other = tmp_path / "other"
    flags = [*FLAGS, "--lr", "1e4", "--resume", str(folder / "checkpoint.th")]
    with pytest.raises(SystemExit) as exit:
        launch(lambda: tiny.train(other, *flags), "trainer.py")
    error = capfd.readouterr().err
    assert exit.value.code == 1
    assert error.count("\n") == 1 and error.startswith("trainer.py: error: the loss is nan in "), error
    assert not (other / "checkpoint.th").exists() and not (other / "results.json").exists()
