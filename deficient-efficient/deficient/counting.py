"""Multiply-adds of one image by the study's rules, which count some operations and leave others out.

Counted: convolutions; linear layers, with an addition for each bias; ReLU, one operation an input element; windows of
average and maximum pooling modules. Not counted: normalization, ReLU6, additions of residuals, functional pooling. A
hashed kernel counts as the dense one and a tensor network as its dense pointwise matrix; what it costs to compose
those, once a batch, is counted apart.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from factorized import ComposedConv2d, FactorizedConv2d

from .acdc import ACDCConv2d
from .layers import TiedConv2d


class MultiplyAdds(NamedTuple):
    """What one image costs."""

    total: int
    composing: int
    """Multiply-adds to compose kernels, once for a whole batch; they are not in the total."""
    unknown: list[str]
    """The types of modules without parts for which there is no rule."""


def _convolution(module: nn.Conv2d, x: Tensor, y: Tensor) -> int:
    return module.weight.numel() * y.shape[2] * y.shape[3]


def _window(module: nn.Module, x: Tensor, y: Tensor) -> int:
    kernel = module.kernel_size
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return height * width * y.numel()


def _low_rank(module: FactorizedConv2d, x: Tensor, y: Tensor) -> int:
    return module.costs(tuple(x.shape))["steps"]


def _composed(module: ComposedConv2d, x: Tensor, y: Tensor) -> int:
    pixels = y.shape[2] * y.shape[3]
    dense = module.out_channels * module.in_channels
    if isinstance(module, TiedConv2d):
        dense = 2 * module.rank * module.out_channels
    elif isinstance(module, ACDCConv2d):
        layers, size = module.A.shape
        dense = round(layers * (4 * size + 5 * size * math.log2(size)))  # fast cosine transforms
    elif module.grouped is None:
        dense *= math.prod(module.kernel_size)
    return dense * pixels  # `grouped` is a module of its own


def _nothing(*_) -> int:
    return 0


RULES: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], int]] = {
    ComposedConv2d: _composed,
    FactorizedConv2d: _low_rank,
    nn.Conv2d: _convolution,
    nn.Linear: lambda module, x, y: sum(p.numel() for p in module.parameters()),
    nn.ReLU: lambda module, x, y: x.numel(),
    nn.AvgPool2d: _window,
    nn.AdaptiveAvgPool2d: lambda module, x, y: x.numel(),
    nn.MaxPool2d: _window,
    nn.BatchNorm2d: _nothing,
    nn.Dropout: _nothing,
    nn.ChannelShuffle: _nothing,
    nn.Identity: _nothing,
}


def multiply_adds(model: nn.Module, size: int) -> MultiplyAdds:
    """Count one image of `size` x `size` pixels through `model`, in evaluation mode; it may be on the meta device."""
    total = composing = 0
    unknown: set[str] = set()

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total, composing
        rule = next((rule for kind, rule in RULES.items() if isinstance(module, kind)), None)
        if isinstance(module, ComposedConv2d):
            composing += module.compose_cost()
        if rule:
            total += rule(module, inputs[0], output)
        elif not list(module.children()):
            unknown.add(type(module).__name__)

    handles = [module.register_forward_hook(count) for module in model.modules()]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return MultiplyAdds(total, composing, sorted(unknown))
