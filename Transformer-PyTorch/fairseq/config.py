"""Sizes and options of a Transformer, the presets of them that have names, and how many parameters they make."""

from collections.abc import Mapping
from dataclasses import dataclass

from .positions import PAD

ARCHITECTURES: Mapping[str, Mapping[str, int]] = {
    "transformer": {"hidden_size": 256, "filter_size": 1024, "num_layers": 2, "num_heads": 4},
    "transformer_small": {"hidden_size": 256, "filter_size": 1024, "num_layers": 2, "num_heads": 4},
    "transformer_iwslt_de_en": {"hidden_size": 512, "filter_size": 1024, "num_layers": 6, "num_heads": 4},
    "transformer_base": {"hidden_size": 512, "filter_size": 2048, "num_layers": 6, "num_heads": 8},
    "transformer_big": {"hidden_size": 1024, "filter_size": 4096, "num_layers": 6, "num_heads": 16},
}
_LEFT_OUT = ("fconv", "lstm", "dpn")  # families that the toolkit had beside the Transformer

POSITIONS = ("learned", "timing", "nopos")


@dataclass(frozen=True)
class TransformerConfig:
    """What determines a Transformer besides its vocabularies. Contradictions are a `ValueError`."""

    hidden_size: int
    """The width `d` of embeddings and layers."""
    filter_size: int
    """The width `f` inside the feed-forward networks."""
    num_layers: int
    """The number of layers of encoder and decoder, where these do not have numbers of their own."""
    num_heads: int
    """The number of attention heads, which divides the width."""
    encoder_layers: int | None = None
    """The number of layers of the encoder; None for `num_layers`."""
    decoder_layers: int | None = None
    """The number of layers of the decoder; None for `num_layers`."""
    dropout: float = 0.1
    """The share of entries dropped after the embeddings and after every sublayer."""
    attention_dropout: float = 0.0
    """The share of attention weights dropped."""
    relu_dropout: float = 0.1
    """The share of entries dropped inside the feed-forward networks."""
    position: str = "learned"
    """The kind of position embeddings: learned, timing (sinusoids) or nopos (none)."""
    share_input_output_embed: bool = False
    """Whether the table of the target's embeddings is the weight of the output layer, too."""
    share_all_embeddings: bool = False
    """Whether that table serves the source as well."""
    rank_scale: float = 0.0
    """Ranks and widths of heads as a fraction of the full ones; with 0 and 1 the model is dense."""
    cross_mask: bool = True
    """Whether the decoder is kept from attending to the padding of the source."""
    max_positions: int = 1024
    """The number of rows of the learned position tables; otherwise the most tokens of a source."""
    spectral: bool = False
    """Whether two-factor layers start from the spectral initialization of a dense start."""
    spectral_quekey: bool = False
    """Whether the factors of every query-key product are balanced at the start."""
    spectral_outval: bool = False
    """Whether the factors of every output-value product are balanced at the start."""

    def __post_init__(self):
        for name in ("hidden_size", "filter_size", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, depth in zip(("encoder_layers", "decoder_layers"), self.depths):
            if depth < 1:
                raise ValueError(f"{name} must be at least 1, not {depth}")
        if self.hidden_size < 2:
            raise ValueError("hidden_size must be at least 2: the layer normalization needs a deviation")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads, {self.num_heads}")
        for name in ("dropout", "attention_dropout", "relu_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.position not in POSITIONS:
            raise ValueError(f"position must be one of {', '.join(POSITIONS)}, not {self.position!r}")
        if not 0 <= self.rank_scale <= 1:
            raise ValueError(f"rank_scale must be between 0 and 1, not {self.rank_scale}; 0 and 1 are dense")
        if self.max_positions < PAD + 2:
            raise ValueError(f"max_positions must be at least {PAD + 2}, not {self.max_positions}")

    @property
    def depths(self) -> tuple[int, int]:
        """Layers of the encoder and of the decoder."""
        given = self.encoder_layers, self.decoder_layers
        return tuple(self.num_layers if depth is None else depth for depth in given)

    @property
    def is_tied(self) -> bool:
        """Whether the output layer uses the table of the target's embeddings."""
        return self.share_input_output_embed or self.share_all_embeddings

    @property
    def is_factorized(self) -> bool:
        """Whether linear layers and embeddings have two factors."""
        return 0 < self.rank_scale < 1

    @property
    def max_source_length(self) -> int:
        """Most tokens of a source sentence, its end symbol included."""
        return self.max_positions - PAD - 1 if self.position == "learned" else self.max_positions

    @property
    def max_target_length(self) -> int:
        """Most tokens of a target sentence, its end symbol included."""
        return self.max_positions - PAD - 1 if self.position == "learned" else 100_000


def architecture(name: str, **overrides) -> TransformerConfig:
    """Return the preset `name` of `ARCHITECTURES` with some of its fields, or of the defaults, changed.

    Raises:
        ValueError: for another name, or values that contradict each other.
        TypeError: for a field that `TransformerConfig` does not have.
    """
    if name not in ARCHITECTURES:
        known = f"architectures are {', '.join(ARCHITECTURES)}"
        if name.startswith(_LEFT_OUT):
            raise ValueError(f"architecture {name!r} is not part of this toolkit, which has Transformers only; {known}")
        raise ValueError(f"there is no architecture {name!r}; {known}")
    return TransformerConfig(**{**ARCHITECTURES[name], **overrides})


def dense_parameter_count(config: TransformerConfig, source_size: int, target_size: int) -> int:
    """Return the number of parameters that the model would have with `rank_scale` 0."""
    d, (encoder, decoder) = config.hidden_size, config.depths
    tables = [target_size]
    if not config.share_all_embeddings:
        tables.append(source_size)
    if not config.is_tied:
        tables.append(target_size)
    rows = sum(tables) + (2 * config.max_positions if config.position == "learned" else 0)
    attentions = 4 * d * d * (encoder + 2 * decoder)
    feed_forward = 2 * d * config.filter_size * (encoder + decoder)
    norms = 2 * d * (2 * encoder + 3 * decoder + 2)
    return rows * d + target_size + attentions + feed_forward + norms
