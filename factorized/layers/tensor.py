"""Separable convolutions whose pointwise weight is a tensor network: tensor train, Tucker, CP.

The (out, in) matrix, row by row, is seen as a tensor of three dimensions (`three_dimensions(out * in)`) and kept as the
factors of a decomposition (`factorized.linalg.decompose`), from which every forward pass composes it:

    x --- grouped: kh x kw, one filter a channel ---> in channels --- W(cores): 1 x 1 ---> out channels

The factors are never drawn themselves: a dense random matrix is drawn and decomposed. `spectral_` changes the law of
that matrix to the one of a convolution (He et al. 2015), of six times the variance where in = out.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..linalg.decompose import canonical_polyadic, tensor_train, three_dimensions, tucker
from .base import is_channels_last
from .composed import ComposedConv2d
from .factors import finite
from .product import checked_scale, scaled_rank


class TensorConv2d(ComposedConv2d):
    """What the three have in common; `rank_scale` is a rank as a fraction of a dimension of the tensor.

    Attributes:
        dimensions: of the tensor.
        rank: one number, or one for every bond or mode.

    Raises:
        ValueError: for a rank scale that is not positive.
    """

    rank: Any
    names: tuple[str, ...]
    """The names of the factors, in the order of `factors()`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank_scale: float,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, bias, device=device, dtype=dtype
        )
        self.dimensions = three_dimensions(out_channels * in_channels)
        self.rank_scale = rank_scale
        self.rank = self.ranks(self.dimensions, rank_scale)
        for name, shape in zip(self.names, self.shapes()):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @staticmethod
    def ranks(dimensions: tuple[int, int, int], rank_scale: float) -> Any:
        """Return the rank or ranks, each a scaled dimension, rounded and kept between 1 and what there can be."""
        raise NotImplementedError

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the factors."""
        raise NotImplementedError

    def decompose(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return factors that approximate `tensor`, of the shape `dimensions`."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.names)

    def reset_parameters(self) -> None:
        """Start from a matrix uniform in +-1 / sqrt(in); filters as PyTorch's convolutions, the bias at zero."""
        bound = self.in_channels**-0.5
        self._start(lambda matrix: matrix.uniform_(-bound, bound))
        if self.grouped is not None:
            self.grouped.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def spectral_(self) -> None:
        """Start from a matrix that is normal with variance 2 / out: the law of a convolution's dense weight."""
        self._start(lambda matrix: matrix.normal_(0, math.sqrt(2 / self.out_channels)))

    def _start(self, fill) -> None:
        first = self.factors()[0]
        if not first.is_meta:  # without values there is nothing to decompose
            dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
            self.set_matrix(fill(torch.empty(self.out_channels, self.in_channels, dtype=dtype, device=first.device)))

    @torch.no_grad()
    def set_matrix(self, matrix: Tensor) -> None:
        """Overwrite the factors, in place, by those of the decomposition of `matrix`, shape (out, in)."""
        if matrix.dtype != torch.float64:
            matrix = matrix.float()  # there is no 16-bit decomposition
        for factor, value in zip(self.factors(), self.decompose(matrix.reshape(self.dimensions))):
            factor.copy_(value.view(factor.shape))

    @classmethod
    @torch.no_grad()
    def from_dense(cls, layer: nn.Conv2d, rank_scale: float):
        """Return a layer that approximates `layer`, which is left as it is.

        The best depthwise-separable approximation of the kernel (for each input channel, the leading singular pair of
        its (out, kh * kw) slice), whose pointwise part is then decomposed. A 1 x 1 kernel loses nothing by the first.
        Hyper-parameters, bias (copied), dtype, device, memory format, training mode and `requires_grad` carry over.

        Raises:
            TypeError: for an integer above 1, meant as a rank.
            ValueError: for a rank scale out of range, for a weight on the meta device, and for a layer other than a
                plain convolution with symmetric zero padding and one group.
        """
        if obstacle := cls.obstacle(layer):
            raise ValueError(f"{type(layer).__name__} cannot become a tensor layer: {obstacle}")
        checked_scale(rank_scale)
        if layer.weight.is_meta:
            raise ValueError(
                f"{type(layer).__name__} is on the meta device, where weights have no values to start from: "
                "load them first"
            )
        weight = finite(layer.weight.detach())
        new = cls._like(layer, rank_scale, device=weight.device, dtype=weight.dtype)
        matrix = weight.flatten(1)
        if new.grouped is not None:
            slices = weight.transpose(0, 1).flatten(2)  # (in, out, kh * kw)
            P, sigma, QT = torch.linalg.svd(slices if weight.dtype == torch.float64 else slices.float(), False)
            matrix = (P[..., 0] * sigma[:, :1]).mT
            new.grouped.weight.copy_(QT[:, 0].view(new.grouped.weight.shape))
        new.set_matrix(matrix)
        new.channels_last = is_channels_last(weight)
        new._take_over(layer)
        return new

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dimensions={self.dimensions}, rank={self.rank}"


