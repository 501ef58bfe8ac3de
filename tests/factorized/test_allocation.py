"""Ranks under a budget, against all choices there are, and against costs counted by hand."""

import copy
import itertools

import numpy
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from factorized import (
    FactorizedLinear,
    collect,
    factorize,
    factorized_modules,
    parameter_count,
    report,
    summary,
)
from factorized.allocation import Options, allocate, options
from factorized.budget import size_of
from tests.factorized.networks import small_cnn


def brute_force(layers: list[Options], budget: float) -> float:
    """Return the least that any choice within the budget leaves out."""
    choices = itertools.product(*(range(len(layer.costs)) for layer in layers))
    possible = (
        sum(layer.dropped[p] for layer, p in zip(layers, choice))
        for choice in choices
        if sum(layer.costs[p] for layer, p in zip(layers, choice)) <= budget
    )
    return min(possible)


def value(layers: list[Options], ranks: list[int]) -> tuple[float, float]:
    positions = [int(numpy.flatnonzero(layer.ranks == rank)[0]) for layer, rank in zip(layers, ranks)]
    return (
        sum(layer.costs[p] for layer, p in zip(layers, positions)),
        sum(layer.dropped[p] for layer, p in zip(layers, positions)),
    )


def random_layers(generator: numpy.random.Generator) -> list[Options]:
    """Return three tiny layers of unequal sides, with spectra that decay at different rates."""
    layers = []
    for _ in range(3):
        m, n = generator.integers(3, 13, 2)
        spectrum = numpy.sort(generator.random(min(m, n)) * numpy.exp(-generator.random() * numpy.arange(min(m, n))))
        ranks = range(1, min(m, n) + 1)
        layers.append(options(spectrum[::-1] / spectrum.sum(), ranks, [rank * (m + n) for rank in ranks], m * n))
    return layers


def test_three_tiny_layers_against_brute_force():
    """Within the budget, next to nothing of it left, and as good as the best of all choices up to one small step."""
    generator = numpy.random.default_rng(0)
    exact, gaps = 0, []
    for _ in range(150):
        layers = random_layers(generator)
        least, most = (sum(layer.costs[position] for layer in layers) for position in (0, -1))
        budget = generator.uniform(least, most)
        ranks = allocate(layers, budget)
        cost, dropped = value(layers, ranks)
        best = brute_force(layers, budget)
        assert cost <= budget and dropped >= best - 1e-12
        # Nothing that a single layer could still do fits into what is left.
        for layer, rank in zip(layers, ranks):
            position = int(numpy.flatnonzero(layer.ranks == rank)[0])
            better = layer.dropped < layer.dropped[position] - 1e-15
            assert not (better & (layer.costs - layer.costs[position] <= budget - cost)).any()
        exact += dropped <= best + 1e-9
        gaps.append((dropped - best) / 3)  # as a share of what all layers hold
    assert exact > 90 and numpy.mean(gaps) < 0.01 and max(gaps) < 0.12


def test_what_is_chosen_is_the_best_at_its_own_cost():
    """Where the search met the budget exactly, nothing else that costs as little leaves out less."""
    generator = numpy.random.default_rng(1)
    for _ in range(60):
        layers = random_layers(generator)
        price = generator.uniform(0.001, 0.02)
        choice = [int(numpy.argmin(layer.dropped + price * layer.costs)) for layer in layers]
        budget = sum(layer.costs[position] for layer, position in zip(layers, choice))
        _, dropped = value(layers, allocate(layers, budget))
        assert abs(dropped - brute_force(layers, budget)) < 1e-12


def test_a_budget_below_the_least_ranks():
    layers = random_layers(numpy.random.default_rng(2))
    least = sum(layer.costs[0] for layer in layers)
    assert allocate(layers, least - 1) is None and [1, 1, 1] == allocate(layers, least)
    most = sum(layer.costs[-1] for layer in layers)
    assert allocate(layers, most) == [0, 0, 0] == allocate(layers, 2 * most)


