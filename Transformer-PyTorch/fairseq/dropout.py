"""Dropout that does not hold up training on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Set elements to zero with probability `p` in training, and divide the others by `1 - p`.

    PyTorch's CPU generator draws elements one by one, in one thread: a fifth of a training step here. A quarter of as many
    64-bit numbers hold 16 random bits for every element, which get `p` right to 1 in 65,536.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x, of any shape."""
        if not self.training or self.p == 0 or not x.is_cpu or torch.compiler.is_compiling():
            return F.dropout(x, self.p, self.training)
        dropped = round(self.p * 2**16)
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -2^15, ..., 2^15 - 1
        kept = torch.empty_like(x, requires_grad=False)
        torch.ge(bits, dropped - 2**15, out=kept)
        return x * kept.mul_(2**16 / (2**16 - dropped))
