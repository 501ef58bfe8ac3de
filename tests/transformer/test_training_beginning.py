"""Runs that begin with the weights of another."""

import pytest
import torch
from fairseq.trainer import Trainer

from lab.cli import UserError
from tests.harness import results
from tests.transformer import tiny


class Stop(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A checkpoint of two epochs."""
    return tiny.train(data, tmp_path_factory.mktemp("source") / "run", "--seed 7") / "checkpoint2.pt"


def same(one, two):
    ours, theirs = one["state_dict"], two["state_dict"]
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_weights_and_nothing_else(data, tmp_path, source, monkeypatch):
    """Before the first update they are those of the file; optimizer, counters and rate are new."""
    seen = []
    step = Trainer.step

    def spying(self, *arguments, **options):
        if not seen:
            seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        step(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "step", spying)
    run = tiny.train(
        data, tmp_path / "run", f"--finetune-from-model {source} --optimizer adam --lr 0.001 --max-epoch 1"
    )
    state = tiny.checkpoint(source.parent, source.name)
    assert same({"state_dict": seen[0]}, state)
    assert results(run)["updates"] == 5 and tiny.checkpoint(run)["epoch"] == 2


def test_it_is_named_in_two_ways(data, tmp_path, source):
    ways = [f"--finetune-from-model {source}", f"--restore-file {source} --reset-optimizer --reset-lr-scheduler"]
    ways[1] += " --reset-dataloader --reset-meters"
    one, two = (tiny.checkpoint(tiny.train(data, tmp_path / way[2:6], way)) for way in ways)
    assert same(one, two) and one["updates"] == two["updates"] == 10
    tiny.train(data, tmp_path / "rest", f"{ways[0]} --max-epoch 3")  # the same run, so that it can be made longer
    assert results(tmp_path / "rest")["updates"] == 15


def test_a_killed_run_goes_on_from_its_own_checkpoint(data, tmp_path, source, monkeypatch):
    flags = f"--max-epoch 3 --restore-file {source} --reset-optimizer"
    whole = tiny.checkpoint(tiny.train(data, tmp_path / "whole", flags))
    step = Trainer.step

    def stopping(self, *arguments, **options):
        if self.updates == 7:
            raise Stop
        step(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(Stop):
            tiny.train(data, tmp_path / "run", flags)
    assert same(tiny.checkpoint(tiny.train(data, tmp_path / "run", flags)), whole)


def test_weights_of_another_form_are_refused(data, tmp_path, source):
    with pytest.raises(UserError, match="another network"):
        tiny.train(data, tmp_path / "run", f"--finetune-from-model {source} --rank-scale 0.5")
    assert not (tmp_path / "run").exists()
