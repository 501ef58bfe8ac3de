"""Decoding step by step against the whole forward pass."""

import pytest
import torch
from fairseq.config import TransformerConfig
from fairseq.transformer import Transformer, build_model

from tests.transformer.golden import DECODER_INPUT, SOURCES, golden_model

PAD = 1
VARIANTS = [
    {},
    {"rank_scale": 0.5},
    {"position": "timing"},
    {"position": "nopos"},
    {"share_input_output_embed": True, "rank_scale": 0.5},
    {"cross_mask": False},
    {"num_layers": 2, "num_heads": 4},
]


def model_of(**overrides) -> Transformer:
    """A model in evaluation mode with weights large enough for words to matter, in double precision."""
    config = {"hidden_size": 8, "filter_size": 12, "num_layers": 1, "num_heads": 2, **overrides}
    model = build_model(TransformerConfig(**config), 11, 10).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(5)
    return model


@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize("source", ["A", "B"])
def test_steps_equal_the_whole(overrides, source):
    model = model_of(**overrides)
    words = torch.randint(4, 10, (2, 40))  # longer than the cache is at first
    words[:, 0] = 2
    expected = model(SOURCES[source], words)
    state = model.start_decoding(model.encode(SOURCES[source]))
    for t in range(words.shape[1]):
        logits, attention = model.decode_step(words[:, t], state)
        torch.testing.assert_close(logits, expected[:, t])
        assert attention is None


def test_golden_steps():
    """The logits of the golden table are those of decoding, too."""
    model = golden_model(0.5).eval()
    state = model.start_decoding(model.encode(SOURCES["A"]))
    logits, _ = model.decode_step(DECODER_INPUT[:, 0], state)
    first = [-0.17253462, -0.44750448, -0.51470570, 0.70136435]
    assert logits[0, :4].tolist() == pytest.approx(first, abs=1e-8)


@pytest.mark.parametrize("overrides", VARIANTS)
def test_hypotheses_that_are_doubled_dropped_and_finished(overrides):
    """Random choices as in a beam search; every row's scores equal those of its own words by themselves."""
    model = model_of(**overrides)
    source = torch.randint(4, 11, (4, 6))
    source[:2, :2] = PAD
    state = model.start_decoding(model.encode(source))
    rows, words = torch.arange(4), torch.full((4, 1), 2)  # sentence and words of each hypothesis
    steps = [((0, 1, 2, 3), 3), ((0, 1, 2, 3), 3), ((0, 2, 3), 3), ((0, 1, 2), 3), ((2, 0), 2), ((1,), 5)]
    for sentences, beam in steps:
        logits, _ = model.decode_step(words[:, -1], state)
        torch.testing.assert_close(logits, model(source[rows], words)[:, -1])
        before = state.beam
        index = torch.stack([sentence * before + torch.randint(0, before, (beam,)) for sentence in sentences])
        state.select(index)
        assert state.beam == beam
        index = index.flatten()
        rows, words = rows[index], torch.cat([words[index], torch.randint(4, 10, (len(index), 1))], 1)
    logits, _ = model.decode_step(words[:, -1], state)
    torch.testing.assert_close(logits, model(source[rows], words)[:, -1])


def test_a_beam_from_the_start_and_flat_rows():
    model = model_of()
    source = SOURCES["A"]
    state = model.start_decoding(model.encode(source), beam=2)
    model.decode_step(torch.full((4,), 2), state)
    state.select(torch.tensor([1, 1, 2, 3]))
    logits, _ = model.decode_step(torch.tensor([4, 5, 6, 7]), state)
    words = torch.tensor([[2, 4], [2, 5], [2, 6], [2, 7]])
    torch.testing.assert_close(logits, model(source.repeat_interleave(2, 0), words)[:, -1])


def test_rows_of_several_sentences_cannot_take_one_place():
    model = model_of()
    state = model.start_decoding(model.encode(SOURCES["A"]), beam=2)
    model.decode_step(torch.full((4,), 2), state)
    with pytest.raises(ValueError, match="hypotheses about one sentence"):
        state.select(torch.tensor([[0, 2], [1, 1]]))


@pytest.mark.parametrize("overrides", [{}, {"rank_scale": 0.5, "num_layers": 2}])
def test_attention_of_each_hypothesis(overrides):
    """The mean over heads and layers of the cross-attention, worked out from the layers' own inputs."""
    model = model_of(**overrides)
    source = SOURCES["B"]
    seen = []

    def look(attention, inputs, options, output):
        x, (key, _) = inputs
        query = (x @ attention.query_key.query.T).unflatten(-1, (2, -1)).transpose(1, 2)
        scores = query @ key.mT / key.shape[-1] ** 0.5
        seen.append(scores.masked_fill(source.eq(PAD)[:, None, None], -torch.inf).softmax(-1))

    for layer in model.decoder.layers:
        layer.cross_attention.register_forward_hook(look, with_kwargs=True)
    state = model.start_decoding(model.encode(source), beam=3)
    words = torch.tensor([2, 4, 5, 2, 6, 7])
    logits, attention = model.decode_step(words, state, need_attention=True)
    expected = torch.stack(seen).mean((0, 2)).flatten(0, 1)
    torch.testing.assert_close(attention, expected)
    assert attention.shape == (6, 5) and attention[3:, :2].count_nonzero() == 0
    torch.testing.assert_close(attention.sum(1), torch.ones(6).double())
    again, _ = model.decode_step(words, model.start_decoding(model.encode(source), beam=3))
    torch.testing.assert_close(logits, again)


@pytest.mark.parametrize("rank_scale", [0.0, 0.5])
def test_scores_do_not_depend_on_the_rest_of_the_batch(rank_scale):
    """Left padding of the source, right padding of the target and other sentences change nothing."""
    model = model_of(rank_scale=rank_scale)
    alone = model(torch.tensor([[8, 9, 2]]), torch.tensor([[2, 7, 8]]))
    together = model(SOURCES["B"], DECODER_INPUT)[1:, :3]
    torch.testing.assert_close(together, alone)
    right = model(torch.tensor([[8, 9, 2, PAD]]), torch.tensor([[2, 7, 8]]))  # nor does the side of the padding
    torch.testing.assert_close(right, alone)
    state = model.start_decoding(model.encode(SOURCES["B"]))
    for t in range(3):
        logits, _ = model.decode_step(DECODER_INPUT[:, t], state)
        torch.testing.assert_close(logits[1], alone[0, t])


def test_without_the_mask_they_do():
    model = model_of(cross_mask=False)
    alone = model(torch.tensor([[8, 9, 2]]), torch.tensor([[2, 7, 8]]))
    assert (model(SOURCES["B"], DECODER_INPUT)[1, :3] - alone[0]).abs().max() > 1e-3


def test_too_many_words():
    model = model_of(max_positions=6)
    state = model.start_decoding(model.encode(torch.tensor([[4, 5, 2]])))
    for _ in range(4):
        model.decode_step(torch.tensor([4]), state)
    with pytest.raises(ValueError, match="target sentence of 5 tokens is longer than the 4"):
        model.decode_step(torch.tensor([4]), state)
