"""What an update does: accumulation, averaging, optimizers, rates, precision, failures."""

import json
import math
import re

import pytest
import torch
from fairseq.meter import Meter
from fairseq.trainer import Trainer

from lab import devices
from lab.cli import RunError, UserError
from tests.harness import events, results, snapshot
from tests.transformer import tiny


def weights(folder, name="checkpoint_last.pt"):
    return tiny.checkpoint(folder, name)["state_dict"]


def assert_close(ours, theirs):
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-6, msg=name)


WITHOUT_DROPOUT = "--dropout 0 --relu-dropout 0"


def test_accumulated_gradients_are_those_of_the_merged_batch(data, tmp_path):
    """All training pairs at once, in one batch or in several."""
    one = tiny.train(data, tmp_path / "one", f"{WITHOUT_DROPOUT} --max-tokens 10000 --max-update 3")
    many = tiny.train(data, tmp_path / "many", f"{WITHOUT_DROPOUT} --max-sentences 12 --update-freq 8 --max-update 3")
    assert tiny.checkpoint(many)["offset"] == 0 and tiny.checkpoint(many)["updates"] == 2  # of the last two epochs
    assert_close(weights(many, "checkpoint2.pt"), weights(one, "checkpoint2.pt"))


def test_sentence_average(data, tmp_path, capsys):
    """Gradients over sentences are larger than over words, so are the losses."""
    tiny.train(data, tmp_path / "run", "--sentence-avg --max-epoch 1")
    end = re.search(r"\| loss ([\d.]+).* wpb (\d+) \| bsz ([\d.]+) .* sample_size (\d+)", capsys.readouterr().out)
    loss, words, sentences, samples = map(float, end.groups())
    assert samples == round(sentences) and loss > 3 * words / sentences * 0.8


OPTIMIZERS = ("nag --lr 0.1", "sgd --lr 0.01 --momentum 0.9", "adam --lr 0.01", "adagrad --lr 0.1")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(data, tmp_path, optimizer):
    run = tiny.train(data, tmp_path / "run", f"--optimizer {optimizer} --max-epoch 5 --weight-decay 1e-4 --clip-norm 1")
    losses = events(run)["train/loss"][1]
    assert losses[-1] < losses[0]


def test_bf16(data, tmp_path):
    """It only rounds otherwise."""
    plain = results(tiny.train(data, tmp_path / "plain", WITHOUT_DROPOUT))
    half = results(tiny.train(data, tmp_path / "half", f"{WITHOUT_DROPOUT} --amp bf16"))
    assert half["final validation loss"] == pytest.approx(plain["final validation loss"], abs=0.02)
    assert half["final validation loss"] != plain["final validation loss"]


FACTORIZED = "--rank-scale 0.5 --spectral --spectral-quekey --wd2fd --wd2fd-outval --weight-decay 1e-3"


