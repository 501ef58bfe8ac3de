"""Tensor-network convolutions: the published ranks and counts, contraction, dense forms, and decay that acts."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import factorized
from factorized import CPConv2d, FrobeniusDecay, TensorTrainConv2d, TuckerConv2d, parameter_groups

KINDS = [TensorTrainConv2d, TuckerConv2d, CPConv2d]

# (in, out): ranks and parameters of TensorTrain 0.234, 0.705 and Tucker 0.211, 0.68 (with R1).
WIDE_RESNET_LAYERS = {
    (16, 160): (((4, 2), 212), ((11, 7), 1478), ((3, 3, 2), 6, 174), ((11, 11, 7), 16, 1879)),
    (160, 160): (((7, 6), 1718), ((23, 18), 14434), ((7, 7, 5), 32, 1942), ((22, 22, 17), 32, 14794)),
    (160, 320): (((9, 7), 3104), ((28, 23), 27616), ((8, 8, 7), 40, 3473), ((27, 27, 22), 40, 28188)),
    (320, 320): (((12, 7), 6200), ((35, 23), 54006), ((11, 14, 7), 50, 7169), ((34, 44, 22), 50, 55804)),
    (320, 640): (((15, 12), 13080), ((45, 35), 105430), ((14, 14, 11), 64, 13215), ((44, 44, 34), 64, 107048)),
    (640, 640): (((19, 15), 25280), ((56, 45), 208960), ((17, 17, 14), 80, 24212), ((54, 54, 44), 80, 207792)),
    (16, 32): (((2, 2), 64), ((6, 6), 384), ((2, 2, 2), 4, 76), ((5, 5, 5), 8, 385)),
    (32, 32): (((4, 1), 132), ((11, 3), 716), ((3, 3, 1), 3, 119), ((11, 11, 3), 16, 1077)),
    (32, 64): (((4, 2), 208), ((11, 6), 1280), ((3, 3, 2), 6, 170), ((11, 11, 5), 16, 1473)),
    (64, 64): (((4, 4), 384), ((11, 11), 2288), ((3, 3, 3), 9, 261), ((11, 11, 11), 16, 2761)),
    (64, 128): (((7, 2), 688), ((23, 6), 5200), ((7, 7, 2), 14, 762), ((22, 22, 5), 32, 5697)),
    (128, 128): (((7, 4), 1184), ((23, 11), 9008), ((7, 7, 3), 21, 1093), ((22, 22, 11), 32, 10153)),
}


def structured(layer) -> int:
    return sum(factor.numel() for factor in layer.factors())


def small(kind, rank_scale: float = 0.5, **options):
    """A layer of unequal sides in double precision."""
    return kind(6, 10, 3, rank_scale, padding=1, dtype=torch.float64, **options)


@pytest.mark.parametrize("sides", WIDE_RESNET_LAYERS)
def test_ranks_and_parameters_of_wide_resnets(sides):
    expected = WIDE_RESNET_LAYERS[sides]
    with torch.device("meta"):
        for (ranks, count), scale in zip(expected[:2], (0.234, 0.705)):
            layer = TensorTrainConv2d(*sides, 3, scale, bias=False)
            assert (layer.rank, structured(layer)) == (ranks, count)
        for (ranks, bond, count), scale in zip(expected[2:], (0.211, 0.68)):
            layer = TuckerConv2d(*sides, 3, scale, bias=False)
            assert (layer.rank, layer.bond, structured(layer)) == (ranks, bond, count)
        layer = CPConv2d(*sides, 3, 0.3, bias=False)
        assert structured(layer) == max(1, round(0.3 * min(layer.dimensions))) * sum(layer.dimensions)
        assert factorized.parameter_count(layer) == structured(layer) + 9 * sides[0]


@pytest.mark.parametrize("kind", KINDS)
def test_layer_is_a_depthwise_and_a_pointwise_convolution(kind):
    layer = kind(6, 10, 3, 0.5, stride=2, padding=2, dilation=2, dtype=torch.float64)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    middle = F.conv2d(x, layer.grouped.weight, None, 2, 2, 2, groups=6)
    expected = F.conv2d(middle, layer.contract()[:, :, None, None], layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight.shape == (10, 6, 3, 3)
    dense = layer.to_dense()
    assert type(dense) is nn.Conv2d
    torch.testing.assert_close(dense(x), expected)
    pointwise = kind(6, 10, 1, 0.5, stride=2, bias=False, dtype=torch.float64)
    assert pointwise.grouped is None and pointwise.bias is None
    torch.testing.assert_close(pointwise(x), pointwise.to_dense()(x))


@pytest.mark.parametrize(("kind", "letters"), [(TensorTrainConv2d, "xia,ajb,bky"), (CPConv2d, "ic,jc,kc")])
def test_both_contraction_orders_agree_with_einsum(kind, letters):
    for sides in ((4, 40), (6, 10), (27, 3)):
        layer = kind(*sides, 1, 0.6, dtype=torch.float64)
        expected = torch.einsum(f"{letters}->ijk", *layer.factors()).reshape(sides[::-1])
        torch.testing.assert_close(layer.contract(), expected)


def test_tucker_agrees_with_einsum():
    layer = small(TuckerConv2d)
    expected = torch.einsum("xpa,aqb,bsy,ip,jq,ks->ijk", *layer.factors()).reshape(10, 6)
    torch.testing.assert_close(layer.contract(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_laws_of_the_start(kind):
    layer = kind(24, 48, 3, 3.0 if kind is CPConv2d else 1.0)
    if kind is not CPConv2d:  # nothing is lost, so the composed weight has the law of what was drawn
        assert layer.contract().std().item() == pytest.approx(math.sqrt(1 / (3 * 24)), rel=0.1)
        assert layer.contract().abs().max() <= 24**-0.5 + 1e-5
    layer.spectral_()
    if kind is not CPConv2d:
        assert layer.contract().std().item() == pytest.approx(math.sqrt(2 / 48), rel=0.1)


@pytest.mark.parametrize("kind", [TensorTrainConv2d, TuckerConv2d])
def test_kept_energy(kind):
    kept = {TensorTrainConv2d: (0.234, 0.13), TuckerConv2d: (0.211, 0.075)}[kind]
    energies = []
    for _ in range(20):
        layer = kind(16, 160, 3, kept[0])
        energies.append(layer.contract().square().sum().item() / (160 / 3))
    assert sum(energies) / 20 == pytest.approx(kept[1], rel=0.15)


@pytest.mark.parametrize("kind", [TensorTrainConv2d, TuckerConv2d])
def test_from_dense(kind):
    dense = nn.Conv2d(6, 10, 3, stride=2, padding=1, dtype=torch.float64)
    separable = torch.randn(10, 6, 1, 1, dtype=torch.float64) * torch.randn(1, 6, 3, 3, dtype=torch.float64)
    dense.weight.data.copy_(separable)
    dense.weight.requires_grad_(False)
    dense.eval()
    layer = kind.from_dense(dense, 1.0)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer.weight, dense.weight.data)
    assert not layer.training and not layer.grouped.weight.requires_grad and layer.bias.requires_grad
    back = layer.to_dense()
    assert not back.weight.requires_grad and back.bias.requires_grad and not back.training


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    dense = nn.Conv2d(4, 4, (3, 5), padding=padding, dilation=(2, 1))
    layer = TuckerConv2d.from_dense(dense, 1.0)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    assert layer(x).shape == dense(x).shape


def test_from_dense_is_better_with_more_rank_and_keeps_the_memory_format():
    dense = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
    for kind in KINDS:
        errors = [(kind.from_dense(dense, scale).weight - dense.weight).norm().item() for scale in (0.2, 0.5, 0.9)]
        assert errors == sorted(errors, reverse=True)
        again = kind.from_dense(dense, 0.5).to_dense()
        assert again.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="circular"),
    ],
)
def test_from_dense_refuses(layer):
    with pytest.raises(ValueError, match="cannot become a tensor layer|not symmetric"):
        TensorTrainConv2d.from_dense(layer, 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank_scale", [0.0, -1.0, math.inf, math.nan])
def test_rank_scales_out_of_range(kind, rank_scale):
    with pytest.raises(ValueError, match="rank_scale"):
        kind(4, 4, 3, rank_scale)


# Frobenius decay


def explicit(model, coefficient: float) -> dict:
    """Gradients of the penalty, written out and differentiated."""
    layers = factorized.factorized_modules(model).values()
    penalty = coefficient / 2 * sum(layer.contract().square().sum() for layer in layers)
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(penalty, parameters, allow_unused=True)))


def network(kind) -> nn.Module:
    return nn.Sequential(small(kind), nn.Tanh(), kind(10, 10, 3, 0.4, dtype=torch.float64), nn.Flatten(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_backward", [False, True])
def test_decay_is_the_gradient_of_the_penalty(kind, in_backward):
    model = network(kind)
    x = torch.randn(3, 6, 6, 6, dtype=torch.float64)
    model(x).square().mean().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    expected = explicit(model, 0.3)
    model.zero_grad()
    decay, optimizer = FrobeniusDecay(model, 0.3), torch.optim.SGD(model.parameters(), lr=0.0)
    decay.attach(optimizer, in_backward)
    model(x).square().mean().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        added = parameter.grad - plain[name]
        if expected[name] is None:  # depthwise kernels and biases
            torch.testing.assert_close(added, torch.zeros_like(added))
        else:
            assert expected[name].norm() > 0
            torch.testing.assert_close(added, expected[name])
    total = sum(layer.contract().square().sum() for layer in factorized.factorized_modules(model).values())
    torch.testing.assert_close(decay.penalty(), 0.15 * total)


def test_decay_without_a_backward_pass_and_with_frozen_factors():
    model = network(TuckerConv2d)
    model[0].weight_u_1.requires_grad_(False)
    decay = FrobeniusDecay(model, 0.5)
    decay.add_gradients(scale=2.0)
    expected = explicit(copy.deepcopy(model).requires_grad_(), 1.0)
    for name, parameter in model.named_parameters():
        if expected[name] is None or name == "0.weight_u_1":
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name])


def test_attached_decay_moves_every_factor_and_is_not_doubled():
    model = network(TensorTrainConv2d)
    groups = parameter_groups(model, 0.1)
    assert [len(group["params"]) for group in groups] == [4, 6]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    handle = FrobeniusDecay(model, 0.1).attach(optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = explicit(model, 0.1)
    (model(torch.zeros(1, 6, 6, 6, dtype=torch.float64)) * 0).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        gradient = 0.1 * before[name] if expected[name] is None else expected[name]
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * gradient)
    handle.remove()
    with pytest.raises(ValueError, match="both Frobenius and L2"):
        FrobeniusDecay(model, 0.1).attach(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))


def test_metrics_and_report_hold_for_tensor_layers():
    model = network(TensorTrainConv2d).float()
    layers = list(factorized.factorized_modules(model).values())
    norms = factorized.frobenius_norms(layers)
    torch.testing.assert_close(norms, torch.stack([layer.contract().norm() for layer in layers]).detach())
    metrics = factorized.layer_metrics(layers, 0.1)
    assert metrics["metric/FrobNorm"] == pytest.approx(norms.mean().item())
    assert "metric/NucNorm-bound" not in metrics
    text = factorized.report(model, torch.zeros(1, 6, 6, 6))
    assert "10x6" in text and f"{layers[0].multiply_adds((1, 6, 6, 6)):,}" in text


@pytest.mark.parametrize("kind", [TensorTrainConv2d, TuckerConv2d])
@pytest.mark.parametrize("sides", [(640, 640), (4, 40), (27, 3)])
def test_multiply_adds(kind, sides):
    with torch.device("meta"):
        layer = kind(*sides, 3, 0.4, padding=1, bias=False)
    with FlopCounterMode(display=False) as counter:
        layer.contract()
    assert counter.get_total_flops() == 2 * layer.compose_cost()
    dense = math.prod(sides) + 9 * sides[0]
    assert layer.multiply_adds((2, sides[0], 8, 8)) == layer.compose_cost() + 2 * 64 * dense


# In use


@pytest.mark.parametrize("kind", KINDS)
def test_merge_state_dict_copies_and_substituted_parameters(kind):
    model = network(kind)
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64)
    expected = model(x)
    other = network(kind)
    other.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(other(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    doubled = {name: 2 * p for name, p in model.named_parameters() if name == f"2.{model[2].names[0]}"}
    assert not torch.allclose(torch.func.functional_call(model, doubled, x), expected)
    merged = factorized.merge(copy.deepcopy(model))
    assert [type(module) for module in merged] == [nn.Conv2d, nn.Tanh, nn.Conv2d, nn.Flatten]
    torch.testing.assert_close(merged(x), expected)


def test_autocast_composes_in_full_precision():
    layer = TensorTrainConv2d(8, 8, 3, 0.5, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(1, 8, 4, 4))
        assert layer.contract().dtype == torch.float32
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight_core_1.grad.dtype == torch.float32
    half = TuckerConv2d(8, 8, 3, 0.5, dtype=torch.bfloat16)
    assert half(torch.randn(1, 8, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
