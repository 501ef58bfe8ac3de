"""What factorized linear and convolution layers share: their factors, initialization, and choice of execution path."""

import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .. import cost
from ..linalg.spectral import spectral_init
from ..patterns import without_autocast

Fill = Callable[[Tensor], object]


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


class FactorizedLayer(nn.Module):
    """A layer whose weight, seen as an `(m, n)` matrix, is the product `U VT` or `U M VT` (the "square" form).

    Subclasses say how their dense layer's weight is seen as a matrix (`matrix_of`, `weight`), what a rank scale is a
    fraction of (`scaled_dimension`), what the layer computes (`forward`, `costs`) and how to build both kinds of layer
    without spending random numbers (`_like`, `to_dense`).

    Attributes:
        U: parameter of shape (m, rank).
        M: parameter of shape (rank, rank), or None in the two-factor form.
        VT: parameter of shape (rank, n).
        path: `auto`, `composed` or `two_step`; see `factorized.cost`. It changes speed and memory, never the function.
        kernel_decay: Frobenius decay that the backward pass adds to the gradient of the composed weight, or None.
            Set by `FrobeniusDecay.attach(in_backward=True)`.
    """

    def __init__(self, m: int, n: int, rank: int, *, bias: int, square: bool, path: str, device=None, dtype=None):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        if path not in cost.PATHS:
            raise ValueError(f"path must be one of {', '.join(cost.PATHS)}, not {path!r}")
        options = {"device": device, "dtype": dtype}
        self.U = nn.Parameter(torch.empty(m, rank, **options))
        self.VT = nn.Parameter(torch.empty(rank, n, **options))
        self.M = nn.Parameter(torch.empty(rank, rank, **options)) if square else None
        self.bias = nn.Parameter(torch.empty(bias, **options)) if bias else None
        self.path = path
        self.kernel_decay: KernelDecay | None = None
        self._last_shape: tuple[int, ...] | None = None
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

    # -- the protocol ------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of columns of `U`; may exceed the rank the product can have."""
        return self.U.shape[1]

    def factors(self) -> tuple[Tensor, ...]:
        """Return the factors in product order: `(U, VT)` or `(U, M, VT)`."""
        return (self.U, self.VT) if self.M is None else (self.U, self.M, self.VT)

    def right(self) -> Tensor:
        """Return everything right of `U`, shape (rank, n): `VT` or `M VT`."""
        return self.VT if self.M is None else self.M @ self.VT

    def product(self) -> Tensor:
        """Return the product of the factors, shape (m, n), in the factors' own precision even under autocast."""
        with without_autocast(self.U.device):
            return self.U @ self.right()

    # -- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        layer: nn.Module,
        rank_scale: float = 1.0,
        *,
        rank: int | None = None,
        init: str | Fill | None = "spectral",
        square: bool = False,
        square_init: Fill | None = None,
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
            ValueError: for a rank or scale out of range, an unknown `init`, or a layer this class cannot stand for.
        """
        if obstacle := cls.obstacle(layer):
            raise ValueError(f"{type(layer).__name__} cannot be factorized: {obstacle}")
        weight = layer.weight
        fill = _fill_of(init, weight)
        new = cls._like(
            layer,
            rank=cls.rank_of(layer, rank_scale) if rank is None else rank,
            square=square,
            path=path,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            if init == "spectral":
                new.warn_of_padding([type(layer).__name__], new)
                new.set_factors(*spectral_init(cls.matrix_of(layer), new.rank))
            elif fill is not None:
                fill(new.U)
                fill(new.VT)
            if square:
                identity = nn.init.eye_(new.M)
                if square_init is not None:
                    new.M.copy_(square_init(identity.clone()))
            if new.bias is not None:
                new.bias.copy_(layer.bias)
        for factor in new.factors():
            factor.requires_grad_(weight.requires_grad)
        if new.bias is not None:
            new.bias.requires_grad_(layer.bias.requires_grad)
        return new.train(layer.training)

    @classmethod
    def rank_of(cls, layer: nn.Module, rank_scale: float) -> int:
        """Return the rank that a scale gives the factorized form of a dense layer; see `scaled_rank`."""
        return scaled_rank(rank_scale, cls.scaled_dimension(layer))

    @torch.no_grad()
    def set_factors(self, U: Tensor, VT: Tensor) -> None:
        """Overwrite `U` and `VT` in place."""
        self.U.copy_(U)
        self.VT.copy_(VT)

    @staticmethod
    def warn_of_padding(names: list[str], *layers: "FactorizedLayer") -> None:
        """Warn of ranks above min(m, n), where spectral initialization leaves zero directions."""
        surplus = [(name, layer.rank, min(layer.U.shape[0], layer.VT.shape[1])) for name, layer in zip(names, layers)]
        surplus = [f"{name} (rank {rank}, at most {most} useful)" for name, rank, most in surplus if rank > most]
        if surplus:
            warnings.warn(
                "spectral initialization pads ranks above min(m, n) with zero directions, which stay zero unless a "
                f"middle factor mixes them: {', '.join(surplus)}",
                stacklevel=3,
            )

    @torch.no_grad()
    def _fill_dense(self, dense: nn.Module) -> nn.Module:
        dense.weight.copy_(self.weight())
        dense.weight.requires_grad_(any(factor.requires_grad for factor in self.factors()))
        if self.bias is not None:
            dense.bias.copy_(self.bias)
            dense.bias.requires_grad_(self.bias.requires_grad)
        return dense.train(self.training)

    # -- execution ---------------------------------------------------------------------------------------------------

    def _choose(self, shape: tuple[int, ...]) -> str:
        """Return the path for an input of this shape, and remember it."""
        path = cost.cheaper_path(**self.costs(shape)) if self.path == "auto" else self.path
        if not torch.compiler.is_compiling():
            self._last_shape = tuple(shape)
        return path

    def _composed_weight(self) -> Tensor:
        """Return `weight()`, with `kernel_decay` acting in the backward pass."""
        return with_decay(self.weight(), self.kernel_decay)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiply-adds of one call on an input of this shape, along the path it takes."""
        costs = self.costs(shape)
        path = cost.cheaper_path(**costs) if self.path == "auto" else self.path
        return costs["compose"] + costs["dense"] if path == "composed" else costs["steps"]

    def _path_repr(self) -> str:
        if self.path != "auto" or self._last_shape is None:
            return self.path
        size = "x".join(map(str, self._last_shape))
        return f"auto ({cost.cheaper_path(**self.costs(self._last_shape))} for {size})"

    def extra_repr(self) -> str:
        form = "U M VT" if self.M is not None else "U VT"
        return f"{form}, rank={self.rank}, bias={self.bias is not None}, path={self._path_repr()}"


