"""The layer normalization of this Transformer, which is not `torch.nn.LayerNorm`."""

import torch
from torch import Tensor, nn

_EPSILON = 1e-6


class LayerNorm(nn.Module):
    """`gamma (x - mean) / (std + 1e-6) + beta` over the last dimension, with the unbiased standard deviation."""

    def __init__(self, size: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size))
        self.beta = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., size)."""
        centered = x - x.mean(-1, keepdim=True)
        return self.gamma * centered / (x.std(-1, keepdim=True) + _EPSILON) + self.beta
