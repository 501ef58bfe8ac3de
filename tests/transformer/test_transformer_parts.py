"""Layer norm, positions and dropout."""

import math

import pytest
import torch
from fairseq.dropout import Dropout
from fairseq.layer_norm import LayerNorm
from fairseq.positions import Embedder, SinusoidalPositions, position_rows


def formula(x, gamma, beta):
    centered = x - x.mean(-1, keepdim=True)
    std = (centered.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
    return gamma * centered / (std + 1e-6) + beta


def test_published_value_of_layer_norm():
    x = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    expected = [-1.02469448, -0.43915478, 0.14638493, 1.31746433]
    assert LayerNorm(4).double()(x).tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-9, 1e5])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 7)])
def test_layer_norm_of_rows_of_any_size(size, shape):
    """Where the standard deviation is near epsilon, too; gradients against those of the formula."""
    norm = LayerNorm(7).double()
    torch.nn.init.normal_(norm.gamma)
    torch.nn.init.normal_(norm.beta)
    x = (size * torch.randn(shape, dtype=torch.float64) + 0.1).requires_grad_()
    inputs = (x, norm.gamma, norm.beta)
    expected, found = formula(*inputs), norm(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, inputs, gradient) for y in (found, expected))):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * (theirs.abs().max().item() if len(x) else 1))


def test_layer_norm_of_a_constant_row():
    norm, x = LayerNorm(4), torch.ones(2, 4, requires_grad=True)
    y = norm(x)
    y.square().sum().backward()
    assert torch.equal(y, torch.zeros(2, 4)) and x.grad.isfinite().all()


def test_layer_norm_in_single_precision():
    x = 0.1 * torch.randn(50, 256)
    norm = LayerNorm(256)
    expected = formula(x.double(), norm.gamma.double(), norm.beta.double())
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-6, atol=1e-6)


def test_layer_norm_of_short_numbers():
    """It is that of the same values in the parameters' precision."""
    norm, x = LayerNorm(16), torch.randn(5, 16).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    y, expected = norm(x), norm(wide)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, wide.grad.bfloat16())


def test_position_rows():
    """The first word is in row 2, on whichever side the padding is; padding is in row 1."""
    tokens = torch.tensor([[4, 5, 6, 2], [1, 1, 7, 2], [8, 2, 1, 1]])
    assert position_rows(tokens).tolist() == [[2, 3, 4, 5], [1, 1, 2, 3], [2, 3, 1, 1]]


@pytest.mark.parametrize("d", [8, 7, 2])
def test_sinusoids(d):
    """Entry by entry; an odd dimension ends with zeros."""
    table = SinusoidalPositions(d)(torch.arange(50))
    assert table.shape == (50, d)
    half = d // 2
    for p in (0, 2, 3, 49):
        for j in range(half):
            angle = p * 10000 ** (-j / max(half - 1, 1))
            assert table[p, j].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[p, j + half].item() == pytest.approx(math.cos(angle), abs=1e-5)
    assert table[1].count_nonzero() == 0
    assert d % 2 == 0 or table[:, -1].count_nonzero() == 0


def test_embedding_by_hand():
    embedder = Embedder(10, 4, torch.nn.Embedding(20, 4), dropout=0.0)
    tokens = torch.tensor([[1, 7, 2], [8, 9, 2]])
    tokens_table, positions = embedder.tokens.weight, embedder.positions.weight
    expected = tokens_table[tokens] + positions[torch.tensor([[1, 2, 3], [2, 3, 4]])]
    torch.testing.assert_close(embedder(tokens), expected)
    torch.testing.assert_close(embedder.at(tokens[:, 2], 5), tokens_table[[2, 2]] + positions[7])


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout(p, dtype):
    """The share that is dropped, what the others become, and the same mask in the backward pass."""
    x = torch.ones(401, 999, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    assert y.dtype == dtype
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / x.numel()))
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=1e-2, atol=0)
    assert y.double().mean().item() == pytest.approx(1.0, abs=0.02)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_compiled_dropout():
    """The masks are those of the uncompiled layer, in the backward pass, too."""
    x, dropout = torch.ones(401, 99, requires_grad=True), Dropout(0.2)
    compiled = torch.compile(dropout, backend="aot_eager", fullgraph=True)
    compiled(x)
    torch.manual_seed(1)
    y = compiled(x)
    torch.manual_seed(1)
    assert torch.equal(y, dropout(x)) and y.count_nonzero() < x.numel()
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_elements_are_dropped_independently():
    """Neighbours are quarters of one random number."""
    kept = Dropout(0.5)(torch.ones(100_000)) != 0
    for distance in (1, 2, 3, 4):
        both = (kept[:-distance] & kept[distance:]).double().mean().item()
        assert both == pytest.approx(0.25, abs=0.01)


def test_dropout_follows_the_seed_and_rests_in_evaluation():
    x, dropout = torch.randn(3, 5), Dropout(0.5)
    torch.manual_seed(1)
    first = dropout(x)
    second = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)
    assert dropout.eval()(x) is x or torch.equal(dropout(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert Dropout(0.5)(torch.empty(0, 4)).shape == (0, 4)
