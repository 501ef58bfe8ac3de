"""Encoder and decoder: stacks of layers in the pre-norm form, with embeddings before and a norm after.

x <- x + dropout(sublayer(norm(x)))      sublayers: attention(s), then a feed-forward network
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorized import FactorizedAttention, FactorizedEmbedding

from .config import TransformerConfig
from .dropout import Dropout
from .layer_norm import LayerNorm
from .packing import Packing
from .positions import PAD, Embedder, SinusoidalPositions


class FeedForward(nn.Module):
    """`W_2 dropout(relu(W_1 x))`, without biases."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.filter_size, bias=False)
        self.outer = nn.Linear(config.filter_size, config.hidden_size, bias=False)
        self.dropout = Dropout(config.relu_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        return self.outer(self.dropout(F.relu(self.inner(x), inplace=True)))


def _attention(config: TransformerConfig) -> FactorizedAttention:
    scale = config.rank_scale or 1.0
    return FactorizedAttention(config.hidden_size, config.num_heads, scale, dropout=config.attention_dropout)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention_norm = LayerNorm(config.hidden_size)
        self.self_attention = _attention(config)
        self.feed_forward_norm = LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x (B, S, d); `mask` (B, 1, 1, S) is True at what may be attended to."""
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), mask=mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's states, and a feed-forward network."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention_norm = LayerNorm(config.hidden_size)
        self.self_attention = _attention(config)
        self.cross_attention_norm = LayerNorm(config.hidden_size)
        self.cross_attention = _attention(config)
        self.feed_forward_norm = LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor],
        memory_mask: Tensor | None,
        *,
        packing: Packing | None = None,
        need_weights: bool = False,
        **self_attention,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer's output (B, T, d) and, if asked, its cross-attention weights (B, H, T, S).

        Args:
            x: shape (B, T, d), or (N, d) with a `packing`.
            memory: the encoder's states, or `keys_values` of them.
            memory_mask: True at the states that may be attended to.
            self_attention: mask or cache of the self-attention.
        """
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), packing=packing, **self_attention))
        attended = self.cross_attention(
            self.cross_attention_norm(x), memory, mask=memory_mask, packing=packing, need_weights=need_weights
        )
        attended, weights = attended if need_weights else (attended, None)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), weights


class Encoder(nn.Module):
    """Embeddings, layers, and a final normalization."""

    def __init__(self, config: TransformerConfig, vocabulary: int):
        super().__init__()
        self.embedder = _embedder(config, vocabulary)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.depths[0]))
        self.norm = LayerNorm(config.hidden_size)

    def forward(self, source: Tensor, padding: Tensor) -> Tensor:
        """Return the states (B, S, d) of source sentences (B, S), given where they are padding (B, S)."""
        mask = ~padding[:, None, None]
        x = self.embedder(source)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class Decoder(nn.Module):
    """Embeddings, layers, a final normalization, and the output layer (None if tied, with a bias of its own then)."""

    def __init__(self, config: TransformerConfig, vocabulary: int):
        super().__init__()
        self.embedder = _embedder(config, vocabulary)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.depths[1]))
        self.norm = LayerNorm(config.hidden_size)
        if config.is_tied:
            self.output = None
            self.output_bias = nn.Parameter(torch.empty(vocabulary))
        else:
            self.output = nn.Linear(config.hidden_size, vocabulary)

    def logits(self, x: Tensor) -> Tensor:
        """Return the scores (..., Vt) of the next word, from the output (..., d) of the last layer."""
        x = self.norm(x)
        if self.output is not None:
            return self.output(x)
        tokens = self.embedder.tokens
        if isinstance(tokens, FactorizedEmbedding):
            return tokens.scores(x, self.output_bias)
        return F.linear(x, tokens.weight, self.output_bias)


def _embedder(config: TransformerConfig, vocabulary: int) -> Embedder:
    positions = {
        "learned": lambda: nn.Embedding(config.max_positions, config.hidden_size, padding_idx=PAD),
        "timing": lambda: SinusoidalPositions(config.hidden_size),
        "nopos": lambda: None,
    }
    return Embedder(vocabulary, config.hidden_size, positions[config.position](), config.dropout)
