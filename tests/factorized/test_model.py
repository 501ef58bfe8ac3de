"""Factorizing and merging whole models."""

import copy

import pytest
import torch
from torch import nn

from factorized import FactorizedConv2d, FactorizedLinear, factorize, factorized_modules, matrix_of, merge
from factorized import parameter_count as count
from tests.factorized.networks import cifar_resnet, relative_error, small_cnn

# By depth and classes: dense, then rank scales 0.037, 0.111, 0.333, 1.0, 1.0 square, 3.0, 9.0.
PUBLISHED_COUNTS = {
    (20, 10): (269_722, 23_482, 63_850, 188_314, 560_026, 850_330, 1_675_162, 5_020_570),
    (20, 100): (275_572, 29_332, 69_700, 194_164, 565_876, 856_180, 1_681_012, 5_026_420),
    (32, 10): (464_154, 38_970, 107_370, 318_234, 947_994, 1_431_834, 2_837_274, 8_505_114),
    (32, 100): (470_004, 44_820, 113_220, 324_084, 953_844, 1_437_684, 2_843_124, 8_510_964),
    (44, 10): (658_586, 54_458, 150_890, 448_154, 1_335_962, 2_013_338, 3_999_386, 11_989_658),
    (44, 100): (664_436, 60_308, 156_740, 454_004, 1_341_812, 2_019_188, 4_005_236, 11_995_508),
    (56, 10): (853_018, 69_946, 194_410, 578_074, 1_723_930, 2_594_842, 5_161_498, 15_474_202),
    (56, 100): (858_868, 75_796, 200_260, 583_924, 1_729_780, 2_600_692, 5_167_348, 15_480_052),
    (110, 10): (1_727_962, 139_642, 390_250, 1_162_714, 3_469_786, 5_211_610, 10_391_002, 31_154_650),
    (110, 100): (1_733_812, 145_492, 396_100, 1_168_564, 3_475_636, 5_217_460, 10_396_852, 31_160_500),
    (1202, 10): (19_421_274, 1_549_050, 4_350_570, 12_985_434, 38_774_874, 58_128_474),
}
SCALES = [(0.037, False), (0.111, False), (0.333, False), (1.0, False), (1.0, True), (3.0, False), (9.0, False)]


def factorized_count(dense: nn.Module, rank_scale: float, square: bool) -> int:
    options = {"include": ["layer*"], "init": "kaiming", "square": square, "rule": "paper"}
    return count(factorize(copy.deepcopy(dense), rank_scale=rank_scale, **options))


@pytest.mark.parametrize(
    "depth, classes", [pytest.param(*key, marks=[pytest.mark.slow] * (key[0] > 1000)) for key in PUBLISHED_COUNTS]
)
def test_published_parameter_counts(depth, classes):
    with torch.device("meta"):
        model = cifar_resnet(depth, classes)
        dense, *factorized = PUBLISHED_COUNTS[depth, classes]
        assert count(model) == dense
        assert [factorized_count(model, *scale) for scale in SCALES[: len(factorized)]] == factorized


def test_published_parameter_counts_of_square_networks():
    with torch.device("meta"):
        model = cifar_resnet(20)
        found = [factorized_count(model, rank_scale, True) for rank_scale in (0.037, 0.111, 0.333, 3.0, 9.0)]
    assert found == [23_896, 67_372, 220_570, 4_287_898, 28_535_194]


def types(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules() if not list(module.children())}


def test_every_layer_is_replaced_in_its_place():
    model = small_cnn()
    names = list(types(model))
    assert factorize(model, rank_scale=0.5) is model
    assert list(types(model)) == names
    assert list(factorized_modules(model)) == ["stem", "body.0", "body.2", "hidden", "head"]
    assert type(model.body[2]) is FactorizedConv2d and type(model.hidden) is FactorizedLinear


@pytest.mark.parametrize(
    "include, exclude, chosen",
    [
        (["body"], None, ["body.0", "body.2"]),
        (None, ["stem", "head"], ["body.0", "body.2", "hidden"]),
        (["body.*", "h*"], ["body.0"], ["body.2", "hidden", "head"]),
        ("hidden", None, ["hidden"]),
    ],
)
def test_include_and_exclude(include, exclude, chosen):
    model = factorize(small_cnn(), rank_scale=0.5, include=include, exclude=exclude)
    assert list(factorized_modules(model)) == chosen


