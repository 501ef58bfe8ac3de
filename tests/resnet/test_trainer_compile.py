"""Faster ways to compute the same end near the plain float32 run."""

import functools

import pytest
import torch

from tests.harness import events, results
from tests.resnet import tiny

FLAGS = "--rank-scale 0.111 --wd2fd --spectral --lr 0.01 --epochs 2".split()


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Losses in training and in validation of the plain run."""
    folder = tiny.train(tmp_path_factory.mktemp("plain") / "run", *FLAGS)
    return events(folder)["train/loss"][1], events(folder)["valid/loss"][1]


@pytest.mark.parametrize(
    "words, tolerance",
    [
        ("--channels-last", 0.02),  # its rounding errors grow at the kinks of small maps
        ("--deterministic", 1e-6),
        ("--rank-path composed", 1e-3),
        ("--rank-path two_step", 1e-3),
        ("--amp bf16", 0.05),
        ("--amp bf16 --channels-last", 0.05),
        ("--amp fp16", 0.15),  # the first steps are skipped until the scale of the loss fits
    ],
)
def test_the_losses_are_near(folder, losses, words, tolerance):
    try:
        tiny.train(folder, *FLAGS, *words.split())
    finally:
        torch.use_deterministic_algorithms(False)
    assert events(folder)["train/loss"][1] == pytest.approx(losses[0], rel=tolerance)
    assert events(folder)["valid/loss"][1] == pytest.approx(losses[1], rel=2 * tolerance)
    assert tiny.weights(folder)["layer1.0.conv1.U"].dtype == torch.float32


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_is_near(folder, losses, backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.compiler.reset()
    tiny.train(folder, *FLAGS, "--compile")
    assert events(folder)["train/loss"][1] == pytest.approx(losses[0], rel=1e-2)
    assert events(folder)["valid/loss"][1] == pytest.approx(losses[1], rel=2e-2)
    assert not any("_orig_mod" in name for name in tiny.weights(folder))


def test_scaled_training_is_continued_exactly(tmp_path):
    """The scale of --amp fp16 is part of the checkpoint."""
    flags = [*FLAGS, "--amp", "fp16", "--epochs", "4", "--save-every", "1"]
    whole = tiny.train(tmp_path / "whole", *flags)
    part = tiny.stopped_after(2, tmp_path / "part", *flags)
    saved = torch.load(part / "checkpoint.th", weights_only=True)
    assert saved["epoch"] == 2 and saved["scaler"]["scale"] < 2.0**16  # where it begins
    tiny.train(part, *flags, "--resume", "auto")
    for name, value in tiny.weights(whole).items():
        assert torch.equal(tiny.weights(part)[name], value), name


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("words", ["", "--rank-scale 0.111 --wd2fd --spectral", "--rank-scale 0.5 --square --wd2fd"])
def test_cuda_equals_cpu_up_to_rounding(tmp_path, words, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    flags = [*words.split(), "--lr", "0.01", "--epochs", "1"]
    cpu = tiny.train(tmp_path / "cpu", *flags)
    cuda = tiny.train(tmp_path / "cuda", *flags, "--device", "cuda")
    assert events(cuda)["train/loss"][1] == pytest.approx(events(cpu)["train/loss"][1], rel=1e-3)
    for name, value in tiny.weights(cpu).items():
        assert tiny.weights(cuda)[name].device.type == "cuda"
        torch.testing.assert_close(tiny.weights(cuda)[name].cpu(), value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("words", ["--amp fp16", "--amp bf16 --channels-last", "--compile", "--deterministic"])
def test_fast_ways_on_cuda(folder, losses, words):
    try:
        tiny.train(folder, *FLAGS, "--device", "cuda", *words.split())
    finally:
        torch.use_deterministic_algorithms(False)
    assert events(folder)["train/loss"][1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.gpu
def test_a_run_goes_on_on_another_device(tmp_path):
    cuda = tiny.train(tmp_path / "cuda", *FLAGS, "--device", "cuda", "--save-every", "1")
    printed = tiny.train(tmp_path / "cpu", *FLAGS, "--resume", str(cuda / "checkpoint.th"), "--device", "cpu")
    assert results(printed)["final validation accuracy"] == results(cuda)["final validation accuracy"]
