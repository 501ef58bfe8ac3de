"""Positions of tokens in sentences that are padded on either side, and their embeddings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout
from .packing import Packing

PAD = 1  # index of the padding symbol, and of the row of position tables that stands for it


def position_rows(tokens: Tensor) -> Tensor:
    """Return the row of the position table for every token (B, T): 2, 3, ... by rank in its sentence, padding 1."""
    real = tokens.ne(PAD)
    return real.cumsum(1) * real + PAD


class SinusoidalPositions(nn.Module):
    """Fixed position embeddings: sines of `row * 10000^(-j / (d/2 - 1))`, j < d/2, then cosines; row 1 is zero."""

    def __init__(self, embedding_dim: int):
        super().__init__()
        self.embedding_dim = embedding_dim

    def forward(self, rows: Tensor) -> Tensor:
        """Return the embeddings (n, d) of rows (n,)."""
        half = self.embedding_dim // 2
        rate = math.log(10000) / max(half - 1, 1)
        frequencies = torch.exp(torch.arange(half, device=rows.device) * -rate)
        angles = rows[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos()], 1) * rows.ne(PAD)[:, None]
        return F.pad(table, (0, self.embedding_dim % 2))


class Embedder(nn.Module):
    """Token plus position embeddings, and dropout. There is no scaling by the square root of the dimension.

    Args:
        vocabulary: number of symbols.
        embedding_dim: width `d`.
        positions: module that maps rows (n,) to embeddings (n, d), or None for no positions.
        dropout: probability.
    """

    def __init__(self, vocabulary: int, embedding_dim: int, positions: nn.Module | None, dropout: float):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, embedding_dim, padding_idx=PAD)
        self.positions = positions
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        """Embed sentences (B, T): (B, T, d), or the real positions only, (N, d)."""
        pack = (lambda x: x) if packing is None else packing.pack
        x = self.tokens(pack(tokens))
        if self.positions is not None:
            # The rows that occur are the first ones of the table, and the same for every sentence.
            rows = self.positions(torch.arange(tokens.shape[1] + PAD + 1, device=tokens.device))
            x = x + F.embedding(pack(position_rows(tokens)), rows)
        return self.dropout(self._as_stored(x))

    def at(self, tokens: Tensor, position: int) -> Tensor:
        """Embed tokens (...) that all stand at the same position, counted from 0: (..., d)."""
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.tensor([position + PAD + 1], device=tokens.device))
        return self.dropout(self._as_stored(x))

    def _as_stored(self, x: Tensor) -> Tensor:
        """Return x in the precision of the table.

        All layers add to x. Autocast would make a sum of its short numbers where the table is a product of factors, and
        leave it alone where the table is looked up.
        """
        return x.to(torch.promote_types(x.dtype, next(self.tokens.parameters()).dtype))