def test_ranks_by_pattern():
    """`ranks` wins over the scale, its last matching pattern over earlier ones; alone it leaves the rest dense."""
    ranks = {"body": 3, "body.2": 5, "head": 2}
    model = factorize(small_cnn(), ranks=ranks)
    assert {n: m.rank for n, m in factorized_modules(model).items()} == {"body.0": 3, "body.2": 5, "head": 2}
    model = factorize(small_cnn(), ranks=ranks, rank_scale=0.5)
    expected = {"stem": 9, "body.0": 3, "body.2": 5, "hidden": 5, "head": 2}
    assert {n: m.rank for n, m in factorized_modules(model).items()} == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "give rank_scale, ratio or ranks"),
        ({"rank_scale": 0.5, "ratio": 0.5}, "not both"),
        ({"ranks": {"head": 2}, "ratio": 0.5}, "not both"),
        ({"rank_scale": 0}, "rank_scale must be a positive number"),
        ({"ranks": {"head": 0}}, "'head': rank must be at least 1"),
        ({"ranks": {"tail": 2}}, "'tail' matches no layer"),
        ({"rank_scale": 0.5, "include": ["conv"]}, "'conv' matches no layer"),
        ({"rank_scale": 0.5, "exclude": ["linear"]}, "'linear' matches no layer"),
        ({"rank_scale": 0.5, "init": "orthogonal"}, "spectral, kaiming"),
    ],
)
def test_wrong_options_leave_the_model_as_it_was(options, message):
    model = small_cnn()
    modules = list(model.modules())
    with pytest.raises(ValueError, match=message):
        factorize(model, **options)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


@pytest.mark.parametrize("square", [False, True])
def test_the_batched_spectral_start_equals_that_of_each_layer(square):
    model = small_cnn().double()
    dense = copy.deepcopy(model)
    factorize(model, rank_scale=0.3, square=square)
    for name, layer in factorized_modules(model).items():
        alone = type(layer).from_dense(dense.get_submodule(name), rank=layer.rank, square=square)
        torch.testing.assert_close(layer.weight, alone.weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("square", [False, True])
def test_merge_restores_the_types_and_keeps_the_outputs(square):
    """So does `to_dense` for each layer; here for a whole model."""
    dense = small_cnn()
    model = factorize(copy.deepcopy(dense), rank_scale=0.4, square=square).eval()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    assert merge(model) is model
    assert types(model) == types(dense) and count(model) == count(dense)
    assert relative_error(model(x), before) < 1e-5
    dense.load_state_dict(model.state_dict())


def test_padding_is_reported_by_name_where_the_user_called():
    with pytest.warns(UserWarning, match=r"head \(rank 9, at most 4 useful\)") as caught:
        factorize(small_cnn(), ranks={"head": 9, "hidden": 3})
    assert caught[0].filename == __file__ and len(caught) == 1


@pytest.mark.parametrize("dense", [nn.Linear(6, 5), nn.Conv2d(2, 5, 3)], ids=["linear", "conv"])
def test_a_model_that_is_itself_a_layer(dense):
    model = factorize(dense, rank_scale=0.25)
    assert isinstance(model, (FactorizedLinear, FactorizedConv2d)) and list(factorized_modules(model)) == [""]
    merged = merge(model)
    assert type(merged) is type(dense)
    torch.testing.assert_close(merged.weight, model.weight)


def test_a_module_under_several_names_is_replaced_under_all():
    layer = nn.Linear(6, 6)
    model = nn.ModuleDict({"first": layer, "inner": nn.Sequential(layer, nn.Tanh(), layer)})
    for change, kind in ((lambda m: factorize(m, rank_scale=0.5), FactorizedLinear), (merge, nn.Linear)):
        change(model)
        assert type(model["first"]) is kind
        assert model["first"] is model["inner"][0] is model["inner"][2]


def test_factorizing_twice_is_told_and_changes_nothing():
    model = factorize(small_cnn(), rank_scale=0.4)
    layers = list(factorized_modules(model).values())
    with pytest.raises(ValueError, match="stem, body.0, body.2 and 2 more: factorized already"):
        factorize(model, rank_scale=0.2)
    assert factorize(model, rank_scale=0.2, strict=False) is model
    assert all(one is other for one, other in zip(factorized_modules(model).values(), layers, strict=True))


def test_matrix_of_a_layer():
    linear, conv = nn.Linear(4, 3), nn.Conv2d(2, 3, (2, 5))
    assert matrix_of(linear) is linear.weight
    assert torch.equal(matrix_of(conv), FactorizedConv2d.matrix_of(conv))
    with pytest.raises(ValueError, match="BatchNorm1d is neither"):
        matrix_of(nn.BatchNorm1d(3))


def test_verbose_prints_the_report(capsys):
    factorize(small_cnn(), rank_scale=0.5, verbose=True, example_input=torch.randn(1, 3, 8, 8))
    printed = capsys.readouterr().out
    assert "body.2" in printed and "multiply-adds" in printed
