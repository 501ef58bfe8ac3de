"""Layers whose weight, seen as a matrix, is a product of two or three factors: their start and execution path."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from .. import cost
from ..linalg.spectral import spectral_init
from ..usage import checked_rank
from .base import FactorizedLayer, weight_obstacle
from .factors import Factors, Fill, SquareFill, fill_of, finite


class ProductLayer(Factors, FactorizedLayer):
    """A layer whose weight, seen as an `(m, n)` matrix, is the product `U VT` or `U M VT` (the "square" form).

    That of a grouped convolution is a batch of matrices, and its factors are a batch of products.

    Subclasses say how a weight is seen as a matrix and back (`as_matrix`, `as_weight`), what a rank scale is a fraction
    of (`scaled_dimension`), what the layer computes (`compute`, `costs`) and how to build both kinds of layer without
    spending random numbers (`_like`, `_empty_dense`).
    """

    dense_type: type[nn.Module]
    """The class of the layers that this one stands for."""

    def __init__(
        self,
        m: int,
        n: int,
        rank: int,
        *,
        products: int = 1,
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
        self.make_factors(m, n, rank, square, batch=() if products == 1 else (products,), **options)
        self.bias = nn.Parameter(torch.empty(outputs, **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start `U` and `VT` Kaiming normal (fan-in), `M` at the identity and the bias at zero."""
        self.start_factors(nn.init.kaiming_normal_)
        if self.bias is not None and not self.bias.is_meta:
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
        """Return (m, n) of each matrix of a dense layer."""
        raise NotImplementedError

    @staticmethod
    def product_count(layer: Any) -> int:
        """Return the number of matrices that a dense layer's weight is seen as."""
        return 1

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

    @classmethod
    def metrics(cls, layer: Any, inputs: Tensor | None, outputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the metrics ([groups,] n, n) of the columns and ([groups,] m, m) of the rows of `matrix_of(layer)`.

        Args:
            inputs, outputs: as `factorized.statistics.Moments`, either a matrix or its diagonal.
        """
        return inputs, outputs

    @abstractmethod
    def typical_shape(self) -> tuple[int, ...]:
        """Return the shape of a large input, by which `auto` chooses where the real size cannot be asked for."""
        raise NotImplementedError

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
        fill = fill_of(init, weight.chunk(cls.product_count(layer))[0])
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
            new.start_factors(fill, square_init)
        new._take_over(layer)
        return new

    @classmethod
    def rank_of(cls, layer: nn.Module, rank_scale: float) -> int:
        """Return the rank that a scale gives the factorized form of a dense layer; see `scaled_rank`."""
        return scaled_rank(checked_scale(rank_scale), cls.scaled_dimension(layer))

    def assign(self, weight: Tensor) -> None:
        self.set_product(self.as_matrix(weight))

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


def _example_of(size: int | torch.SymInt) -> int | None:
    """Return a size, the size that a symbol has in the example, or None if it is not known."""
    if isinstance(size, int):
        return size
    hint = getattr(getattr(size, "node", None), "hint", None)
    return hint if isinstance(hint, int) else None


def warn_of_padding(names: Sequence[str], *layers: Factors, stacklevel: int = 3) -> None:
    """Warn of ranks above min(m, n), where spectral initialization leaves zero directions."""
    surplus = [(name, layer.rank, min(layer.U.shape[-2], layer.VT.shape[-1])) for name, layer in zip(names, layers)]
    words = [f"{name} (rank {rank}, at most {most} useful)" for name, rank, most in surplus if rank > most]
    if words:
        warnings.warn(
            "spectral initialization pads ranks above min(m, n) with zero directions, which stay zero unless a "
            f"middle factor mixes them: {', '.join(words)}",
            stacklevel=stacklevel,
        )


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
