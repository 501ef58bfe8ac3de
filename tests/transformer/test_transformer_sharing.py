"""One table for source, target and output."""

import pytest
import torch
from fairseq import checkpoint
from fairseq.config import TransformerConfig
from fairseq.corpus import find_languages, load_dictionaries
from fairseq.transformer import build_model

from tests.harness import results
from tests.transformer import tiny


@pytest.mark.parametrize("rank_scale", [0.0, 0.5])
def test_the_gradient_is_the_sum_of_those_of_three_tables(rank_scale):
    """Independently: a model with three tables of the same values."""
    sizes = {"hidden_size": 8, "filter_size": 12, "num_layers": 1, "num_heads": 2, "rank_scale": rank_scale}
    shared = build_model(TransformerConfig(share_all_embeddings=True, **sizes), 9, 9).double().eval()
    apart = build_model(TransformerConfig(share_input_output_embed=True, **sizes), 9, 9).double().eval()
    apart.load_state_dict(shared.state_dict())
    source, target = torch.tensor([[4, 5, 2], [1, 6, 2]]), torch.tensor([[2, 7, 8, 4], [2, 5, 4, 6]])
    outputs = shared(source, target), apart(source, target)
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    table, (encoder, decoder) = (
        shared.encoder.embedder.tokens,
        (m.embedder.tokens for m in (apart.encoder, apart.decoder)),
    )
    assert table is shared.decoder.embedder.tokens
    for name, parameter in table.named_parameters():
        torch.testing.assert_close(parameter.grad, getattr(encoder, name).grad + getattr(decoder, name).grad)


def test_vocabularies_that_differ_cannot_share():
    with pytest.raises(ValueError, match="vocabularies of 9 and 10 symbols cannot share"):
        build_model(TransformerConfig(8, 12, 1, 2, share_all_embeddings=True), 9, 10)


@pytest.mark.parametrize("flags", ["", "--rank-scale 0.5 --spectral --wd2fd --weight-decay 1e-3"])
def test_a_run_keeps_one_table(data, tmp_path, flags):
    """The tiny languages have the same letters in the same order."""
    run = tiny.train(data, tmp_path / "run", f"--max-epoch 2 --share-all-embeddings {flags}")
    apart = tiny.train(data, tmp_path / "apart", f"--max-epoch 1 --share-input-output-embed {flags}")
    languages = find_languages(data)
    model = checkpoint.load_model(run / "checkpoint_best.pt", languages, load_dictionaries(data, *languages))
    assert model.encoder.embedder.tokens is model.decoder.embedder.tokens
    saved = tiny.checkpoint(run)["state_dict"]
    name = "embedder.tokens.U" if flags else "embedder.tokens.weight"
    assert saved[f"encoder.{name}"].data_ptr() == saved[f"decoder.{name}"].data_ptr()  # in the file once
    counts = [results(folder) for folder in (run, apart)]
    table = 6 * (12 + 16) if flags else 12 * 16
    assert counts[1]["compressed parameter count"] - counts[0]["compressed parameter count"] == table
