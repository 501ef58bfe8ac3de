"""Attention and the products of its heads."""

import copy

import pytest
import torch
from torch import nn

from factorized import (
    FactorizedAttention,
    OutputValue,
    QueryKey,
    batch_spectral_init,
    factorize,
    factorized_modules,
    merge,
    parameter_count,
    report,
)
from factorized.layers.attention import attention_weights
from factorized.layers.heads import head_width
from tests.attention import HEADS, B, D, S, T, states


def by_hand(attention: FactorizedAttention, x, memory, allowed) -> torch.Tensor:
    """One head of one sentence after another, through the heads' products; `allowed` (B, T, S) marks visible keys."""
    (QT, K), (out, V) = attention.query_key.factors(), attention.output_value.factors()
    output = torch.zeros_like(x)
    for head in range(attention.num_heads):
        for b in range(len(x)):
            scores = x[b] @ (QT[head] @ K[head]) @ memory[b].T / K.shape[1] ** 0.5
            weights = (scores.exp() * allowed[b]) / (scores.exp() * allowed[b]).sum(1, keepdim=True)
            output[b] += weights @ memory[b] @ (out[head] @ V[head]).T
    return output


def test_self_attention_by_hand(attention):
    x = states(B, T)
    torch.testing.assert_close(attention(x), by_hand(attention, x, x, torch.ones(B, T, T)))
    causal = torch.ones(B, T, T).tril()
    torch.testing.assert_close(attention(x, is_causal=True), by_hand(attention, x, x, causal))
    real = torch.arange(T) < torch.tensor([[T], [3]])
    found = attention(x, mask=real[:, None, None])
    torch.testing.assert_close(found, by_hand(attention, x, x, real[:, None].expand(B, T, T)))


def test_cross_attention_by_hand(attention):
    x, memory = states(B, T), states(B, S)
    mask = torch.rand(B, T, S) < 0.7
    mask[:, :, 2] = True
    expected = by_hand(attention, x, memory, mask)
    torch.testing.assert_close(attention(x, memory, mask=mask[:, None]), expected)
    torch.testing.assert_close(attention(x, attention.keys_values(memory), mask=mask[:, None]), expected)


