"""ACDC: a pointwise map as a product of diagonal matrices and cosine transforms (Moczulski et al. 2016)."""

import math

import torch
from torch import Tensor, nn

from factorized import ComposedConv2d


class ACDCConv2d(ComposedConv2d):
    """A depthwise convolution, and a pointwise one whose N x N matrix is M_1 M_2 ... M_L, where N = max(in, out):

        M_l = P(P(diag(a_l) O) diag(d_l) O^T)         or, original:  M_l = P(diag(a_l) O diag(d_l) O^T)

    O is the orthonormal DCT-II matrix in row form and P reorders columns, the even ones first. L is `layers - 1`: the
    published counts leave one layer out. Where out > in, the first channels of x are appended to x until its length
    divides out, and that is repeated; where out < in, adjacent output channels are summed.

    Raises:
        ValueError: with a bias; if N is odd; if out < in and does not divide it.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=False,
        *, layers, original=False,
    ):  # fmt: skip
        size = max(in_channels, out_channels)
        if bias:
            raise ValueError("an ACDC layer has no bias")
        if size % 2:
            raise ValueError(f"the larger of in and out channels must be even, not {size}")
        if in_channels > out_channels and in_channels % out_channels:
            raise ValueError(f"out channels must divide in channels if fewer, not {out_channels} of {in_channels}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        self.original = original
        self.A = nn.Parameter(torch.empty(layers - 1, size).normal_(1, 0.01))
        self.D = nn.Parameter(torch.empty(layers - 1, size).normal_(1, 0.01))
        self.register_buffer("_transform", dct(size), persistent=False)
        self.register_buffer("_sources", _sources(in_channels, out_channels), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.D

    def compose(self, A: Tensor, D: Tensor) -> Tensor:
        square = None
        for layer in self.matrices(A, D):
            square = layer if square is None else square @ layer
        if self.in_channels > self.out_channels:
            return square.view(self.out_channels, -1, self.in_channels).sum(1)
        weight = square.new_zeros(self.out_channels, self.in_channels)
        return weight.index_add(1, self._sources, square)  # a column for each copy of a channel

    def matrices(self, A: Tensor, D: Tensor) -> Tensor:
        """Return M_1 to M_L, shape (L, N, N)."""
        left = A[:, :, None] * self._transform
        inner = left if self.original else _even_first(left)
        return _even_first((inner * D[:, None, :]) @ self._transform.mT)

    def compose_cost(self) -> int:
        layers, size = self.A.shape
        return (2 * layers - 1) * size**3

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, layers={len(self.A)}, original={self.original}"


def dct(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix in row form: `x @ dct(n)` is the transform of a row vector x."""
    time, frequency = torch.arange(size, dtype=torch.double)[:, None], torch.arange(size)  # arguments become large
    matrix = torch.cos(math.pi / size * (time + 0.5) * frequency) * math.sqrt(2 / size)
    matrix[:, 0] /= math.sqrt(2)
    return matrix.to(torch.get_default_dtype())


def _even_first(matrix: Tensor) -> Tensor:
    return torch.cat([matrix[..., 0::2], matrix[..., 1::2]], dim=-1)


def _sources(in_channels: int, out_channels: int) -> Tensor:
    """Return the input channel behind each of max(in, out) columns."""
    length = in_channels
    while out_channels > in_channels and out_channels % length:
        length += 1
    once = torch.arange(length) % in_channels
    return once.repeat(max(1, out_channels // length))
