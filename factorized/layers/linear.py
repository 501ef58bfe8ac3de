"""The factorized linear layer."""

from collections.abc import Sequence

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

    dense_type = nn.Linear

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
    def matrix_shape(layer: nn.Linear) -> tuple[int, int]:
        """Return the shape of `matrix_of(layer)`."""
        return layer.out_features, layer.in_features

    @staticmethod
    def scaled_dimension(layer: nn.Linear) -> int:
        """Return what a rank scale is a fraction of: min(out, in). A convolution scales its rows instead."""
        return min(layer.out_features, layer.in_features)

    @classmethod
    def _like(cls, layer: nn.Linear, **options) -> "FactorizedLinear":
        bias = layer.bias is not None
        return nn.utils.skip_init(cls, layer.in_features, layer.out_features, bias=bias, **options)

    def _empty_dense(self, **options) -> nn.Linear:
        bias = self.bias is not None
        return nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias, **options)

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
            return F.linear(x, self.weight, self.bias)
        return F.linear(F.linear(x, self.right()), self.U, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {super().extra_repr()}"
