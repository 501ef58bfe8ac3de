"""Which parameters get which decay: the table of the study's arms, ratios included."""

import pytest
import torch
from deficient.decay import parameter_groups, structured_parameters
from deficient.networks import Config, build, count, reference, skeleton
from deficient.wide_resnet import BLOCK_CONVS

from factorized import FrobeniusDecay, describe_decay, factorized_modules, find_rank_scale

TEN = tuple("0123456789")

RATIOS = {
    (28, "TensorTrain_0.234"): 0.016644, (28, "TensorTrain_0.705"): 0.066742, (28, "Tucker_0.211"): 0.016681,
    (28, "Tucker_0.68"): 0.067003, (28, 0.01667): 0.016730, (28, 0.06667): 0.066751,
    (40, "TensorTrain_0.234"): 0.027067, (40, "TensorTrain_0.705"): 0.080258, (40, "Tucker_0.211"): 0.025975,
    (40, "Tucker_0.68"): 0.090269, (40, 0.06667): 0.066977,
}  # fmt: skip


@pytest.mark.parametrize(("depth", "setting"), RATIOS)
def test_ratios(depth, setting):
    config = Config("WideResNet", TEN, depth=depth, width={28: 10, 40: 2}[depth])
    if isinstance(setting, str):
        found = count(Config("WideResNet", TEN, setting, depth=depth, width=config.width)) / count(reference(config))
    else:
        found = find_rank_scale(skeleton(config), setting, include=BLOCK_CONVS).ratio
    assert found == pytest.approx(RATIOS[depth, setting], abs=5.1e-7)


def decays(model, **options) -> dict[str, float]:
    groups = parameter_groups(model, 1.0, **options)
    by_parameter = {p: group["weight_decay"] for group in groups for p in group["params"]}
    return {name: by_parameter[p] for name, p in model.named_parameters()}


STRUCTURED = {
    "TensorTrain_0.5": ("weight_core",),
    "Tucker_0.5": ("weight_core", "weight_u"),
    "CP_0.5": ("weight_core",),
    "Generic_0.5": ("pointwise.U", "pointwise.VT"),
    "LR_0.5": ("shared",),
    "Shuffle_2": ("squeeze", "conv1.grouped", "conv2.grouped", "expand"),
    "Hashed_0.5": ("table",),
    "SepHashed_0.5": ("table", "conv1.bias", "conv2.bias"),
    "ACDC_3": ("conv1.A", "conv1.D", "conv2.A", "conv2.D"),
    "Conv": (),
    "Sep": (),
}


@pytest.mark.parametrize("conv", STRUCTURED)
def test_arms_of_substituted_layers(conv):
    model = build(Config("WideResNet", TEN, conv, depth=10, width=1))
    scaled = decays(model, ratio=0.25, frobenius=False)
    for name, decay in scaled.items():
        assert decay == (0.25 if any(part in name for part in STRUCTURED[conv]) else 1.0), name
    assert set(decays(model, ratio=1.0, frobenius=False).values()) == {1.0}
    factors = {f for layer in factorized_modules(model).values() for f in layer.factors()}
    frobenius = decays(model, ratio=0.25, frobenius=True)
    for name, parameter in model.named_parameters():
        assert frobenius[name] == (0.0 if parameter in factors else 1.0), name


def test_arms_of_low_rank_networks():
    model = build(Config("WideResNet", TEN, depth=10, width=1, rank_scale=0.2))
    scaled = decays(model, ratio=0.25, frobenius=False)
    factors = ("conv1.U", "conv1.VT", "conv2.U", "conv2.VT", "convShortcut.U", "convShortcut.VT")
    for name, decay in scaled.items():
        assert decay == (0.25 if name.endswith(factors) else 1.0), name
    assert sum(decay < 1 for decay in scaled.values()) == 2 * (6 + 2)
    assert len(structured_parameters(model)) == 16
    groups = parameter_groups(model, 1.0, ratio=0.25, frobenius=False)
    assert "L2 0.25 on 16 tensors" in describe_decay(groups)


@pytest.mark.parametrize(
    "conv", ["TensorTrain_0.5", "Tucker_0.5", "CP_0.5", "LR_0.5", "Hashed_0.2", "SepHashed_0.5", "ACDC_3"]
)
def test_decay_in_the_backward_pass_is_the_penalty(conv):
    torch.manual_seed(3)
    model = build(Config("WideResNet", TEN, conv, depth=10, width=1)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(x).square().sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    penalty = sum(layer.contract().square().sum() for layer in factorized_modules(model).values()) / 2
    wanted = dict(zip(plain, torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)))
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    FrobeniusDecay(model, 0.5).attach(optimizer, in_backward=True)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        expected = plain[name] if wanted[name] is None else plain[name] + 0.5 * wanted[name]
        torch.testing.assert_close(parameter.grad, expected)
