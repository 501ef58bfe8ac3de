"""Multi-head attention whose heads' products are factorized modules (Khodak et al. 2021, section 5).

A head reads its input through two products of narrow matrices only: its scores through `Q^T K`, its output through
`O V`. Each is a `(d, d)` matrix of rank at most the head's width `h`, so both take part in Frobenius decay, norms and
spectral initialization like any product of factors, all heads of a layer as one batch:

    query_key      U = Q_i^T (d, h)     VT = K_i (h, d)
    output_value   U = O_i   (d, h)     VT = V_i (h, d)
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..linalg.spectral import batch_spectral_init


class Cache(Protocol):
    """What self-attention asks of a store of keys and values, for decoding step by step."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions (B, heads, n, h) to those there are; return keys and values of all, each (B, heads, S, h)."""
        ...


class Packing(Protocol):
    """What attention asks of a batch whose padding is left out: where its rows belong."""

    def pack(self, x: Tensor) -> Tensor:
        """Return the real positions, (N, ...), of x (B, T, ...)."""
        ...

    def unpack(self, x: Tensor) -> Tensor:
        """Return x (N, ...) as (B, T, ...), with anything finite at padding."""
        ...


class HeadProducts(nn.Module):
    """One product of two factors per attention head: a factorized module whose factors are views of its parameters."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.num_heads = num_heads

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return `U` of shape (heads, d, h) and `VT` of shape (heads, h, d), views of the parameters."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """Width of a head."""
        return self.factors()[0].shape[-1]

    def spectral_init(self) -> None:
        """Balance the factors of every head; the products, and so the layer's function, stay as they are."""
        batch_spectral_init(*self.factors())

    def _by_head(self, rows: Tensor) -> Tensor:
        """Return a (heads * h, d) matrix as (heads, h, d)."""
        return rows.unflatten(0, (self.num_heads, -1))

    def extra_repr(self) -> str:
        U, VT = self.factors()
        return f"heads={self.num_heads}, {U.shape[1]}x{VT.shape[2]}, rank={U.shape[2]}"


