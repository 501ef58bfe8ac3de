"""What decays what, in words, and how much a decay acts over a run."""

import math

import pytest
import torch
from torch import nn

from factorized import (
    FrobeniusDecay,
    coefficient_for,
    decay_budget,
    describe_decay,
    factorize,
    parameter_groups,
)
from tests.factorized.networks import small_cnn


def test_both_kinds_of_decay_in_words():
    model = factorize(small_cnn(), rank_scale=0.3)
    optimizer = torch.optim.SGD(parameter_groups(model, 5e-4), lr=0.1)
    decay = FrobeniusDecay(model, 1e-4)
    expected = "Frobenius decay 1e-4 on 10 tensors of 5 layers; L2 5e-4 on 7 tensors"
    assert describe_decay(optimizer, decay) == describe_decay(optimizer.param_groups, decay) == expected
    decoupled = FrobeniusDecay(model, 0.05, decoupled=True)
    adam = torch.optim.AdamW(parameter_groups(model, 0.01), lr=0.1)
    text = describe_decay(adam, decoupled)
    assert text.startswith("decoupled Frobenius decay 0.05 on 10 tensors of 5 layers; ")
    assert text.endswith("L2 0.01 on 7 tensors")


def test_what_nothing_decays_in_words():
    model = factorize(small_cnn(), rank_scale=0.3)
    groups = parameter_groups(model, 1e-4)
    assert describe_decay(groups) == "L2 1e-4 on 7 tensors; no decay on 10 tensors"
    assert describe_decay(groups, FrobeniusDecay(model, 0.0)) == "L2 1e-4 on 7 tensors; no decay on 10 tensors"
    part = FrobeniusDecay(model, 0.25, include=["head"])
    assert describe_decay(groups, part) == (
        "Frobenius decay 0.25 on 2 tensors of 1 layer; L2 1e-4 on 7 tensors; no decay on 8 tensors"
    )
    assert describe_decay(parameter_groups(model, 0.0), part) == (
        "Frobenius decay 0.25 on 2 tensors of 1 layer; no decay on 15 tensors"
    )
    assert describe_decay(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)) == "no decay on 2 tensors"
    assert (
        describe_decay([{"params": [nn.Parameter(torch.ones(1))], "weight_decay": 2.5e-5}]) == "L2 2.5e-5 on 1 tensor"
    )


def test_groups_of_several_coefficients_in_words():
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(4)]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(parameters, (0.1, 0.02, 0.1, 0.0))]
    assert describe_decay(groups) == "L2 0.1 on 2 tensors; L2 0.02 on 1 tensor; no decay on 1 tensor"


def test_frozen_factors_are_not_counted():
    model = factorize(small_cnn(), rank_scale=0.3)
    model.head.U.requires_grad_(False)
    text = describe_decay(parameter_groups(model, 1e-4), FrobeniusDecay(model, 1e-4))
    assert text.startswith("Frobenius decay 1e-4 on 9 tensors of 5 layers")


def test_decay_budget_of_a_known_recipe():
    """200 epochs of 391 steps, at 0.1 up to half of them, at 0.01 up to three quarters, at 0.001 to the end."""
    rates = [0.1] * (100 * 391) + [0.01] * (50 * 391) + [0.001] * (50 * 391)
    budget = decay_budget(rates, 1e-4, 0.9)
    assert budget == pytest.approx(391 * (10 + 0.5 + 0.05) * 1e-4 / 0.1)
    assert coefficient_for(budget, rates, 0.9) == pytest.approx(1e-4)
    assert decay_budget(torch.tensor([0.5, 0.25]), 2) == 1.5
    assert decay_budget([], 1.0) == 0


def test_a_budget_is_the_logarithm_of_what_l2_decay_leaves():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.01, weight_decay=0.02, momentum=0.5)
    for _ in range(4000):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert -math.log(parameter.item()) == pytest.approx(decay_budget([0.01] * 4000, 0.02, 0.5), rel=2e-3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: decay_budget([0.1, -0.1], 1e-4), "learning rate.*-0.1"),
        (lambda: decay_budget([0.1, float("nan")], 1e-4), "learning rate.*nan"),
        (lambda: decay_budget([0.1], float("inf")), "coefficient.*inf"),
        (lambda: decay_budget([0.1], "1e-4"), "coefficient.*'1e-4'"),
        (lambda: decay_budget([0.1], True), "coefficient.*True"),
        (lambda: decay_budget([0.1], 1e-4, 1.0), "momentum must be below 1, not 1.0"),
        (lambda: decay_budget([0.1], 1e-4, -0.5), "momentum.*-0.5"),
        (lambda: decay_budget(0.1, 1e-4), "rate of every step"),
        (lambda: coefficient_for(-1.0, [0.1]), "budget.*-1.0"),
        (lambda: coefficient_for(1.0, [0.0]), "all zero"),
        (lambda: coefficient_for(1.0, []), "no step"),
    ],
)
def test_wrong_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