class KernelDecay:
    """Frobenius decay of one layer's weight that a backward pass adds, where it composes the weight.

    Copies of the layer are without it, since the optimizer that it belongs to does not update them.

    Attributes:
        coefficient: what the weight is multiplied by when it is added to its gradient.
        mark: a leaf of no dimension. Its gradient is how often backward passes have added the decay, None for never: a
            compiled program, too, can tell that, without a word to Python or the host.
    """

    def __init__(self, coefficient: float, device: torch.device):
        self.coefficient = coefficient
        self.mark = torch.zeros((), device=device, requires_grad=True)

    def __reduce__(self):
        return type(None), ()


def with_decay(weight: Tensor, decay: KernelDecay | None) -> Tensor:
    """Return `weight`, with `decay` added to its gradient in the backward pass."""
    if decay is not None and torch.is_grad_enabled():
        return _DecayInBackward.apply(weight, decay.mark, decay.coefficient)
    return weight


class _DecayInBackward(torch.autograd.Function):
    """The identity on a weight, whose backward adds the gradient of `coefficient / 2 * |weight|_F^2`."""

    @staticmethod
    def forward(ctx, weight: Tensor, mark: Tensor, coefficient: float) -> Tensor:
        ctx.save_for_backward(weight, mark)
        ctx.coefficient = coefficient
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weight, mark = ctx.saved_tensors
        return torch.add(gradient, weight, alpha=ctx.coefficient), torch.ones_like(mark), None


def scaled_rank(rank_scale: float, dimension: int) -> int:
    """Return `rank_scale * dimension` rounded to the nearest integer (halves to even), and at least 1.

    Raises:
        ValueError: if the scale is not a positive finite number.
    """
    if not (rank_scale > 0 and math.isfinite(rank_scale)):
        raise ValueError(f"rank_scale must be a positive number, not {rank_scale}")
    return max(1, round(rank_scale * dimension))


def _fill_of(init: str | Fill | None, weight: Tensor) -> Fill | None:
    if init == "spectral" or not isinstance(init, str):
        return None if init == "spectral" else init
    if init not in _FILLS:
        raise ValueError(f"init must be one of {', '.join(INITS)} or a function, not {init!r}")
    return _FILLS[init](weight)
