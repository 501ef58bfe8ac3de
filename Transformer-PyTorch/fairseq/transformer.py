"""The Transformer for translation (Vaswani et al. 2017) in the pre-norm form, dense or with factorized layers."""

import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from factorized import FactorizedLayer, factorize, factorized_modules
from factorized.layers.heads import OutputValue, QueryKey

from .config import TransformerConfig, dense_parameter_count
from .decoding_state import DecodingState, Memory
from .packing import Packing
from .positions import PAD
from .stacks import Decoder, Encoder


class Transformer(nn.Module):
    """An encoder and a decoder. Build it with `build_model`; padding is symbol 1, on either side of a sentence."""

    def __init__(self, config: TransformerConfig, source_size: int, target_size: int):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, source_size)
        self.decoder = Decoder(config, target_size)

    def forward(self, source: Tensor, decoder_input: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the scores of every next word.

        Args:
            source: indices (B, S), padded on the left (or right).
            decoder_input: indices (B, T), the end symbol first, padded on the right.
            keep: compute only what the scores of these positions need: boolean (B, T), or their numbers (N,) in the
                flattened batch, ascending, which neither a GPU nor a compiler has to wait for. The others count as
                padding; they must come after all kept ones of their sentence.

        Returns:
            (B, T, target vocabulary), or (N, target vocabulary) for the N positions of `keep`, row by row.

        Raises:
            ValueError: for sentences longer than the position tables.
        """
        self._check_length(decoder_input.shape[1], self.config.max_target_length, "target")
        memory = self.encode(source)
        memory_mask = ~memory.padding[:, None, None] if self.config.cross_mask else None
        if keep is None:
            real = decoder_input.ne(PAD)
            causal = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).tril()
            packing, self_attention = None, {"mask": causal & real[:, None, None]}
        else:  # causality hides from a sentence what comes after it
            packing = Packing.of(keep) if keep.dtype == torch.bool else Packing(keep, decoder_input.shape)
            self_attention = {"is_causal": True}
        x = self.decoder.embedder(decoder_input, packing)
        for layer in self.decoder.layers:
            x, _ = layer(x, memory.states, memory_mask, packing=packing, **self_attention)
        return self.decoder.logits(x)

    def encode(self, source: Tensor) -> Memory:
        """Encode sentences (B, S).

        Raises:
            ValueError: if they are longer than the position table.
        """
        self._check_length(source.shape[1], self.config.max_source_length, "source")
        padding = source.eq(PAD)
        return Memory(self.encoder(source, padding), padding)

    def start_decoding(self, memory: Memory, beam: int = 1) -> DecodingState:
        """Return the state before the first word, with `beam` hypotheses about each sentence."""
        padded = self.config.cross_mask and bool(memory.padding.any())
        keys_values = (layer.cross_attention.keys_values(memory.states) for layer in self.decoder.layers)
        return DecodingState(
            [(key.contiguous(), value.contiguous()) for key, value in keys_values],  # they are read at every step
            ~memory.padding[:, None, None] if padded else None,
            len(memory.states),
            beam,
        )

    def decode_step(
        self, tokens: Tensor, state: DecodingState, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Extend every hypothesis by a word and return the scores of the next one.

        Args:
            tokens: indices (N,), the word that each hypothesis ends with: at first the end symbol.
            state: changed in place.
            need_attention: also return where the decoder looked.

        Returns:
            Scores (N, target vocabulary), and None or the cross-attention weights (N, S), means over heads and layers.

        Raises:
            ValueError: when hypotheses grow longer than the position table.
        """
        self._check_length(state.step + 1, self.config.max_target_length, "target")
        x = self.decoder.embedder.at(tokens.view(-1, state.beam), state.step)
        mask = state.extend()
        attention = []
        for layer, memory, cache in zip(self.decoder.layers, state.memory, state.caches):
            x, weights = layer(x, memory, state.memory_mask, need_weights=need_attention, mask=mask, cache=cache)
            attention.append(weights)
        mean = torch.stack(attention).mean((0, 2)).flatten(0, 1) if need_attention else None
        return self.decoder.logits(x.flatten(0, 1)), mean

    @staticmethod
    def _check_length(length: int, limit: int, side: str) -> None:
        if length > limit:
            raise ValueError(f"a {side} sentence of {length} tokens is longer than the {limit} that the model can take")


# -- building --------------------------------------------------------------------------------------------------------

_uniform = partial(nn.init.uniform_, a=-0.1, b=0.1)
_normal = partial(nn.init.normal_, std=0.1)

# The layers that a rank scale factorizes.
_LINEAR = ("**.feed_forward", "decoder.output")
_EMBEDDINGS = ("**.embedder",)


def parameter_count(config: TransformerConfig, source_size: int, target_size: int) -> int:
    """Return the parameters of a model, without building more than its shapes; draws no random numbers."""
    shapes = replace(config, spectral=False, spectral_quekey=False, spectral_outval=False)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that a scale enlarges
        model = build_model(shapes, source_size, target_size)
    return sum(p.numel() for p in model.parameters())


def scale_for_ratio(config: TransformerConfig, ratio: float, source_size: int, target_size: int) -> TransformerConfig:
    """Return the model with the rank scale whose share of the dense model's parameters is nearest to `ratio`.

    Raises:
        ValueError: if no rank scale below 1 comes near it.
    """
    dense = dense_parameter_count(config, source_size, target_size)

    def share(scale: float) -> float:
        return parameter_count(replace(config, rank_scale=scale), source_size, target_size) / dense

    low, high = 0.0, 1.0  # itself dense; just below 1 the factors may have more parameters
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) > ratio else (middle, high)
    found = min((scale for scale in (low, high) if 0 < scale < 1), key=lambda scale: abs(share(scale) - ratio))
    if abs(share(found) - ratio) > 0.05 * ratio:
        nearest = f"the nearest share that a rank scale below 1 leads to is {share(found):.4f}"
        raise ValueError(f"--target-ratio {ratio:g} is out of reach: {nearest}")
    return replace(config, rank_scale=found)


