"""Dropout that does not hold up training on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Set elements to zero with probability `p` in training, and divide the others by `1 - p`.

    PyTorch's CPU generator draws elements one by one, in one thread: a fifth of a training step here, and compiled code
    takes longer still. A quarter of as many 64-bit numbers hold 16 random bits for every element: `p` is right to 1 in
    65,536.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x, of any shape."""
        if not self.training or self.p == 0 or not x.is_cpu:
            return F.dropout(x, self.p, self.training)
        factors = _factors_for_compiler if torch.compiler.is_compiling() else _factors
        return x * factors(x.detach(), self.p)


def _factors(x: Tensor, p: float) -> Tensor:
    """Return a tensor like `x` of zeros, each with probability `p`, and of `1 / (1 - p)`."""
    dropped = min(round(p * 2**16), 2**16 - 1)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -2^15, ..., 2^15 - 1
    kept = torch.empty_like(x)
    torch.ge(bits, dropped - 2**15, out=kept)
    return kept.mul_(2**16 / (2**16 - dropped))


# The compiler calls this as it is, instead of drawing numbers its own way.
_factors_for_compiler = torch.library.custom_op(
    "translation::dropout_factors", _factors, mutates_args=(), tags=torch.Tag.nondeterministic_seeded
)


@_factors_for_compiler.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)
