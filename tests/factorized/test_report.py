"""The table of what `factorize` did (specification section 10: readable representation)."""

import pytest
import torch
from torch import nn

from factorized import factorize, factorized_modules, parameter_count, report
from tests.factorized.networks import small_cnn


def rows_of(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


@pytest.fixture
def model():
    return factorize(small_cnn(), ranks={"stem": 4, "body": 6, "head": 2})


def test_every_layer_has_a_line(model):
    rows = rows_of(report(model))
    assert list(rows) == ["layer", "stem", "body.0", "body.2", "head", "hidden", "(model)"]
    assert rows["stem"] == ["18x9", "4", f"{4 * 27 + 6}", "auto"]
    assert rows["head"] == ["4x10", "2", f"{2 * 14 + 4}", "auto"]
    assert rows["hidden"] == ["10x24", "250", "dense"]
    assert rows["(model)"] == [f"{parameter_count(model):,}"]


def test_an_example_adds_multiply_adds_and_the_chosen_path(model):
    model.head.path = "two_step"
    rows = rows_of(report(model, torch.randn(2, 3, 8, 8)))
    shapes = {"stem": (2, 3, 8, 8), "body.0": (2, 6, 8, 8), "body.2": (2, 6, 8, 8), "head": (2, 10)}
    for name, layer in factorized_modules(model).items():
        assert rows[name][3] == f"{layer.multiply_adds(shapes[name]):,}"
        assert rows[name][4:] == (["two_step"] if name == "head" else ["auto:", rows[name][-1]])
        assert rows[name][-1] in ("composed", "two_step")


def test_reasons_for_dense_layers():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    table = report(factorize(model, rank_scale=0.5))
    assert "dense: grouped convolution" in table and "dense: padding mode 'reflect'" in table


def test_a_root_that_is_a_layer():
    assert "(root)" in rows_of(report(nn.Linear(3, 4)))
    assert rows_of(report(factorize(nn.Linear(3, 4), rank_scale=0.5)))["(root)"][:2] == ["4x3", "2"]


def test_looking_leaves_no_trace(model):
    """Training modes, running statistics and hooks are as before."""
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    report(model, torch.randn(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
