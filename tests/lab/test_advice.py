"""The setting that would be faster: suggested where it was measured, after long runs alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lab import advice
from lab.data import images
from lab.devices import Computing
from tests.eigendamage import tiny as compression
from tests.resnet import tiny as resnet
from tests.transformer import tiny as translation

ALONE = Computing(torch.device("cpu"), None, False, torch.contiguous_format)


@pytest.fixture
def taking(monkeypatch):
    """Make steps that take so many seconds of a clock that nothing else moves."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(advice, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def step(plain: float, short: float):
        def take() -> None:
            clock.now += short if torch.is_autocast_enabled("cpu") else plain

        return take

    return step


def test_what_is_faster_is_said_with_its_numbers(taking):
    (line,) = advice.faster(taking(0.06, 0.02), nn.Linear(2, 2), ALONE, advice.LONG)
    assert line.startswith("--amp bf16 makes a step 3.0 times as fast")
    assert "(0.02" in line and "s instead of 0.06" in line


@pytest.mark.parametrize(
    ("plain", "short", "seconds", "computing"),
    [
        (0.02, 0.02, advice.LONG, {}),
        (0.01, 0.03, advice.LONG, {}),
        (0.03, 0.01, advice.LONG - 1, {}),
        (0.03, 0.01, advice.LONG, {"world_size": 2}),
        (0.03, 0.01, advice.LONG, {"compile": True}),
        (0.03, 0.01, advice.LONG, {"amp": torch.bfloat16}),
    ],
)
def test_otherwise_nothing_is_said(taking, plain, short, seconds, computing):
    kind = {"device": torch.device("cpu"), "amp": None, "compile": False, "memory_format": torch.contiguous_format}
    assert not advice.faster(taking(plain, short), nn.Linear(2, 2), Computing(**{**kind, **computing}), seconds)


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    calls = []

    def step():
        calls.append(torch.is_autocast_enabled("cpu"))
        model(torch.randn(5, 3)).sum().backward()

    advice.faster(step, model, ALONE, advice.LONG)
    assert calls == [False, True] * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("study", [resnet, compression], ids=["resnet", "compression"])
def test_a_trainer_measures_once_its_results_are_written(study, tmp_path, monkeypatch, capsys):
    def measured(step, device):
        assert (tmp_path / "run" / "results.json").exists()
        step()
        return 0.3, 0.1

    monkeypatch.setattr(advice, "LONG", 0)
    monkeypatch.setattr(advice, "_measured", measured)
    monkeypatch.setitem(images.LOADERS, "digits", study.digits)
    study.train(tmp_path / "run")
    line = "--amp bf16 makes a step 3.0 times as fast on this machine (0.1 s instead of 0.3 s, just measured)"
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)


def test_translation_measures_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(advice, "LONG", 0)
    monkeypatch.setattr(advice, "_measured", lambda step, device: (step(), (0.3, 0.1))[1])
    translation.train(translation.make_data(tmp_path), tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-1].startswith("--amp bf16 makes a step 3.0 times as fast")
