"""Convolutions whose kernel entries share a small table of values (HashedNets, Chen et al. 2015)."""

import torch
from torch import Tensor, nn

from factorized import ComposedConv2d


class HashedConv2d(ComposedConv2d):
    """kernel = table[index], with an index per kernel entry that is drawn once, uniformly, and saved as a buffer.

    With `separable` only the pointwise kernel is hashed. The table and the bias start uniform, as PyTorch's dense
    convolution of the same kernel does.

    Args:
        entries: of the table.

    Raises:
        ValueError: for a table without entries.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=True, *, entries, separable
    ):
        if entries < 1:
            raise ValueError(f"the table of hashed weights needs at least one entry, not {entries}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias, separable=separable)
        size = self._kernel[1] * self._kernel[2] * self._kernel[3]
        bound = size**-0.5
        self.table = nn.Parameter(torch.empty(entries).uniform_(-bound, bound))
        if bias:
            nn.init.uniform_(self.bias, -bound, bound)
        index = torch.randint(entries, (out_channels * size,), dtype=torch.int32)
        self.register_buffer("index", index)
        self._bias_structured = separable

    def factors(self) -> tuple[Tensor]:
        return (self.table,)

    def structured(self) -> tuple[Tensor, ...]:
        """Return the table; in the separable form the bias, too, as the published counts have it."""
        return (self.table, self.bias) if self.bias is not None and self._bias_structured else (self.table,)

    def compose(self, table: Tensor) -> Tensor:
        return table.index_select(0, self.index).view(self.out_channels, -1)

    def compose_cost(self) -> int:
        return 0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, entries={self.table.numel()}"


def full_budget(share: float, in_channels: int, out_channels: int, kernel_size: int) -> int:
    """Return the table's entries of a hashed kernel: this share of the dense kernel's, rounded down."""
    return int(share * in_channels * out_channels * kernel_size**2)


def decimated_budget(in_channels: int, out_channels: int, kernel_size: int) -> int:
    """Return a tenth of the dense kernel's entries, rounded down."""
    return in_channels * out_channels * kernel_size**2 // 10


def decimated_pointwise_budget(in_channels: int, out_channels: int, kernel_size: int) -> int:
    """Return what is left of a tenth of the dense kernel's entries once the depthwise kernel is paid for."""
    depthwise = in_channels * kernel_size**2 if kernel_size > 1 else 0
    return decimated_budget(in_channels, out_channels, kernel_size) - depthwise
