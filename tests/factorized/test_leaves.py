"""Decay of factors that are computed from parameters: pruned, normalized, reparametrized."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from factorized import FactorizedLinear, FrobeniusDecay, TensorTrainConv2d, parameter_groups

LAMBDA = 0.3


class Doubled(nn.Module):
    def forward(self, factor):
        return factor * 2 + factor.sin()


def weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older of the two ways
        nn.utils.weight_norm(layer, "VT")


WAYS = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "U", 0.3),
    "pruned twice": lambda layer: (prune.random_unstructured(layer, "U", 2), prune.random_unstructured(layer, "U", 2)),
    "both pruned": lambda layer: [prune.random_unstructured(layer, name, 0.3) for name in ("U", "VT")],
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "VT", Doubled()),
    "weight norm": weight_norm,
    "weight norm, parametrized": lambda layer: parametrizations.weight_norm(layer, "U"),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, "VT"),
    "spectral norm": lambda layer: nn.utils.spectral_norm(layer, "U"),
    "spectral norm, parametrized": lambda layer: parametrizations.spectral_norm(layer, "U"),
}


def layer_of(way: str, square: bool = False) -> FactorizedLinear:
    torch.manual_seed(1)
    layer = FactorizedLinear(7, 6, 3, square=square, dtype=torch.float64)
    if square:
        nn.init.normal_(layer.M)
    with torch.no_grad():
        layer.bias.normal_()
    WAYS[way](layer)
    return layer.eval()  # in training, spectral norms change with every look at them


def expected_gradients(layer: nn.Module) -> dict[str, torch.Tensor | None]:
    """Of `LAMBDA / 2 * |W|_F^2`, with `W` the layer's output for the identity less its bias."""
    layer.zero_grad()
    eye = torch.eye(7, dtype=torch.float64)
    (LAMBDA / 2 * (layer(eye) - layer.bias.detach()).square().sum()).backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if name != "bias"}
    layer.zero_grad()
    return gradients


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_the_parameters(way, square):
    layer = layer_of(way, square)
    expected = expected_gradients(layer)
    assert all(gradient.norm() > 1e-9 for gradient in expected.values()) or way == "orthogonal"
    decay = FrobeniusDecay(layer, LAMBDA)
    decay.add_gradients()
    for name, gradient in expected.items():
        torch.testing.assert_close(layer.get_parameter(name).grad, gradient)
    assert layer.bias.grad is None
    weight = layer(torch.eye(7, dtype=torch.float64)) - layer.bias
    torch.testing.assert_close(decay.penalty(), LAMBDA / 2 * weight.detach().square().sum())


@pytest.mark.parametrize("way", WAYS)
def test_groups_keep_l2_decay_off_the_parameters_behind(way):
    layer = layer_of(way)
    l2, free = parameter_groups(layer, 0.1)
    names = {parameter: name for name, parameter in layer.named_parameters()}
    assert [names[p] for p in l2["params"]] == ["bias"]
    assert {names[p] for p in free["params"]} == {*names.values()} - {"bias"}
    FrobeniusDecay(layer, LAMBDA).attach(torch.optim.SGD([l2, free], lr=0.1)).remove()
    with pytest.raises(ValueError, match="both Frobenius and L2"):
        FrobeniusDecay(layer, LAMBDA).attach(torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1))


@pytest.mark.parametrize("in_backward, decoupled", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("way", ["pruned", "parametrized", "weight norm"])
def test_steps_decay_the_parameters_of_that_step(way, in_backward, decoupled):
    """Not those of the forward pass before, nor of an evaluation, where what a hook computes has no graph."""
    layer, reference = layer_of(way), layer_of(way)
    layer.path = "composed"
    optimizer = torch.optim.SGD(parameter_groups(layer, 0.0), lr=0.05)
    FrobeniusDecay(layer, LAMBDA, decoupled=decoupled).attach(optimizer, in_backward)
    x = torch.randn(5, 7, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        with torch.no_grad():
            layer(x)
        optimizer.step()
        decay = None if decoupled else expected_gradients(reference)
        reference.zero_grad()
        reference(x).square().mean().backward()
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                step = parameter.grad if decoupled or name == "bias" else parameter.grad + decay[name]
                parameter -= 0.05 * step
        if decoupled:
            after = expected_gradients(reference)
            with torch.no_grad():
                for name, gradient in after.items():
                    reference.get_parameter(name).sub_(gradient, alpha=0.05)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name))


def test_frozen_parameters_behind_a_factor():
    layer = layer_of("both pruned")
    layer.U_orig.requires_grad_(False)
    expected = expected_gradients(layer)
    FrobeniusDecay(layer, LAMBDA).add_gradients()
    assert layer.U_orig.grad is None
    torch.testing.assert_close(layer.VT_orig.grad, expected["VT_orig"])
    layer.VT_orig.requires_grad_(False)
    layer.zero_grad()
    FrobeniusDecay(layer, LAMBDA).add_gradients()
    assert layer.VT_orig.grad is None


def test_a_layer_among_others_of_its_shape():
    """Which stay in one batch, and get the same as without it."""
    layers = nn.Sequential(*(FactorizedLinear(7, 6, 3, dtype=torch.float64) for _ in range(3)))
    prune.random_unstructured(layers[1], "U", 0.3)
    FrobeniusDecay(layers, LAMBDA).add_gradients()
    for layer in layers:
        torch.testing.assert_close(layer.VT.grad, (LAMBDA * layer.U.T @ layer.U @ layer.VT).detach())


def test_pruned_cores_of_a_tensor_train():
    layer = TensorTrainConv2d(8, 8, 3, rank_scale=0.5, padding=1, dtype=torch.float64)
    name = layer.names[0]
    prune.random_unstructured(layer, name, 0.3)
    parameters = [p for key, p in layer.named_parameters() if "bias" not in key and "grouped" not in key]
    expected = torch.autograd.grad(LAMBDA / 2 * layer.contract().square().sum(), parameters)
    prune.random_unstructured(layer, name, 0.0)  # what the first computed may be used once only
    FrobeniusDecay(layer, LAMBDA).add_gradients()
    for parameter, gradient in zip(parameters, expected):
        torch.testing.assert_close(parameter.grad, gradient)


def test_half_precision():
    layer = FactorizedLinear(7, 6, 3, dtype=torch.bfloat16)
    prune.random_unstructured(layer, "U", 0.3)
    U, VT = layer.U.double(), layer.VT.double()
    FrobeniusDecay(layer, LAMBDA).add_gradients()
    expected = layer.U_mask * (LAMBDA * U @ VT @ VT.T)
    torch.testing.assert_close(layer.U_orig.grad.double(), expected, rtol=2e-2, atol=1e-2)


class Once(nn.Module):
    """A factorized module whose first factor no longer follows the parameter that it was computed from."""

    def __init__(self):
        super().__init__()
        self.source, self.VT = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 3))
        self.U = self.source * 2

    def factors(self):
        return self.U, self.VT


def test_a_factor_that_was_computed_once_is_refused():
    model = nn.ModuleDict({"inner": Once()})
    for attempt in (lambda: FrobeniusDecay(model, 0.1), lambda: parameter_groups(model, 0.1)):
        with pytest.raises(ValueError, match="inner: a factor is a tensor that was computed once"):
            attempt()