def decaying(rates: dict[str, float]) -> nn.Sequential:
    """Return linear layers of 40 x 30 whose singular values decay as `k^-rate`."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, rate in rates.items():
        layer = nn.Linear(30, 40, bias=False)
        P, Q = torch.linalg.qr(torch.randn(40, 30)).Q, torch.linalg.qr(torch.randn(30, 30)).Q
        layer.weight = nn.Parameter(P * torch.arange(1.0, 31) ** -rate @ Q.mT)
        model.add_module(name, layer)
        model.add_module(f"{name}-back", nn.Identity())
    return model


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("round_to", [1, 4])
def test_a_model_keeps_what_counts_most(ratio, round_to):
    """Against uniform ranks: the errors, computed from the built layers; the budget; the order of the ranks."""
    dense = decaying({"fast": 2.0, "slow": 0.3, "flat": 0.0})
    total, errors, counts = parameter_count(dense), {}, {}
    for how in ("uniform", "error"):
        model = factorize(copy.deepcopy(dense), ratio=ratio, allocate=how, round_to=round_to)
        counts[how] = parameter_count(model) / total
        error = 0.0
        for name in ("fast", "slow", "flat"):
            W = dense.get_submodule(name).weight
            error += ((model.get_submodule(name).weight - W).square().sum() / W.square().sum()).item()
        errors[how] = error
        for layer in factorized_modules(model).values():
            assert layer.rank % round_to == 0 and layer.rank * 70 < 1200
    assert counts["error"] <= ratio and ratio - counts["error"] <= (round_to + 1) * 70 / total + 1e-9
    assert errors["error"] < errors["uniform"] * (1.001 if round_to > 1 or ratio > 0.5 else 0.99)
    found = factorized_modules(factorize(copy.deepcopy(dense), ratio=ratio, allocate="error"))
    if {"fast", "slow"} <= found.keys():
        assert found["fast"].rank <= found["slow"].rank


def test_a_layer_that_needs_all_its_directions_stays_dense_and_that_is_said():
    model = factorize(decaying({"fast": 2.0, "slow": 0.0}), ratio=0.6, allocate="error")
    assert type(model.slow) is nn.Linear and type(model.fast) is FactorizedLinear
    assert "dense: worth more than factors would save" in report(model)


def test_data_decide_which_layer_keeps_more():
    """Two layers with the same spectrum: the one whose inputs are few directions needs few ranks on these data."""
    torch.manual_seed(0)
    dense = nn.ModuleDict({"few": nn.Linear(30, 40, bias=False), "many": nn.Linear(30, 40, bias=False)})
    dense["many"].weight.data.copy_(dense["few"].weight)
    few, many = torch.randn(200, 5) @ torch.randn(5, 30), torch.randn(200, 30)
    stats = collect(dense, lambda: (dense["few"](few), dense["many"](many)))
    found = factorize(copy.deepcopy(dense), ratio=0.5, allocate="error", stats=stats)
    ranks = {name: layer.rank for name, layer in factorized_modules(found).items()}
    assert ranks["few"] <= 6 and ranks["few"] < ranks.get("many", 99)
    assert (found["few"](few) - dense["few"](few)).norm() < 0.01 * dense["few"](few).norm()


def test_gradients_decide_between_layers():
    """The loss sees a hundredth of one layer's output: with gradients that layer keeps less, without as much."""
    torch.manual_seed(0)
    dense = nn.ModuleDict({"loud": nn.Linear(30, 40, bias=False), "faint": nn.Linear(30, 40, bias=False)})
    x = torch.randn(300, 30)

    def run():
        (dense["loud"](x).square().sum() + 1e-4 * dense["faint"](x).square().sum()).backward()

    ranks = {}
    for gradients in (False, True):
        stats = collect(dense, run, gradients=gradients)
        found = factorize(copy.deepcopy(dense), ratio=0.6, allocate="error", stats=stats, round_to=2)
        ranks[gradients] = {name: layer.rank for name, layer in factorized_modules(found).items()}
    assert ranks[True].get("loud", 99) > 2 * ranks[True]["faint"]
    assert abs(ranks[False].get("loud", 17) - ranks[False].get("faint", 17)) <= 4


