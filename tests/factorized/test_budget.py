"""Searching the rank scale for a target size."""

import copy
import math

import pytest
import torch
from torch import nn
from torchvision import models

from factorized import (
    CPConv2d,
    FactorizedLinear,
    RankScale,
    TensorTrainConv2d,
    TuckerConv2d,
    factorize,
    factorized_modules,
    find_rank_scale,
    parameter_count,
    report,
    summary,
)
from tests.factorized.networks import cifar_resnet, small_cnn


@pytest.fixture(scope="module")
def resnets():
    with torch.device("meta"):
        return {depth: cifar_resnet(depth) for depth in (20, 32, 56)}


# Of the CIFAR ResNets with 10 classes, as the paper's search found them.
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
    """Each end of what rank scales up to 1 can reach."""
    with pytest.warns(UserWarning, match=f"ratio {target} is unreachable.*0.023528 to 2.076308") as caught:
        found = find_rank_scale(resnets[20], target, include=["layer*"])
    assert caught[0].filename == __file__
    assert found[:2] == (rank_scale, parameters) and round(found.ratio, 6) == ratio
    with pytest.raises(ValueError, match="unreachable"):
        find_rank_scale(resnets[20], target, include=["layer*"], strict=True)
    with pytest.raises(ValueError, match="unreachable"):
        factorize(resnets[20], ratio=target, rule="paper", include=["layer*"], strict=True)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("target", [0.4, 0.7, 1.0])
def test_the_count_is_that_of_the_factorized_model(target, square):
    """What the search promises is what `factorize` builds, and no scale on a fine grid comes closer."""
    model = small_cnn()
    dense = parameter_count(model)
    found = find_rank_scale(model, target, square=square)
    assert isinstance(found, RankScale) and found.ratio == found.parameters / dense
    built = factorize(copy.deepcopy(model), ratio=target, rule="paper", square=square, init="kaiming")
    assert parameter_count(built) == found.parameters
    for step in range(1, 101):
        other = factorize(copy.deepcopy(model), rank_scale=step / 100, rule="paper", square=square, init="kaiming")
        assert abs(parameter_count(other) / dense - target) >= abs(found.ratio - target)


def test_the_search_draws_no_random_numbers_and_leaves_the_model_alone():
    """The seed alone determines the start, whatever the target."""
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
    found = factorize(copy.deepcopy(model), ratio=0.6, rule="paper", init="kaiming")
    torch.manual_seed(1)
    given = factorize(copy.deepcopy(model), rank_scale=scale, rule="paper", init="kaiming")
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


def is_compact(layer: nn.Module) -> bool:
    """Tell whether a factorized layer's factors are smaller than its weight and its rank is a useful one."""
    (*products, m, rank), n = layer.U.shape, layer.VT.shape[-1]
    dense = math.prod(products) * m * n
    return rank <= min(m, n) and sum(factor.numel() for factor in layer.factors()) < layer.weight.numel() == dense


