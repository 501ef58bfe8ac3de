"""Layers whose weight, seen as a matrix, is a product of two or three factors: their start and execution path."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from .. import cost
from ..linalg.spectral import spectral_init
from ..protocol import without_autocast
from .base import FactorizedLayer, weight_obstacle

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


class ProductLayer(FactorizedLayer):
    """A layer whose weight, seen as an `(m, n)` matrix, is the product `U VT` or `U M VT` (the "square" form).

    Subclasses say how a weight is seen as a matrix and back (`as_matrix`, `as_weight`), what a rank scale is a fraction
    of (`scaled_dimension`), what the layer computes (`compute`, `costs`) and how to build both kinds of layer without
    spending random numbers (`_like`, `_empty_dense`).

    Attributes:
        rank: number of columns of `U`; may exceed the rank the product can have.
        U: parameter of shape (m, rank).
        M: parameter of shape (rank, rank), or None in the two-factor form.
        VT: parameter of shape (rank, n).
    """

    dense_type: type[nn.Module]
    """The class of the layers that this one stands for."""

    def __init__(
        self,
        m: int,
        n: int,
        rank: int,
        *,
        outputs: int = 0,
        bias: bool = False,
        square: bool = False,
        path: str = "auto",
        channels_last: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__(path, channels_last)
        options = {"device": device, "dtype": dtype}
        self.rank = checked_rank(rank)
        self.U = nn.Parameter(torch.empty(m, rank, **options))
        self.VT = nn.Parameter(torch.empty(rank, n, **options))
        self.M = nn.Parameter(torch.empty(rank, rank, **options)) if square else None
        self.bias = nn.Parameter(torch.empty(outputs, **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start `U` and `VT` Kaiming normal (fan-in), `M` at the identity and the bias at zero."""
        if self.U.is_meta:  # there are no values, and pretending costs more than a small layer's real ones
            return
        _kaiming(self.U)
        _kaiming(self.VT)
        if self.M is not None:
            nn.init.eye_(self.M)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    # -- what subclasses say -----------------------------------------------------------------------------------------

    @classmethod
    def as_matrix(cls, weight: Tensor) -> Tensor:
        """Return a dense layer's weight as the matrix (m, n) that the factors multiply out to; a matrix is its own."""
        return weight

    def as_weight(self, matrix: Tensor) -> Tensor:
        """Return the weight of which `matrix` is the matrix."""
        return matrix

    @staticmethod
    @abstractmethod
    def matrix_shape(layer: Any) -> tuple[int, int]:
        """Return (m, n) of a dense layer."""
        raise NotImplementedError

    @staticmethod
    @abstractmethod
    def scaled_dimension(layer: Any) -> int:
        """Return what a rank scale is a fraction of, for a dense layer."""
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def _like(cls, layer: Any, **options) -> "ProductLayer":
        """Return a factorized layer with the hyper-parameters of a dense one, without any values."""
        raise NotImplementedError

    @abstractmethod
    def costs(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the arguments of `cost.cheaper_path` for an input of this shape."""
        raise NotImplementedError

    @abstractmethod
    def typical_shape(self) -> tuple[int, ...]:
        """Return the shape of a large input, by which `auto` chooses where the real size cannot be asked for."""
        raise NotImplementedError

    # -- the protocol ------------------------------------------------------------------------------------------------

    def factors(self) -> tuple[Tensor, ...]:
        """Return the factors in product order: `(U, VT)` or `(U, M, VT)`."""
        return (self.U, self.VT) if self.M is None else (self.U, self.M, self.VT)

    def right(self) -> Tensor:
        """Return everything right of `U`, shape (rank, n): `VT` or `M VT`."""
        return self.VT if self.M is None else self.M @ self.VT

    def product(self) -> Tensor:
        """Return the product of the factors, shape (m, n), in the factors' own precision even under autocast."""
        parameter = next(self.parameters())  # `U` itself may be a symbol while a tracer follows
        with without_autocast(parameter.device):
            return self.U @ self.right()

    def composed_weight(self) -> Tensor:
        return self.as_weight(self.product())

    # -- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str | None:
        """Return why this class cannot stand for `layer`, or None."""
        if not isinstance(layer, cls.dense_type):
            return f"it is not a torch.nn.{cls.dense_type.__name__}"
        return weight_obstacle(layer)

    @classmethod
    def matrix_of(cls, layer: Any) -> Tensor:
        """Return the weight of a dense layer as a matrix."""
        return cls.as_matrix(layer.weight)

    @classmethod
    def from_dense(
        cls,
        layer: nn.Module,
        rank_scale: float = 1.0,
        *,
        rank: int | None = None,
        init: str | Fill | None = "spectral",
        square: bool = False,
        square_init: SquareFill | None = None,
        path: str = "auto",
    ):
        """Return a factorized layer in place of `layer`, which is left as it is.

        Args:
            layer: the dense layer. Its hyper-parameters, bias (copied), dtype, device, memory format, training mode and
                `requires_grad` carry over.
            rank_scale: rank as a fraction of a dimension (`scaled_dimension` says which).
            rank: the rank itself; wins over `rank_scale`.
            init: `spectral` (factors of the layer's weight), `kaiming` (Kaiming normal, fan-in, on each factor),
                `fan_in` or `fan_out` (both factors normal with variance 2 / fan of the dense weight), a function that
                fills a tensor in place, called on `U` and then on `VT`, or None to leave both unset for `set_factors`.
            square: add the middle factor `M`.
            square_init: gets the rank x rank identity and returns the starting value of `M`; None for the identity.
            path: see the class.

        Raises:
            TypeError: for a rank that is not an integer, or a whole rank given as a scale.
            ValueError: for a rank or scale out of range, an unknown `init`, or a layer this class cannot stand for.
        """
        if obstacle := cls.obstacle(layer):
            raise ValueError(f"{type(layer).__name__} cannot be factorized: {obstacle}")
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if init == "spectral" and weight.is_meta:
            raise ValueError(
                f"{type(layer).__name__} is on the meta device, where weights have no values to start from: "
                "factorize with init='kaiming', or after the weights are loaded"
            )
        fill = _fill_of(init, weight)
        new = cls._like(
            layer,
            rank=cls.rank_of(layer, rank_scale) if rank is None else checked_rank(rank),
            square=square,
            path=path,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            if init == "spectral":
                warn_of_padding([type(layer).__name__], new)
                new.set_factors(*spectral_init(finite(cls.matrix_of(layer)), new.rank))
            elif fill is not None:
                fill(new.U)
                fill(new.VT)
            if new.M is not None:
                identity = nn.init.eye_(new.M)
                if square_init is not None:
                    new.M.copy_(square_init(identity.clone()))
        new._take_over(layer)
        return new

    @classmethod
    def rank_of(cls, layer: nn.Module, rank_scale: float) -> int:
        """Return the rank that a scale gives the factorized form of a dense layer; see `scaled_rank`."""
        return scaled_rank(checked_scale(rank_scale), cls.scaled_dimension(layer))

    @torch.no_grad()
    def set_factors(self, U: Tensor, VT: Tensor) -> None:
        """Overwrite `U` and `VT` in place."""
        self.U.copy_(U)
        self.VT.copy_(VT)

    @torch.no_grad()
    def assign(self, weight: Tensor) -> None:
        matrix = finite(self.as_matrix(weight))
        U, VT = spectral_init(matrix, self.rank)
        if torch.linalg.matrix_norm(U @ VT - matrix) > _EXACT * torch.linalg.matrix_norm(matrix):
            raise ValueError(
                f"a weight of this {type(self).__name__} has at most rank {self.rank}, and the one assigned has more: "
                "assign to a plain layer made with to_dense(), or factorize that anew with a higher rank"
            )
        self.set_factors(U, VT)
        if self.M is not None:
            nn.init.eye_(self.M)

    # -- execution ---------------------------------------------------------------------------------------------------

    def _choose(self, x: Tensor) -> str:
        """Return the path for an input.

        Exported and traced programs have one path for every size of the input. It is chosen for the size of the
        example or, where a tracer has none, for a large one.
        """
        if self.path != "auto":
            return self.path
        if isinstance(x, torch.fx.Proxy):
            return cost.cheaper_path(**self.costs(self.typical_shape()))
        if torch.compiler.is_exporting():
            sizes = [_example_of(size) for size in x.shape]
            known = [size for size in sizes if size is not None]
            return cost.cheaper_path(**self.costs(known if len(known) == len(sizes) else self.typical_shape()))
        return cost.cheaper_path(**self.costs(x.shape))

    def multiply_adds(self, shape: Sequence[int]) -> int:
        costs = self.costs(shape)
        path = cost.cheaper_path(**costs) if self.path == "auto" else self.path
        return costs["compose"] + costs["dense"] if path == "composed" else costs["steps"]

    def extra_repr(self) -> str:
        form = "U M VT" if self.M is not None else "U VT"
        return f"{form}, rank={self.rank}, bias={self.bias is not None}, path={self.path}"


# Relative error up to which a weight of half precision counts as one that the factors hold.
_EXACT = 1e-2


def _example_of(size: int | torch.SymInt) -> int | None:
    """Return a size, the size that a symbol has in the example, or None if it is not known."""
    if isinstance(size, int):
        return size
    hint = getattr(getattr(size, "node", None), "hint", None)
    return hint if isinstance(hint, int) else None


def finite(matrix: Tensor) -> Tensor:
    """Return a matrix that factors are to be made of.

    Raises:
        ValueError: if it holds infinite numbers or NaN.
    """
    if not matrix.isfinite().all():
        raise ValueError("the weight to factorize holds NaN or infinite numbers")
    return matrix


def warn_of_padding(names: Sequence[str], *layers: ProductLayer, stacklevel: int = 3) -> None:
    """Warn of ranks above min(m, n), where spectral initialization leaves zero directions."""
    surplus = [(name, layer.rank, min(layer.U.shape[0], layer.VT.shape[1])) for name, layer in zip(names, layers)]
    words = [f"{name} (rank {rank}, at most {most} useful)" for name, rank, most in surplus if rank > most]
    if words:
        warnings.warn(
            "spectral initialization pads ranks above min(m, n) with zero directions, which stay zero unless a "
            f"middle factor mixes them: {', '.join(words)}",
            stacklevel=stacklevel,
        )


def checked_rank(rank: int) -> int:
    """Return `rank`.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1.
    """
    if isinstance(rank, bool) or not hasattr(rank, "__index__"):
        raise TypeError(f"rank must be an integer, not {rank!r}; rank_scale is a fraction of a dimension")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    return rank


def checked_scale(rank_scale: float) -> float:
    """Return `rank_scale`.

    Raises:
        TypeError: if it is an integer above 1, which is more likely meant as a rank, or no number at all.
    """
    if not isinstance(rank_scale, Real):
        raise TypeError(f"rank_scale must be a positive number, not {rank_scale!r}")
    if isinstance(rank_scale, Integral) and rank_scale > 1:
        raise TypeError(
            f"rank_scale is a fraction of a dimension, and {rank_scale} is an integer above 1: for a rank of "
            f"{rank_scale} give rank={rank_scale}, for a scale {float(rank_scale)}"
        )
    return rank_scale


def scaled_rank(rank_scale: float, dimension: int) -> int:
    """Return `rank_scale * dimension` rounded to the nearest integer (halves to even), and at least 1.

    Raises:
        ValueError: if the scale is not a positive finite number.
    """
    if not (rank_scale > 0 and math.isfinite(rank_scale)):
        raise ValueError(f"rank_scale must be a positive number, not {rank_scale}")
    return max(1, round(rank_scale * dimension))


def _fill_of(init: str | Fill | None, weight: Tensor) -> Fill | None:
    if init is None or init == "spectral":
        return None
    if not isinstance(init, str):
        return init
    if init not in _FILLS:
        raise ValueError(f"init must be one of {', '.join(INITS)} or a function, not {init!r}")
    return _FILLS[init](weight)
