"""Cost model and choice of path, against the operations that PyTorch counts."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from factorized import ChannelConv2d, FactorizedConv2d, FactorizedLinear
from factorized.cost import cheaper_path


def counted_multiply_adds(layer: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_linear_multiply_adds(lead, square):
    layer = FactorizedLinear(7, 6, 3, square=square)
    x = torch.randn(*lead, 7)
    layer.path = "composed"
    assert layer.multiply_adds(x.shape) == counted_multiply_adds(layer, x)
    layer.path = "two_step"
    middle = 3 * 3 * 7 if square else 0  # `M VT`, which does not grow with the input
    assert layer.multiply_adds(x.shape) + middle == counted_multiply_adds(layer, x)


@pytest.mark.parametrize("square", [False, True])
def test_convolution_multiply_adds(square):
    kernels, strides = [3, 1, (1, 3), (2, 1), (2, 5)], [1, (2, 1), 3]
    for kernel, stride, padding, dilation in itertools.product(kernels, strides, [0, (1, 2)], [1, 2]):
        layer = FactorizedConv2d(4, 6, kernel, 5, stride, padding, dilation, square=square)
        x = torch.randn(2, 4, 10, 11)
        layer.path = "composed"
        assert layer.multiply_adds(x.shape) == counted_multiply_adds(layer, x)
        layer.path = "two_step"
        middle = 5 * 5 * layer.VT.shape[1] if square else 0
        assert layer.multiply_adds(x.shape) + middle == counted_multiply_adds(layer, x)


@pytest.mark.parametrize("path", ["composed", "two_step"])
@pytest.mark.parametrize("kind", [FactorizedConv2d, ChannelConv2d])
def test_grouped_convolution_multiply_adds(kind, path):
    for stride in (1, 2):
        layer = kind(4, 6, 3, 5, stride, groups=2, path=path)
        x = torch.randn(2, 4, 10, 11)
        assert layer.multiply_adds(x.shape) == counted_multiply_adds(layer, x)


@pytest.mark.parametrize(
    "layer, shape",
    [(FactorizedLinear(512, 512, 8), (10_000, 512)), (FactorizedConv2d(64, 64, 3, 8), (64, 64, 32, 32))],
)
def test_low_ranks_take_two_steps_and_high_ranks_compose(layer, shape):
    """The choice follows the cost, and is the same for a size with or without a forward pass."""
    low = layer.costs(shape)
    assert cheaper_path(**low) == "two_step"
    assert layer.multiply_adds(shape) == low["steps"]
    high = type(layer).from_dense(layer.to_dense(), 1.0, init="kaiming")
    assert cheaper_path(**high.costs(shape)) == "composed"
    assert high.multiply_adds(shape) == high.costs(shape)["compose"] + high.costs(shape)["dense"]


def test_the_choice_depends_on_the_size_of_the_input():
    """Composing is paid once per call, so it does not pay for a single row."""
    layer = FactorizedLinear(256, 256, 200)
    assert cheaper_path(**layer.costs((1, 256))) == "two_step"
    assert cheaper_path(**layer.costs((100_000, 256))) == "composed"
    x, calls = torch.randn(4096, 256), []
    layer.right = lambda: calls.append("two_step") or layer.VT
    layer.product = lambda: calls.append("composed") or layer.U @ layer.VT
    for rows in (1, 4096):
        calls.clear()
        layer(x[:rows])
        assert calls == [cheaper_path(**layer.costs((rows, 256)))]