class TensorTrainConv2d(TensorConv2d):
    """W[i,j,k] = sum_ab G1[i,a] G2[a,j,b] G3[b,k]; parameters n1 r1 + r1 n2 r2 + r2 n3, and the depthwise kernel.

    Ranks `round(rank_scale * min(n1, n2))` and `round(rank_scale * min(n2, n3))`.
    """

    names = ("weight_core_0", "weight_core_1", "weight_core_2")

    @staticmethod
    def ranks(dimensions: tuple[int, int, int], rank_scale: float) -> tuple[int, int]:
        n1, n2, n3 = dimensions
        r2 = min(scaled_rank(rank_scale, min(n2, n3)), n1 * n2, n3)
        return min(scaled_rank(rank_scale, min(n1, n2)), n1, n2 * r2), r2

    def shapes(self) -> list[tuple[int, ...]]:
        (n1, n2, n3), (r1, r2) = self.dimensions, self.rank
        return [(1, n1, r1), (r1, n2, r2), (r2, n3, 1)]

    def decompose(self, tensor: Tensor) -> Sequence[Tensor]:
        return tensor_train(tensor, self.rank)

    def compose(self, *factors: Tensor) -> Tensor:
        first, middle, last = factors[0].squeeze(0), factors[1], factors[2].squeeze(2)
        from_left, from_right = self._costs()
        if from_left <= from_right:
            weight = (first @ middle.flatten(1)).view(-1, len(last)) @ last
        else:
            weight = first @ (middle @ last).flatten(1)
        return weight.view(self.out_channels, self.in_channels)

    def _costs(self) -> tuple[int, int]:
        """Return the multiply-adds of multiplying the cores from the left, and from the right."""
        (n1, n2, n3), (r1, r2) = self.dimensions, self.rank
        return n1 * n2 * r2 * (r1 + n3), n2 * n3 * r1 * (r2 + n1)

    def compose_cost(self) -> int:
        return min(self._costs())


class TuckerConv2d(TensorConv2d):
    """Tucker in hybrid storage: factors U_k (n_k, r_k) and the core as a train, see `decompose.tucker`.

    Ranks `round(rank_scale * n_k)`. Parameters: the U_k, r1 R1 + R1 r2 r3 + r3^2 with R1 = min(n1, r2 r3), and the
    depthwise kernel.
    """

    names = ("weight_core_0", "weight_core_1", "weight_core_2", "weight_u_0", "weight_u_1", "weight_u_2")

    @staticmethod
    def ranks(dimensions: tuple[int, int, int], rank_scale: float) -> tuple[int, int, int]:
        n1, n2, n3 = dimensions
        r1, r2, r3 = (scaled_rank(rank_scale, n) for n in dimensions)
        r3 = min(r3, n3, n1 * n2)
        r2 = min(r2, n2, n1 * r3)
        return min(r1, n1, r2 * r3), r2, r3

    @property
    def bond(self) -> int:
        """The bond R1 between the first two cores."""
        return min(self.dimensions[0], self.rank[1] * self.rank[2])

    def shapes(self) -> list[tuple[int, ...]]:
        r1, r2, r3 = self.rank
        return [(1, r1, self.bond), (self.bond, r2, r3), (r3, r3, 1), *zip(self.dimensions, self.rank)]

    def decompose(self, tensor: Tensor) -> Sequence[Tensor]:
        return tucker(tensor, self.rank)

    def compose(self, *factors: Tensor) -> Tensor:
        G1, G2, G3, U1, U2, U3 = factors
        # Each product takes the leading dimension of what there is, (R1, r2, r3), and puts the one it becomes last, so
        # that nothing is copied and three of them restore the order: (r2, r3, n1), (r3, n1, n2), (n1, n2, n3).
        # No other order is notably cheaper, as R1 is nearly n1: there the tensor hardly grows.
        weight = G2
        for matrix in (G1.squeeze(0).mT @ U1.mT, U2.mT, G3.squeeze(2) @ U3.mT):
            weight = (weight.flatten(1).mT @ matrix).view(*weight.shape[1:], -1)
        return weight.view(self.out_channels, self.in_channels)

    def compose_cost(self) -> int:
        (n1, n2, n3), (r1, r2, r3) = self.dimensions, self.rank
        return n1 * r1 * self.bond + n3 * r3 * r3 + n1 * r2 * r3 * self.bond + n1 * n2 * r3 * (r2 + n3)


class CPConv2d(TensorConv2d):
    """W[i,j,k] = sum_c F1[i,c] F2[j,c] F3[k,c]; parameters r (n1 + n2 + n3), and the depthwise kernel.

    Rank `round(rank_scale * min(n_k))`.
    """

    names = ("weight_core_0", "weight_core_1", "weight_core_2")

    @staticmethod
    def ranks(dimensions: tuple[int, int, int], rank_scale: float) -> int:
        return min(scaled_rank(rank_scale, min(dimensions)), min(dimensions))

    def shapes(self) -> list[tuple[int, ...]]:
        return [(n, self.rank) for n in self.dimensions]

    def decompose(self, tensor: Tensor) -> Sequence[Tensor]:
        return canonical_polyadic(tensor, self.rank)

    def compose(self, *factors: Tensor) -> Tensor:
        F1, F2, F3 = factors
        pairs = (F1[:, None] * F2).flatten(0, 1)  # (n1 n2, r)
        return (pairs @ F3.mT).view(self.out_channels, self.in_channels)

    def compose_cost(self) -> int:
        n1, n2, n3 = self.dimensions
        return n1 * n2 * self.rank * (1 + n3)