def wide_and_narrow() -> nn.Sequential:
    """Return layers in all proportions: a patch embedding, expansions and projections, a long and a small head."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 8, 8, bias=False),
        nn.Conv2d(96, 384, 1),
        nn.Conv2d(384, 96, 1),
        nn.Conv2d(96, 16, 3),
        nn.Flatten(),
        nn.Linear(64, 100),
        nn.Linear(100, 10),
    )


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5, 0.8, 0.95])
def test_a_ratio_is_reached_without_a_layer_that_grows(ratio):
    model = wide_and_narrow()
    dense = parameter_count(model)
    factorize(model, ratio=ratio, init="kaiming")
    assert abs(parameter_count(model) / dense - ratio) < 0.02
    layers = factorized_modules(model).values()
    assert layers and all(map(is_compact, layers))
    assert type(model[6]) is nn.Linear and "a small head: at most 32 outputs" in report(model)


def vision_transformer() -> nn.Module:
    return models.VisionTransformer(224, 16, 12, 3, 192, 768, num_classes=10)


def mixer() -> nn.Module:
    """Return the layers of a mixer: patches, then in each block two layers over positions and two over channels."""
    block = [nn.Linear(196, 256), nn.Linear(256, 196), nn.Linear(512, 2048), nn.Linear(2048, 512)]
    return nn.Sequential(nn.Conv2d(3, 512, 16, 16), *(copy.deepcopy(layer) for layer in block * 8), nn.Linear(512, 10))


# The parameters that `factorize` can reach are this share, so that ratios below the rest cannot be had.
@pytest.mark.parametrize(
    "build, ratios",
    [
        (vision_transformer, (0.5, 0.6)),
        (mixer, (0.1, 0.3, 0.6)),
        (lambda: models.mobilenet_v3_small(num_classes=10), (0.3, 0.5)),
        (lambda: models.efficientnet_b0(num_classes=10), (0.3, 0.5)),
        (lambda: models.resnet18(num_classes=100), (0.05, 0.3)),
    ],
)
def test_known_networks_spend_their_budget_on_layers_that_shrink(build, ratios):
    with torch.device("meta"):
        dense = build()
    for ratio in ratios:
        model = factorize(copy.deepcopy(dense), ratio=ratio, init="kaiming")
        found = summary(model)
        assert abs(found.parameters / found.dense_parameters - ratio) < 0.005
        assert all(map(is_compact, factorized_modules(model).values()))
        for row in found.rows:  # no layer gets a much larger share of the parameters than it had
            share, before = row.parameters / found.parameters, row.dense_parameters / found.dense_parameters
            assert not row.factorized or share < 2 * before + 0.01
        head = found.rows[-1]
        assert head.dense_parameters > 30_000 or (not head.factorized and "small head" in head.reason)


def test_the_scale_is_one_of_the_useful_rank():
    model = factorize(wide_and_narrow(), rank_scale=0.25, rule="compact", init="kaiming")
    ranks = {name: layer.rank for name, layer in factorized_modules(model).items()}
    assert ranks == {"0": 6, "1": 24, "2": 24, "3": 12, "5": 16}


def test_the_search_finds_the_closest_of_all_that_can_be_built():
    """No scale on a grid finer than the steps comes closer, dense layers and square forms included."""
    for square, target in ((False, 0.5), (True, 0.5), (False, 0.9), (True, 0.97)):
        with torch.device("meta"):
            model = wide_and_narrow()
        dense = parameter_count(model)
        found = find_rank_scale(model, target, rule="compact", square=square)
        options = {"rule": "compact", "init": "kaiming", "square": square, "strict": False}
        built = factorize(copy.deepcopy(model), rank_scale=found.rank_scale, **options)
        assert parameter_count(built) == found.parameters
        for step in range(1, 97):
            other = factorize(copy.deepcopy(model), rank_scale=step / 96, **options)
            if factorized_modules(other):
                assert abs(parameter_count(other) / dense - target) >= abs(found.ratio - target) - 1e-9


def test_small_heads_are_factorized_when_they_are_named():
    for named in ({"include": ["6", "1"], "ratio": 0.7}, {"rank_scale": 0.2, "rule": "compact", "ranks": {"6": 3}}):
        model = factorize(wide_and_narrow(), **named, init="kaiming")
        assert "6" in factorized_modules(model)
    model = factorize(wide_and_narrow(), rank_scale=0.2, rule="paper", init="kaiming")
    assert len(factorized_modules(model)) == 6


def test_layers_that_would_not_shrink_stay_dense_and_the_report_says_so():
    model = factorize(nn.Sequential(nn.Linear(64, 64), nn.Linear(640, 64)), rank_scale=0.6, rule="compact")
    assert list(factorized_modules(model)) == ["1"]
    assert "dense: factors of rank 38 would not be smaller" in report(model)
    with pytest.raises(ValueError, match="factors of rank 38 would not be smaller"):
        factorize(nn.Sequential(nn.Linear(64, 64)), rank_scale=0.6, rule="compact")
    tiny = nn.Sequential(nn.Linear(1, 40))
    with pytest.raises(ValueError, match="unreachable: no layer's factors would be smaller"):
        factorize(tiny, ratio=0.5)


def test_a_scale_below_one_that_enlarges_warns_once_unless_it_is_meant(recwarn):
    patches = nn.Sequential(nn.Conv2d(3, 96, 8, 8), nn.Linear(64, 64))
    factorize(copy.deepcopy(patches), rank_scale=0.1)
    (warning,) = recwarn.list
    words = str(warning.message)
    assert "0 (rank 77, at most 24 useful: 18,432 parameters become 60,984" in words and warning.filename == __file__
    assert "rule='compact' never enlarges one" in words and "1 (" not in words
    recwarn.clear()
    factorize(copy.deepcopy(patches), rank_scale=0.1, rule="compact")
    factorize(copy.deepcopy(patches), rank_scale=0.1, rule="paper", init="kaiming")
    factorize(copy.deepcopy(patches), rank_scale=2.0, init="kaiming")
    factorize(copy.deepcopy(patches), ranks={"0": 77}, init="kaiming")
    assert not recwarn.list


def test_an_unreachable_ratio_is_an_error_that_says_what_is_in_the_way():
    model = nn.Sequential(nn.Linear(40, 40), nn.ConvTranspose1d(40, 40, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"ratio 0.1 is unreachable.* as 75% of the parameters are not in layers to"):
        factorize(model, ratio=0.1)
    with pytest.warns(UserWarning, match="only 1 of 2 layers|unreachable.*; using 0.7") as caught:
        factorize(model, ratio=0.1, strict=False)
    assert {warning.filename for warning in caught} == {__file__} and len(caught) == 2


@pytest.mark.parametrize("form", [TensorTrainConv2d, TuckerConv2d, CPConv2d])
def test_any_factorized_class_for_a_ratio(form):
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(40, 8))
    found = find_rank_scale(model, 0.15, layer=form, exclude=["3"])
    built = factorize(copy.deepcopy(model), ratio=0.15, layer={nn.Conv2d: form}, exclude=["3"])
    assert type(built[0]) is type(built[1]) is form and type(built[3]) is nn.Linear
    assert parameter_count(built) == found.parameters and abs(found.ratio - 0.15) < 0.02
    mixed = factorize(copy.deepcopy(model), rank_scale=found.rank_scale, layer={nn.Conv2d: form})
    assert type(mixed[0]) is form and type(mixed[3]) is FactorizedLinear
    alone = form.from_dense(model[0], found.rank_scale)
    assert all(torch.equal(a, b) for a, b in zip(mixed[0].parameters(), alone.parameters(), strict=True))
