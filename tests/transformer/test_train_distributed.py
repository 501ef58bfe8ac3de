"""Two processes give what one process gives that takes twice as many batches for an update."""

import pytest
import torch

from tests.harness import events, results, torchrun
from tests.transformer import tiny

FLAGS = "--dropout 0 --relu-dropout 0 --rank-scale 0.5 --wd2fd --wd2fd-outval --weight-decay 1e-3"
FLAGS += " --save-interval-updates 2"


def in_two_processes(data, folder, flags):
    command = ["-m", "tests.transformer.tiny", str(data), *tiny.BASE.split(), "--save-dir", str(folder)]
    return torchrun("Transformer-PyTorch", *command, *flags.split())


def test_two_processes_train_as_one(data, tmp_path):
    """With five batches in an epoch, so that one process has nothing to do in the last update."""
    one = tiny.train(data, tmp_path / "one", f"{FLAGS} --update-freq 2")
    ran = in_two_processes(data, tmp_path / "two", f"{FLAGS} --distributed-world-size 2")
    two = tmp_path / "two"
    assert ran.returncode == 0, ran.stderr
    assert {p.name for p in two.glob("*.pt")} == {p.name for p in one.glob("*.pt")}
    ours, theirs = tiny.checkpoint(two), tiny.checkpoint(one)
    assert ours["updates"] == theirs["updates"] == 6
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert ours["meter"]["counts"] == theirs["meter"]["counts"]
    assert ours["meter"]["sums"] == pytest.approx(theirs["meter"]["sums"], rel=1e-4)
    for tag in ("train/loss", "valid/loss"):
        assert events(two)[tag][1] == pytest.approx(events(one)[tag][1], rel=1e-4)
    assert ran.stdout.count("| epoch 001 | loss") == 1 and len(list(two.glob("events.*"))) == 1


@pytest.mark.slow
def test_two_processes_continue_a_run(data, tmp_path):
    """Also one that has been started by a single process."""
    tiny.train(data, tmp_path / "run", f"{FLAGS} --max-update 3 --update-freq 2")
    whole = tiny.train(data, tmp_path / "whole", f"{FLAGS} --update-freq 2")
    ran = in_two_processes(data, tmp_path / "run", f"{FLAGS} --update-freq 2")
    assert ran.returncode == 0, ran.stderr
    assert results(tmp_path / "run").keys() == results(whole).keys()
    finished = in_two_processes(data, tmp_path / "run", f"{FLAGS} --update-freq 2")
    assert (finished.returncode, finished.stdout) == (0, f"{tmp_path / 'run'} holds this run, finished\n")
