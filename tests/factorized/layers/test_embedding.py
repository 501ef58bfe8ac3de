"""The factorized embedding against the dense one of its product."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factorized import FactorizedEmbedding, FrobeniusDecay, factorize, find_rank_scale, merge, parameter_count, report

ROWS, WIDTH, RANK, PAD = 9, 6, 4, 1


def embedding(path: str = "auto", square: bool = False) -> FactorizedEmbedding:
    layer = FactorizedEmbedding(ROWS, WIDTH, RANK, PAD, path=path, square=square, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("path", ["composed", "two_step", "auto"])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (2, 40), (0,)])
def test_output_and_gradients_equal_those_of_the_dense_table(path, square, shape):
    """Whatever the path, the padding row of U gets no gradient, and the other factors get theirs of every token."""
    layer, tokens = embedding(path, square), torch.randint(0, ROWS, shape)
    U, M, VT = layer.U.detach(), torch.eye(RANK).double() if layer.M is None else layer.M.detach(), layer.VT.detach()
    W = (U @ M @ VT).requires_grad_()
    dense = F.embedding(tokens, W)
    torch.testing.assert_close(layer(tokens), dense)
    torch.testing.assert_close(layer.weight, W)
    gradient = torch.randn_like(dense)
    layer(tokens).backward(gradient)
    dense.backward(gradient)
    expected = W.grad @ (M @ VT).T
    expected[PAD] = 0
    torch.testing.assert_close(layer.U.grad, expected)
    torch.testing.assert_close(layer.VT.grad, (U @ M).T @ W.grad)
    if square:
        torch.testing.assert_close(layer.M.grad, U.T @ W.grad @ VT.T)


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_decay_reaches_the_padding_row(path, in_backward):
    layer, tokens = embedding(path), torch.full((3,), PAD)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    FrobeniusDecay(layer, 0.3).attach(optimizer, in_backward)
    layer(tokens).sum().backward()
    optimizer.step()
    product = layer.U @ layer.VT
    expected = torch.autograd.grad(0.15 * product.square().sum(), layer.U)[0]
    torch.testing.assert_close(layer.U.grad, expected)
    assert layer.U.grad[PAD].abs().min() > 0


@pytest.mark.parametrize("rank_scale, rank", [(0.5, 3), (0.25, 2), (0.01, 1)])
def test_from_dense_and_back(rank_scale, rank):
    """The rank is a fraction of the smaller side, halves to even; the dense padding index carries over."""
    dense = nn.Embedding(ROWS, WIDTH, PAD, dtype=torch.float64)
    nn.init.normal_(dense.weight)
    layer = FactorizedEmbedding.from_dense(dense, rank_scale)
    assert layer.rank == rank and layer.padding_idx == PAD and parameter_count(layer) == rank * (ROWS + WIDTH)
    P, sigma, QT = torch.linalg.svd(dense.weight, full_matrices=False)
    best = P[:, :rank] * sigma[:rank] @ QT[:rank]
    torch.testing.assert_close(layer.weight, best)
    back = layer.to_dense()
    assert type(back) is nn.Embedding and back.padding_idx == PAD
    torch.testing.assert_close(back.weight, best)
    tokens = torch.randint(0, ROWS, (2, 3))
    torch.testing.assert_close(back(tokens), layer(tokens))


@pytest.mark.parametrize(
    "options, reason",
    [({"max_norm": 1.0}, "norm"), ({"sparse": True}, "sparse"), ({"scale_grad_by_freq": True}, "frequency")],
)
def test_embeddings_that_cannot_be_factorized(options, reason):
    with pytest.raises(ValueError, match=reason):
        FactorizedEmbedding.from_dense(nn.Embedding(ROWS, WIDTH, **options))
    model = nn.Sequential(nn.Embedding(ROWS, WIDTH, **options))
    with pytest.raises(ValueError, match=reason):
        factorize(model, rank_scale=0.5, embeddings=True)


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(ROWS, WIDTH, PAD), nn.Linear(WIDTH, 5))


def test_embeddings_of_a_model_are_factorized_on_request():
    assert type(factorize(small_model(), rank_scale=0.5)[0]) is nn.Embedding
    model = factorize(small_model(), rank_scale=0.5, embeddings=True, init="kaiming")
    assert type(model[0]) is FactorizedEmbedding and model[0].rank == 3
    tokens = torch.randint(0, ROWS, (4,))
    before = model(tokens)
    assert [line.split()[0] for line in report(model, tokens).splitlines()][:3] == ["layer", "0", "1"]
    merge(model)
    assert type(model[0]) is nn.Embedding
    torch.testing.assert_close(model(tokens), before)


def test_embeddings_count_in_the_search_for_a_rank_scale():
    found = find_rank_scale(small_model(), 0.6, embeddings=True)
    model = factorize(small_model(), rank_scale=found.rank_scale, embeddings=True)
    assert parameter_count(model) == found.parameters
    assert find_rank_scale(small_model(), 0.95).rank_scale != found.rank_scale


def test_tied_embeddings_have_no_layer():
    """The output layer has the table as its weight: only a composed weight can stand for both."""
    model = nn.Sequential(nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, ROWS, bias=False))
    model[1].weight = model[0].weight
    assert type(factorize(model, rank_scale=0.5, embeddings=True, others=False, strict=False)[0]) is nn.Embedding


def test_scores_of_a_tied_output_layer():
    layer, x, bias = embedding(), torch.randn(2, 3, WIDTH).double(), torch.randn(ROWS).double()
    torch.testing.assert_close(layer.scores(x, bias), x @ layer.weight.T + bias)
    torch.testing.assert_close(layer.scores(x), x @ layer.weight.T)


def test_more_tokens_than_rows_are_looked_up_in_the_product():
    layer = FactorizedEmbedding(100, 64, 16)
    rows, whole = [], layer._rows
    layer._rows = lambda tokens: rows.append(tokens.numel()) or whole(tokens)
    for shape, looked_up in (((5,), 5), ((50, 20), 100)):
        layer(torch.zeros(shape, dtype=torch.long))
        assert rows.pop() == looked_up
    assert layer.multiply_adds((50, 20)) == 100 * 16 * 64 and layer.multiply_adds((5,)) == 5 * 16 * 64
    assert "padding_idx" not in repr(layer) and "padding_idx=1" in repr(embedding())
