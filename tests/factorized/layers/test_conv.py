"""The factorized convolution against `conv2d` with the kernel of its product."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factorized import FactorizedConv2d, factorize
from tests.factorized.networks import relative_error


def kernel_of(layer: FactorizedConv2d) -> torch.Tensor:
    """`K[o, c, i, j] = sum_q U[o * kh + i, q] R[q, c * kw + j]` with `R = M VT`, contracted index by index."""
    kh, kw = layer.kernel_size
    R = layer.VT if layer.M is None else torch.einsum("qp,pn->qn", layer.M, layer.VT)
    U = layer.U.reshape(layer.out_channels, kh, layer.rank)
    return torch.einsum("oiq,qcj->ocij", U, R.reshape(layer.rank, -1, kw))


def randomized(layer: FactorizedConv2d) -> FactorizedConv2d:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def test_matrix_layout_element_by_element():
    """`K[o, c, i, j] = W[o * kh + i, c * kw + j]` on a 2 x 5 kernel, in both directions."""
    dense = nn.Conv2d(3, 4, (2, 5))
    W = FactorizedConv2d.matrix_of(dense)
    assert W.shape == FactorizedConv2d.matrix_shape(dense) == (8, 15)
    layer = FactorizedConv2d(3, 4, (2, 5), rank=8)
    layer.set_factors(torch.eye(8), W)
    for o, c, i, j in itertools.product(range(4), range(3), range(2), range(5)):
        assert W[o * 2 + i, c * 5 + j] == dense.weight[o, c, i, j] == layer.weight[o, c, i, j]


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 3), (3, 5), (2, 4)])
@pytest.mark.parametrize("square", [False, True])
def test_both_paths_agree_with_the_dense_convolution(kernel, square):
    """To 1e-10 in double precision over strides, paddings and dilations."""
    x = torch.randn(2, 3, 11, 12, dtype=torch.float64)
    for stride, padding, dilation in itertools.product([1, (2, 1), (1, 3)], [0, (1, 2), (3, 0)], [1, (2, 1), (1, 2)]):
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        layer = FactorizedConv2d(3, 4, kernel, 5, square=square, dtype=torch.float64, **options)
        expected = F.conv2d(x, kernel_of(randomized(layer)), layer.bias, **options)
        for layer.path in ("composed", "two_step", "auto"):
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("square", [False, True])
def test_both_paths_have_the_gradients_of_the_dense_convolution(square):
    layer = randomized(FactorizedConv2d(3, 4, (2, 3), 5, 2, 1, square=square, dtype=torch.float64))
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(F.conv2d(x, kernel_of(layer), layer.bias, 2, 1).square().sum(), inputs)
    for layer.path in ("composed", "two_step"):
        found = torch.autograd.grad(layer(x).square().sum(), inputs)
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "kernel, strides", [((1, 1), [(1, 1)] * 2), ((1, 3), [(1, 2), (1, 1)]), ((3, 1), [(1, 1), (2, 1)])]
)
def test_two_steps_do_not_stride_along_kernels_of_one(kernel, strides, monkeypatch):
    layer = FactorizedConv2d(3, 4, kernel, 5, stride=2, path="two_step")
    taken, conv2d = [], F.conv2d

    def recorded(x, weight, bias, stride, *rest):
        taken.append(stride)
        return conv2d(x, weight, bias, stride, *rest)

    monkeypatch.setattr(F, "conv2d", recorded)
    layer(torch.randn(2, 3, 7, 8))
    assert taken == strides


# Of the paper's ResNets, in which stages have 16, 32 and 64 channels.
@pytest.mark.parametrize(
    "rank_scale, ranks",
    [
        (0.037, (2, 4, 7)),
        (0.111, (5, 11, 21)),
        (0.333, (16, 32, 64)),
        (1.0, (48, 96, 192)),
        (3.0, (144, 288, 576)),
        (9.0, (432, 864, 1728)),
    ],
)
def test_published_ranks(rank_scale, ranks):
    """The rank is scaled by the rows, whatever the number of inputs."""
    with torch.device("meta"):
        for width, rank in zip((16, 32, 64), ranks):
            for inputs in (width, width // 2):
                assert FactorizedConv2d.rank_of(nn.Conv2d(inputs, width, 3), rank_scale) == rank


@pytest.mark.parametrize("square, bias", [(False, False), (True, True)])
def test_parameter_count(square, bias):
    """`r (m + n)`, plus `r^2` if square, plus the bias."""
    dense = nn.Conv2d(6, 8, (3, 5), bias=bias)
    layer = FactorizedConv2d.from_dense(dense, 0.25, init="kaiming", square=square)
    count = sum(parameter.numel() for parameter in layer.parameters())
    assert layer.rank == 6 and count == 6 * (24 + 30) + (36 if square else 0) + (8 if bias else 0)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 5), (3, 1)])
@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_full_rank_spectral_start_reproduces_the_layer(kernel, path):
    """The code of 2021 did so for 1 x 1 kernels alone, as it did not swap the axes of a kernel."""
    dense = nn.Conv2d(4, 6, kernel, stride=(2, 1), padding=1, dilation=(1, 2))
    x = torch.randn(2, 4, 9, 12)
    rank = min(FactorizedConv2d.matrix_shape(dense))
    assert relative_error(FactorizedConv2d.from_dense(dense, rank=rank, path=path)(x), dense(x)) < 1e-5


@pytest.mark.parametrize("padding, kernel, dilation", [("same", (3, 5), (2, 1)), ("same", (1, 3), 1), ("valid", 3, 1)])
@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_string_padding(padding, kernel, dilation, path):
    """Strings become numbers, and stay right when merged."""
    dense = nn.Conv2d(3, 4, kernel, padding=padding, dilation=dilation).double()
    layer = FactorizedConv2d.from_dense(dense, rank=min(FactorizedConv2d.matrix_shape(dense)), path=path)
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.to_dense()(x), dense(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kernel_size": 2, "padding": "same"}, "not symmetric"),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, "padding mode 'reflect'"),
    ],
)
def test_what_cannot_be_factorized_is_refused_at_construction(options, message):
    dense = nn.Conv2d(3, 4, **options)
    with pytest.raises(ValueError, match=message):
        FactorizedConv2d.from_dense(dense)
    with pytest.raises(ValueError, match=message):
        factorize(nn.Sequential(dense), rank_scale=0.5, others=False)


def test_an_image_without_batch_dimension():
    layer = randomized(FactorizedConv2d(3, 4, 3, 5, dtype=torch.float64))
    x = torch.randn(3, 6, 7, dtype=torch.float64)
    for layer.path in ("composed", "two_step", "auto"):
        torch.testing.assert_close(layer(x), F.conv2d(x, kernel_of(layer), layer.bias), rtol=0, atol=1e-10)


def test_memory_format_survives_the_round_trip():
    dense = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    back = FactorizedConv2d.from_dense(dense, 0.5).to_dense()
    assert back.weight.is_contiguous(memory_format=torch.channels_last) and not back.weight.is_contiguous()
    assert FactorizedConv2d.from_dense(nn.Conv2d(4, 8, 3), 0.5).to_dense().weight.is_contiguous()


def test_description():
    layer = FactorizedConv2d(3, 4, (2, 5), 6, stride=2, padding="valid", bias=False, path="two_step")
    for part in ("3, 4", "kernel_size=(2, 5)", "stride=(2, 2)", "padding=(0, 0)", "rank=6", "path=two_step", "U VT"):
        assert part in repr(layer)
