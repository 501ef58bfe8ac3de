"""Convolutions in Tucker-2 form: 1 x 1, then kh x kw between few channels, then 1 x 1.

    x --- VT: 1 x 1 ---> r_in channels --- core: kh x kw, stride, padding ---> r_out channels --- U: 1 x 1, bias ---> y

The kernel is K[o, c] = sum_pq U[o, p] core[p, q] VT[q, c] (`factorized.linalg.channels`).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import cost
from ..linalg.channels import tucker2
from ..linalg.decompose import canonical_polyadic
from ..usage import checked_rank
from .base import is_channels_last
from .composed import ComposedConv2d
from .product import checked_scale, finite, scaled_rank

Rank = float | Sequence[int]


class Tucker2Conv2d(ComposedConv2d):
    """A 2-D convolution whose kernel is a Tucker-2 decomposition.

    Maps (batch, in_channels, height, width) to (batch, out_channels, new height, new width).
    Parameters: `in * r_in + kh * kw * r_in * r_out + r_out * out`, plus the bias.
    `factors()` are `(U, core, VT)`, and `contract()` is the kernel as a matrix (out, in * kh * kw).

    Args:
        rank: `(r_out, r_in)`, or one scale: both as that fraction of their channels, rounded, and at least 1.
        path: `auto`, `composed` (the kernel in one convolution) or `two_step` (the three of the module's text).

    Raises:
        TypeError: for a rank that is neither a pair of integers nor a scale.
        ValueError: for a rank or scale out of range, or padding "same" that is not symmetric.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: Rank,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        path: str = "auto",
        device=None,
        dtype=None,
    ):
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, bias, separable=False, path=path,
            **options,
        )  # fmt: skip
        self.rank = self.ranks(in_channels, out_channels, rank)
        r_out, r_in = self.rank
        self.U = nn.Parameter(torch.empty(out_channels, r_out, **options))
        self.core = nn.Parameter(torch.empty(r_out, r_in // self.core_groups(self.rank), *self.kernel_size, **options))
        self.VT = nn.Parameter(torch.empty(r_in, in_channels, **options))
        self.reset_parameters()

    @staticmethod
    def core_groups(rank: tuple[int, int]) -> int:
        """Return the groups of the convolution in the middle, for ranks `(r_out, r_in)`."""
        return 1

    @staticmethod
    def ranks(in_channels: int, out_channels: int, rank: Rank) -> tuple[int, int]:
        """Return `(r_out, r_in)` of a rank as the class takes it; never more than there are channels of a scale."""
        if isinstance(rank, (tuple, list)):
            if len(rank) != 2:
                raise TypeError(f"a Tucker-2 rank is a pair (of the outputs, of the inputs) or a scale, not {rank!r}")
            return checked_rank(rank[0]), checked_rank(rank[1])
        scale = checked_scale(rank)  # type: ignore[arg-type]
        return min(scaled_rank(scale, out_channels), out_channels), min(scaled_rank(scale, in_channels), in_channels)

    def factors(self) -> tuple[Tensor, ...]:
        return self.U, self.core, self.VT

    def compose(self, *factors: Tensor) -> Tensor:
        U, core, VT = factors
        kernel = torch.einsum("pqij,qc->pcij", core, VT).flatten(1)
        return U @ kernel

    def compose_cost(self) -> int:
        r_out, r_in = self.rank
        return math.prod(self.kernel_size) * self.in_channels * r_out * (r_in + self.out_channels)

    def reset_parameters(self) -> None:
        """Start every factor Kaiming normal, without the gain between the three, and the bias at zero."""
        for factor in self.factors():
            nn.init.normal_(factor, std=factor[0].numel() ** -0.5)
        with torch.no_grad():
            self.core.mul_(math.sqrt(2))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _steps(self, **options) -> Sequence[tuple[nn.Module, Tensor]]:
        r_out, r_in = self.rank
        first = nn.utils.skip_init(nn.Conv2d, self.in_channels, r_in, 1, bias=False, **options)
        middle = nn.utils.skip_init(nn.Conv2d, r_in, r_out, self.kernel_size, *self._geometry, bias=False, **options)
        last = nn.utils.skip_init(nn.Conv2d, r_out, self.out_channels, 1, bias=self.bias is not None, **options)
        return (first, self.VT), (middle, self.core), (last, self.U)

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls,
        layer: nn.Conv2d,
        rank: Rank,
        *,
        A: Tensor | None = None,
        G: Tensor | None = None,
        basis: str = "singular",
        path: str = "auto",
    ):
        """Return a layer that approximates `layer`, which is left as it is.

        Hyper-parameters, bias (copied), dtype, device, memory format, training mode and `requires_grad` carry over.

        Args:
            rank: as for the class.
            A, G, basis: what an error of the kernel costs and which directions are kept, as for
                `factorized.linalg.channels`; by default HOSVD.

        Raises:
            TypeError: for a rank that is neither a pair of integers nor a scale.
            ValueError: for values out of range, for a weight on the meta device, and for a layer other than a plain
                convolution with symmetric zero padding and one group.
        """
        if obstacle := cls.obstacle(layer):
            raise ValueError(f"{type(layer).__name__} cannot become a {cls.__name__}: {obstacle}")
        if layer.weight.is_meta:
            raise ValueError(
                f"{type(layer).__name__} is on the meta device, where weights have no values to start from: "
                "load them first"
            )
        weight = finite(layer.weight.detach())
        new = cls._like(layer, rank, path=path, device=weight.device, dtype=weight.dtype)
        new.channels_last = is_channels_last(weight)
        new._take_over(layer)
        return new.set_factors(*cls.decompose(tucker2(weight, A, G, basis).best(new.rank)))

    @staticmethod
    def decompose(factors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the factors of this class for `(U, core, VT)` of a Tucker-2 decomposition."""
        return factors

    @torch.no_grad()
    def set_factors(self, U: Tensor, core: Tensor, VT: Tensor) -> "Tucker2Conv2d":
        """Overwrite the factors in place, and return the layer."""
        for factor, value in zip(self.factors(), (U, core, VT)):
            factor.copy_(value)
        return self

    # -- execution ---------------------------------------------------------------------------------------------------

    def costs(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the arguments of `cost.cheaper_path` for an input of shape (batch, in_channels, height, width)."""
        batch = shape[0] if len(shape) == 4 else 1
        before, after = batch * shape[-2] * shape[-1], batch
        for size, k, s, p, d in zip(shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation):
            after = after * ((size + 2 * p - d * (k - 1) - 1) // s + 1)
        if self._skips():
            before = after
        (r_out, r_in), taps = self.rank, math.prod(self.kernel_size)
        return {
            "compose": self.compose_cost(),
            "dense": after * taps * self.in_channels * self.out_channels,
            "steps": before * self.in_channels * r_in + after * (self._core_size() + r_out * self.out_channels),
            "intermediate": before * r_in + after * r_out,
        }

    def _core_size(self) -> int:
        return math.prod(self.core.shape)

    def _skips(self) -> bool:
        """Tell whether what strides skip can be left out first: where the kernel has one entry."""
        return self.kernel_size == (1, 1) and self.padding == (0, 0)

    def multiply_adds(self, shape: Sequence[int]) -> int:
        costs = self.costs(shape)
        path = cost.cheaper_path(**costs) if self.path == "auto" else self.path
        return costs["compose"] + costs["dense"] if path == "composed" else costs["steps"]

    def _choose(self, x: Tensor) -> str:
        if self.path != "auto":
            return self.path
        known = not isinstance(x, torch.fx.Proxy) and not torch.compiler.is_exporting()
        return cost.cheaper_path(**self.costs(x.shape if known else (128, self.in_channels, 32, 32)))

    def compute(self, x: Tensor) -> Tensor:
        if self._choose(x) == "composed":
            return super().compute(x)
        stride = self.stride
        if self._skips():
            x, stride = x[..., :: stride[0], :: stride[1]], (1, 1)
        x = F.conv2d(x, self.VT[:, :, None, None])
        x = F.conv2d(x, self.core, None, stride, self.padding, self.dilation, self.core_groups(self.rank))
        return F.conv2d(x, self.U[:, :, None, None], self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, path={self.path}"


class SeparableConv2d(Tucker2Conv2d):
    """A 2-D convolution in three parts of which the one in the middle is depthwise.

        x --- VT: 1 x 1 ---> r channels --- core: kh x kw, one filter a channel ---> r channels --- U: 1 x 1 ---> y

    The kernel is K[o, c] = sum_r U[o, r] core[r] VT[r, c], a canonical polyadic (CP) decomposition whose third mode is
    the position. Parameters: `r (in + kh kw + out)`, plus the bias. All else is as of `Tucker2Conv2d`.

    Args:
        rank: a pair of the same number twice, or one scale, a fraction of the smaller number of channels.
    """

    @staticmethod
    def core_groups(rank: tuple[int, int]) -> int:
        """Return the groups of the convolution in the middle: one a channel."""
        return rank[0]

    @staticmethod
    def ranks(in_channels: int, out_channels: int, rank: Rank) -> tuple[int, int]:
        """Return the rank twice."""
        if not isinstance(rank, (tuple, list)):
            fewer = min(in_channels, out_channels)
            rank = Tucker2Conv2d.ranks(fewer, fewer, rank)
        r_out, r_in = Tucker2Conv2d.ranks(in_channels, out_channels, rank)
        if r_out != r_in:
            raise ValueError(f"a depthwise convolution has as many outputs as inputs, not {r_out} and {r_in}")
        return r_out, r_in

    def compose(self, *factors: Tensor) -> Tensor:
        U, core, VT = factors
        return U @ (core * VT[:, :, None, None]).flatten(1)

    def compose_cost(self) -> int:
        return math.prod(self.kernel_size) * self.in_channels * self.rank[0] * (1 + self.out_channels)

    @staticmethod
    def decompose(factors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return factors whose core is a CP decomposition by alternating least squares, of rank min(r_out, r_in).

        The directions stay as they are; the start is fixed.
        """
        U, core, VT = factors
        rank, kernel = min(core.shape[:2]), core.shape[2:]
        start = torch.Generator().manual_seed(0)
        outputs, inputs, positions = canonical_polyadic(core.flatten(2), rank, start)
        size = torch.linalg.vector_norm(positions, dim=0)  # absorbed by U, so that no filter is much larger than others
        scale = torch.where(size > 0, size, 1)
        return U @ (outputs * scale), (positions / scale).mT.reshape(rank, 1, *kernel), inputs.mT @ VT
