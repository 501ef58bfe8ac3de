"""The factorized embedding."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import compose_cost
from .product import ProductLayer


class FactorizedEmbedding(ProductLayer):
    """A lookup table `W = U VT` (or `U M VT`) of shape (num_embeddings, embedding_dim).

    Maps indices of any shape (...) to rows, shape (..., embedding_dim). Two-step: the rows of `U` are looked up and
    multiplied by `VT`. Composed: the table is multiplied out and its rows are looked up, which is less work where there
    are more tokens than rows.

    Args:
        padding_idx: a row of `U` that lookups give no gradient to. Regularization still reaches it.
    """

    dense_type = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        *,
        square: bool = False,
        path: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(num_embeddings, embedding_dim, rank, square=square, path=path, device=device, dtype=dtype)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str | None:
        if (obstacle := super().obstacle(layer)) or not isinstance(layer, nn.Embedding):
            return obstacle
        return cls.unusual(layer)

    @staticmethod
    def unusual(layer: Any) -> str | None:
        """Return what an embedding does with its table that needs it to be a parameter, or None."""
        if layer.max_norm is not None:
            return "it limits the norm of its rows"
        if layer.sparse or layer.scale_grad_by_freq:
            return "its gradient is sparse or scaled by frequency"
        return None

    @staticmethod
    def matrix_shape(layer: nn.Embedding) -> tuple[int, int]:
        """Return the shape of `matrix_of(layer)`."""
        return layer.num_embeddings, layer.embedding_dim

    @staticmethod
    def scaled_dimension(layer: nn.Embedding) -> int:
        """Return what a rank scale is a fraction of: min(num_embeddings, embedding_dim)."""
        return min(layer.num_embeddings, layer.embedding_dim)

    @classmethod
    def metrics(cls, layer: Any, inputs: Tensor | None, outputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the metrics of the columns, which are the outputs, and of the rows, of which an input is one."""
        return outputs, inputs

    @classmethod
    def _like(cls, layer: nn.Embedding, **options) -> "FactorizedEmbedding":
        sizes = layer.num_embeddings, layer.embedding_dim
        return nn.utils.skip_init(cls, *sizes, padding_idx=layer.padding_idx, **options)

    def _empty_dense(self, **options) -> nn.Embedding:
        sizes = self.num_embeddings, self.embedding_dim
        return nn.utils.skip_init(nn.Embedding, *sizes, self.padding_idx, **options)

    def _steps(self, **options) -> Sequence[tuple[nn.Module, Tensor]]:
        rows = nn.utils.skip_init(nn.Embedding, self.num_embeddings, self.rank, self.padding_idx, **options)
        columns = nn.utils.skip_init(nn.Linear, self.rank, self.embedding_dim, bias=False, **options)
        return (rows, self.U), (columns, self.right().mT)

    def typical_shape(self) -> tuple[int, ...]:
        return (2**12,)

    def costs(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the arguments of `cost.cheaper_path` for an input of this shape."""
        tokens = 1
        for size in shape:
            tokens = tokens * size
        m, n = self.num_embeddings, self.embedding_dim
        return {
            "compose": compose_cost(m, n, self.rank, self.M is not None),
            "dense": 0,
            "steps": tokens * self.rank * n,
            "intermediate": tokens * self.rank,
        }

    def compute(self, tokens: Tensor) -> Tensor:
        if self._choose(tokens) == "composed":
            # Looking up all rows of U first leaves out the gradient of the padding row, as in the other path.
            table = self._rows(torch.arange(self.num_embeddings, device=tokens.device))
            return F.embedding(tokens, table)
        return self._rows(tokens)

    def _rows(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.U, self.padding_idx) @ self.right()

    def scores(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return `x W^T + bias`, (..., num_embeddings), for x (..., embedding_dim): an output tied to the table."""
        return F.linear(F.linear(x, self.right()), self.U, bias)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {super().extra_repr()}"
