"""Products of factors as parameters: their shapes, how they start, and how they are overwritten."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..linalg.spectral import spectral_init
from ..protocol import without_autocast
from ..usage import checked_rank

Fill = Callable[[Tensor], object]
SquareFill = Callable[[Tensor], Tensor]


def _kaiming(factor: Tensor) -> None:
    nn.init.kaiming_normal_(factor)


def _normal(fan: int) -> Fill:
    return lambda factor: nn.init.normal_(factor, std=math.sqrt(2 / fan))


# The fill of both factors, by the dense layer's weight (out, in, ...).
_FILLS: Mapping[str, Callable[[Tensor], Fill]] = {
    "kaiming": lambda weight: _kaiming,
    "fan_in": lambda weight: _normal(weight[0].numel()),
    "fan_out": lambda weight: _normal(weight.transpose(0, 1)[0].numel()),
}
INITS = ("spectral", *_FILLS)


class Factors(nn.Module):
    """What has a product `U VT` or `U M VT` (the "square" form) as its parameters, or a batch of such products.

    Attributes:
        rank: number of columns of `U`; may exceed the rank the product can have.
        U: parameter of shape ([products,] m, rank).
        M: parameter of shape ([products,] rank, rank), or None in the two-factor form.
        VT: parameter of shape ([products,] rank, n).
        start_error: what the spectral start of `factorize` left out of the dense weight, as a share of its norm, in the
            sense of the data where it was given statistics; None after other starts.
        start_note: in words, what that start lacked; else empty.
    """

    rank: int
    U: nn.Parameter
    M: nn.Parameter | None
    VT: nn.Parameter

    def make_factors(
        self, m: int, n: int, rank: int, square: bool, *, batch: Sequence[int] = (), device=None, dtype=None
    ) -> None:
        """Register the factors, without values."""
        options = {"device": device, "dtype": dtype}
        self.rank = checked_rank(rank)
        self.start_error: float | None = None
        self.start_note = ""
        self.U = nn.Parameter(torch.empty(*batch, m, rank, **options))
        self.VT = nn.Parameter(torch.empty(*batch, rank, n, **options))
        self.M = nn.Parameter(torch.empty(*batch, rank, rank, **options)) if square else None

    def start_factors(self, fill: Fill | None, square_init: SquareFill | None = None) -> None:
        """Fill `U` and `VT` of every product (None leaves them as they are), and start `M` at the identity.

        Args:
            square_init: gets the rank x rank identity and returns the starting value of `M`.
        """
        if self.U.is_meta:  # there are no values, and pretending costs more than a small layer's real ones
            return
        with torch.no_grad():
            if fill is not None:
                for factor in (self.U, self.VT):
                    for matrix in _matrices(factor):
                        fill(matrix)
            for matrix in () if self.M is None else _matrices(self.M):
                identity = nn.init.eye_(matrix)
                if square_init is not None:
                    matrix.copy_(square_init(identity.clone()))

    def factors(self) -> tuple[Tensor, ...]:
        """Return the factors in product order: `(U, VT)` or `(U, M, VT)`."""
        return (self.U, self.VT) if self.M is None else (self.U, self.M, self.VT)

    def right(self) -> Tensor:
        """Return everything right of `U`, shape ([products,] rank, n): `VT` or `M VT`."""
        return self.VT if self.M is None else self.M @ self.VT

    def product(self) -> Tensor:
        """Return the product of the factors, shape ([products,] m, n), in their own precision even under autocast."""
        parameter = next(self.parameters())  # `U` itself may be a symbol while a tracer follows
        with without_autocast(parameter.device):
            return self.U @ self.right()

    @torch.no_grad()
    def set_factors(self, U: Tensor, VT: Tensor) -> None:
        """Overwrite `U` and `VT` in place."""
        self.U.copy_(U)
        self.VT.copy_(VT)

    @torch.no_grad()
    def set_product(self, matrix: Tensor) -> None:
        """Overwrite the factors, in place, by those of a matrix that they can hold up to rounding.

        Raises:
            ValueError: for a matrix of a higher rank, or with values that are not finite.
        """
        U, VT = spectral_init(finite(matrix), self.rank)
        if torch.linalg.vector_norm(U @ VT - matrix) > _EXACT * torch.linalg.vector_norm(matrix):
            raise ValueError(
                f"a weight of this {type(self).__name__} has at most rank {self.rank}, and the one assigned has more: "
                "assign to a plain layer made with to_dense() or merge(), or factorize that anew with a higher rank"
            )
        self.set_factors(U, VT)
        self.start_factors(None)


# Relative error up to which a weight of half precision counts as one that the factors hold.
_EXACT = 1e-2


def _matrices(factor: Tensor) -> Sequence[Tensor]:
    return [factor] if factor.dim() == 2 else factor.flatten(0, -3).unbind()


def fill_of(init: str | Fill | None, weight: Tensor) -> Fill | None:
    """Return what fills a factor of `weight` (out, in, ...); None where the start is not a fill.

    Raises:
        ValueError: for an unknown word.
    """
    if init is None or init == "spectral":
        return None
    if not isinstance(init, str):
        return init
    if init not in _FILLS:
        raise ValueError(f"init must be one of {', '.join(INITS)} or a function, not {init!r}")
    return _FILLS[init](weight)


def finite(matrix: Tensor) -> Tensor:
    """Return a matrix that factors are to be made of.

    Raises:
        ValueError: if it holds infinite numbers or NaN.
    """
    if not matrix.isfinite().all():
        raise ValueError("the weight to factorize holds NaN or infinite numbers")
    return matrix
