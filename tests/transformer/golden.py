"""The tiny model of the golden tables: weights by formula, double precision."""

import torch
from fairseq.config import TransformerConfig
from fairseq.transformer import Transformer, build_model
from torch import Tensor, nn

from factorized import FactorizedEmbedding, FactorizedLinear

SOURCE_SIZE, TARGET_SIZE = 11, 10
PAD = 1

TARGET = torch.tensor([[4, 5, 6, 2], [7, 8, 2, PAD]])
DECODER_INPUT = torch.tensor([[2, 4, 5, 6], [2, 7, 8, PAD]])
SOURCES = {
    "A": torch.tensor([[4, 5, 6, 7, 2], [8, 9, 10, 4, 2]]),
    "B": torch.tensor([[4, 5, 6, 7, 2], [PAD, PAD, 8, 9, 2]]),
}


def filled(number: int, *shape: int) -> Tensor:
    """Return the golden values of tensor `number` (from 0) of this shape."""
    entries = torch.arange(1, torch.Size(shape).numel() + 1)
    values = (entries * 7919 + (number + 1) * 104729) % 1009
    return (values.double() / 1009 - 0.5).view(shape)


def golden_model(rank_scale: float = 0.0, **options) -> Transformer:
    """Return the golden model: width 8, filter 12, two heads, one layer, no dropout.

    With a `rank_scale`, linear layers and embeddings hold the spectral factors of the golden tensors.
    """
    config = TransformerConfig(8, 12, 1, 2, dropout=0.0, relu_dropout=0.0, rank_scale=rank_scale, **options)
    model = build_model(config, SOURCE_SIZE, TARGET_SIZE).double()
    for number, (module, name) in enumerate(_matrices(model)):
        _fill(module, name, number)
    return model


def _matrices(model: Transformer) -> list[tuple[nn.Module, str]]:
    """Return (module, parameter's name) in the order of the golden numbers."""

    def of_attention(attention: nn.Module) -> list[tuple[nn.Module, str]]:
        products = attention.query_key, attention.output_value
        return [(products[0], "query"), (products[0], "key"), (products[1], "value"), (products[1], "output")]

    def of_feed_forward(feed_forward: nn.Module) -> list[tuple[nn.Module, str]]:
        return [(feed_forward.inner, "weight"), (feed_forward.outer, "weight")]

    encoder, decoder = model.encoder, model.decoder
    return [
        (encoder.embedder.tokens, "weight"),
        (encoder.embedder.positions, "weight"),
        *of_attention(encoder.layers[0].self_attention),
        *of_feed_forward(encoder.layers[0].feed_forward),
        (decoder.embedder.tokens, "weight"),
        (decoder.embedder.positions, "weight"),
        *of_attention(decoder.layers[0].self_attention),
        *of_attention(decoder.layers[0].cross_attention),
        *of_feed_forward(decoder.layers[0].feed_forward),
        (decoder.output, "weight"),
        (decoder.output, "bias"),
    ]


@torch.no_grad()
def _fill(module: nn.Module, name: str, number: int) -> None:
    if name == "weight" and isinstance(module, (FactorizedLinear, FactorizedEmbedding)):
        P, sigma, QT = torch.linalg.svd(filled(number, module.U.shape[0], module.VT.shape[1]), full_matrices=False)
        root, rank = sigma.sqrt()[: module.rank], module.rank
        module.set_factors(P[:, :rank] * root, root[:, None] * QT[:rank])
    else:
        parameter = getattr(module, name)
        parameter.copy_(filled(number, *parameter.shape))