def counted(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("split", ["spatial", "channel"])
@pytest.mark.parametrize("how", ["uniform", "error"])
def test_multiply_adds_as_pytorch_counts_them(split, how):
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 48, 1, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 40),
    )  # fmt: skip
    x = torch.randn(2, 3, 16, 16)
    model = factorize(copy.deepcopy(dense), ratio=0.5, cost="multiply-adds", allocate=how, split=split, example_input=x)
    share = counted(model, x) / counted(dense, x)
    assert abs(share - 0.5) < 0.03 and (how == "uniform" or share <= 0.5)
    assert summary(model, x).multiply_adds == counted(model, x)
    assert {layer.path for layer in factorized_modules(model).values()} == {"two_step"}


def test_multiples_under_a_scale():
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 6), nn.Linear(6, 64))
    sizes = [size_of(layer, FactorizedLinear, round_to=8) for layer in model]
    for scale, expected in ((0.3, [16, 6, 6]), (0.01, [8, 6, 6]), (0.99, [48, 6, 6])):
        assert [size.rank("compact", scale) for size in sizes] == expected
    assert [size.rank("paper", 0.3) for size in sizes] == [16, 8, 8]


def test_the_report_shows_the_error_of_each_layer():
    torch.manual_seed(0)
    dense = small_cnn()
    x = torch.randn(20, 3, 8, 8)
    model = factorize(copy.deepcopy(dense), ratio=0.7, allocate="error", stats=collect(dense, [x]), split="channel")
    for row in summary(model).rows:
        if row.factorized:
            A = collect(dense, [x])[row.name].inputs
            P = model.get_submodule(row.name).product()
            W = dense.get_submodule(row.name).weight.detach().flatten(1)
            left, whole = (((matrix @ A) * matrix).sum() for matrix in (W - P, W))
            assert abs(row.error - (left / whole).sqrt()) < 1e-3
            assert f"{100 * row.error:.1f} %" in report(model)


WRONG = {
    "an unknown cost": ({"cost": "flops"}, "cost must be one of parameters, multiply-adds"),
    "an unknown way": ({"allocate": "greedy"}, "allocate must be one of uniform, error"),
    "no size of the input": ({"cost": "multiply-adds"}, r"example_input, such as torch.zeros\(1, 3, 224, 224\)"),
    "another rule": ({"allocate": "error", "rule": "paper"}, "its own rank, and rule='paper' one scale"),
    "no number to round to": ({"round_to": 0}, "as in round_to=8, not 0"),
    "a path that saves nothing": (
        {"cost": "multiply-adds", "example_input": torch.zeros(1, 3, 8, 8), "path": "composed"}, "leave path or cost",
    ),
    "a ratio out of reach": ({"allocate": "error", "ratio": 0.01}, "ratio 0.01 is unreachable: the least ranks give"),
    "a ratio of percents": ({"allocate": "error", "ratio": 50}, "for 50 percent give ratio=0.5"),
    "statistics of nothing": ({"stats": {}}, "stats are of another model: they hold nothing"),
    "statistics of another kind": ({"stats": [1]}, "stats is what factorized.collect"),
    "statistics for another start": ({"stats": {}, "init": "kaiming"}, "have no effect on init='kaiming'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(case):
    options, message = WRONG[case]
    model = small_cnn()
    with pytest.raises((ValueError, TypeError), match=message):
        factorize(model, **{"ratio": 0.5, **options})
    assert not factorized_modules(model)


def test_a_cost_without_a_ratio():
    with pytest.raises(ValueError, match="give ratio, as in ratio=0.5"):
        factorize(small_cnn(), rank_scale=0.5, allocate="error")
