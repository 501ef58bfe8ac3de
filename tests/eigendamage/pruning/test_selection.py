"""The order of removal, its limits, and where it stops."""

import pytest
import torch
from eigendamage.pruning.selection import Part, cut_at_cost, cut_at_share, least_kept, order

SCORES = {
    Part("a"): torch.tensor([0.1, 0.2, 5.0, 0.3]),
    Part("b"): torch.tensor([7.0, 6.0, 0.05, 8.0, 0.15, 9.0]),
}


def names(kept):
    return {part.layer: places for part, places in kept.items()}


def test_lowest_scores_of_all_layers_go_first():
    found = order(SCORES, limit=1.0)
    assert names(found.kept(0)) == {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3, 4, 5]}
    assert names(found.kept(3)) == {"a": [1, 2, 3], "b": [0, 1, 3, 5]}


def test_the_unit_kept_at_the_limit_is_the_best_one():
    found = order(SCORES, limit=1.0)
    assert names(found.kept(found.count)) == {"a": [2], "b": [5]}
    found = order(SCORES, limit=0.5)
    assert names(found.kept(found.count)) == {"a": [2, 3], "b": [0, 3, 5]}


@pytest.mark.parametrize(("count", "limit", "kept"), [(64, 0.95, 4), (512, 0.95, 26), (1, 0.95, 1), (3, 1.0, 1),
                                                      (10, 0.0, 10), (100, 0.29, 71)])  # fmt: skip
def test_a_limit_keeps_all_but_its_share(count, limit, kept):
    assert least_kept(count, limit) == kept
    found = order({Part("a"): torch.rand(count)}, limit)
    assert len(found.kept(found.count)[Part("a")]) == kept


def test_equal_scores_are_spread_over_the_layers():
    found = order({Part("a"): torch.ones(10), Part("b"): torch.ones(20)}, limit=0.95)
    assert [len(places) for places in found.kept(15).values()] == [5, 10]


def test_a_share_removes_exactly_so_many():
    scores = {Part("a"): torch.rand(64), Part("b"): torch.rand(36)}
    found = order(scores, limit=1.0)
    for share in (0.0, 0.29, 0.5, 0.9):
        left = sum(map(len, found.kept(cut_at_share(found, share)).values()))
        assert left == 100 - round(100 * share)
    assert sum(map(len, found.kept(cut_at_share(found, 1.0)).values())) == 2


def test_normalized_scores_are_shares_of_their_layer():
    scores = {Part("a"): torch.tensor([1.0, 3.0]), Part("b"): torch.tensor([100.0, 500.0])}
    assert names(order(scores, 1.0, normalize=True).kept(1)) == {"a": [0, 1], "b": [1]}
    assert names(order(scores, 1.0).kept(1)) == {"a": [1], "b": [0, 1]}


@pytest.mark.parametrize("target", [100, 61, 60, 43.5, 12])
def test_a_cost_is_met_within_one_unit(target):
    scores = {Part("a"): torch.rand(8), Part("b"): torch.rand(4)}
    found = order(scores, limit=0.9)

    def cost(kept):
        return 7 * len(kept[Part("a")]) + 5 * len(kept[Part("b")])

    cut = cut_at_cost(found, cost, target)
    assert cost(found.kept(cut)) <= target
    assert cut == 0 or cost(found.kept(cut - 1)) > target


def test_what_cannot_be_is_refused():
    found = order(SCORES, limit=0.5)
    with pytest.raises(ValueError, match="at least 5"):
        cut_at_cost(found, lambda kept: sum(map(len, kept.values())), 4)
    with pytest.raises(ValueError, match="scores of c are not finite"):
        order({**SCORES, Part("c"): torch.tensor([1.0, torch.nan])}, 0.5)
