"""Frobenius decay of every kind of factorized module in one model, products of attention heads among them.

Their factors are views of parameters: gradients must arrive in the parameters, and groups must hold the parameters.
"""

import pytest
import torch
from torch import nn

from factorized import (
    FactorizedAttention,
    FactorizedConv2d,
    FactorizedEmbedding,
    FactorizedLinear,
    FrobeniusDecay,
    TensorTrainConv2d,
    factorized_modules,
    frobenius_norms,
    layer_metrics,
    nuclear_norm,
    parameter_groups,
)

LAMBDA = 0.3


def every_kind() -> nn.ModuleDict:
    """Two attention layers of equal shape, one narrower, and one of each other kind; double precision."""
    model = nn.ModuleDict(
        {
            "first": FactorizedAttention(12, 3),
            "second": FactorizedAttention(12, 3),
            "narrow": FactorizedAttention(12, 3, 0.5),
            "linear": FactorizedLinear(7, 5, 3),
            "square": FactorizedLinear(7, 5, 3, square=True),
            "conv": FactorizedConv2d(3, 4, 3, 2),
            "table": FactorizedEmbedding(9, 6, 4, padding_idx=1),
            "chain": TensorTrainConv2d(8, 8, 3, rank_scale=0.5, padding=1),
        }
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def penalty(model: nn.ModuleDict) -> torch.Tensor:
    """`LAMBDA / 2` times the squared norms of all products, from the parameters, without the protocol."""
    products = [model[name].weight for name in ("linear", "square", "conv", "table")]
    products.append(model["chain"].contract())
    for name in ("first", "second", "narrow"):
        query_key, output_value = model[name].query_key, model[name].output_value
        queries, keys = query_key.query.chunk(3), query_key.key.chunk(3)
        values, outputs = output_value.value.chunk(3), output_value.output.chunk(3, 1)
        for Q, K, V, O in zip(queries, keys, values, outputs):  # noqa: E741
            products += [Q.T @ K, O @ V]
    return LAMBDA / 2 * sum(product.square().sum() for product in products)


def expected_gradients(model: nn.ModuleDict) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    penalty(model).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return gradients


def test_gradients_equal_automatic_differentiation():
    model = every_kind()
    expected = expected_gradients(model)
    decay = FrobeniusDecay(model, LAMBDA)
    assert decay.penalty().item() == pytest.approx(penalty(model).item(), rel=1e-10)
    decay.add_gradients()
    for name, parameter in model.named_parameters():
        if "bias" in name or expected[name] is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-10)


def test_they_are_added_to_what_is_there():
    model = every_kind()
    expected = expected_gradients(model)
    present = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = present[name].clone()
    # A gradient may be laid out in another way than its parameter.
    key = model["first"].query_key.key
    key.grad = key.grad.T.contiguous().T
    FrobeniusDecay(model, LAMBDA).add_gradients(scale=2.0)
    for name, parameter in model.named_parameters():
        added = 0 if expected[name] is None else 2 * expected[name]
        torch.testing.assert_close(parameter.grad, present[name] + added, rtol=1e-10, atol=1e-10)


def test_parameters_in_one_piece_of_memory():
    """As optimizers for several processes lay them out: a parameter then does not begin where its memory does."""
    attention = FactorizedAttention(12, 3).double()
    flat = torch.randn(4 * 144, dtype=torch.float64)
    for name, piece in zip(("query", "key"), flat.chunk(4)):
        setattr(attention.query_key, name, nn.Parameter(piece.view(12, 12)))
    for name, piece in zip(("value", "output"), flat.chunk(4)[2:]):
        setattr(attention.output_value, name, nn.Parameter(piece.view(12, 12)))
    flat_gradient = torch.zeros_like(flat)
    for parameter, piece in zip(attention.parameters(), flat_gradient.chunk(4)):
        parameter.grad = piece.view(12, 12)
    FrobeniusDecay(attention, LAMBDA).add_gradients()
    Q, K, V, O = (piece.view(12, 12) for piece in flat.chunk(4))  # noqa: E741
    for i in range(3):
        rows = slice(4 * i, 4 * i + 4)
        found = [piece.view(12, 12) for piece in flat_gradient.chunk(4)]
        torch.testing.assert_close(found[0][rows], LAMBDA * (K[rows] @ K[rows].T) @ Q[rows])
        torch.testing.assert_close(found[1][rows], LAMBDA * (Q[rows] @ Q[rows].T) @ K[rows])
        torch.testing.assert_close(found[2][rows], LAMBDA * (O[:, rows].T @ O[:, rows]) @ V[rows])
        torch.testing.assert_close(found[3][:, rows], LAMBDA * O[:, rows] @ (V[rows] @ V[rows].T))


def test_frozen_parameters_get_none():
    model = every_kind()
    model["first"].query_key.key.requires_grad_(False)
    expected = expected_gradients(model)["first.query_key.query"]
    FrobeniusDecay(model, LAMBDA).add_gradients()
    assert model["first"].query_key.key.grad is None
    torch.testing.assert_close(model["first"].query_key.query.grad, expected)


def test_groups_hold_the_parameters_behind_the_views():
    model = every_kind()
    chosen = ["*.query_key", "table"]
    decayed, free = parameter_groups(model, 0.1, include=chosen)
    expected = {name for name, _ in model.named_parameters() if "query_key" in name or name.startswith("table")}
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[parameter] for parameter in free["params"]} == expected and free["weight_decay"] == 0
    assert {names[parameter] for parameter in decayed["params"]} == set(names.values()) - expected
    FrobeniusDecay(model, LAMBDA, include=chosen).attach(torch.optim.SGD([decayed, free], lr=0.1))
    with pytest.raises(ValueError, match="first.output_value.*both Frobenius and L2"):
        FrobeniusDecay(model, LAMBDA, include=["*.output_value"]).attach(torch.optim.SGD([decayed, free], lr=0.1))


def test_metrics_count_every_head():
    model = every_kind()
    forms = [module for name, module in factorized_modules(model).items() if name.endswith("query_key")]
    products = torch.cat([torch.matmul(*form.factors()) for form in forms]).detach()
    metrics = layer_metrics(forms, lr=0.1)
    norms = torch.linalg.matrix_norm(products)
    assert metrics["metric/FrobNorm"] == pytest.approx(norms.mean().item(), rel=1e-6)
    assert metrics["metric/NucNorm"] == pytest.approx(nuclear_norm(products).mean().item(), rel=1e-6)
    squares = [factor.detach().square().sum().item() for form in forms for factor in form.factors()]
    assert metrics["metric/NucNorm-bound"] == pytest.approx(sum(squares) / 2 / len(products), rel=1e-6)
    torch.testing.assert_close(frobenius_norms(forms), norms.view(3, 3).mean(1))
