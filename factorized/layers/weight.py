"""Weights composed from factors in whatever module reads them: parametrizations of its parameters.

    module.parameter  =  U VT, or a batch of such products, in the parameter's shape

The module computes what it always did. What that costs is a composition at every reading of the parameter: nothing is
applied in two steps, and nothing but parameters, their gradients and the optimizer's state becomes smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cost import compose_cost
from ..linalg.spectral import spectral_init
from ..usage import checked_rank
from .base import CHANNELS_LAST, KernelDecay, is_channels_last, with_decay
from .conv import metrics_of_lines
from .factors import Factors, Fill, SquareFill, fill_of, finite
from .product import checked_scale, scaled_rank


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter, of one module or shared by several, and how it is seen as a matrix or as a batch of them."""

    owners: tuple[tuple[nn.Module, str], ...]
    """The modules, with their names for the parameter."""
    products: int
    """The number of matrices that it holds one after the other."""
    rows: int
    """The number of rows of each of them."""
    spatial: bool = False
    """Whether the rows of a 2-D kernel are its output channels and vertical positions, as in `FactorizedConv2d`."""

    @property
    def module(self) -> nn.Module:
        """The first of the modules."""
        return self.owners[0][0]

    @property
    def parameter(self) -> str:
        """Its name for the parameter."""
        return self.owners[0][1]

    @property
    def weight(self) -> Any:
        """The parameter."""
        return self.module._parameters[self.parameter]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape (m, n) of each matrix."""
        return self.rows, self.weight.numel() // (self.products * self.rows)


class ComposedWeight(Factors):
    """A parameter of a module as a product of factors, `U VT` or `U M VT`, or as a batch of products.

    It is a parametrization (`torch.nn.utils.parametrize`) and a factorized module: `module.parameter` composes it.
    Parameters: `products * rank * (m + n)`, plus `products * rank^2` if square.

    Args:
        shape: of the parameter.
        rank: of each product.
        products: how many matrices the parameter holds one after the other: gates, experts, groups.
        rows: of each matrix; by default what the first dimension gives.
        spatial: see `Place`.

    Attributes:
        kernel_decay: Frobenius decay that the backward pass adds, as for `FactorizedLayer`.
        channels_last: whether `merge` leaves the parameter in that memory format.
    """

    def __init__(
        self,
        shape: Sequence[int],
        rank: int,
        *,
        products: int = 1,
        rows: int | None = None,
        spatial: bool = False,
        square: bool = False,
        channels_last: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.products = products
        self.rows = self.shape[0] // products if rows is None else rows
        self.spatial = spatial
        self.channels_last = channels_last
        self.kernel_decay: KernelDecay | None = None
        m, n = self.rows, math.prod(self.shape) // (products * self.rows)
        if products * m * n != math.prod(self.shape):
            raise ValueError(f"a parameter of shape {self.shape} does not hold {products} matrices of {m} rows")
        batch = () if products == 1 else (products,)
        self.make_factors(m, n, rank, square, batch=batch, device=device, dtype=dtype)
        self.start_factors(nn.init.kaiming_normal_)

    # -- the weight --------------------------------------------------------------------------------------------------

    def forward(self) -> Tensor:
        """Return the weight, in the parameter's shape."""
        return with_decay(self.as_weight(self.product()), self.kernel_decay)

    @property
    def weight(self) -> Tensor:
        """The weight, in the parameter's shape."""
        return self()

    def right_inverse(self, weight: Tensor) -> tuple[()]:
        """Overwrite the factors by those of a weight that is assigned to the parameter, if they can hold it.

        Raises:
            ValueError: if they cannot; then nothing has changed.
        """
        if weight.shape != self.shape:
            raise ValueError(f"the weight has the shape {self.shape}, not {tuple(weight.shape)}")
        self.set_product(_as_matrix(self, weight.detach()))
        return ()

    def as_weight(self, matrix: Tensor) -> Tensor:
        """Return the parameter of which `matrix` is the matrix."""
        if not self.spatial:
            return matrix.reshape(self.shape)
        first, second, kh, kw = self.shape
        return matrix.reshape(first, kh, second, kw).transpose(1, 2)

    def compose_cost(self) -> int:
        """Return the multiply-adds of composing the weight once."""
        return self.products * compose_cost(self.U.shape[-2], self.VT.shape[-1], self.rank, self.M is not None)

    # -- from a dense parameter --------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        place: Place,
        rank_scale: float = 1.0,
        *,
        rank: int | None = None,
        init: str | Fill | None = "spectral",
        square: bool = False,
        square_init: SquareFill | None = None,
        path: str = "auto",
    ) -> "ComposedWeight":
        """Return a composed weight for a parameter, which is left as it is; arguments as for factorized layers.

        Args:
            rank_scale: rank as a fraction of min(m, n).
            path: without effect.
        """
        dense = place.weight
        fill = fill_of(init, dense.reshape(place.products, -1, *dense.shape[1:])[0] if place.products > 1 else dense)
        chosen = scaled_rank(checked_scale(rank_scale), cls.scaled_dimension(place)) if rank is None else rank
        new = cls._like(place, checked_rank(chosen), square=square, device=dense.device, dtype=dense.dtype)
        if init == "spectral":
            new.set_factors(*spectral_init(finite(_as_matrix(place, dense.detach())), new.rank))
        new.start_factors(fill, square_init)
        new._take_over(place)
        return new

    @classmethod
    def _like(cls, place: Place, rank: int, **options) -> "ComposedWeight":
        """Return a composed weight for a parameter, without any values."""
        return nn.utils.skip_init(
            cls, tuple(place.weight.shape), rank, products=place.products, rows=place.rows, spatial=place.spatial,
            channels_last=is_channels_last(place.weight), **options,
        )  # fmt: skip

    def _take_over(self, place: Place) -> None:
        """Take over `requires_grad` and the training mode."""
        self.requires_grad_(place.weight.requires_grad)
        self.train(place.module.training)

    def to_parameter(self) -> nn.Parameter:
        """Return the weight as a parameter of its own."""
        with torch.no_grad():
            weight = self.as_weight(self.product())
            weight = weight.contiguous(memory_format=CHANNELS_LAST[weight.dim()] if self.channels_last else _PLAIN)
        return nn.Parameter(weight, requires_grad=any(factor.requires_grad for factor in self.factors()))

    @staticmethod
    def matrix_shape(place: Place) -> tuple[int, int]:
        """Return the shape (m, n) of each matrix of a parameter."""
        return place.matrix_shape

    @staticmethod
    def product_count(place: Place) -> int:
        """Return the number of matrices that a parameter holds."""
        return place.products

    @staticmethod
    def scaled_dimension(place: Place) -> int:
        """Return what a rank scale is a fraction of: min(m, n), the largest useful rank."""
        return min(place.matrix_shape)

    @staticmethod
    def matrix_of(place: Place) -> Tensor:
        """Return a parameter as the matrix ([products,] m, n)."""
        return _as_matrix(place, place.weight)

    @staticmethod
    def metrics(place: Place, columns: Tensor | None, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the metrics of columns and rows, as for layers (`ProductLayer.metrics`).

        Of a transposed convolution without gradients at its outputs those of several positions count each by itself,
        even where they overlap.
        """
        if place.spatial:
            return metrics_of_lines(columns, rows, place.weight.shape[2:], batched=place.products > 1)
        return columns, rows

    def extra_repr(self) -> str:
        form = "U M VT" if self.M is not None else "U VT"
        times = f"{self.products} x " if self.products > 1 else ""
        return f"{self.shape}, {times}{self.U.shape[-2]}x{self.VT.shape[-1]}, {form}, rank={self.rank}"


def _as_matrix(seen: Place | ComposedWeight, weight: Tensor) -> Tensor:
    """Return a parameter as the matrix ([products,] m, n) that the factors multiply out to."""
    if seen.spatial:
        weight = weight.unflatten(0, (seen.products, -1)).transpose(2, 3)
    batch = () if seen.products == 1 else (seen.products,)
    return weight.reshape(*batch, seen.rows, -1)


_PLAIN = torch.contiguous_format