class QueryKey(HeadProducts):
    """The products `Q_i^T K_i` of the heads. Parameters: `query` and `key`, both (heads * h, d)."""

    def __init__(self, embed_dim: int, width: int, num_heads: int, device=None, dtype=None):
        super().__init__(num_heads)
        self.query = nn.Parameter(torch.empty(width, embed_dim, device=device, dtype=dtype))
        self.key = nn.Parameter(torch.empty(width, embed_dim, device=device, dtype=dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return `Q^T` (heads, d, h) and `K` (heads, h, d)."""
        return self._by_head(self.query).mT, self._by_head(self.key)


class OutputValue(HeadProducts):
    """The products `O_i V_i` of the heads. Parameters: `output` (d, heads * h) and `value` (heads * h, d)."""

    def __init__(self, embed_dim: int, width: int, num_heads: int, device=None, dtype=None):
        super().__init__(num_heads)
        self.value = nn.Parameter(torch.empty(width, embed_dim, device=device, dtype=dtype))
        self.output = nn.Parameter(torch.empty(embed_dim, width, device=device, dtype=dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return `O` (heads, d, h) and `V` (heads, h, d)."""
        return self._by_head(self.output.T).mT, self._by_head(self.value)


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


class FactorizedAttention(nn.Module):
    """Multi-head scaled dot-product attention, without biases.

    Self-attention: `attention(x)`. Cross-attention: `attention(x, memory)`. Decoding step by step:

        y = attention(x_t, cache=cache)                       # self-attention: x_t (B, 1, d) also sees the steps before
        memory = attention.keys_values(states)                # cross-attention: once per sentence
        y = attention(x_t, memory)

    Args:
        embed_dim: width `d` of input, memory and output.
        num_heads: must divide `embed_dim`.
        rank_scale: narrows (or widens) the heads to `max(1, int(rank_scale * d / heads))`.
        dropout: of the attention weights, in training.

    Attributes:
        query_key, output_value: the factorized modules `QueryKey` and `OutputValue` that own the parameters.

    Raises:
        ValueError: see `head_width`.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, rank_scale: float = 1.0, *, dropout: float = 0.0, device=None, dtype=None
    ):
        super().__init__()
        width = num_heads * head_width(embed_dim, num_heads, rank_scale)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key = QueryKey(embed_dim, width, num_heads, device, dtype)
        self.output_value = OutputValue(embed_dim, width, num_heads, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start all four matrices Xavier uniform."""
        for matrix in self.parameters():
            nn.init.xavier_uniform_(matrix)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of `memory` (B, S, d), each (B, heads, S, h)."""
        key, value = self._project(memory, self.query_key.key, self.output_value.value)
        return key, value

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        cache: Cache | None = None,
        packing: Packing | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the output, shaped like x; with `need_weights` also the weights, shape (B, heads, T, S).

        Args:
            x: queries, shape (B, T, d); with a `packing`, its real positions only, (N, d).
            memory: what is attended to, shape (B, S, d), or its `keys_values`; None for `x` itself.
            mask: boolean, broadcastable to (B, heads, T, S), True where a query may attend to a key. A query that may
                attend to none has no defined output.
            is_causal: in self-attention, let a position attend to itself and those before, the cached ones among them;
                with a `mask`, to what both allow.
            cache: in self-attention, keys and values of earlier steps, to which those of `x` are appended. S counts
                them, too.
            packing: tells where the rows of a packed `x` belong. In self-attention `mask` or causality must hide
                padding from all others.

        Raises:
            TypeError: for a mask that is not boolean.
            ValueError: for a cache or causality together with a memory, which has no earlier steps.
        """
        if memory is not None and (is_causal or cache is not None):
            raise ValueError("is_causal and cache are for self-attention, without a memory")
        if memory is None:
            matrices = self.query_key.query, self.query_key.key, self.output_value.value
            query, key, value = self._project(x, *matrices, packing=packing)
            if cache is not None:
                key, value = cache.append(key, value)
        else:
            (query,) = self._project(x, self.query_key.query, packing=packing)
            key, value = memory if isinstance(memory, tuple) else self.keys_values(memory)
        mask, is_causal = _visible(mask, is_causal, query.shape[2], key.shape[2], query.device)
        weights = None
        if need_weights or _fused_is_slow():
            weights = attention_weights(query, key, mask, is_causal)
            heads = F.dropout(weights, self.dropout, self.training) @ value
        else:
            dropout = self.dropout if self.training else 0.0
            heads = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal)
        heads = heads.transpose(1, 2).flatten(2)
        output = F.linear(heads if packing is None else packing.pack(heads), self.output_value.output)
        return (output, weights) if need_weights and weights is not None else output

    def _project(self, x: Tensor, *matrices: Tensor, packing: Packing | None = None) -> tuple[Tensor, ...]:
        """Return `x W^T` for every matrix (heads * h, d), split into heads: (B, heads, T, h). One product for all."""
        stacked = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
        projected = F.linear(x, stacked)
        if packing is not None:
            projected = packing.unpack(projected)
        parts = projected.unflatten(-1, (len(matrices), self.num_heads, -1)).unbind(2)
        return tuple(part.transpose(1, 2) for part in parts)


def _fused_is_slow() -> bool:
    """Tell whether plain operations are faster: in short types a CPU's fused attention is slow to differentiate."""
    return torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


def _visible(
    mask: Tensor | None, is_causal: bool, queries: int, keys: int, device: torch.device
) -> tuple[Tensor | None, bool]:
    """Return the mask of what both a mask and causality allow, or None, and whether causality is left to be applied.

    The queries are the last ones of the keys' positions: those before are in a cache.
    """
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"the mask must be boolean, True where a query may attend to a key, not {mask.dtype}")
    if not is_causal or queries == 1:  # the last position sees all
        return mask, False
    if mask is None and queries == keys:
        return None, True
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return (causal if mask is None else mask & causal), False


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Return the softmax of the scaled scores, (..., T, S), of queries (..., T, h) and keys (..., S, h).

    Args:
        mask: boolean, broadcastable to (..., T, S), True where a query may attend to a key.
        is_causal: instead of a mask, let each query attend to the key of its position and those before; needs T = S.
    """
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)
