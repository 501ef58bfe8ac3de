"""Module patterns and grouping by shape (`factorized.patterns`)."""

import pytest
import torch
from torch import nn

from factorized import FactorizedLinear, factorize, factorized_modules
from factorized.patterns import group_by_shape, matches, select, stack_factors, unwrap
from tests.factorized.networks import small_cnn


@pytest.mark.parametrize(
    "pattern, name, expected",
    [
        ("conv1", "conv1", True),
        ("conv1", "layer1.0.conv1", False),  # from the root: the stem only
        ("conv1", "conv10", False),  # whole components
        ("conv", "conv1", False),
        ("conv*", "conv1", True),
        ("layer1", "layer1.0.conv1", True),  # everything inside
        ("layer1", "layer10.0.conv1", False),
        ("layer1.0", "layer1", False),  # a part does not name the whole
        ("layer*.*.conv1", "layer2.3.conv1", True),
        ("layer*.conv1", "layer2.3.conv1", False),  # `*` is one component
        ("*", "layer2.3.conv1", True),  # any first component, and what is inside
        ("*.conv1", "conv1", False),
        ("**.conv1", "conv1", True),  # `**` is any number of components, none included
        ("**.conv1", "layer1.0.conv1", True),
        ("**.conv1", "layer1.0.conv2", False),
        ("layer1.**.conv1", "layer1.conv1", True),
        ("layer1.**.conv1", "layer1.a.b.conv1", True),
        ("layer1.**.conv1", "layer2.a.conv1", False),
        ("layer1.**.conv1", "layer1.a.conv1.parts.0", True),
        ("**", "anything.at.all", True),
        ("features.[37]", "features.3", True),
        ("features.[37]", "features.37", False),
        ("features.3?", "features.31", True),
        ("3", "features.3", False),  # bare digits are a whole name
        ("features.3", "features.31", False),
        ("convShortcut", "convShortCut", False),  # the case counts
        ("*", "", True),  # a root that is itself a layer
    ],
)
def test_matching(pattern, name, expected):
    assert matches(pattern, name) == expected


NAMES = ["stem", "layer1.conv1", "layer1.conv2", "layer2.conv1", "head"]


@pytest.mark.parametrize(
    "include, exclude, expected",
    [
        (None, None, NAMES),
        (["head", "stem"], None, ["stem", "head"]),
        (["layer*"], ["**.conv2"], ["layer1.conv1", "layer2.conv1"]),
        (None, ["layer1"], ["stem", "layer2.conv1", "head"]),
        (["layer1", "layer1.conv1"], (), ["layer1.conv1", "layer1.conv2"]),
        ([], None, []),
        ("stem", "head", ["stem"]),
    ],
)
def test_selecting_keeps_the_order_of_the_names(include, exclude, expected):
    assert select(NAMES, include, exclude) == expected


@pytest.mark.parametrize("pattern", ["", ".conv1", "layer1.", "layer1..conv1"])
def test_empty_components_are_refused(pattern):
    """In what is included and in what is excluded."""
    for arguments in ({"include": [pattern]}, {"exclude": [pattern]}):
        with pytest.raises(ValueError, match="empty component in module pattern"):
            select(NAMES, **arguments)


def test_a_pattern_that_matches_nothing_is_named_with_what_comes_close():
    """In what is included and in what is excluded."""
    for arguments in ({"include": ["stem", "layer1.conv3"]}, {"exclude": ["layer1.conv3"]}):
        with pytest.raises(ValueError, match=r"'layer1.conv3' matches no layer; layers are called layer1.conv"):
            select(NAMES, **arguments)
    with pytest.raises(ValueError, match=r"\(none\)"):
        select([], ["stem"])


class Protocol(nn.Module):
    """Takes part by its method alone."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, 3, 1))
        self.b = nn.Parameter(torch.randn(2, 1, 4))

    def factors(self):
        return self.a, self.b


def test_factorized_modules_are_those_with_factors():
    model = factorize(small_cnn(), rank_scale=0.5, include=["body", "head"])
    model.extra = Protocol()
    model.buffer_of_the_same_name = nn.Module()
    model.buffer_of_the_same_name.register_buffer("factors", torch.zeros(2))
    assert list(factorized_modules(model)) == ["body.0", "body.2", "head", "extra"]
    assert list(factorized_modules(model, ["body", "extra"], ["*.0"])) == ["body.2", "extra"]
    with pytest.raises(ValueError, match="'stem' matches no layer"):
        factorized_modules(model, ["stem"])


def test_wrappers_do_not_change_names():
    model = factorize(small_cnn(), rank_scale=0.5)
    names = list(factorized_modules(model))
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):
        assert unwrap(wrapped) is model
        assert list(factorized_modules(wrapped)) == names


def test_groups_have_one_shape_and_dtype_each():
    layers = [
        FactorizedLinear(4, 3, 2),
        FactorizedLinear(4, 3, 2, square=True),
        FactorizedLinear(4, 3, 2),
        FactorizedLinear(3, 4, 2),
        FactorizedLinear(4, 3, 2, dtype=torch.float64),
        FactorizedLinear(4, 3, 1),
        FactorizedLinear(4, 3, 2, bias=False),
    ]
    groups = group_by_shape(layers)
    assert groups == [[0, 2, 6], [1], [3], [4], [5]]
    U, VT = stack_factors([layers[i] for i in groups[0]])
    assert torch.equal(U[1], layers[2].U) and torch.equal(VT[2], layers[6].VT)


@pytest.mark.parametrize("dtype, stacked", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_stacks_have_at_least_single_precision(dtype, stacked):
    layers = [FactorizedLinear(4, 3, 2, dtype=dtype) for _ in range(2)]
    assert {factor.dtype for factor in stack_factors(layers)} == {stacked}