@torch.no_grad()
def build_model(config: TransformerConfig, source_size: int, target_size: int) -> Transformer:
    """Return a new Transformer: drawn dense, then factorized, then with the products of its heads balanced.

    Args:
        source_size, target_size: number of symbols of the vocabularies, the reserved ones included.

    Raises:
        ValueError: if they are to share their embeddings and differ.
    """
    if config.share_all_embeddings and source_size != target_size:
        raise ValueError(f"vocabularies of {source_size} and {target_size} symbols cannot share their embeddings")
    model = Transformer(config, source_size, target_size)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            _normal(module.weight)
        elif isinstance(module, (nn.Linear, QueryKey, OutputValue)):
            for parameter in module.parameters():
                _uniform(parameter)
    if config.is_tied:
        _uniform(model.decoder.output_bias, a=-(config.hidden_size**-0.5), b=config.hidden_size**-0.5)
    if config.is_factorized:
        options = {"rank_scale": config.rank_scale, "rule": "paper"}
        linear, embeddings = ("spectral", "spectral") if config.spectral else (_uniform, _normal)
        factorize(model, include=_LINEAR[:1] if config.is_tied else _LINEAR, init=linear, **options)
        factorize(model, include=_EMBEDDINGS, init=embeddings, embeddings=True, **options)
    if config.share_all_embeddings:  # once the table is what it will be, so that both sides have the same one
        model.encoder.embedder.tokens = model.decoder.embedder.tokens
    for module in model.modules():
        balanced = {QueryKey: config.spectral_quekey, OutputValue: config.spectral_outval}
        if balanced.get(type(module), False):
            module.spectral_init()
    return model


def decayed_modules(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the factorized modules by kind, as patterns for `factorized.FrobeniusDecay`.

    Kinds are `linear` (all two-factor layers, embeddings among them), `quekey` and `outval` (products of heads).
    """
    kinds = {"linear": FactorizedLayer, "quekey": QueryKey, "outval": OutputValue}
    modules = factorized_modules(model)
    return {kind: [name for name, m in modules.items() if isinstance(m, type_)] for kind, type_ in kinds.items()}
