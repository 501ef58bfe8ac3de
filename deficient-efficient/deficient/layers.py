"""Structured convolutions without a tensor decomposition, most of them depthwise followed by a pointwise map.

`x` below is the channel vector of one pixel after the depthwise convolution. Structured parameters, those with a weight
decay of their own, are the factors of a layer with `factors()`; other layers declare them in `structured()`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from factorized import ComposedConv2d, FactorizedConv2d, spectral_init
from factorized.layers.product import scaled_rank


def fan_out_std(out_channels: int, kernel_entries: int = 1) -> float:
    """Return the standard deviation `sqrt(2 / (out * kh * kw))` of the networks' initialization."""
    return math.sqrt(2 / (out_channels * kernel_entries))


def separable(
    pointwise: Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: bool = False,
    **options,
) -> nn.Module:
    """Return a depthwise convolution followed by `pointwise`, a 1 x 1 convolution class: y = W x for `nn.Conv2d`.

    A 1 x 1 convolution has no depthwise part and takes the stride itself.
    """
    if kernel_size == 1:
        return pointwise(in_channels, out_channels, 1, stride=stride, bias=bias, **options)
    grouped = nn.Conv2d(
        in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(
        OrderedDict(grouped=grouped, pointwise=pointwise(in_channels, out_channels, 1, bias=bias, **options))
    )


class LowRankPointwise(FactorizedConv2d):
    """y = U (VT x): two 1 x 1 convolutions with `rank_scale * max(in, out)`, rounded down, channels between them."""

    def __init__(self, in_channels, out_channels, kernel_size, *, rank_scale: float, stride=1, bias=False):
        rank = _floored_rank(rank_scale, in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel_size, rank, stride, bias=bias)

    def reset_parameters(self) -> None:
        """Start both convolutions as PyTorch starts a convolution, the bias at zero."""
        for factor in (self.VT, self.U):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def fan_out_(self) -> None:
        """Start both convolutions as the networks do, each by its own output channels."""
        nn.init.normal_(self.VT, std=fan_out_std(self.rank))
        nn.init.normal_(self.U, std=fan_out_std(self.out_channels))

    def spectral_(self) -> None:
        """Start from the spectral initialization of a matrix with the law of a dense 1 x 1 convolution."""
        matrix = torch.empty(self.out_channels, self.in_channels).normal_(0, fan_out_std(self.out_channels))
        self.set_factors(*spectral_init(matrix, self.rank))


class TiedConv2d(ComposedConv2d):
    """y = A^T A x~, where x~ is x repeated out / in times and A is (rank, out), rank `rank_scale * max(in, out)`.

    Raises:
        ValueError: unless out is a multiple of in.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=False, *, rank_scale
    ):
        if out_channels % in_channels:
            raise ValueError(f"out channels must be a multiple of in channels, not {out_channels} of {in_channels}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        self.rank = _floored_rank(rank_scale, in_channels, out_channels)
        self.shared = nn.Parameter(torch.empty(self.rank, out_channels))
        nn.init.kaiming_uniform_(self.shared, a=math.sqrt(5))

    def fan_out_(self) -> None:
        """Start as the networks' convolutions do."""
        nn.init.normal_(self.shared, std=fan_out_std(self.rank))

    def factors(self) -> tuple[Tensor]:
        return (self.shared,)

    def structured(self) -> tuple[Tensor, ...]:
        """Return the shared matrix, and the bias if there is one."""
        return self.factors() if self.bias is None else (self.shared, self.bias)

    def compose(self, shared: Tensor) -> Tensor:
        folded = shared.view(self.rank, -1, self.in_channels).sum(1)  # of every copy of x
        return shared.mT @ folded

    def compose_cost(self) -> int:
        return self.rank * self.out_channels * self.in_channels


class ShuffleConv2d(nn.Module):
    """A linear ShuffleNet unit: grouped 1 x 1 into out // 4 channels, shuffle, depthwise k x k, grouped 1 x 1.

    `groups` is lowered until it divides in, out and the channels between. All three convolutions are structured.

    Raises:
        ValueError: if there are fewer than 4 output channels.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=False, *, groups):
        super().__init__()
        if out_channels < 4:
            raise ValueError(f"a shuffle unit needs at least 4 output channels, not {out_channels}")
        between = out_channels // 4
        while in_channels % groups or out_channels % groups or between % groups:
            groups -= 1
        self.squeeze = nn.Conv2d(in_channels, between, 1, groups=groups, bias=False)
        self.shuffle = nn.ChannelShuffle(groups)
        self.grouped = nn.Conv2d(between, between, kernel_size, stride, padding, dilation, groups=between, bias=False)
        self.expand = nn.Conv2d(between, out_channels, 1, groups=groups, bias=bias)

    def structured(self) -> tuple[Tensor, ...]:
        """Return the weights of all three convolutions."""
        return self.squeeze.weight, self.grouped.weight, self.expand.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.grouped(self.shuffle(self.squeeze(x))))


def _floored_rank(rank_scale: float, in_channels: int, out_channels: int) -> int:
    scaled_rank(rank_scale, 1)  # refuses what is no scale
    return max(1, math.floor(rank_scale * max(in_channels, out_channels)))


def initialize(model: nn.Module, spectral: bool = False, fan_out: bool = True) -> None:
    """Give every layer its start: `spectral_()` if asked for and it has one, else `fan_out_()` if it has that.

    With `fan_out` every dense convolution is normal with variance 2 / (out * kh * kw); depthwise ones, too, although
    each of their filters has a fan of kh * kw alone (kept from the published experiments).
    """
    for module in model.modules():
        if spectral and hasattr(module, "spectral_"):
            module.spectral_()
        elif fan_out and hasattr(module, "fan_out_"):
            module.fan_out_()
        elif fan_out and isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=fan_out_std(module.out_channels, module.weight[0, 0].numel()))