@pytest.mark.parametrize("cross", [False, True])
def test_the_same_function_as_pytorchs_layer(cross):
    """`nn.MultiheadAttention` with the same weights, outputs and gradients."""
    ours = FactorizedAttention(D, HEADS, dtype=torch.float64)
    theirs = nn.MultiheadAttention(D, HEADS, bias=False, batch_first=True, dtype=torch.float64)
    products = ours.query_key, ours.output_value
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([products[0].query, products[0].key, products[1].value]))
        theirs.out_proj.weight.copy_(products[1].output)
    x, memory = states(B, T, grad=True), states(B, S) if cross else None
    keys = memory if cross else x
    expected, expected_weights = theirs(x, keys, keys, average_attn_weights=False)
    output, weights = ours(x, memory, need_weights=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(ours(x, memory), expected)
    gradient = torch.randn_like(expected)
    ours(x, memory).backward(gradient)
    found, x.grad = x.grad, None
    expected.backward(gradient)
    torch.testing.assert_close(found, x.grad)
    in_gradients = torch.cat([products[0].query.grad, products[0].key.grad, products[1].value.grad])
    torch.testing.assert_close(in_gradients, theirs.in_proj_weight.grad)
    torch.testing.assert_close(products[1].output.grad, theirs.out_proj.weight.grad)


@pytest.mark.parametrize(
    "d, heads, rank_scale, width",
    [(256, 4, 1.0, 64), (256, 4, 0.25, 16), (256, 4, 0.5, 32), (256, 4, 0.1, 6), (256, 4, 2.0, 128), (8, 8, 0.01, 1)],
)
def test_width_of_heads(d, heads, rank_scale, width):
    """A head's share of the model's width, times the rank scale, rounded down; at least 1."""
    assert head_width(d, heads, rank_scale) == width
    attention = FactorizedAttention(d, heads, rank_scale)
    U, VT = attention.query_key.factors()
    assert U.shape == (heads, d, width) and VT.shape == (heads, width, d) and attention.query_key.rank == width
    assert parameter_count(attention) == 4 * d * heads * width


@pytest.mark.parametrize(
    "sizes, message",
    [((8, 3), "3 does not divide 8"), ((8, 0), "0 does not divide"), ((8, 2, 0.0), "rank_scale"), ((8, 2, -1.0), "-1")],
)
def test_wrong_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        FactorizedAttention(*sizes)


def test_products_are_factorized_modules_that_share_the_parameters(attention):
    found = factorized_modules(nn.ModuleDict({"a": attention}))
    assert {name: type(module) for name, module in found.items()} == {
        "a.query_key": QueryKey,
        "a.output_value": OutputValue,
    }
    owned = {id(parameter) for parameter in attention.parameters()}
    assert len(owned) == 4
    assert {id(factor._base) for module in found.values() for factor in module.factors()} == owned


def test_balancing_leaves_the_function_as_it_is(attention):
    """The squared norms of a head's two factors are then the nuclear norm of its product."""
    x, memory = states(B, T), states(B, S)
    before = attention(x, memory)
    for products in (attention.query_key, attention.output_value):
        U, VT = products.factors()
        W = (U @ VT).detach()
        products.spectral_init()
        U, VT = products.factors()
        torch.testing.assert_close(U @ VT, W)
        sigma = torch.linalg.svdvals(W)[:, : products.rank]
        torch.testing.assert_close(U.mT @ U, torch.diag_embed(sigma))
        torch.testing.assert_close(VT @ VT.mT, torch.diag_embed(sigma))
    torch.testing.assert_close(attention(x, memory), before)


@pytest.mark.parametrize("shapes", [((9, 3), (3, 7)), ((2, 9, 3), (2, 3, 9)), ((2, 4, 6), (2, 6, 5))])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_balancing_equals_the_svd_of_the_product(shapes, dtype, tolerance):
    """Through thin QR for narrow factors; slices of wide ones are multiplied out."""
    U, VT = (torch.randn(*shape).to(dtype) for shape in shapes)
    W = U.double() @ VT.double()
    batch_spectral_init(U, VT)
    rank = min(shapes[0][-1], *W.shape[-2:])
    expected = torch.linalg.svdvals(W)[..., :rank]
    for gram in (U.double().mT @ U.double(), VT.double() @ VT.double().mT):
        wanted = torch.zeros_like(gram)
        wanted.diagonal(dim1=-2, dim2=-1)[..., :rank] = expected
        torch.testing.assert_close(gram, wanted, rtol=tolerance, atol=tolerance * expected.max().item())
    torch.testing.assert_close(U.double() @ VT.double(), W, rtol=tolerance, atol=tolerance * expected.max().item())


def test_balancing_a_product_of_lower_rank():
    """Equal rows of one factor: the surplus directions become zero, the product stays."""
    U, VT = torch.randn(1, 9, 3, dtype=torch.float64), torch.randn(1, 1, 7, dtype=torch.float64).repeat(1, 3, 1)
    W = U @ VT
    batch_spectral_init(U, VT)
    torch.testing.assert_close(U @ VT, W)
    assert U[..., 1:].abs().max() < 1e-6 and U.isfinite().all() and VT.isfinite().all()


def test_weights_are_dropped_in_training_only():
    x = states(B, T)
    attention = FactorizedAttention(D, HEADS, dropout=0.5, dtype=torch.float64)
    plain = FactorizedAttention(D, HEADS, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    assert not torch.allclose(attention(x), plain(x))
    assert not torch.allclose(attention(x, need_weights=True)[0], plain(x))
    torch.testing.assert_close(attention.eval()(x), plain(x))


def test_weights_of_one_visible_key():
    weights = attention_weights(torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.arange(5) == 3)
    assert torch.equal(weights, (torch.arange(5) == 3).float().expand(2, 3, 5))


class Steps:
    """The plainest cache: keys and values of all steps side by side."""

    def __init__(self):
        self.seen = []

    def append(self, key, value):
        self.seen.append((key, value))
        keys, values = zip(*self.seen)
        return torch.cat(keys, 2), torch.cat(values, 2)


@pytest.mark.parametrize("sizes", [[1] * 5, [2, 3], [3, 1, 1]])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_causality_sees_what_is_cached(attention, sizes, need_weights, masked):
    """Several steps at a time equal all of them at once, one sentence after another, with and without weights."""
    x = states(B, 5)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril().expand(B, 5, 5).clone()
    if masked:  # a key that only its own position may attend to
        allowed[:, 2:, 1] = False
    expected, cache, begin = by_hand(attention, x, x, allowed), Steps(), 0
    for size in sizes:
        end = begin + size
        mask = allowed[:, None, begin:end, :end] | (torch.arange(end) > torch.arange(begin, end)[:, None])
        found = attention(
            x[:, begin:end], cache=cache, is_causal=True, mask=mask if masked else None, need_weights=need_weights
        )
        if need_weights:
            found, weights = found
            assert not weights.masked_select(~allowed[:, None, begin:end, :end]).any()
            torch.testing.assert_close(weights.sum(-1), torch.ones(B, HEADS, size).double())
        torch.testing.assert_close(found, expected[:, begin:end])
        begin = end


def test_what_has_no_meaning_is_refused(attention):
    x, memory = states(B, T), states(B, S)
    for options in ({"is_causal": True}, {"cache": Steps()}):
        with pytest.raises(ValueError, match="for self-attention, without a memory"):
            attention(x, memory, **options)
    for mask in (torch.zeros(T, T), torch.zeros(T, T).long()):
        with pytest.raises(TypeError, match="the mask must be boolean"):
            attention(x, mask=mask)


def test_one_of_many_layers():
    """Merging and factorizing go around the heads' products, the report shows them."""
    model = factorize(nn.ModuleList([FactorizedAttention(D, HEADS, 0.5), nn.Linear(D, D)]), rank_scale=0.5)
    rows = {line.split()[0]: line.split()[1:] for line in report(model).splitlines()}
    assert rows["0.query_key"][:3] == [f"{HEADS}x{D}x{D}", "2", f"{2 * D * HEADS * 2}"]
    assert rows["1"][0] == f"{D}x{D}"
    x = torch.randn(B, T, D)
    before = model[1](model[0](x))
    merge(model)
    assert type(model[0]) is FactorizedAttention and type(model[1]) is nn.Linear
    torch.testing.assert_close(model[1](model[0](x)), before)
    assert repr(model[0].query_key) == f"QueryKey(heads={HEADS}, {D}x{D}, rank=2)"


def test_sixteen_bit_autocast():
    attention, x = FactorizedAttention(D, HEADS), torch.randn(B, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x, is_causal=True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), attention(x, is_causal=True), rtol=0.05, atol=0.02)


def test_compiled():
    attention, x, memory = FactorizedAttention(D, HEADS), torch.randn(B, T, D), torch.randn(B, S, D)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, memory), attention(x, memory))
    torch.testing.assert_close(compiled(x, is_causal=True), attention(x, is_causal=True))


@pytest.mark.parametrize("masking", [{}, {"is_causal": True}, {"mask": torch.ones(5, 5, dtype=torch.bool).tril()}])
def test_gradients_under_sixteen_bit_autocast(masking, monkeypatch):
    """Those of double precision up to rounding; PyTorch's own attention, slow to differentiate so, takes no part."""
    layer, x = FactorizedAttention(16, 2, 0.5), torch.randn(3, 5, 16)
    exact = copy.deepcopy(layer).double()
    exact(x.double(), **masking).square().sum().backward()
    expected = [parameter.grad for parameter in exact.parameters()]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x, **masking).float().square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), expected):
        assert (parameter.grad - gradient).norm() < 0.02 * gradient.norm()
