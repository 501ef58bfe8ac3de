"""The normalization experiment: recorded norms, imposed norms, and the three legs."""

import pytest
import torch
import trainer
from norms import NormImposer, NormRecorder, read_norms

import factorized
from tests.resnet import tiny

LEGS = "--rank-scale 0.111 --wd2fd --seed 2".split()
DEEP = "--rank-scale 0.3 --square --residual 0.05 --wd2fd --seed 2".split()


def build(flags):
    args = trainer.build_parser().parse_args([*tiny.BASE, *flags])
    return trainer.build_model(args, 10)[0]


def norms_of(folder, flags) -> torch.Tensor:
    """Return the norms of the products in `model.th`, multiplied out, in double precision."""
    model = build(flags)
    model.load_state_dict(tiny.weights(folder))
    products = []
    for layer in model.block_convs():
        left, *middle, right = (factor.detach().double() for factor in layer.factors())
        products.append(left @ middle[0] @ right if middle else left @ right)
    return torch.stack([(product**2).sum().sqrt() for product in products]).float()


def recorded(folder) -> torch.Tensor:
    return torch.load(folder / "frobnorms.tensor", weights_only=True)


@pytest.mark.parametrize("flags", [LEGS, DEEP], ids=["two factors", "three factors"])
def test_recorded_norms(folder, flags, monkeypatch):
    """One per epoch, iteration and layer, of the weights after the step."""
    by_hand = []
    after_step = NormRecorder.after_step

    def watched(self, epoch, iteration):
        after_step(self, epoch, iteration)
        by_hand.append(torch.stack([torch.linalg.matrix_norm(layer.product().detach()) for layer in self.layers]))

    monkeypatch.setattr(NormRecorder, "after_step", watched)
    tiny.train(folder, *flags, "--dump-frobnorms")
    norms = recorded(folder)
    assert norms.shape == (2, 3, 18) and norms.dtype == torch.float32
    torch.testing.assert_close(norms.flatten(0, 1), torch.stack(by_hand), rtol=1e-5, atol=0)
    torch.testing.assert_close(norms[-1, -1], norms_of(folder, flags), rtol=1e-5, atol=0)


@pytest.mark.parametrize("flags", [LEGS, DEEP], ids=["two factors", "three factors"])
def test_three_legs(tmp_path, flags):
    """Without decay norms are larger; imposed ones are met; recording sees the norms before others are imposed."""
    none = tiny.train(tmp_path / "none", *flags, "--wd", "0.01", "--no-frob", "--dump-frobnorms")
    frob = tiny.train(tmp_path / "frob", *flags, "--wd", "0.01", "--dump-frobnorms")
    imposed = ["--normalize", str(frob / "frobnorms.tensor")]
    norm = tiny.train(tmp_path / "norm", *flags, "--wd", "0.01", "--no-frob", *imposed, "--dump-frobnorms")
    targets, without, before = recorded(frob), recorded(none), recorded(norm)
    assert without[-1, -1].mean() > targets[-1, -1].mean()
    torch.testing.assert_close(norms_of(norm, flags), targets[-1, -1], rtol=1e-5, atol=0)
    assert torch.equal(before[0, 0], without[0, 0])  # nothing had been imposed yet
    assert (before[-1, -1] - targets[-1, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("flags", [LEGS, DEEP], ids=["two factors", "three factors"])
def test_imposing_keeps_the_balance(flags):
    """Both outer factors are multiplied by the same number; the middle factor is left alone."""
    layers = build(flags).block_convs()
    before = [[factor.detach().clone() for factor in layer.factors()] for layer in layers]
    old = factorized.frobenius_norms(layers)
    target = torch.linspace(0.5, 2, len(layers)) * old
    NormImposer(layers, target[None, None]).after_step(0, 0)
    torch.testing.assert_close(factorized.frobenius_norms(layers), target, rtol=1e-5, atol=0)
    for layer, factors, ratio in zip(layers, before, target / old):
        torch.testing.assert_close(layer.U.detach(), factors[0] * ratio.sqrt())
        torch.testing.assert_close(layer.VT.detach(), factors[-1] * ratio.sqrt())
        if layer.M is not None:
            assert torch.equal(layer.M, factors[1])


def test_the_same_norms_change_nothing_much(tmp_path):
    """A run on which its own norms are imposed is itself, up to rounding."""
    flags = [*LEGS, "--lr", "0.01"]
    frob = tiny.train(tmp_path / "frob", *flags, "--dump-frobnorms")
    again = tiny.train(tmp_path / "again", *flags, "--normalize", str(frob / "frobnorms.tensor"))
    for name, value in tiny.weights(frob).items():
        torch.testing.assert_close(tiny.weights(again)[name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_a_recording_is_read_back(folder):
    tiny.train(folder, *LEGS, "--dump-frobnorms")
    assert torch.equal(read_norms(folder / "frobnorms.tensor", (2, 3, 18)), recorded(folder))
