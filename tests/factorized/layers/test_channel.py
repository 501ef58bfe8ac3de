"""Convolutions factorized between channels, against PyTorch's with the kernel of their product."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorized import (
    ChannelConv2d,
    FactorizedConv1d,
    FactorizedConv3d,
    FrobeniusDecay,
    factorize,
    factorized_modules,
    merge,
    parameter_count,
    parameter_groups,
    report,
)
from factorized.cost import cheaper_path
from tests.factorized.networks import relative_error

KINDS = {
    1: (FactorizedConv1d, nn.Conv1d, F.conv1d),
    2: (ChannelConv2d, nn.Conv2d, F.conv2d),
    3: (FactorizedConv3d, nn.Conv3d, F.conv3d),
}
each_kind = pytest.mark.parametrize("dimensions", KINDS)


def kernel_of(layer: FactorizedConv1d) -> Tensor:
    """`K[o, c, ...] = sum_q U[o, q] R[q, (c, ...)]` with `R = M VT`, contracted index by index."""
    R = layer.VT if layer.M is None else torch.einsum("qp,pn->qn", layer.M, layer.VT)
    R = R.reshape(layer.rank, layer.in_channels // layer.groups, *layer.kernel_size)
    return torch.einsum("oq,qc...->oc...", layer.U, R)


def randomized(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def images(dimensions: int, channels: int = 4, batch: int = 2, **options) -> Tensor:
    return torch.randn(batch, channels, *(9, 7, 8)[:dimensions], dtype=torch.float64, **options)


@each_kind
@pytest.mark.parametrize("square", [False, True])
def test_both_paths_agree_with_the_dense_convolution(dimensions, square):
    kind, _, convolve = KINDS[dimensions]
    x, kernel = images(dimensions), (3, 2, 1)[:dimensions]
    for stride, padding, dilation in itertools.product([1, (2, 1, 3)], [0, (1, 2, 0)], [1, (2, 1, 2)]):
        geometry = [value if isinstance(value, int) else value[:dimensions] for value in (stride, padding, dilation)]
        layer = randomized(kind(4, 6, kernel, 3, *geometry, square=square, dtype=torch.float64))
        expected = convolve(x, kernel_of(layer), layer.bias, *geometry)
        torch.testing.assert_close(layer.weight, kernel_of(layer))
        for layer.path in ("composed", "two_step", "auto"):
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(layer(x[0]), expected[0], rtol=0, atol=1e-10)


def test_strided_kernels_of_one_entry_read_nothing_that_strides_skip():
    """A shortcut of a residual network: the values, and the multiply-adds of the first step, are at the new size."""
    layer = randomized(ChannelConv2d(4, 6, (1, 3), 3, stride=2, padding=(0, 1), path="two_step", dtype=torch.float64))
    x = images(2)
    for last in (False, True):
        x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        torch.testing.assert_close(layer(x), F.conv2d(x, kernel_of(layer), layer.bias, 2, (0, 1)))
    assert layer._without_skipped(x)[0].shape == (2, 4, 5, 7) and layer._without_skipped(x)[1] == (1, 2)


@each_kind
@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_gradients_are_those_of_the_dense_convolution(dimensions, path):
    kind, _, convolve = KINDS[dimensions]
    layer = randomized(kind(4, 6, 2, 3, 2, 1, square=True, path=path, dtype=torch.float64))
    inputs = [images(dimensions, requires_grad=True), *layer.parameters()]
    expected = torch.autograd.grad(convolve(inputs[0], kernel_of(layer), layer.bias, 2, 1).square().sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad(layer(inputs[0]).square().sum(), inputs), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@each_kind
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"stride": 2, "padding": "valid", "bias": False}])
def test_there_and_back(dimensions, options):
    """At full rank the function stays; bias, hyper-parameters, mode and what is frozen carry over both ways."""
    kind, dense_kind, _ = KINDS[dimensions]
    dense = dense_kind(4, 6, 3, dtype=torch.float64, **options).eval()
    dense.weight.requires_grad_(False)
    x = images(dimensions)
    layer = kind.from_dense(dense, 1.0)
    assert layer.rank == min(kind.matrix_shape(dense)) == 6 // layer.groups
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-6, atol=1e-7)
    back = layer.to_dense()
    assert type(back) is dense_kind and not back.training and not back.weight.requires_grad
    torch.testing.assert_close(back(x), dense(x), rtol=1e-6, atol=1e-7)


@each_kind
def test_the_start_is_the_best_approximation(dimensions):
    kind, dense_kind, _ = KINDS[dimensions]
    dense = dense_kind(4, 6, 3)
    P, sigma, QT = torch.linalg.svd(dense.weight.detach().reshape(6, -1), full_matrices=False)
    best = ((P[:, :2] * sigma[:2]) @ QT[:2]).view_as(dense.weight)
    assert relative_error(kind.from_dense(dense, rank=2).weight, best) < 1e-4


def test_three_dimensional_channels_last_survives_the_round_trip():
    dense = nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d)
    back = FactorizedConv3d.from_dense(dense, 0.5).to_dense()
    assert back.weight.is_contiguous(memory_format=torch.channels_last_3d) and not back.weight.is_contiguous()


@each_kind
def test_what_cannot_be_factorized(dimensions):
    kind, dense_kind, _ = KINDS[dimensions]
    assert "it is not a" in kind.obstacle(nn.Linear(4, 4))
    assert "padding mode 'replicate'" in kind.obstacle(dense_kind(4, 4, 3, padding=1, padding_mode="replicate"))
    assert "is not symmetric" in kind.obstacle(dense_kind(4, 4, 2, padding="same"))
    assert "a depthwise one" in kind.obstacle(dense_kind(4, 8, 3, groups=4))


@each_kind
def test_costs(dimensions):
    """Parameters and multiply-adds counted by hand: those of the two convolutions, or of one and its composition."""
    kind, _, _ = KINDS[dimensions]
    layer, entries = kind(4, 6, 3, 2, padding=1, path="two_step"), 3**dimensions
    assert parameter_count(layer) == 2 * (6 + 4 * entries) + 6
    shape = tuple(images(dimensions).shape)
    pixels = 2 * torch.Size(shape[2:]).numel()
    assert layer.multiply_adds(shape) == pixels * 2 * (4 * entries + 6)
    layer.path = "composed"
    assert layer.multiply_adds(shape) == 6 * 2 * 4 * entries + pixels * 6 * 4 * entries
    layer.path = "auto"
    assert layer._choose(torch.empty(shape)) == cheaper_path(**layer.costs(shape))
    full = kind(64, 64, 3, 64)
    assert [cheaper_path(**full.costs((batch, *shape[1:]))) for batch in (1, 1000)] == ["two_step", "composed"]


@each_kind
def test_in_a_model(dimensions):
    """Factorized, decayed, reported and merged like any other layer."""
    _, dense_kind, _ = KINDS[dimensions]
    model = nn.Sequential(dense_kind(4, 6, 3), nn.ReLU(), dense_kind(6, 5, 3, padding=1))
    x = images(dimensions).float()
    factorize(model, rank_scale=0.5, split="channel")
    assert list(factorized_modules(model)) == ["0", "2"] and type(model[0]) is KINDS[dimensions][0]
    assert "two_step" in report(model, x) or "composed" in report(model, x)
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-3), lr=0.01)
    FrobeniusDecay(model, 1e-3).attach(optimizer)
    before = [factor.detach().clone() for layer in factorized_modules(model).values() for factor in layer.factors()]
    model(x).square().sum().backward()
    optimizer.step()
    after = [factor for layer in factorized_modules(model).values() for factor in layer.factors()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after))
    expected = model(x)
    assert not factorized_modules(merge(model))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
