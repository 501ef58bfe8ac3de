"""Statistics of the weights of attention, against what its projections get."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorized import collect, factorize, factorized_modules
from tests.factorized.moments import close, correlated, error, least_error, moment


def attended(attention: nn.MultiheadAttention, *inputs: Tensor, **options) -> Tensor:
    """Return what the output projection gets: the output with another one that changes nothing."""
    plain = copy.deepcopy(attention)
    with torch.no_grad():
        plain.out_proj.weight.copy_(torch.eye(plain.embed_dim))
        plain.out_proj.bias.zero_()
        return plain(*inputs, **options)[0]


@pytest.mark.parametrize("kind", ["self", "memory", "three"])
@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"attn_mask": torch.ones(5, 5).triu(1).bool()}])
def test_each_third_of_attention_has_its_own_inputs(kind, options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    query, memory, value = (correlated(3, 5, 8, seed=seed) for seed in range(3))
    inputs = {"self": (query,) * 3, "memory": (query, memory, memory), "three": (query, memory, value)}[kind]
    stats = collect(attention, lambda: attention(*inputs, **options))
    for found, expected in zip(stats["in_proj_weight"].inputs, inputs, strict=True):
        close(found, moment(expected))
    assert stats["in_proj_weight"].positions.tolist() == [15, 15, 15]
    close(stats["out_proj"].inputs, moment(attended(attention, *inputs, **options)))


def test_attention_computes_what_it_did_while_it_is_watched():
    """Values and weights, in the encoder of PyTorch, too, which has a fast path that shows nothing."""
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), correlated(3, 5, 8)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    found = []
    collect(attention, lambda: found.extend(attention(x, x, x, key_padding_mask=mask)))
    for seen, expected in zip(found, attention(x, x, x, key_padding_mask=mask), strict=True):
        assert torch.equal(seen, expected)
    stats = collect(encoder, [x])
    assert {f"layers.1.{name}" for name in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")} < {
        *stats
    }
    close(stats["layers.1.self_attn.in_proj_weight"].inputs[0], moment(encoder.layers[0](x).detach()))


def test_attention_of_other_sizes_has_three_weights():
    attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=3).eval()
    inputs = correlated(4, 2, 8), correlated(6, 2, 5), correlated(6, 2, 3)
    stats = collect(attention, [inputs])
    for name, x in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), inputs):
        close(stats[name].inputs, moment(x))


def test_gradients_at_the_projections_of_attention():
    """Against attention written out, whose projections keep their gradients."""
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), correlated(3, 5, 8)
    parts = [F.linear(x, W, b) for W, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3))]
    q, k, v = (part.view(3, 5, 2, 4).transpose(1, 2) for part in parts)
    context = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(3, 5, 8)
    y = attention.out_proj(context)
    gradients = torch.autograd.grad(y.square().sum(), [*parts, y])
    stats = collect(attention, lambda: attention(x, x, x)[0].square().sum().backward(), gradients=True)
    flat = [gradient.flatten(0, 1) for gradient in gradients]
    for found, g in zip((*stats["in_proj_weight"].outputs, stats["out_proj"].outputs), flat, strict=True):
        torch.testing.assert_close(found, g.mT @ g, rtol=1e-3, atol=1e-4)
    close(stats["out_proj"].inputs, moment(context.detach()))


def test_attention_starts_best_for_its_data():
    """Every third and the output projection has the least error that there is; the module's output is nearer by far."""
    torch.manual_seed(0)
    dense, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), correlated(20, 9, 16)
    stats = collect(dense, lambda: dense(x, x, x))
    ranks = {"**": 4}
    weighted, plain = (
        factorize(copy.deepcopy(dense), ranks=ranks, stats=stats),
        factorize(copy.deepcopy(dense), ranks=ranks),
    )
    lost = whole = 0.0
    for W, new in zip(dense.in_proj_weight.chunk(3), weighted.in_proj_weight.chunk(3)):
        best = least_error(x, W, 4)
        assert error(x, W, new) == pytest.approx(best, rel=1e-2)
        lost, whole = lost + best, whole + error(x, W, torch.zeros_like(W))
    layers = factorized_modules(weighted)
    assert layers["in_proj_weight"].start_error == pytest.approx(math.sqrt(lost / whole), rel=1e-2)
    context = attended(dense, x, x, x)
    best = least_error(context, dense.out_proj.weight, 4)
    assert error(context, dense.out_proj.weight, weighted.out_proj.weight) == pytest.approx(best, rel=1e-2)
    errors = [(model(x, x, x)[0] - dense(x, x, x)[0]).square().sum().item() for model in (weighted, plain)]
    assert errors[0] < 0.4 * errors[1], errors
