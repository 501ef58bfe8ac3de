"""Multi-head attention whose heads' products are factorized modules: `factorized.layers.heads`."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..linalg.spectral import spectral_init
from .heads import OutputValue, QueryKey, head_width


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


class FactorizedAttention(nn.Module):
    """Multi-head scaled dot-product attention.

    Self-attention: `attention(x)`. Cross-attention: `attention(x, memory)`. Decoding step by step:

        y = attention(x_t, cache=cache)                       # self-attention: x_t (B, 1, d) also sees the steps before
        memory = attention.keys_values(states)                # cross-attention: once per sentence
        y = attention(x_t, memory)

    Args:
        embed_dim: width `d` of input, memory and output.
        num_heads: must divide `embed_dim`.
        rank_scale: narrows (or widens) the heads to `max(1, int(rank_scale * d / heads))`.
        dropout: of the attention weights, in training.
        bias: add a bias to queries, keys and values, and to the output, as `nn.MultiheadAttention` does.
        batch_first: False if inputs and outputs are (T, B, d) instead of (B, T, d).
        kv_heads: number of keys and values, of which each belongs to as many queries (grouped-query attention); None
            for as many as there are queries.

    Attributes:
        query_key, output_value: the factorized modules `QueryKey` and `OutputValue` that own the matrices.
        in_bias: of queries, keys and values, one after the other, or None; out_bias: of the output, or None.

    Raises:
        ValueError: see `head_width`; if `kv_heads` does not divide `num_heads`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        rank_scale: float = 1.0,
        *,
        dropout: float = 0.0,
        bias: bool = False,
        batch_first: bool = True,
        kv_heads: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        width = num_heads * head_width(embed_dim, num_heads, rank_scale)
        if kv_heads is not None and (kv_heads < 1 or num_heads % kv_heads):
            raise ValueError(f"kv_heads must divide the number of heads; {kv_heads} does not divide {num_heads}")
        self.num_heads = num_heads
        self.kv_heads = num_heads if kv_heads is None else kv_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.query_key = QueryKey(embed_dim, width, num_heads, device, dtype, kv_heads)
        self.output_value = OutputValue(embed_dim, width, num_heads, device, dtype, kv_heads)
        shared = width // num_heads * self.kv_heads
        options = {"device": device, "dtype": dtype}
        self.in_bias = nn.Parameter(torch.empty(width + 2 * shared, **options)) if bias else None
        self.out_bias = nn.Parameter(torch.empty(embed_dim, **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start all four matrices Xavier uniform, and biases at zero."""
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, attention: nn.MultiheadAttention, rank_scale: float = 1.0) -> "FactorizedAttention":
        """Return attention with the weights of PyTorch's, which is left as it is.

        At a scale of 1 it is the same function; below, each head has the best product of its narrower width for its
        scores and for its output, biases included. It is called in its own way:

            y, _ = attention(x, x, x, key_padding_mask=padding, attn_mask=hidden)        # hidden (T, S) is boolean
            y = factorized(x, mask=~(hidden | padding[:, None, None, :]))
            y = factorized(x, memory)                             # attention(x, memory, memory)
            y = factorized(x, added=numbers)                      # attention(x, x, x, attn_mask=numbers)

        Args:
            attention: its dropout, `batch_first`, dtype, device, training mode and `requires_grad` carry over.
            rank_scale: as for the class.

        Raises:
            TypeError: for what is no `nn.MultiheadAttention`.
            ValueError: for one with keys or values of another width, `add_bias_kv` or `add_zero_attn`.
        """
        if not isinstance(attention, nn.MultiheadAttention):
            raise TypeError(f"from_dense takes an nn.MultiheadAttention, not a {type(attention).__name__}")
        if not attention._qkv_same_embed_dim or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "from_dense takes an nn.MultiheadAttention whose keys and values have the width of its queries, "
                "without add_bias_kv and add_zero_attn"
            )
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        new = cls(
            attention.embed_dim, attention.num_heads, rank_scale, dropout=attention.dropout, bias=bias is not None,
            batch_first=attention.batch_first, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        matrices = [*weight.chunk(3), attention.out_proj.weight.T]
        biases: list[Tensor | None] = [None, None, None] if bias is None else list(bias.chunk(3))
        if (h := head_width(attention.embed_dim, attention.num_heads, rank_scale)) != attention.head_dim:
            matrices, biases = _other_width(attention.num_heads, h, matrices, biases)
        query, key, value, output = matrices
        new.query_key.query.copy_(query)
        new.query_key.key.copy_(key)
        new.output_value.value.copy_(value)
        new.output_value.output.copy_(output.T)
        if new.in_bias is not None and new.out_bias is not None:
            new.in_bias.copy_(torch.cat([part for part in biases if part is not None]))
            new.out_bias.copy_(attention.out_proj.bias)
        for parameter in new.parameters():
            parameter.requires_grad_(weight.requires_grad)
        return new.train(attention.training)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of `memory` (B, S, d), each (B, kv heads, S, h)."""
        bias = None if self.in_bias is None else self.in_bias[len(self.query_key.query) :]
        key, value = self._project(memory, self.query_key.key, self.output_value.value, bias=bias)
        return key, value

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        added: Tensor | None = None,
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
            added: numbers that are added to the scores, broadcastable likewise.
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
        if not self.batch_first and packing is None:
            x = x.transpose(0, 1)
            memory = memory.transpose(0, 1) if isinstance(memory, Tensor) else memory
        if memory is not None and (is_causal or cache is not None):
            raise ValueError("is_causal and cache are for self-attention, without a memory")
        if memory is None:
            matrices = self.query_key.query, self.query_key.key, self.output_value.value
            query, key, value = self._project(x, *matrices, bias=self.in_bias, packing=packing)
            if cache is not None:
                key, value = cache.append(key, value)
        else:
            bias = None if self.in_bias is None else self.in_bias[: len(self.query_key.query)]
            (query,) = self._project(x, self.query_key.query, bias=bias, packing=packing)
            key, value = memory if isinstance(memory, tuple) else self.keys_values(memory)
        if self.kv_heads < self.num_heads:
            key, value = (part.repeat_interleave(self.num_heads // self.kv_heads, 1) for part in (key, value))
        mask, is_causal = _visible(mask, is_causal, query.shape[2], key.shape[2], query.device)
        if added is not None:
            if is_causal:
                shape = query.shape[2], key.shape[2]
                mask, is_causal = torch.ones(shape, dtype=torch.bool, device=query.device).tril(), False
            mask = added if mask is None else added.masked_fill(~mask, -torch.inf)
        weights = None
        if need_weights or _fused_is_slow():
            weights = attention_weights(query, key, mask, is_causal)
            heads = F.dropout(weights, self.dropout, self.training) @ value
        else:
            dropout = self.dropout if self.training else 0.0
            heads = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal)
        heads = heads.transpose(1, 2).flatten(2)
        output = F.linear(heads if packing is None else packing.pack(heads), self.output_value.output, self.out_bias)
        if not self.batch_first and packing is None:
            output = output.transpose(0, 1)
        return (output, weights) if need_weights and weights is not None else output

    def _project(
        self, x: Tensor, *matrices: Tensor, bias: Tensor | None, packing: Packing | None = None
    ) -> tuple[Tensor, ...]:
        """Return `x W^T + bias` for every matrix, split into heads: (B, heads, T, h). One product for all."""
        stacked = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
        projected = F.linear(x, stacked, bias)
        if packing is not None:
            projected = packing.unpack(projected)
        if self.kv_heads == self.num_heads:
            parts = projected.unflatten(-1, (len(matrices), self.num_heads, -1)).unbind(2)
        else:
            h = len(self.query_key.query) // self.num_heads
            split = projected.split([len(matrix) for matrix in matrices], -1)
            parts = tuple(part.unflatten(-1, (-1, h)) for part in split)
        return tuple(part.transpose(1, 2) for part in parts)


def _other_width(
    heads: int, h: int, matrices: list[Tensor], biases: list[Tensor | None]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return query, key, value and transposed output matrices (heads * h, d), and biases, of heads of another width.

    A bias is one more column of its matrix. Scores are divided by the root of the width, which the new ones make up
    for.
    """
    parts = [matrix.unflatten(0, (heads, -1)) for matrix in matrices]
    with_bias = [
        part if bias is None else torch.cat([part, bias.unflatten(0, (heads, -1))[..., None]], -1)
        for part, bias in zip(parts, biases)
    ]
    scale = (h / parts[0].shape[1]) ** 0.5
    Q, K = spectral_init(with_bias[0].mT @ with_bias[1] * scale, h)
    left, V = spectral_init(parts[3].mT @ with_bias[2], h)
    found = [Q.mT, K, V, left.mT]
    d = matrices[0].shape[1]
    new_biases = [None if b is None else part[..., d].flatten() for part, b in zip(found, biases)]
    return [part[..., :d].flatten(0, 1) for part in found], new_biases


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
        raise TypeError(
            f"the mask must be boolean, True where a query may attend to a key, not {mask.dtype}; numbers that are "
            "added to the scores are `added`"
        )
    if not is_causal or queries == 1:  # the last position sees all
        return mask, False
    if mask is None and queries == keys:
        return None, True
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return (causal if mask is None else mask & causal), False


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Return the softmax of the scaled scores, (..., T, S), of queries (..., T, h) and keys (..., S, h).

    Args:
        mask: broadcastable to (..., T, S): boolean, True where a query may attend to a key, or numbers to add.
        is_causal: instead of a mask, let each query attend to the key of its position and those before; needs T = S.
    """
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)
