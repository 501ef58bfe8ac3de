"""How channels run through a network: which layer writes them, which ones read them, and where they are added.

Every network says so itself (`flow()`), step by step in the order of its forward pass. Whoever removes channels follows
these steps and never guesses. A *map* is the name of a set of channels between layers; the images are the map "".
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A convolution or the classifier, which reads one map and writes another."""

    name: str
    """The name of the module."""
    reads: str
    writes: str | None
    """The channels that it writes; None for the classifier, whose outputs are classes."""


@dataclass(frozen=True)
class Norm:
    """A batch normalization, which changes a map in place."""

    name: str
    map: str


@dataclass(frozen=True)
class Sum:
    """The end of a residual block, which adds its branch to its shortcut. Either may lack channels that the other has.

    The block has the sum as its attribute `sum`.
    """

    name: str
    """The name of the block."""
    branch: str
    shortcut: str
    writes: str


Step = Layer | Norm | Sum
Flow = tuple[Step, ...]


class Add(nn.Module):
    """The sum of two maps that have different channels of one space: those that one lacks are zero there.

    Args:
        width: channels of the sum.
        branch: positions in the sum of the branch's channels.
        shortcut: likewise of the shortcut's.
    """

    def __init__(self, width: int, branch: list[int], shortcut: list[int]):
        super().__init__()
        self.width = width
        self.branch: Tensor
        self.shortcut: Tensor
        self.register_buffer("branch", torch.tensor(branch))
        self.register_buffer("shortcut", torch.tensor(shortcut))

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Map (batch, channels, height, width) of either to (batch, self.width, height, width)."""
        size = (shortcut.shape[0], self.width, *shortcut.shape[2:])
        return shortcut.new_zeros(size).index_copy(1, self.shortcut, shortcut).index_add(1, self.branch, branch)

    def extra_repr(self) -> str:
        return f"{self.width}, branch={len(self.branch)}, shortcut={len(self.shortcut)}"


def plain_sum(branch: Tensor, shortcut: Tensor) -> Tensor:
    """Return the sum of two maps with the same channels."""
    return branch + shortcut
