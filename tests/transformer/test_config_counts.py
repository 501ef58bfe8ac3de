"""Parameter counts of the Transformer."""

import pytest
import torch
from fairseq.config import architecture, dense_parameter_count
from fairseq.transformer import build_model, decayed_modules
from torch import nn

from factorized import FrobeniusDecay, factorized_modules
from factorized import parameter_count as count

SIZES = 8848, 6632

# name, sizes, rank scale: parameters
COUNTS = [
    ("transformer_small", SIZES, {0: 9_867_752, 0.25: 2_689_512, 0.5: 5_366_248, 0.1: 1_087_912, 1 / 3: 3_561_672,
                                  0.7: 7_480_840, 0.9: 9_620_008, 1: 9_867_752}),
    ("transformer", (10_000, 10_000), {0: 11_890_448, 0.25: 3_197_712, 0.5: 6_379_280}),
    ("transformer_small", (10_152, 10_152), {0: 12_007_336, 0.25: 3_227_048, 0.5: 6_437_800}),
    ("transformer_base", SIZES, {0: 56_449_512, 0.25: 16_042_472, 0.5: 32_045_544}),
    ("transformer_big", SIZES, {0: 200_972_776, 0.25: 57_899_496, 0.5: 115_726_824}),
]  # fmt: skip
CASES = [(name, sizes, scale, expected) for name, sizes, counts in COUNTS for scale, expected in counts.items()]


def built(name: str, sizes: tuple[int, int] = SIZES, **overrides) -> nn.Module:
    """A model without memory for its parameters."""
    with torch.device("meta"):
        return build_model(architecture(name, **overrides), *sizes)


@pytest.mark.parametrize("name, sizes, rank_scale, expected", CASES)
def test_published_counts(name, sizes, rank_scale, expected):
    assert count(built(name, sizes, rank_scale=rank_scale)) == expected
    dense = next(counts[0] for other, others, counts in COUNTS if (other, others) == (name, sizes))
    assert dense_parameter_count(architecture(name, rank_scale=rank_scale), *sizes) == dense


@pytest.mark.parametrize(
    "overrides, expected", [({"position": "timing"}, 9_343_464), ({"share_input_output_embed": True}, 8_169_960)]
)
def test_published_counts_of_variants(overrides, expected):
    assert count(built("transformer_small", **overrides)) == expected
    assert dense_parameter_count(architecture("transformer_small", **overrides), *SIZES) == expected


@pytest.mark.parametrize(
    "rank_scale, tokens, output, positions, attention, feed_forward",
    [
        (0.0, 2_265_088, 1_697_792, 262_144, 262_144, 524_288),
        (0.25, 582_656, 440_832, 81_920, 65_536, 163_840),
        (0.5, 1_165_312, 881_664, 163_840, 131_072, 327_680),
    ],
)
def test_published_breakdown(rank_scale, tokens, output, positions, attention, feed_forward):
    model = build_model(architecture("transformer_small", rank_scale=rank_scale), *SIZES)
    encoder, decoder = model.encoder, model.decoder
    assert count(encoder.embedder.tokens) == tokens and count(decoder.embedder.tokens) == output
    assert count(decoder.output) == output + SIZES[1] and decoder.output.bias.shape == SIZES[1:]
    assert count(encoder.embedder.positions) == count(decoder.embedder.positions) == positions
    layers = [*encoder.layers, *decoder.layers]
    assert [count(layer.feed_forward) for layer in layers] == 4 * [feed_forward]
    blocks = [layer.self_attention for layer in layers] + [layer.cross_attention for layer in decoder.layers]
    assert [count(block) for block in blocks] == 6 * [attention]
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    assert sum(parameter.numel() for parameter in norms) == 6_144
    layers = factorized_modules(model)
    kinds = decayed_modules(model)
    assert len(kinds["linear"]) == (13 if rank_scale else 0)
    assert len(kinds["quekey"]) == len(kinds["outval"]) == 6
    assert sorted(sum(kinds.values(), [])) == sorted(layers)
    for names in kinds.values():
        assert list(FrobeniusDecay(model, 1.0, include=names, strict=False).modules) == names


def test_no_factor_is_stored_twice():
    model = built("transformer_small", rank_scale=0.5)
    assert sum(value.numel() for value in model.state_dict().values()) == count(model)


def test_tied_output_has_the_count_of_one_table():
    tied, untied = (built("transformer_small", share_input_output_embed=tied, rank_scale=0.5) for tied in (True, False))
    assert count(untied) - count(tied) == 128 * (6632 + 256)


@pytest.mark.parametrize("rank_scale", [0, 0.5])
def test_one_table_for_both_languages_and_the_output(rank_scale):
    sizes, options = (6632, 6632), {"rank_scale": rank_scale}
    shared = built("transformer_small", sizes, share_all_embeddings=True, **options)
    table = 6632 * 256 if rank_scale == 0 else 128 * (6632 + 256)
    assert count(built("transformer_small", sizes, **options)) - count(shared) == 2 * table
    dense = dense_parameter_count(architecture("transformer_small", share_all_embeddings=True, **options), *sizes)
    assert dense == count(built("transformer_small", sizes, share_all_embeddings=True))


@pytest.mark.parametrize(("encoder", "decoder"), [(3, None), (None, 1), (4, 2)])
def test_depths_of_their_own(encoder, decoder):
    """An encoder layer has one attention and two norms, a decoder layer twice that and three."""
    options = {"encoder_layers": encoder, "decoder_layers": decoder}
    model, equal = built("transformer_small", **options), built("transformer_small")
    layers = {"encoder": 4 * 256**2 + 2 * 256 * 1024 + 4 * 256, "decoder": 8 * 256**2 + 2 * 256 * 1024 + 6 * 256}
    more = {"encoder": (encoder or 2) - 2, "decoder": (decoder or 2) - 2}
    assert count(model) - count(equal) == sum(more[side] * size for side, size in layers.items())
    assert dense_parameter_count(architecture("transformer_small", **options), *SIZES) == count(model)
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (encoder or 2, decoder or 2)
