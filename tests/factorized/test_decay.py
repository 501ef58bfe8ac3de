"""Gradients and bookkeeping of Frobenius decay."""

import pytest
import torch
from torch import nn

from factorized import (
    FactorizedConv2d,
    FactorizedLinear,
    FrobeniusDecay,
    factorize,
    factorized_modules,
    frobgrad,
    parameter_count,
    parameter_groups,
)
from tests.factorized.networks import cifar_resnet, small_cnn


def mixed_model(square: bool = False) -> nn.Sequential:
    """Linear and convolution layers of which two pairs agree in shape, in double precision, with normal factors."""
    options = {"square": square, "dtype": torch.float64}
    model = nn.Sequential(
        FactorizedConv2d(3, 4, 3, 2, **options),
        FactorizedConv2d(3, 4, 3, 2, **options),
        FactorizedConv2d(4, 4, (1, 3), 3, **options),
        FactorizedLinear(6, 5, 3, **options),
        FactorizedLinear(6, 5, 3, **options),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def penalty(model: nn.Module, coefficient: float) -> torch.Tensor:
    """`coefficient / 2 * sum |U M VT|_F^2`, written out for automatic differentiation."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in factorized_modules(model).values():
        product = layer.U @ layer.VT if layer.M is None else layer.U @ layer.M @ layer.VT
        total = total + product.square().sum()
    return coefficient / 2 * total


def factors_of(model: nn.Module) -> list[nn.Parameter]:
    return [factor for layer in factorized_modules(model).values() for factor in layer.factors()]


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("shapes", [[(7, 5)], [(7, 3), (3, 5)], [(2, 6), (6, 4)], [(7, 3), (3, 3), (3, 5)]])
def test_gradients_equal_automatic_differentiation(shapes, batch):
    """With two to four factors, each slice of a batch for itself."""
    factors = [torch.randn(*batch, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    expected = torch.autograd.grad(product.square().sum() / 2, factors)
    found = frobgrad([factor.detach() for factor in factors])
    assert len(found) == len(factors)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("number", [0, 4])
def test_other_numbers_of_factors_are_refused(number):
    with pytest.raises(ValueError, match=f"not {number}"):
        frobgrad([torch.eye(2)] * number)


@pytest.mark.parametrize("square", [False, True])
def test_added_gradients_equal_those_of_the_penalty(square):
    """On top of existing gradients, for layers of several shapes at once."""
    model = mixed_model(square)
    expected = torch.autograd.grad(penalty(model, 0.3), factors_of(model))
    decay = FrobeniusDecay(model, 0.3)
    assert decay.penalty().item() == pytest.approx(penalty(model, 0.3).item(), rel=1e-10)
    present = [torch.randn_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), present):
        parameter.grad = gradient.clone()
    decay.add_gradients()
    added = {p: p.grad - gradient for p, gradient in zip(model.parameters(), present)}
    for factor, gradient in zip(factors_of(model), expected):
        torch.testing.assert_close(added.pop(factor), gradient, rtol=1e-10, atol=1e-10)
    assert all(name.grad is not None and rest.count_nonzero() == 0 for name, rest in added.items())  # the biases


def test_a_missing_gradient_becomes_the_decay():
    """Also where only some factors of a group have gradients."""
    model = mixed_model()
    model[0].U.grad = torch.ones_like(model[0].U)
    expected = torch.autograd.grad(penalty(model, 0.3), factors_of(model))
    FrobeniusDecay(model, 0.3).add_gradients()
    for factor, gradient in zip(factors_of(model), expected):
        torch.testing.assert_close(factor.grad, gradient + 1 if factor is model[0].U else gradient)
    assert model[0].bias.grad is None


def test_frozen_factors_get_no_gradient():
    """Those that are trained beside them get theirs."""
    model = mixed_model(square=True)
    model[0].requires_grad_(False)
    model[3].M.requires_grad_(False)
    expected = dict(zip(factors_of(model), frobgrad_of_each(model), strict=True))
    FrobeniusDecay(model, 0.3).add_gradients()
    for factor, gradient in expected.items():
        if factor.requires_grad:
            torch.testing.assert_close(factor.grad, 0.3 * gradient)
        else:
            assert factor.grad is None


def frobgrad_of_each(model: nn.Module) -> list[torch.Tensor]:
    layers = factorized_modules(model).values()
    return [gradient.detach() for layer in layers for gradient in frobgrad(layer.factors())]


def test_coefficient_zero_does_nothing_at_all():
    model = mixed_model()
    decay = FrobeniusDecay(model, 0.0)
    decay.attach(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)).remove()
    decay.add_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert decay.penalty() == 0


def test_nothing_to_decay_is_an_error_unless_it_is_meant():
    model = small_cnn()
    with pytest.raises(ValueError, match="no factorized layer.*factorize.*strict=False"):
        FrobeniusDecay(model, 0.1)
    with pytest.raises(ValueError, match="leave none of the 5 factorized layers"):
        FrobeniusDecay(mixed_model(), 0.1, include=[])
    with pytest.raises(ValueError, match="leave none of the 5 factorized layers"):
        FrobeniusDecay(mixed_model(), 0.1, exclude=["*"])
    decay = FrobeniusDecay(model, 0.1, strict=False)
    decay.attach(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)).remove()
    decay.add_gradients()
    assert not decay.modules and decay.penalty() == 0 and model.stem.weight.grad is None


def test_include_and_exclude():
    model = mixed_model()
    assert list(FrobeniusDecay(model, 0.1, include=["0", "3"]).modules) == ["0", "3"]
    assert list(FrobeniusDecay(model, 0.1, exclude=["[0-2]"]).modules) == ["3", "4"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"coefficient": -1e-4}, "coefficient"),
        ({"coefficient": float("nan")}, "coefficient"),
        ({"coefficient": float("inf")}, "coefficient"),
        ({"coefficient": 0.1, "include": ["conv1"]}, "'conv1' matches no layer"),
        ({"coefficient": 0.1, "exclude": [""]}, "empty component"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        FrobeniusDecay(mixed_model(), **options)


@pytest.mark.parametrize("coefficient", [True, "1e-4", None, torch.tensor(0.1)])
def test_a_coefficient_that_is_no_number(coefficient):
    with pytest.raises(TypeError, match="coefficient must be a number such as 1e-4"):
        FrobeniusDecay(mixed_model(), coefficient)


def test_arguments_in_another_order():
    model = mixed_model()
    with pytest.raises(TypeError, match="first argument is the model.*not 0.0001: FrobeniusDecay.model, coefficient"):
        FrobeniusDecay(1e-4, model)
    with pytest.raises(TypeError, match="not a SGD: .*attach.optimizer"):
        FrobeniusDecay(torch.optim.SGD(model.parameters(), lr=0.1), 1e-4)


def test_making_one_changes_nothing():
    """No attribute of a module, no buffer, no gradient; the penalty may be asked for."""
    model = mixed_model(square=True)
    nn.utils.spectral_norm(model[3], "U").train()
    before = {name: (dict(vars(module)), module._buffers.copy()) for name, module in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    assert FrobeniusDecay(model, 0.1).penalty() > 0
    del before["3"], model[3].U  # what a forward pass computes
    for name, module in model.named_modules():
        assert name not in before or (dict(vars(module)), module._buffers) == before[name]
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sixteen_bit_factors_are_multiplied_in_single_precision():
    """The update is rounded once, at the end: a half-precision Gram matrix of these factors would overflow."""
    layer = FactorizedLinear(64, 48, 4, dtype=torch.float16)
    nn.init.constant_(layer.U, 50.0)
    nn.init.constant_(layer.VT, 20.0)
    FrobeniusDecay(layer, 1e-3).add_gradients()
    expected = [1e-3 * gradient for gradient in frobgrad([layer.U.double(), layer.VT.double()])]
    for factor, gradient in zip(layer.factors(), expected):
        assert factor.grad.dtype == torch.float16
        torch.testing.assert_close(factor.grad.double(), gradient, rtol=1e-3, atol=0)


# CIFAR ResNets: depth, options of `factorize`, (tensors, scalars) with L2 and without, layers.
@pytest.mark.parametrize(
    "depth, rank_scale, square, decayed, free, layers",
    [
        (20, 0.111, False, (41, 2_458), (36, 61_392), 18),
        (20, 1.0, True, (41, 2_458), (54, 847_872), 18),
        (32, 0.111, False, (65, 3_354), (60, 104_016), 30),
        (56, 0.111, False, (113, 5_146), (108, 189_264), 54),
        (110, 0.111, False, (221, 9_178), (216, 381_072), 108),
        (20, None, False, (59, 269_722), (0, 0), 0),
    ],
)
def test_published_parameter_groups(depth, rank_scale, square, decayed, free, layers):
    with torch.device("meta"):
        model = cifar_resnet(depth)
        if rank_scale:
            factorize(model, rank_scale=rank_scale, include=["layer*"], init="kaiming", square=square)
    groups = parameter_groups(model, 1e-4)
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    sizes = [(len(group["params"]), sum(p.numel() for p in group["params"])) for group in groups]
    assert sizes == [decayed, free]
    assert len(FrobeniusDecay(model, 1e-4, strict=False).modules) == layers
    with_l2, without = parameter_groups(model, 1e-4, frobenius=False)
    assert sum(p.numel() for p in with_l2["params"]) == parameter_count(model) and without["params"] == []


def test_parameter_groups_respect_patterns_and_frozen_parameters():
    model = factorize(small_cnn(), rank_scale=0.3)
    model.norm.requires_grad_(False)
    model.head.U.requires_grad_(False)
    with_l2, without = parameter_groups(model, 0.1, exclude=["stem"])
    assert set(without["params"]) == {*factors_of(model)} - {*model.stem.factors(), model.head.U}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {*with_l2["params"], *without["params"]} == {*trainable}
    assert len(with_l2["params"]) + len(without["params"]) == len(trainable)