@pytest.mark.parametrize("flags", ["--rank-scale 0.25", "--rank-scale 1", FACTORIZED])
@pytest.mark.parametrize(
    "form", ["", "--share-input-output-embed", "--position timing", "--position nopos --no-cross-mask"]
)
def test_bf16_of_every_form(data, tmp_path, flags, form):
    """All layers add to one sum, which factorized embeddings start as dense ones do."""
    flags = f"{WITHOUT_DROPOUT} --max-epoch 1 --no-save {flags} {form}"
    plain, half = (results(tiny.train(data, tmp_path / amp, f"{flags} --amp {amp}")) for amp in ("off", "bf16"))
    assert half["final validation loss"] == pytest.approx(plain["final validation loss"], abs=0.005)
    assert half["final validation loss"] != plain["final validation loss"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--rank-scale 0.5 --wd2fd --weight-decay 1e-3"])
def test_compilation(data, tmp_path, flags):
    plain = tiny.train(data, tmp_path / "plain", f"{WITHOUT_DROPOUT} {flags}")
    compiled = tiny.train(data, tmp_path / "compiled", f"{WITHOUT_DROPOUT} --compile {flags}")
    assert_close(weights(compiled), weights(plain))


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    flags = "--max-epoch 4 --optimizer sgd --momentum 0 --clip-norm 0 --lr-scheduler fixed"
    with pytest.raises(RunError, match="loss in epoch 2 is (nan|inf); stopped, the last checkpoint is as it was"):
        tiny.train(data, tmp_path / "run", f"{flags} --lr 0.1,1e20")
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert tiny.checkpoint(tmp_path / "run")["epoch"] == 2
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_run_whose_first_update_fails_leaves_nothing(data, tmp_path, monkeypatch):
    def failing(self, batch, samples):
        raise RuntimeError("stands for an operation that a device lacks")

    monkeypatch.setattr(Trainer, "_backward", failing)
    with pytest.raises(RuntimeError, match="stands for"):
        tiny.train(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rate_that_is_too_high_at_once_replaces_nothing(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--max-epoch 1")
    before = snapshot(run)
    with pytest.raises(UserError, match="the loss is (nan|inf) after one update; lower --lr 1e.30"):
        tiny.train(data, run, "--max-epoch 1 --lr 1e30 --optimizer sgd --clip-norm 0 --overwrite")
    assert snapshot(run) == before


def test_a_batch_that_does_not_fit_into_memory_is_left_out(data, tmp_path, monkeypatch, capsys):
    backward, calls = Trainer._backward, []

    def failing(self, batch, samples):
        calls.append(samples)
        losses = backward(self, batch, samples)
        if len(calls) == 4:  # the first is the rehearsal's
            raise torch.OutOfMemoryError("stands for a GPU's")
        return losses

    monkeypatch.setattr(Trainer, "_backward", failing)
    tiny.train(data, tmp_path / "run", "--max-epoch 1")
    assert len(calls) == 6
    assert re.search(r"\| oom 1 .*\| num_updates 4 ", capsys.readouterr().out)


def test_the_rate_of_every_update(data, tmp_path, capsys):
    """Warm-up from 0.05 to 0.25 in 4 updates, then the inverse square root."""
    flags = "--lr 0.25 --warmup-init-lr 0.05 --warmup-updates 4 --max-epoch 1 --log-interval 1 --log-format json"
    tiny.train(data, tmp_path / "run", flags)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"batch"' in line]
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.25 * math.sqrt(4 / 5)])


def test_training_stops_at_the_smallest_rate(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--max-epoch 0 --lr-scheduler fixed --fa 2 --lr 0.1 --min-lr 0.0005")
    assert tiny.checkpoint(run)["epoch"] == 5  # rates 0.1, 0.1, 0.01, 0.001, and 0.0001 is too small


def test_meter():
    computing = devices.Computing(torch.device("cpu"), None, False, torch.contiguous_format)
    meter = Meter(computing)
    meter.add(torch.tensor([8.0, 4.0, 0.0, 3.0, 1.0, 1.0]) * math.log(2), tokens=4, sentences=2, samples=4)
    values = meter.read("here")
    assert (values["loss"], values["nll_loss"], values["ppl"]) == pytest.approx((2, 1, 2))
    assert (values["wpb"], values["bsz"], values["wps"]) == (4, 2, 0)
    again = Meter(computing)
    again.load_state_dict(meter.state_dict())
    assert again.read("here")["loss"] == pytest.approx(2)
    meter.add(torch.full((6,), float("nan")), tokens=1, sentences=1, samples=1)
    with pytest.raises(RunError, match="the loss in update 5 is nan"):
        meter.read("update 5")


def test_an_epoch_that_begins_with_a_batch_that_does_not_fit_goes_on(data, tmp_path, monkeypatch, capsys):
    backward, calls = Trainer._backward, []

    def failing(self, batch, samples):
        calls.append(samples)
        if len(calls) < 4:  # the first is the rehearsal's
            raise torch.OutOfMemoryError("stands for a GPU's")
        return backward(self, batch, samples)

    monkeypatch.setattr(Trainer, "_backward", failing)
    tiny.train(data, tmp_path / "run", "--max-epoch 1 --log-interval 2")
    out = capsys.readouterr().out
    assert len(calls) == 6 and len(re.findall(r"^\| epoch 001 \| loss", out, re.M)) == 1
    assert re.search(r"\| oom 2 .*\| num_updates 3 ", out)


def test_lines_in_an_epoch_of_accumulated_batches(data, tmp_path, capsys):
    tiny.train(data, tmp_path / "run", "--max-epoch 1 --log-interval 2 --update-freq 3")
    assert re.findall(r"^\| epoch 001: +(\d)", capsys.readouterr().out, re.M) == ["3", "5"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["off", "bf16", "fp16"])
def test_a_gpu_trains_as_the_cpu(data, tmp_path, precision):
    flags = f"{WITHOUT_DROPOUT} --rank-scale 0.5 --wd2fd --wd2fd-outval --weight-decay 1e-3"
    cpu = results(tiny.train(data, tmp_path / "cpu", flags))
    gpu = results(tiny.train(data, tmp_path / "gpu", f"{flags} --device cuda --amp {precision}"))
    tolerance = 1e-3 if precision == "off" else 0.05
    assert gpu["final validation loss"] == pytest.approx(cpu["final validation loss"], abs=tolerance)
