"""The factorized linear layer against the dense layer of its product."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factorized import FactorizedLinear
from tests.factorized.networks import relative_error


@pytest.mark.parametrize("path", ["composed", "two_step", "auto"])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
def test_output_and_gradients_equal_those_of_the_dense_product(path, square, bias, lead):
    """`y = x (U M VT)^T + bias`; gradients by the chain rule from the dense weight's, worked out by hand."""
    layer = FactorizedLinear(7, 5, 3, bias, square=square, path=path, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    U, M, VT = layer.U.detach(), torch.eye(3).double() if layer.M is None else layer.M.detach(), layer.VT.detach()
    W = (U @ M @ VT).requires_grad_()
    x = torch.randn(*lead, 7, dtype=torch.float64, requires_grad=True)
    ours, dense = layer(x), F.linear(x, W, layer.bias)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-10)
    out_gradient = torch.randn_like(dense)
    W_gradient, x_gradient = torch.autograd.grad(dense, (W, x), out_gradient)
    torch.testing.assert_close(torch.autograd.grad(ours, x, out_gradient, retain_graph=True)[0], x_gradient)
    ours.backward(out_gradient)
    torch.testing.assert_close(layer.U.grad, W_gradient @ (M @ VT).mT)
    torch.testing.assert_close(layer.VT.grad, (U @ M).mT @ W_gradient)
    if square:
        torch.testing.assert_close(layer.M.grad, U.mT @ W_gradient @ VT.mT)
    if bias:
        torch.testing.assert_close(layer.bias.grad, out_gradient.reshape(-1, 5).sum(0))


@pytest.mark.parametrize(
    "features, rank_scale, rank",
    [
        ((5, 9), 0.5, 2),
        ((9, 7), 0.5, 4),
        ((1, 4), 0.5, 1),
        ((100, 10), 0.001, 1),
        ((10, 10), 0.26, 3),
        ((4, 6), 2.0, 8),
    ],
)
def test_rank_is_scaled_by_the_smaller_side(features, rank_scale, rank):
    """Halves go to the even number; at least 1; not capped."""
    dense = nn.Linear(*features)
    assert FactorizedLinear.rank_of(dense, rank_scale) == rank
    layer = FactorizedLinear.from_dense(dense, rank_scale, init="kaiming")
    assert layer.rank == rank and layer.U.shape == (features[1], rank) and layer.VT.shape == (rank, features[0])
    count = sum(parameter.numel() for parameter in layer.parameters())
    assert count == rank * sum(features) + features[1]


@pytest.mark.parametrize("features", [(12, 9), (9, 12)])
@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_full_rank_spectral_start_reproduces_the_layer(features, path):
    """To 1e-5 in single precision."""
    dense, x = nn.Linear(*features), torch.randn(6, features[0])
    layer = FactorizedLinear.from_dense(dense, 1.0, path=path)
    assert relative_error(layer(x), dense(x)) < 1e-5


def test_starting_values_of_a_new_layer():
    """Kaiming normal, fan-in: standard deviations `sqrt(2 / r)` and `sqrt(2 / n)`; identity; zero bias."""
    layer = FactorizedLinear(500, 400, 50, square=True)
    assert layer.U.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.03)
    assert layer.VT.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.03)
    assert torch.equal(layer.M, torch.eye(50)) and layer.bias.count_nonzero() == 0


def test_description():
    layer = FactorizedLinear(7, 5, 3, bias=False, square=True)
    assert repr(layer) == "FactorizedLinear(7, 5, U M VT, rank=3, bias=False, path=auto)"
