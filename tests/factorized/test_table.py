"""The table of what `factorize` did, its closing line and its form for programs."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from factorized import (
    FactorizedAttention,
    TensorTrainConv2d,
    factorize,
    factorized_modules,
    matrix_of,
    merge,
    parameter_count,
    report,
    summary,
)
from tests.factorized.networks import small_cnn

X = torch.randn(2, 3, 8, 8)


def rows_of(model: nn.Module, example_input=None) -> dict:
    return {row.name: row for row in summary(model, example_input).rows}


@pytest.fixture
def dense():
    return small_cnn()


@pytest.fixture
def model(dense):
    return factorize(copy.deepcopy(dense), ranks={"stem": 4, "body": 6, "head": 2})


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """Return the multiply-adds of a model as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops() // 2


def test_every_layer_has_a_line_in_module_order(model, dense):
    lines = {line.split()[0]: line.split()[1:] for line in report(model).splitlines()}
    assert list(lines)[:-1] == ["layer", "stem", "body.0", "body.2", "hidden", "head"]
    errors = {}
    for name in ("stem", "head"):
        W, product = matrix_of(dense.get_submodule(name)), model.get_submodule(name).product()
        errors[name] = f"{100 * ((W - product).norm() / W.norm()).item():.1f}"
    count, dense = parameter_count(model), parameter_count(dense)
    share = f"{100 * (4 * 27 + 6) / count:.1f}"
    assert lines["stem"] == ["18x9", "4", errors["stem"], "%", f"{4 * 27 + 6}", "168", share, "%", "auto"]
    assert lines["head"] == [
        "4x10",
        "2",
        errors["head"],
        "%",
        f"{2 * 14 + 4}",
        "44",
        f"{100 * 32 / count:.1f}",
        "%",
        "auto",
    ]
    assert lines["hidden"][:3] == ["10x24", "250", "250"] and report(model).count("dense: not named in ranks") == 1
    layers = [layer for layer in small_cnn().modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    reached = sum(map(parameter_count, layers)) - 250
    closing = f"{count:,} of {dense:,} parameters, {100 * count / dense:.1f} %; 4 of 5 layers, with "
    closing += f"{100 * reached / dense:.1f} % of the dense parameters"
    assert report(model).splitlines()[-1] == closing == summary(model).closing_line


@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_multiply_adds_are_those_that_pytorch_counts(model, path):
    for layer in factorized_modules(model).values():
        layer.path = path
    found = summary(model, X)
    assert found.multiply_adds == counted(model, X)
    assert found.dense_multiply_adds == counted(merge(copy.deepcopy(model)), X)
    assert sum(row.multiply_adds for row in found.rows) == found.multiply_adds
    percent = 100 * found.multiply_adds / found.dense_multiply_adds
    assert f"; {percent:.0f} % of the multiply-adds; 4 of 5 layers" in str(found)


def test_an_example_tells_the_chosen_path(model):
    model.head.path = "two_step"
    paths = {name: row.path for name, row in rows_of(model, X).items() if row.factorized}
    assert paths.pop("head") == "two_step"
    assert set(paths.values()) <= {"auto: composed", "auto: two_step"} and len(paths) == 3


def test_a_layer_that_is_called_twice_counts_twice():
    layer = nn.Linear(6, 6)
    model = factorize(nn.Sequential(layer, nn.Tanh(), layer), ranks={"0": 1})
    assert rows_of(model, torch.ones(5, 6))["0"].dense_multiply_adds == 2 * 5 * 36


def test_a_compiled_model_is_looked_into(model):
    expected = summary(model, X)
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    assert summary(compiled, X) == expected == summary(nn.DataParallel(model), X)


def test_attention_and_other_dense_weights_have_lines_with_reasons():
    encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.Sequential(encoder, nn.Linear(16, 4))
    found = summary(factorize(model, ratio=0.9, others=False), torch.randn(3, 5, 16))
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["0.self_attn.in_proj_weight", "0.self_attn.out_proj", "0.linear1", "0.linear2", "1"]
    assert rows["0.self_attn.in_proj_weight"].reason == "input projection of nn.MultiheadAttention"
    assert rows["0.self_attn.in_proj_weight"].multiply_adds == 3 * 5 * 16 * 48
    assert rows["0.self_attn.out_proj"].reason == "output projection of nn.MultiheadAttention"
    assert rows["0.self_attn.out_proj"].multiply_adds == 3 * 5 * 16 * 16
    assert rows["1"].reason.startswith("a small head")
    assert found.dense_multiply_adds == 3 * 5 * (4 * 16 * 16 + 2 * 16 * 24 + 16 * 4)
    assert "dense: input projection of nn.MultiheadAttention" in report(model)


def test_the_dense_original_is_known_from_the_factorized_model():
    for options in ({"rank_scale": 0.3}, {"ranks": {"**": 2}, "square": True}, {"ratio": 0.6}):
        model = small_cnn()
        before = parameter_count(model)
        factorize(model, **options)
        assert (summary(model).parameters, summary(model).dense_parameters) == (parameter_count(model), before)
    model = nn.Sequential(nn.Conv2d(16, 8, 3), nn.Conv2d(8, 16, 1))
    before = parameter_count(model)
    factorize(model, ratio=0.3, layer=TensorTrainConv2d)
    assert summary(model).dense_parameters == before and "(" in report(model)
    heads = FactorizedAttention(8, 2)
    assert summary(heads).dense_parameters == parameter_count(heads) and summary(heads).factorized_layers == 2


def test_a_form_for_programs(model):
    found = summary(model, X)
    values = json.loads(json.dumps(found.as_dict()))
    assert [layer["name"] for layer in values["layers"]] == ["stem", "body.0", "body.2", "hidden", "head"]
    assert values["layers"][3]["reason"] == "not named in ranks" and values["layers"][0]["rank"] == 4
    assert values["parameters"] == parameter_count(model) and values["factorized_layers"] == 4
    assert values["ratio"] == values["parameters"] / values["dense_parameters"]
    assert (values["multiply_adds"], values["dense_multiply_adds"]) == (found.multiply_adds, found.dense_multiply_adds)


def test_examples_of_several_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, *, y):
            return self.layer(x + y)

    class Swapped(Two):
        def forward(self, x, y):
            return self.layer(x + y)

    x, y = torch.ones(3, 4), torch.ones(4)
    assert rows_of(Two(), {"x": x, "y": y})["layer"].multiply_adds == 48
    assert rows_of(Swapped(), (x, y))["layer"].multiply_adds == 48


def test_a_root_that_is_a_layer():
    assert "(root)" in report(nn.Linear(3, 4))
    row = rows_of(factorize(nn.Linear(3, 4), ranks={"*": 2}))[""]
    assert (row.matrix, row.rank, row.dense_parameters) == ((4, 3), 2, 16)


def test_a_dense_model_is_all_there_is():
    model = small_cnn()
    count = f"{parameter_count(model):,}"
    assert (
        summary(model).closing_line
        == f"{count} of {count} parameters, 100.0 %; 0 of 5 layers, with 0.0 % of the dense parameters"
    )


def test_looking_leaves_no_trace(model):
    """Training modes, running statistics and hooks are as before."""
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    report(model, X)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
