"""Runs that are killed and continued, in the middle of an epoch too, end as if nothing had happened."""

import random
from itertools import product

import pytest
import torch
from fairseq.trainer import Trainer

from lab.cli import UserError
from tests.harness import VARYING, Stop, events, killed, results, snapshot, stopped_at_write
from tests.transformer import tiny

FLAGS = "--max-epoch 3 --save-interval-updates 3 --weight-decay 1e-3"  # an epoch has five updates
LONG = f"{FLAGS} --save-interval-updates 1 --max-epoch 8"


def assert_same_run(folder, whole):
    """Weights, optimizer, counters, losses and results are equal to the last bit."""
    ours, theirs = tiny.checkpoint(folder), tiny.checkpoint(whole)
    assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])
    for number, state in theirs["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(ours["optimizer"]["state"][number][name]), torch.as_tensor(value))
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    for name in ("updates", "epoch", "offset", "best", "waiting", "keeper", "schedule", "meter", "metrics"):
        assert ours[name] == theirs[name], name
    free = dict.fromkeys(VARYING)
    assert results(folder) | free == results(whole) | free
    for tag in ("train/loss", "valid/nll_loss", "hyper/lr", "FrobNorm/QueKey"):
        assert [list(part) for part in events(folder)[tag]] == [list(part) for part in events(whole)[tag]]


def stop_before(monkeypatch, update):
    """Let training stop when this update is about to be made."""
    step = Trainer.step

    def stopping(self, *arguments, **options):
        if self.updates == update - 1:
            raise Stop
        step(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "step", stopping)


def whole_and_stopped(data, tmp_path, monkeypatch, flags, update):
    """Return the folders of a run without interruption and of one stopped before `update` and continued."""
    whole = tiny.train(data, tmp_path / "whole", flags)
    with monkeypatch.context() as patch:
        stop_before(patch, update)
        with pytest.raises(Stop):
            tiny.train(data, tmp_path / "run", flags)
    return tiny.train(data, tmp_path / "run", flags), whole


DECAY = [" ".join(flags) for flags in product(*(("", f"--wd2fd{kind}") for kind in ("", "-quekey", "-outval")))]


@pytest.mark.parametrize("decay", DECAY)
def test_every_combination_of_decay(data, tmp_path, monkeypatch, decay):
    """Stopped two updates after a checkpoint in the second epoch."""
    flags = f"{FLAGS} --rank-scale 0.5 --spectral-quekey {decay}"
    assert_same_run(*whole_and_stopped(data, tmp_path, monkeypatch, flags, 9))


@pytest.mark.parametrize(
    ("flags", "update"),
    [
        ("--optimizer adam --lr 0.01 --lr-scheduler fixed --fa 1", 8),
        ("--optimizer sgd --lr 0.05 --lr-scheduler reduce_lr_on_plateau --lr-shrink 0.5", 11),
        ("--optimizer adagrad --lr 0.1 --update-freq 2 --save-interval-updates 1", 5),
        ("--sample-without-replacement 4 --curriculum 1 --sentence-avg", 8),
        ("--amp bf16 --no-epoch-checkpoints --share-input-output-embed", 6),
        ("--validate-interval 2 --position timing", 10),
        ("--max-update 14 --optimizer adam --lr 0.01 --lr-scheduler cosine --warmup-updates 3 --encoder-layers 2", 8),
        ("--lr-scheduler polynomial_decay --total-num-update 20 --power 2 --end-learning-rate 0.01", 12),
        ("--eval-bleu --best-checkpoint-metric bleu --patience 2 --max-epoch 5 --keep-last-epochs 1", 8),
        ("--keep-interval-updates 1 --rank-scale 0.5 --spectral --share-all-embeddings --wd2fd", 11),
    ],
)
def test_every_kind_of_state(data, tmp_path, monkeypatch, flags, update):
    assert_same_run(*whole_and_stopped(data, tmp_path, monkeypatch, f"{FLAGS} {flags}", update))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that was never stopped."""
    return tiny.train(data, tmp_path_factory.mktemp("whole") / "run", LONG)


def test_a_killed_run_ends_as_the_whole_run(data, tmp_path, whole):
    """It dies in a random place, then the same command; three times, of at most 12 of the 40 updates."""
    folder, moments = tmp_path / "run", random.Random()
    argv = [str(data), *tiny.BASE.split(), "--save-dir", str(folder), *LONG.split()]
    for _ in range(3):
        killed(tiny.command_line, argv, tmp_path / "log", moments.uniform(2, 12))
    tiny.train(data, folder, LONG)
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    ("name", "occasion"),
    [("checkpoint_best.pt", 2), ("checkpoint2.pt", 1), ("checkpoint_last.pt", 3), ("results.json", 1)],
)
def test_a_run_stopped_while_it_saves(data, tmp_path, name, occasion):
    """Whichever file is written last, whole or not at all, the run goes on from there."""
    whole = tiny.train(data, tmp_path / "whole", FLAGS)
    with stopped_at_write(name, occasion):
        tiny.train(data, tmp_path / "run", FLAGS)
    assert_same_run(tiny.train(data, tmp_path / "run", FLAGS), whole)


def test_the_first_update_after_a_stop_has_the_rate_of_the_schedule(data, tmp_path, monkeypatch, capsys):
    flags = f"{FLAGS} --warmup-updates 2 --log-format json --log-interval 1"
    with monkeypatch.context() as patch:
        stop_before(patch, 8)
        with pytest.raises(Stop):
            tiny.train(data, tmp_path / "run", flags)
    capsys.readouterr()
    used = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *a, **o: (used.append(self.lr), step(self, *a, **o)))
    tiny.train(data, tmp_path / "run", flags)
    assert used[:2] == pytest.approx([0.25 * (2 / 6) ** 0.5, 0.25 * (2 / 7) ** 0.5])


def test_the_best_checkpoint_is_not_forgotten(data, tmp_path, monkeypatch):
    """Validation after a stop does not overwrite a better one from before."""
    flags = "--max-epoch 4 --lr-scheduler fixed --lr 0.25,0.25,4,4"
    with monkeypatch.context() as patch:
        stop_before(patch, 12)
        with pytest.raises(Stop):
            tiny.train(data, tmp_path / "run", flags)
    best = (tmp_path / "run" / "checkpoint_best.pt").read_bytes()
    tiny.train(data, tmp_path / "run", flags)
    written = results(tmp_path / "run")
    assert written["best epoch"] <= 2 and written["final validation loss"] > written["best validation loss"]
    assert (tmp_path / "run" / "checkpoint_best.pt").read_bytes() == best


# -- what is continued, and what is not -------------------------------------------------------------------------------


def test_a_finished_run_is_kept(data, tmp_path, capsys):
    folder = tiny.train(data, tmp_path / "run", FLAGS)
    before = snapshot(folder)
    with pytest.raises(SystemExit) as stopped:
        tiny.train(data, folder, FLAGS)
    assert stopped.value.code == 0
    assert "finished" in capsys.readouterr().out
    assert snapshot(folder) == before


def test_a_finished_run_can_be_made_longer(data, tmp_path):
    """A run of seven updates, then of three epochs, is one of three epochs, except for a validation in between."""
    whole = tiny.train(data, tmp_path / "whole", FLAGS)
    folder = tiny.train(data, tmp_path / "run", f"{FLAGS} --max-update 7")
    assert results(folder)["updates"] == 7
    tiny.train(data, folder, FLAGS)
    ours, theirs = tiny.checkpoint(folder), tiny.checkpoint(whole)
    assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])
    assert results(folder)["updates"] == results(whole)["updates"] == 15


def test_overwrite_starts_afresh(data, tmp_path):
    folder = tiny.train(data, tmp_path / "run", f"{FLAGS} --seed 3")
    tiny.train(data, folder, f"{FLAGS} --max-epoch 1 --overwrite")
    assert not (folder / "checkpoint2.pt").exists()
    assert tiny.checkpoint(folder)["updates"] == 5


def test_a_checkpoint_continues_in_another_folder(data, tmp_path, whole):
    """All that matters is in the file."""
    middle = whole / "checkpoint4_2.pt"
    flags = f"{LONG} --restore-file {middle}"
    folder = tiny.train(data, tmp_path / "run", flags)
    ours, theirs = tiny.checkpoint(folder), tiny.checkpoint(whole)
    assert ours["updates"] == theirs["updates"]
    assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])


def test_a_named_checkpoint_of_the_folder(data, tmp_path):
    """The old `--restore-file NAME` looks in the run's folder."""
    folder = tiny.train(data, tmp_path / "run", FLAGS)
    last = tiny.checkpoint(folder)["state_dict"]
    tiny.train(data, folder, f"{FLAGS} --restore-file checkpoint1.pt")
    assert all(torch.equal(tiny.checkpoint(folder)["state_dict"][name], last[name]) for name in last)


def test_other_arguments_are_refused(data, whole):
    before = snapshot(whole)
    with pytest.raises(UserError, match="weight_decay 0.001, not 0.5: give the same arguments to continue it"):
        tiny.train(data, whole, f"{LONG} --weight-decay 0.5")
    assert snapshot(whole) == before


def test_another_seed_is_another_run(data, tmp_path):
    one, two = (tiny.train(data, tmp_path / seed, f"--max-epoch 1 --seed {seed}") for seed in ("1", "2"))
    name = "decoder.output.weight"
    assert not torch.equal(tiny.checkpoint(one)["state_dict"][name], tiny.checkpoint(two)["state_dict"][name])


def test_the_program_remembers_nothing(data, tmp_path, whole):
    """The same run again in the same process."""
    again = tiny.train(data, tmp_path / "run", LONG)
    assert_same_run(again, whole)
