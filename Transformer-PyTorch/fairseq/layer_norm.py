"""The layer normalization of this Transformer, which is not `torch.nn.LayerNorm`.

    y = gamma (x - mean) / (s + 1e-6) + beta        s: unbiased standard deviation (n - 1)

PyTorch's own computes `gamma (x - mean) rstd + beta` with `rstd = 1 / sqrt(var + eps)` and the biased variance. The two
differ by a factor for each row, so its fast kernels serve here, with the factors applied to the rows outside:

    forward:   y  = c y' + beta         y' from the kernel without beta,  c = sqrt((n-1)/n) s / (s + 1e-6)
    backward:  dx, dgamma = kernel(k g) with rho for its rstd,
               rho^2 = n / ((n-1) s (s + 1e-6)),  k = 1 / (rho (s + 1e-6))

The last line follows from comparing the coefficients of `h = gamma g` and of `x - mean` in

    here        dx = (h - mean(h)) / (s + 1e-6) - (x - mean) sum(h (x - mean)) / ((n-1) s (s + 1e-6)^2)
    kernel      dx = rstd (h - mean(h)) - rstd^3 (x - mean) sum(h (x - mean)) / n
"""

import math

import torch
from torch import Tensor, nn

_EPSILON = 1e-6
_TINY = 1e-30  # keeps the variance of a constant row from being zero, and changes no other


class LayerNorm(nn.Module):
    """`gamma (x - mean) / (std + 1e-6) + beta` over the last dimension, with the unbiased standard deviation."""

    def __init__(self, size: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size))
        self.beta = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., size), in the precision of the parameters or that of x, whichever is higher."""
        x = x.to(torch.promote_types(x.dtype, self.gamma.dtype))  # the kernels take one type, and sums need its digits
        if torch.compiler.is_compiling():  # the compiler makes one kernel of the formula
            return self.gamma * (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + _EPSILON) + self.beta
        return _LayerNorm.apply(x, self.gamma, self.beta)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        n = x.shape[-1]
        y, mean, rstd = torch.native_layer_norm(x, (n,), gamma, None, _TINY)
        s = math.sqrt(n / (n - 1)) / rstd
        ctx.save_for_backward(x, gamma, mean, s)
        return y.mul_(math.sqrt((n - 1) / n) * s / (s + _EPSILON)).add_(beta)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, gamma, mean, s = ctx.saved_tensors
        n = x.shape[-1]
        rho = ((n - 1) / n * s * (s + _EPSILON)).rsqrt()
        scaled = gradient / (rho * (s + _EPSILON))
        dx, dgamma, _ = torch.ops.aten.native_layer_norm_backward(
            scaled, x, (n,), mean, rho, gamma, None, [True, True, False]
        )
        return dx, dgamma, gradient.sum_to_size(n)
