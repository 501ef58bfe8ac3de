"""Presets of the Transformer, and settings that are refused."""

from dataclasses import asdict

import pytest
from fairseq.config import ARCHITECTURES, TransformerConfig, architecture


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"rank_scale": 1.5}, "rank_scale must be between 0 and 1, not 1.5"),
        ({"rank_scale": -0.1}, "rank_scale"),
        ({"rank_scale": float("nan")}, "rank_scale"),
        ({"num_heads": 3}, "hidden_size 256 must be a multiple of num_heads, 3"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_layers": 0}, "num_layers"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"relu_dropout": -0.1}, "relu_dropout"),
        ({"position": "sine"}, "position must be one of learned, timing, nopos"),
        ({"max_positions": 2}, "max_positions"),
    ],
)
def test_wrong_settings(overrides, message):
    with pytest.raises(ValueError, match=message):
        architecture("transformer", **overrides)


@pytest.mark.parametrize("name", ["fconv", "fconv_wmt_en_de", "lstm", "lstm_luong_wmt_en_de", "dpn"])
def test_families_that_are_left_out(name):
    with pytest.raises(ValueError, match=f"'{name}' is not part of this toolkit.*transformer_small"):
        architecture(name)


def test_unknown_architecture():
    with pytest.raises(ValueError, match="no architecture 'transfomer'.*transformer_base"):
        architecture("transfomer")


def test_presets_and_overrides():
    """Hidden and filter sizes, layers and heads of the published presets."""
    sizes = {name: tuple(preset.values()) for name, preset in ARCHITECTURES.items()}
    assert sizes == {
        "transformer": (256, 1024, 2, 4),
        "transformer_small": (256, 1024, 2, 4),
        "transformer_iwslt_de_en": (512, 1024, 6, 4),
        "transformer_base": (512, 2048, 6, 8),
        "transformer_big": (1024, 4096, 6, 16),
    }
    config = architecture("transformer_base", dropout=0.3, num_heads=4)
    assert (config.dropout, config.num_heads, config.hidden_size) == (0.3, 4, 512)
    assert architecture("transformer_base").dropout == config.relu_dropout == 0.1 and config.attention_dropout == 0
    assert TransformerConfig(**asdict(config)) == config
