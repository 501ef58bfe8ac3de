"""The factorized linear layers."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import compose_cost
from .product import ProductLayer


class FactorizedLinear(ProductLayer):
    """`y = x W^T + bias` with `W = U VT` (or `U M VT`) of shape (out_features, in_features).

    Maps (..., in_features) to (..., out_features). Two-step: `y = (x VT^T) U^T + bias`.
    Parameters: `rank * (out + in)`, plus `rank^2` if square, plus the bias. They start Kaiming normal;
    `from_dense` can start them from a layer's weight.
    """

    dense_type: type[nn.Module] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        square: bool = False,
        path: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(
            out_features, in_features, rank, outputs=out_features, bias=bias, square=square, path=path,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.in_features = in_features
        self.out_features = out_features

    @staticmethod
    def matrix_shape(layer: Any) -> tuple[int, int]:
        """Return the shape of `matrix_of(layer)`."""
        return layer.out_features, layer.in_features

    @classmethod
    def scaled_dimension(cls, layer: Any) -> int:
        """Return what a rank scale is a fraction of: min(out, in). A convolution scales its rows instead."""
        return min(cls.matrix_shape(layer))

    @classmethod
    def _like(cls, layer: Any, **options) -> "FactorizedLinear":
        bias = layer.bias is not None
        return nn.utils.skip_init(cls, layer.in_features, layer.out_features, bias=bias, **options)

    def _empty_dense(self, **options) -> nn.Module:
        bias = self.bias is not None
        return nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias, **options)

    def _steps(self, **options) -> Sequence[tuple[nn.Module, Tensor]]:
        first = nn.utils.skip_init(nn.Linear, self.in_features, self.rank, bias=False, **options)
        second = nn.utils.skip_init(nn.Linear, self.rank, self.out_features, bias=self.bias is not None, **options)
        return (first, self.right()), (second, self.U)

    def typical_shape(self) -> tuple[int, ...]:
        return 2**16, self.in_features

    def costs(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the arguments of `cost.cheaper_path` for an input of shape (..., in_features)."""
        rows = 1
        for size in shape[:-1]:
            rows = rows * size
        m, n = self.out_features, self.in_features
        return {
            "compose": compose_cost(m, n, self.rank, self.M is not None),
            "dense": rows * m * n,
            "steps": rows * self.rank * (m + n),
            "intermediate": rows * self.rank,
        }

    def compute(self, x: Tensor) -> Tensor:
        if self._choose(x) == "composed":
            return F.linear(x, self.as_matrix(self.weight), self.bias)
        return F.linear(F.linear(x, self.right()), self.U, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {super().extra_repr()}"


class _ByName(type):
    """Makes a class stand for another, whose package need not be there."""

    def __instancecheck__(cls, instance: object) -> bool:
        return any(is_conv1d(kind) for kind in type(instance).__mro__)


class Conv1D(nn.Module, metaclass=_ByName):
    """Stands for `transformers.pytorch_utils.Conv1D`, the linear layer of GPT-2: its weight is stored (in, out)."""


def is_conv1d(kind: type) -> bool:
    """Tell whether a class is the one that `Conv1D` stands for."""
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class FactorizedTransposedLinear(FactorizedLinear):
    """A linear layer whose `weight` is stored (in_features, out_features), as that of transformers' `Conv1D`.

    It computes what `FactorizedLinear` does, and its factors are the same: `U` is (out, rank), `VT` is (rank, in).
    """

    dense_type = Conv1D

    @classmethod
    def as_matrix(cls, weight: Tensor) -> Tensor:
        """Return the weight (in, out) as the matrix (out, in)."""
        return weight.mT

    def as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.mT

    @staticmethod
    def matrix_shape(layer: Any) -> tuple[int, int]:
        """Return the shape of `matrix_of(layer)`."""
        inputs, outputs = layer.weight.shape
        return outputs, inputs

    @classmethod
    def _like(cls, layer: Any, **options) -> "FactorizedTransposedLinear":
        outputs, inputs = cls.matrix_shape(layer)
        return nn.utils.skip_init(cls, inputs, outputs, bias=layer.bias is not None, **options)

    def _empty_dense(self, **options) -> nn.Module:
        kind = importlib.import_module("transformers.pytorch_utils").Conv1D
        with torch.device("meta"):
            dense = kind(self.out_features, self.in_features)
        return dense.to_empty(device=options["device"]).to(options["dtype"])
