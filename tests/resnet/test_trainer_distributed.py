"""Two processes on one machine give what one process gives."""

import subprocess

import pytest
import torch

from lab.cli import UserError
from lab.data.batches import Batches
from tests.harness import events, snapshot, torchrun
from tests.resnet import shares, tiny


def in_two_processes(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a module in two processes."""
    return torchrun("pytorch_resnet_cifar10", "-m", module, *arguments)


def test_two_processes_train_as_one(tmp_path):
    """Without batch normalization: weights, running averages and evaluation, also where a share is smaller or empty."""
    shares.main(str(tmp_path / "one.pt"))
    ran = in_two_processes("tests.resnet.shares", str(tmp_path / "two.pt"))
    assert ran.returncode == 0, ran.stderr
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert len(one["passes"]) > 1
    for ours, theirs in zip(two["passes"], one["passes"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


FLAGS = [*tiny.BASE, *tiny.FACTORIZED, "--dump-frobnorms", "--epochs", "1", "--save-dir"]


def test_the_trainer_in_two_processes(folder):
    """One set of files and one set of lines."""
    ran = in_two_processes("tests.resnet.tiny", *FLAGS, str(folder))
    assert ran.returncode == 0, ran.stderr
    begins = ["data:", "network:", "weights:", "layers:", "decay:", "run:", "epoch", "best", "in", "evaluate:"]
    assert [line.split()[0] for line in ran.stdout.splitlines()] == begins
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
    assert names == {"args.json", "results.json", "model.th", "best.th", "checkpoint.th", "frobnorms.tensor"}
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert events(folder)["train/loss"][0] == [0]
    assert torch.load(folder / "frobnorms.tensor", weights_only=True).shape == (1, 3, 18)


@pytest.mark.slow
def test_a_finished_run_in_two_processes(folder):
    """It is left alone by both, evaluated by both together, and not overwritten."""
    flags = [*FLAGS, str(tiny.train(folder, *FLAGS, str(folder)))]
    before = snapshot(folder)
    finished = in_two_processes("tests.resnet.tiny", *flags, "--resume", "auto")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{folder} holds this run, finished\n"
    evaluated = in_two_processes("tests.resnet.tiny", *flags, "--evaluate", "--resume", "auto")
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.count("accuracy") == 1
    assert snapshot(folder) == before

    mistaken = in_two_processes("tests.resnet.tiny", *flags)
    assert mistaken.returncode != 0
    assert f"trainer.py: error: {folder} already holds a run" in mistaken.stderr
    assert snapshot(folder) == before


@pytest.mark.parametrize("batch_size, processes, smallest", [(19, 2, 1), (2, 3, 2), (95, 2, 1)])
def test_a_batch_smaller_than_the_number_of_processes_is_refused(batch_size, processes, smallest):
    images = tiny.digits()[0]
    with pytest.raises(UserError, match=f"a batch of {smallest} images cannot be shared by {processes} processes"):
        Batches(images, batch_size, train=True, world_size=processes)
    Batches(images, batch_size, train=False, world_size=processes)
    Batches(images, 32, train=True, world_size=processes)
