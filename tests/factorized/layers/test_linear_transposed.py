"""transformers' `Conv1D`, a linear layer with its weight stored (in, out), in the models that are made of it."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from factorized import (
    FactorizedTransposedLinear,
    Moments,
    collect,
    factorize,
    factorized_modules,
    load,
    merge,
    save,
    summary,
)
from tests.factorized.networks import relative_error


def layer(outputs: int = 6, inputs: int = 9) -> Conv1D:
    found = Conv1D(outputs, inputs)
    torch.nn.init.normal_(found.bias)
    return found


@pytest.mark.parametrize("path", ["composed", "two_step", "auto"])
@pytest.mark.parametrize("square", [False, True])
def test_full_rank_is_the_same_function_and_merge_gives_the_class_back(path, square):
    dense, x = layer(), torch.randn(2, 3, 9)
    new = factorize(copy.deepcopy(dense), ranks={"**": 6}, path=path, square=square)
    assert type(new) is FactorizedTransposedLinear and new.weight.shape == dense.weight.shape == (9, 6)
    assert relative_error(new(x), dense(x)) < 1e-5 and relative_error(new.weight, dense.weight) < 1e-5
    merged = merge(new)
    assert type(merged) is Conv1D and (merged.nf, merged.nx) == (6, 9)
    assert relative_error(merged(x), dense(x)) < 1e-5 and torch.equal(merged.bias, dense.bias)


def test_gradients_are_those_of_the_dense_layer_through_the_factors():
    new, x = factorize(layer(), ranks={"**": 2}, path="composed"), torch.randn(4, 9)
    W = (new.U @ new.VT).mT.detach().requires_grad_()
    (torch.addmm(new.bias.detach(), x, W) ** 2).sum().backward()
    (new(x) ** 2).sum().backward()
    torch.testing.assert_close(new.U.grad, W.grad.mT @ new.VT.detach().mT)
    torch.testing.assert_close(new.VT.grad, new.U.detach().mT @ W.grad.mT)


def test_a_model_of_it_is_counted_saved_and_loaded(tmp_path):
    model = torch.nn.Sequential(layer(32, 48), torch.nn.Tanh(), layer(48, 32))
    dense, x = copy.deepcopy(model), torch.randn(5, 48)
    assert summary(dense, x).multiply_adds == 5 * 2 * 32 * 48
    factorize(model, ratio=0.5)
    assert list(factorized_modules(model)) == ["0", "2"] and summary(model, x).dense_multiply_adds == 5 * 2 * 32 * 48
    assert abs(summary(model).parameters / summary(dense).parameters - 0.5) < 0.05
    save(model, tmp_path / "saved")
    assert torch.equal(load(dense, tmp_path / "saved")(x), model(x))


def test_statistics_of_it_weigh_its_start():
    dense, x = layer(), torch.randn(50, 9) ** 3
    moments = collect(torch.nn.Sequential(dense), [x])["0"].inputs
    assert relative_error(moments, x.mT @ x / 50) < 1e-5
    errors = []
    for stats in ({"": Moments(moments)}, None):
        new = factorize(copy.deepcopy(dense), ranks={"**": 3}, stats=stats)
        errors.append((new(x) - dense(x)).square().sum())
    assert errors[0] < 0.95 * errors[1]


def test_the_library_does_not_import_transformers():
    code = "import factorized, sys, torch; factorized.factorize(torch.nn.Linear(8, 8), rank_scale=0.2)"
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('transformers' in sys.modules)"], timeout=120)
    assert done.returncode == 0
