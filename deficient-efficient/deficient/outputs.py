"""What a network returns to its training loss."""

from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """Logits, and what distillation needs beside them."""

    logits: Tensor
    """shape (batch, classes)"""
    taps: list[Tensor]
    """feature maps (batch, channels, height, width) whose attention is transferred"""
    auxiliary: Tensor | None = None
    """logits of an auxiliary head, in training mode of a network that has one"""
