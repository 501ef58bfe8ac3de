"""The products of factors in the heads of attention, as factorized modules (Khodak et al. 2021, section 5).

A head reads its input through two products of narrow matrices only: its scores through `Q^T K`, its output through
`O V`. Each is a `(d, d)` matrix of rank at most the head's width `h`, so both take part in Frobenius decay, norms and
spectral initialization like any product of factors, all heads of a layer as one batch:

    query_key      U = Q_i^T (d, h)     VT = K_i (h, d)
    output_value   U = O_i   (d, h)     VT = V_i (h, d)

Where a group of g queries shares a key and a value (grouped-query attention), so do their products: one for a group,
`[Q_1^T; ...; Q_g^T] K` of shape (g d, d), whose squared norm is the sum of its heads'.
"""

import torch
from torch import Tensor, nn

from ..linalg.spectral import batch_spectral_init


class HeadProducts(nn.Module):
    """One product of two factors per attention head, or per group of heads.

    A factorized module whose factors are views of its parameters, but for the left ones of groups.
    """

    def __init__(self, num_heads: int, kv_heads: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.kv_heads = num_heads if kv_heads is None else kv_heads

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return `U` of shape (kv heads, g d, h) and `VT` of shape (kv heads, h, d), with g heads in a group."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """Width of a head."""
        return self.factors()[0].shape[-1]

    def spectral_init(self) -> None:
        """Balance the factors of every head; the products, and so the layer's function, stay as they are."""
        U, VT = self.factors()
        batch_spectral_init(U, VT)
        if self.kv_heads < self.num_heads:  # there U is a copy
            with torch.no_grad():
                self._left().copy_(U.unflatten(1, (self.num_heads // self.kv_heads, -1)).mT.flatten(0, 2))

    def _left(self) -> Tensor:
        """Return the left matrices of all heads, (heads * h, d), a view of the parameter."""
        raise NotImplementedError

    def _grouped(self) -> Tensor:
        """Return the left matrices as (kv heads, g d, h)."""
        by_head = self._left().unflatten(0, (self.num_heads, -1)).mT
        return by_head if self.kv_heads == self.num_heads else by_head.unflatten(0, (self.kv_heads, -1)).flatten(1, 2)

    def _right(self, rows: Tensor) -> Tensor:
        """Return a (kv heads * h, d) matrix as (kv heads, h, d)."""
        return rows.unflatten(0, (self.kv_heads, -1))

    def extra_repr(self) -> str:
        U, VT = self.factors()
        groups = "" if self.kv_heads == self.num_heads else f"key and value heads={self.kv_heads}, "
        return f"heads={self.num_heads}, {groups}{U.shape[1]}x{VT.shape[2]}, rank={U.shape[2]}"


class QueryKey(HeadProducts):
    """The products `Q_i^T K_i` of the heads. Parameters: `query` (heads * h, d) and `key` (kv heads * h, d)."""

    def __init__(
        self, embed_dim: int, width: int, num_heads: int, device=None, dtype=None, kv_heads: int | None = None
    ):
        super().__init__(num_heads, kv_heads)
        shared = width // num_heads * self.kv_heads
        self.query = nn.Parameter(torch.empty(width, embed_dim, device=device, dtype=dtype))
        self.key = nn.Parameter(torch.empty(shared, embed_dim, device=device, dtype=dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return `Q^T` (kv heads, g d, h) and `K` (kv heads, h, d), with g heads in a group."""
        return self._grouped(), self._right(self.key)

    def _left(self) -> Tensor:
        return self.query


class OutputValue(HeadProducts):
    """The products `O_i V_i` of the heads. Parameters: `output` (d, heads * h) and `value` (kv heads * h, d)."""

    def __init__(
        self, embed_dim: int, width: int, num_heads: int, device=None, dtype=None, kv_heads: int | None = None
    ):
        super().__init__(num_heads, kv_heads)
        shared = width // num_heads * self.kv_heads
        self.value = nn.Parameter(torch.empty(shared, embed_dim, device=device, dtype=dtype))
        self.output = nn.Parameter(torch.empty(embed_dim, width, device=device, dtype=dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return `O` (kv heads, g d, h) and `V` (kv heads, h, d), with g heads in a group."""
        return self._grouped(), self._right(self.value)

    def _left(self) -> Tensor:
        return self.output.T


def head_width(embed_dim: int, num_heads: int, rank_scale: float = 1.0) -> int:
    """Return the width of a head: `rank_scale * embed_dim / num_heads` rounded down, at least 1.

    Raises:
        ValueError: unless the heads divide the dimension and the scale is a positive finite number.
    """
    if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
        raise ValueError(f"the number of heads must divide the dimension; {num_heads} does not divide {embed_dim}")
    if not 0 < rank_scale < float("inf"):
        raise ValueError(f"rank_scale must be a positive number, not {rank_scale}")
    return max(1, int(rank_scale * embed_dim / num_heads))
