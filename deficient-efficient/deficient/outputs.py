"""What a network returns to its training loss."""

from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """Logits, and what distillation needs beside them."""

    logits: Tensor
    """The scores of the classes, shape (batch, classes)."""
    taps: list[Tensor]
    """The feature maps (batch, channels, height, width) whose attention is transferred."""
    auxiliary: Tensor | None = None
    """The logits of an auxiliary head, in training mode of a network that has one."""
