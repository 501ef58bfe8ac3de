"""Convolutions whose kernel is not a product of two or three matrices but some other function of their factors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..patterns import without_autocast
from .base import KernelDecay, with_decay
from .conv import numeric_padding, pair


class ComposedConv2d(nn.Module):
    """A 2-D convolution that composes its kernel from factors in every forward pass.

    A separable one is a depthwise convolution (`grouped`, absent for 1 x 1 kernels) followed by a pointwise one whose
    (out, in) weight is composed; otherwise the whole kernel, (out, in * kh * kw) as a matrix, is:

        x --- grouped: kh x kw, stride, padding, dilation ---> in channels --- contract(): 1 x 1 ---> y

    Subclasses register their factors and say what these are (`factors`) and how to compose them (`compose`). Frobenius
    decay is that of the composed matrix: the depthwise kernel has no part in it. Nothing is cached: the parameters are
    the only source of the weight, whichever way they come to change.

    Attributes:
        kernel_decay: Frobenius decay that the backward pass adds to the gradient of the composed matrix, or None.
            Set by `FrobeniusDecay.attach(in_backward=True)`.
    """

    path = "composed"
    memory_format = torch.contiguous_format  # of `to_dense()`

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        separable: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = map(pair, (kernel_size, stride, dilation))
        self.padding = numeric_padding(padding, self.kernel_size, self.dilation)
        self.grouped = None
        self._geometry = (self.stride, self.padding, self.dilation)
        if separable and self.kernel_size != (1, 1):
            self.grouped = nn.Conv2d(
                in_channels, in_channels, kernel_size, *self._geometry, groups=in_channels, bias=False, **options
            )
            self._geometry = (1, 0, 1)
        self._kernel = (out_channels, in_channels, *((1, 1) if separable else self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels, **options)) if bias else None
        self.kernel_decay: KernelDecay | None = None

    # -- what subclasses say -----------------------------------------------------------------------------------------

    def factors(self) -> tuple[Tensor, ...]:
        """Return the factor tensors; their composition, not their product in order, is the weight."""
        raise NotImplementedError

    def compose(self, *factors: Tensor) -> Tensor:
        """Return the weight that tensors shaped like the factors stand for, shape (out, in * kernel entries)."""
        raise NotImplementedError

    def compose_cost(self) -> int:
        """Return the multiply-adds of `compose`."""
        raise NotImplementedError

    # -- the protocol ------------------------------------------------------------------------------------------------

    def contract(self) -> Tensor:
        """Return the composed matrix, in the factors' own precision even under autocast."""
        factors = self.factors()
        with without_autocast(factors[0].device):
            return self.compose(*factors)

    def weight(self) -> Tensor:
        """Return the kernel of the whole layer, shape (out_channels, in_channels, kh, kw)."""
        kernel = self.contract().view(self._kernel)
        return kernel if self.grouped is None else kernel * self.grouped.weight.transpose(0, 1)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv2d:
        """Return a plain convolution that computes the same function."""
        weight = self.weight()
        dense = nn.utils.skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            bias=self.bias is not None, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        dense.weight.copy_(weight)
        dense.weight.requires_grad_(any(factor.requires_grad for factor in self.factors()))
        if self.bias is not None:
            dense.bias.copy_(self.bias)
            dense.bias.requires_grad_(self.bias.requires_grad)
        return dense.to(memory_format=self.memory_format).train(self.training)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiply-adds of one call on an input of shape (batch, in_channels, height, width)."""
        pixels = shape[0]
        for size, k, s, p, d in zip(shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation):
            pixels *= (size + 2 * p - d * (k - 1) - 1) // s + 1
        depthwise = 0 if self.grouped is None else self.grouped.weight.numel()
        return self.compose_cost() + pixels * (math.prod(self._kernel) + depthwise)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, new height, new width)."""
        weight = with_decay(self.contract(), self.kernel_decay)
        if self.grouped is not None:
            x = self.grouped(x)
        return F.conv2d(x, weight.view(self._kernel), self.bias, *self._geometry)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )
