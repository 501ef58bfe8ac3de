"""Searching the rank scale for a target size (specification section 8)."""

import copy

import pytest
import torch
from torch import nn

from factorized import RankScale, factorize, find_rank_scale, parameter_count
from tests.factorized.networks import cifar_resnet, small_cnn


@pytest.fixture(scope="module")
def resnets():
    with torch.device("meta"):
        return {depth: cifar_resnet(depth) for depth in (20, 32, 56)}


# The table of section 8.
@pytest.mark.parametrize(
    "depth, target, rank_scale, parameters, ratio",
    [
        (20, 0.05, 0.0234375, 14_074, 0.052180),
        (20, 0.1, 0.046875, 27_898, 0.103432),
        (20, 0.5, 0.23828125, 135_754, 0.503311),
        (20, 1.0, 0.4765625, 269_626, 0.999644),
        (32, 0.05, 0.0234375, 23_034, 0.049626),
        (32, 0.1, 0.046875, 46_458, 0.100092),
        (32, 0.15, 0.068359375, 68_010, 0.146525),
        (32, 0.25, 0.119140625, 115_818, 0.249525),
        (56, 0.1, 0.048828125, 86_986, 0.101974),
        (56, 0.5, 0.24609375, 428_026, 0.501778),
    ],
)
def test_published_targets(resnets, recwarn, depth, target, rank_scale, parameters, ratio):
    found = find_rank_scale(resnets[depth], target, include=["layer*"], strict=True)
    assert found[:2] == (rank_scale, parameters) and round(found.ratio, 6) == ratio
    assert not recwarn.list


@pytest.mark.parametrize(
    "target, rank_scale, parameters, ratio",
    [(0.01, 0.00390625, 6_346, 0.023528), (3.0, 0.998046875, 560_026, 2.076308)],
)
def test_unreachable_targets_warn_or_raise(resnets, target, rank_scale, parameters, ratio):
    """Defect 22; the values are those of the table of section 8."""
    with pytest.warns(UserWarning, match=f"ratio {target} is unreachable.*0.023528 to 2.076308") as caught:
        found = find_rank_scale(resnets[20], target, include=["layer*"])
    assert caught[0].filename == __file__
    assert found[:2] == (rank_scale, parameters) and round(found.ratio, 6) == ratio
    with pytest.raises(ValueError, match="unreachable"):
        find_rank_scale(resnets[20], target, include=["layer*"], strict=True)
    with pytest.raises(ValueError, match="unreachable"):
        factorize(resnets[20], ratio=target, include=["layer*"], strict=True)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("target", [0.4, 0.7, 1.0])
def test_the_count_is_that_of_the_factorized_model(target, square):
    """What the search promises is what `factorize` builds, and no scale on a fine grid comes closer."""
    model = small_cnn()
    dense = parameter_count(model)
    found = find_rank_scale(model, target, square=square)
    assert isinstance(found, RankScale) and found.ratio == found.parameters / dense
    built = factorize(copy.deepcopy(model), ratio=target, square=square, spectral=False)
    assert parameter_count(built) == found.parameters
    for step in range(1, 101):
        other = factorize(copy.deepcopy(model), rank_scale=step / 100, square=square, spectral=False)
        assert abs(parameter_count(other) / dense - target) >= abs(found.ratio - target)


def test_the_search_draws_no_random_numbers_and_leaves_the_model_alone():
    """Defect 21."""
    model = small_cnn()
    before, modules, state = copy.deepcopy(model.state_dict()), list(model.modules()), torch.get_rng_state()
    find_rank_scale(model, 0.6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_the_start_does_not_depend_on_the_target_size_search():
    """The same seed gives the same factors whether the scale was given or found."""
    model = small_cnn()
    scale = find_rank_scale(model, 0.6).rank_scale
    torch.manual_seed(1)
    found = factorize(copy.deepcopy(model), ratio=0.6, spectral=False)
    torch.manual_seed(1)
    given = factorize(copy.deepcopy(model), rank_scale=scale, spectral=False)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), given.parameters(), strict=True))


@pytest.mark.parametrize("ratio", [0, -0.5, float("nan"), float("inf")])
def test_a_ratio_is_a_positive_number(ratio):
    with pytest.raises(ValueError, match="ratio must be a positive number"):
        find_rank_scale(small_cnn(), ratio)


def test_layers_that_stay_dense_count_in_full():
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    found = find_rank_scale(model, 0.75, exclude=["1"])
    assert found.parameters == 400 + 5 * 40 and round(found.rank_scale * 20) == 5


def test_shared_and_frozen_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    assert parameter_count(model) == 16 + 4 + 4
