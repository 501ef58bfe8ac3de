"""What translation gives to attention: keys and values of earlier steps, sentences without their padding."""

import pytest
import torch
from fairseq.decoding_state import AttentionCache
from fairseq.packing import Packing

from factorized import FactorizedAttention
from tests.attention import HEADS, B, D, S, T, states


def test_decoding_step_by_step_equals_causal_attention(attention):
    x = states(B, 70)  # the cache grows on the way
    expected = attention(x, is_causal=True)
    cache = AttentionCache()
    for step in range(x.shape[1]):
        torch.testing.assert_close(attention(x[:, step : step + 1], cache=cache), expected[:, step : step + 1])
    assert cache.slots == 70


def test_decoding_several_hypotheses(attention):
    """Two a sentence; the second is dropped for a copy of the first, then the sentences change places."""
    x = states(B, 2, 3)  # hypotheses, steps
    cache, own = AttentionCache(), torch.eye(2, dtype=torch.bool)
    attention(x[:, :, 0], mask=own, cache=cache)
    histories = torch.cat([own[[0, 0]], own], 1)
    attention(x[:, :, 1], mask=histories, cache=cache)
    cache.select(torch.tensor([1, 0]))
    found = attention(x[[1, 0], :, 2], mask=torch.cat([histories, own], 1), cache=cache)[[1, 0]]
    x[:, 1, 0] = x[:, 0, 0]
    for hypothesis in range(2):
        expected = attention(x[:, hypothesis], is_causal=True)[:, -1]
        torch.testing.assert_close(found[:, hypothesis], expected)


@pytest.mark.parametrize("cross", [False, True])
def test_packed_sentences(attention, cross):
    """Outputs and all gradients equal those of the padded batch at the real positions."""
    real = torch.arange(T) < torch.tensor([[3], [T], [1]])
    x, memory = states(3, T, grad=True), states(3, S, grad=True) if cross else None
    options = {} if cross else {"is_causal": True}
    inputs = [x, *attention.parameters(), *([memory] if cross else [])]
    expected = attention(x, memory, **options)[real]
    gradient = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, inputs, gradient)
    for packing in (Packing.of(real), Packing(real.flatten().nonzero().squeeze(1), real.shape)):
        found = attention(packing.pack(x), memory, packing=packing, **options)
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(torch.autograd.grad(found, inputs, gradient), expected_gradients):
            torch.testing.assert_close(ours, theirs)


def test_packing_and_unpacking():
    real = torch.tensor([[True, True, False], [True, False, False]])
    packing, x = Packing.of(real), torch.arange(6.0).view(2, 3)
    assert torch.equal(packing.pack(x), torch.tensor([0.0, 1.0, 3.0]))
    assert torch.equal(packing.unpack(packing.pack(x))[real], x[real])


def test_compiled_with_packed_sentences():
    attention, x = FactorizedAttention(D, HEADS), torch.randn(B, T, D)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    packing = Packing.of(torch.arange(T) < torch.tensor([[3], [T]]))
    packed = packing.pack(x)
    expected = attention(packed, is_causal=True, packing=packing)
    torch.testing.assert_close(compiled(packed, is_causal=True, packing=packing), expected)
