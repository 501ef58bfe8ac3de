"""Batches of sentences without their padding.

Layers that treat all positions alike need not compute anything for padding. They take the rows `(N, d)` of the real
positions; attention, which needs sentences side by side, unpacks its queries, keys and values and packs its output.
"""

import torch
from torch import Tensor


class Packing:
    """Where the real positions of a padded batch are.

    Args:
        rows: (N,), their numbers in the flattened batch, ascending; the first position of all must be real.
        shape: (B, T) of the batch.
    """

    def __init__(self, rows: Tensor, shape: tuple[int, int]):
        self.shape = shape
        self._rows = rows
        self._real = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=rows.device).index_fill(0, rows, True)
        self._packed = self._real.cumsum(0) - 1  # where a position has gone; padding: as the real one before it

    @classmethod
    def of(cls, real: Tensor) -> "Packing":
        """Return the packing of a boolean (B, T), False at padding. A GPU waits here."""
        return cls(real.flatten().nonzero().squeeze(1), real.shape)

    def pack(self, x: Tensor) -> Tensor:
        """Return the real positions, (N, ...), of x (B, T, ...), in order."""
        return _Gather.apply(x.flatten(0, 1), self._rows, self._packed, self._real)

    def unpack(self, x: Tensor) -> Tensor:
        """Return x (N, ...) as (B, T, ...). What is at padding is finite and arbitrary; no gradient comes from it."""
        return _Gather.apply(x, self._packed, self._rows, None).unflatten(0, self.shape)


class _Gather(torch.autograd.Function):
    """`x[index]` of rows, whose backward gathers as well instead of adding up: `gradient[back] * real`."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, back: Tensor, real: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, real)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        back, real = ctx.saved_tensors
        gradient = gradient.index_select(0, back)
        if real is not None:
            gradient *= real.view(-1, *[1] * (gradient.dim() - 1))
        return gradient, None, None, None
