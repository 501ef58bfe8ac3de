"""Attention made of PyTorch's, with its biases, layouts and masks, and with keys that belong to several queries."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factorized import FactorizedAttention, FrobeniusDecay, frobenius_norms, parameter_groups
from tests.factorized.networks import relative_error

D, HEADS = 12, 3


def attention(**options) -> nn.MultiheadAttention:
    found = nn.MultiheadAttention(D, HEADS, **options).double()
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.4)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_it_is_the_same_function(bias, batch_first):
    dense = attention(bias=bias, batch_first=batch_first)
    ours = FactorizedAttention.from_dense(dense)
    x, memory = torch.randn(4, 5, D).double(), torch.randn(4, 7, D).double()
    if not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    torch.testing.assert_close(ours(x), dense(x, x, x)[0])
    torch.testing.assert_close(ours(x, memory), dense(x, memory, memory)[0])
    expected, weights = dense(x, memory, memory, average_attn_weights=False)
    output, found = ours(x, memory, need_weights=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, weights)


@pytest.mark.parametrize("need_weights", [False, True])
def test_masks_of_both_kinds(need_weights):
    dense, x = attention(batch_first=True), torch.randn(4, 5, D).double()
    ours = FactorizedAttention.from_dense(dense)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[1, 3:] = True
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    added = torch.randn(5, 5).double()

    def found(**options):
        output = ours(x, need_weights=need_weights, **options)
        return output[0] if need_weights else output

    expected = dense(x, x, x, key_padding_mask=padding, attn_mask=hidden)[0]
    torch.testing.assert_close(found(mask=~(hidden | padding[:, None, None, :])), expected)
    torch.testing.assert_close(found(mask=~padding[:, None, None, :], is_causal=True), expected)
    torch.testing.assert_close(found(added=added), dense(x, x, x, attn_mask=added)[0])
    both = added.masked_fill(hidden, -torch.inf)
    torch.testing.assert_close(found(added=added, is_causal=True), dense(x, x, x, attn_mask=both)[0])
    with pytest.raises(TypeError, match="boolean.*not torch.float64; numbers that are added to the scores are `added`"):
        ours(x, mask=added)


def test_narrower_heads_have_the_best_products():
    """Scores and outputs without a bias, head by head, against the truncated decomposition of their matrices."""
    dense = attention(bias=False, batch_first=True)
    ours, h = FactorizedAttention.from_dense(dense, rank_scale=0.5), 2
    query, key, value = (w.unflatten(0, (HEADS, -1)) for w in dense.in_proj_weight.detach().chunk(3))
    output = dense.out_proj.weight.detach().T.unflatten(0, (HEADS, -1))
    for products, left, right, scale in (
        (ours.query_key, query, key, (h / 4) ** 0.5), (ours.output_value, output, value, 1.0),
    ):  # fmt: skip
        U, VT = products.factors()
        for head in range(HEADS):
            P, S, QT = torch.linalg.svd(left[head].T @ right[head] * scale)
            torch.testing.assert_close(U[head] @ VT[head], (P[:, :h] * S[:h]) @ QT[:h])


def test_wider_heads_keep_the_function_and_narrower_ones_the_biases():
    dense, x = attention(batch_first=True), torch.randn(4, 5, D).double()
    expected = dense(x, x, x)[0]
    assert relative_error(FactorizedAttention.from_dense(dense, rank_scale=2.0)(x), expected) < 1e-6
    low = copy.deepcopy(dense)  # heads of width 4 whose matrices, biases included, have rank 2
    with torch.no_grad():
        for part in (*low.in_proj_weight.chunk(3), low.out_proj.weight.T):
            for head in part.unflatten(0, (HEADS, -1)):
                head[2:] = 0
        for part in low.in_proj_bias.chunk(3):
            part.unflatten(0, (HEADS, -1))[:, 2:] = 0
    ours = FactorizedAttention.from_dense(low, rank_scale=0.5)
    assert ours.query_key.rank == 2 and relative_error(ours(x), low(x, x, x)[0]) < 1e-6


def test_settings_carry_over():
    dense = attention(dropout=0.3, batch_first=True).eval().requires_grad_(False)
    ours = FactorizedAttention.from_dense(dense)
    assert (ours.dropout, ours.batch_first, ours.training) == (0.3, True, False)
    assert not any(p.requires_grad for p in ours.parameters())
    assert {p.dtype for p in ours.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    "given, error, message",
    [
        (lambda: nn.Linear(4, 4), TypeError, "takes an nn.MultiheadAttention, not a Linear"),
        (lambda: attention(kdim=6), ValueError, "have the width of its queries"),
        (lambda: attention(add_bias_kv=True), ValueError, "without add_bias_kv"),
        (lambda: attention(add_zero_attn=True), ValueError, "and add_zero_attn"),
    ],
)
def test_what_it_cannot_be_made_of_is_said(given, error, message):
    with pytest.raises(error, match=message):
        FactorizedAttention.from_dense(given())


@pytest.mark.parametrize("kv_heads", [0, 4, 5])
def test_groups_must_be_whole(kv_heads):
    with pytest.raises(ValueError, match=f"kv_heads must divide the number of heads; {kv_heads} does not divide 6"):
        FactorizedAttention(D, 6, kv_heads=kv_heads)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_a_key_belongs_to_several_queries(kv_heads, bias):
    """Against PyTorch's kernel for grouped queries."""
    ours, x = FactorizedAttention(D, 6, kv_heads=kv_heads, bias=bias).double(), torch.randn(2, 5, D).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    biases = ours.in_bias.split([D, 2 * kv_heads, 2 * kv_heads]) if bias else (None, None, None)
    matrices = ours.query_key.query, ours.query_key.key, ours.output_value.value
    q, k, v = (F.linear(x, w, b).unflatten(-1, (-1, 2)).transpose(1, 2) for w, b in zip(matrices, biases))
    heads = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True)
    expected = F.linear(heads.transpose(1, 2).flatten(2), ours.output_value.output, ours.out_bias)
    torch.testing.assert_close(ours(x, is_causal=True), expected)
    torch.testing.assert_close(ours(x, ours.keys_values(x)), ours(x))


def test_decay_and_start_of_groups_are_those_of_their_heads():
    ours = FactorizedAttention(D, 6, kv_heads=2).double()
    reference = copy.deepcopy(ours)
    products = []
    for left, right in ((reference.query_key.query, reference.query_key.key),
                        (reference.output_value.output.T, reference.output_value.value)):  # fmt: skip
        shared = right.unflatten(0, (2, 2)).repeat_interleave(3, 0)
        products.append(left.unflatten(0, (6, 2)).mT @ shared)
    (0.3 / 2 * sum(product.square().sum() for product in products)).backward()
    FrobeniusDecay(ours, 0.3).add_gradients()
    for one, other in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert len(parameter_groups(ours, 0.1)[1]["params"]) == 4 and (frobenius_norms([ours.query_key]) > 0).all()
    x = torch.randn(2, 5, D).double()
    before = ours(x)
    for part in (ours.query_key, ours.output_value):
        part.spectral_init()
        U, VT = part.factors()
        torch.testing.assert_close(U.mT @ U, VT @ VT.mT)
    torch.testing.assert_close(ours(x), before)
