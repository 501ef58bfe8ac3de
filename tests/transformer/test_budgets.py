"""What is chosen for a whole run: the decay's coefficient for its budget, the rank scale for a share of parameters."""

import pytest
import torch
import train as program
from fairseq import optimization, schedule
from fairseq.corpus import load_dictionaries, load_split
from fairseq.feed import Data, Feed
from fairseq.trainer import Trainer
from fairseq.transformer import build_model, parameter_count

from lab.cli import UserError
from lab.devices import Computing
from tests.harness import events, results
from tests.transformer import tiny

SCHEDULES = {
    "inverse_sqrt": "--warmup-updates 4 --max-epoch 3",
    "cosine": "--warmup-updates 2 --max-update 9 --max-epoch 0",
    "polynomial_decay": "--warmup-updates 2 --max-update 9 --total-num-update 20 --max-epoch 0",
    "fixed": "--lr 0.3,0.2 --fa 2 --lr-shrink 0.5 --max-epoch 3",
}


def run_with_rates(data, folder, flags, monkeypatch):
    """Train, and return the rate of every update that was made."""
    made, step = [], Trainer.step

    def recorded(self, *args, **counts):
        rate, before = self.lr, self.updates
        step(self, *args, **counts)
        made.extend([rate] * (self.updates > before))

    monkeypatch.setattr(Trainer, "step", recorded)
    tiny.train(data, folder, flags)
    return made[1:]  # the first is the rehearsal's


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_are_known_beforehand(data, tmp_path, name, monkeypatch):
    flags = f"--lr-scheduler {name} {SCHEDULES[name]}"
    made = run_with_rates(data, tmp_path / "run", flags, monkeypatch)
    args = program.build_parser().parse_args([str(data), *tiny.BASE.split(), *flags.split()])
    assert len(set(made)) > 1 and made == pytest.approx(schedule.rates(args, 5))


def test_rates_that_nobody_knows():
    parse = program.build_parser().parse_args
    base = ["-", "--arch", "transformer"]
    assert schedule.rates(parse([*base, "--epochs", "2"]), 5) is None  # reduce_lr_on_plateau
    assert schedule.rates(parse([*base, "--lr-scheduler", "fixed"]), 5) is None
    # 0.4, 0.04 and 0.004 an epoch each, and 0.0004 is where it stops
    args = parse([*base, *"--lr 0.4 --lr-scheduler fixed --fa 1 --epochs 9 --min-lr 0.001".split()])
    assert schedule.rates(args, 2) == pytest.approx([0.4] * 2 + [0.04] * 2 + [0.004] * 2)


@pytest.mark.parametrize(
    ("flags", "of_weights", "of_products"),
    [
        ("--wd2fd-outval", 1.0, 0.01),  # momentum 0.99, which nag's weight decay does not go through
        ("--optimizer sgd --momentum 0.8 --wd2fd-outval", 0.2, 0.2),
        ("--optimizer adam", 1.0, None),
    ],
)
def test_coefficients_for_a_decay_budget(data, tmp_path, flags, of_weights, of_products, monkeypatch):
    found, build = [], optimization.build

    def recorded(args, model):
        found.append(build(args, model))
        return found[-1]

    monkeypatch.setattr(optimization, "build", recorded)
    flags = f"{flags} --lr 0.01 --decay-budget 0.5"
    total = sum(run_with_rates(data, tmp_path / "run", flags, monkeypatch))
    weight_decay = found[0].optimizer.param_groups[0]["weight_decay"]
    assert weight_decay == pytest.approx(0.5 * of_weights / total)
    if of_products:
        assert found[0].decay.coefficient == pytest.approx(0.5 * of_products / total)
    assert results(tmp_path / "run")["decay budget"] == pytest.approx(0.5)
    with pytest.raises(SystemExit):  # the same arguments: finished
        tiny.train(data, tmp_path / "run", flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr-scheduler reduce_lr_on_plateau", "how long the run is, and at which rates, is open"),
        ("--optimizer adam --wd2fd-outval", "adam rescales decay"),
        ("--optimizer adagrad", "adagrad rescales decay"),
        ("--frobenius-decay 0.1", "--decay-budget finds the coefficient of --frobenius-decay: give only one"),
        ("--weight-decay 0.1", "not allowed with argument"),
    ],
)
def test_budgets_that_have_no_coefficient(data, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        tiny.train(data, tmp_path / "run", f"--decay-budget 2 {flags}")
    assert not (tmp_path / "run").exists()


def test_a_share_of_the_parameters(data, tmp_path, capsys):
    found = results(tiny.train(data, tmp_path / "run", "--target-ratio 0.5 --spectral"))
    assert found["ratio"] == pytest.approx(0.5, rel=0.05) and 0 < found["rank scale"] < 1
    config = tiny.checkpoint(tmp_path / "run")["config"]
    assert config["rank_scale"] == found["rank scale"]
    assert found["method"] == "low-rank --spectral"
    with pytest.raises(UserError, match="--target-ratio 0.001 is out of reach: the nearest share"):
        tiny.train(data, tmp_path / "other", "--target-ratio 0.001")


@pytest.mark.parametrize("flags", ["", "--rank-scale 0.3 --spectral", "--rank-scale 0.7 --share-all-embeddings"])
def test_parameters_are_counted_without_building(flags):
    config = program.model_config(program.build_parser().parse_args(["-", *tiny.BASE.split(), *flags.split()]))
    torch.manual_seed(3)
    counted = parameter_count(config, 20, 20)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)  # no random number was drawn
    assert counted == sum(p.numel() for p in build_model(config, 20, 20).parameters())


def test_accuracy(data, tmp_path):
    """Of the validation data: the likeliest symbol by hand, sentence by sentence."""
    run = tiny.train(data, tmp_path / "run", "--max-epoch 4 --lr 0.5")
    state = tiny.checkpoint(run)
    args = program.build_parser().parse_args([str(data), *tiny.BASE.split()])
    model = build_model(program.model_config(args), 12, 12).eval()
    model.load_state_dict(state["state_dict"])
    dictionaries = load_dictionaries(data, "de", "en")
    corpus = load_split(data, "valid", "de", "en", dictionaries)
    alone = Computing(torch.device("cpu"), None, False, torch.contiguous_format)
    feed = Feed(args, model.config, Data(("de", "en"), dictionaries, corpus, {"valid": corpus}), alone)
    right = tokens = 0
    for batch in feed.validation(corpus)[0]:
        scores = model(batch.source, batch.decoder_input).view(*batch.target.shape, -1)
        there = batch.target != 1  # padding
        right += ((scores.argmax(-1) == batch.target) & there).sum().item()
        tokens += there.sum().item()
    epochs, values = events(run)["valid/accuracy"]
    assert values[-1] == pytest.approx(100 * right / tokens, abs=1e-3)
    trained = events(run)["train/accuracy"][1]
    assert list(epochs) == [1, 2, 3, 4] and 0 < trained[0] < trained[-1] < 100
