"""The weight of a factorized layer as others see it: read, assigned, traced, exported and pickled."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor

from factorized import (
    FactorizedConv2d,
    FactorizedEmbedding,
    FactorizedLinear,
    FrobeniusDecay,
    TensorTrainConv2d,
    batch_spectral_init,
    factorize,
    factorized_modules,
    merge,
    parameter_groups,
    spectral_init,
)

paths = pytest.mark.parametrize("path", ["auto", "composed", "two_step"])


def layers(path: str = "auto") -> list[nn.Module]:
    return [
        FactorizedLinear(7, 5, 2, path=path),
        FactorizedLinear(7, 5, 2, path=path, square=True),
        FactorizedConv2d(4, 6, 3, 2, padding=1, path=path),
    ]


def inputs(layer: nn.Module) -> torch.Tensor:
    return torch.randn(3, 7) if isinstance(layer, FactorizedLinear) else torch.randn(3, 4, 8, 8)


@pytest.mark.parametrize(
    "layer",
    [
        *layers(),
        FactorizedConv2d(4, 6, (2, 3), 3, groups=2),
        TensorTrainConv2d(6, 4, 3, 0.5),
        FactorizedEmbedding(9, 4, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_reading_the_weight(layer):
    """It is the dense layer's, and its gradient reaches the factors."""
    weight, dense = layer.weight, layer.to_dense()
    torch.testing.assert_close(weight, dense.weight)
    assert (layer.weight.dtype, layer.weight.device) == (dense.weight.dtype, dense.weight.device)
    weight.square().sum().backward()
    assert all(factor.grad.norm() > 0 for factor in layer.factors())
    assert "weight" not in layer.state_dict()


def test_a_batch_norm_is_folded_into_it():
    """Folding assigns a weight of the same rank to a copy of the layer."""
    model = factorize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), rank_scale=0.3).eval()
    model[1].running_mean.uniform_()
    model[1].running_var.uniform_(1, 2)
    x = torch.randn(2, 3, 6, 6)
    fused = fuse_conv_bn_eval(model[0], model[1])
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_assigning_a_weight():
    layer, dense = FactorizedLinear(7, 5, 2, square=True), torch.randn(5, 7)
    low = torch.randn(5, 2) @ torch.randn(2, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.weight = nn.Parameter(low)
    torch.testing.assert_close(layer.weight, low)
    with pytest.raises(ValueError, match="has at most rank 2, and the one assigned has more: .*to_dense"):
        layer.weight = dense
    torch.testing.assert_close(layer.weight, low)
    with pytest.raises(ValueError, match=r"the shape \(5, 7\), not \(7, 5\)"):
        layer.weight = dense.T
    with pytest.raises(TypeError, match="is a tensor, not None"):
        layer.weight = None
    with pytest.raises(AttributeError, match="composed of its factors and cannot be assigned"):
        other = TensorTrainConv2d(6, 4, 3, 0.5)
        other.weight = other.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_assigning_a_rounded_weight(dtype):
    layer = FactorizedLinear(20, 30, 4, dtype=dtype)
    low = (torch.randn(30, 4, dtype=torch.float64) @ torch.randn(4, 20, dtype=torch.float64)).to(dtype)
    layer.weight = nn.Parameter(low)
    rtol = {torch.float64: 1e-9}.get(dtype, 0.02)
    assert torch.linalg.norm(layer.weight.double() - low.double()) < rtol * torch.linalg.norm(low.double())
    with pytest.raises(ValueError, match="has at most rank 4"):
        layer.weight = low + torch.randn(30, 20).to(dtype)


def test_decay_in_the_backward_pass_acts_on_a_weight_that_is_read():
    """A loss without gradient leaves the decay alone, whose gradient is that of the penalty."""
    layer = FactorizedLinear(7, 5, 2, path="composed")
    optimizer = torch.optim.SGD(parameter_groups(layer, 0.0), lr=1.0)
    penalty = 0.1 / 2 * (layer.U @ layer.VT).square().sum()
    expected = [
        factor - gradient for factor, gradient in zip(layer.factors(), torch.autograd.grad(penalty, layer.factors()))
    ]
    FrobeniusDecay(layer, 0.1).attach(optimizer, in_backward=True)
    (layer.weight * 0).sum().backward()
    optimizer.step()
    for factor, wanted in zip(layer.factors(), expected):
        torch.testing.assert_close(factor, wanted)


@paths
def test_symbolic_tracing(path):
    for layer in layers(path):
        x = inputs(layer)
        torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))
    table = FactorizedEmbedding(9, 4, 2, path=path)
    tokens = torch.tensor([[1, 8], [0, 3]])
    torch.testing.assert_close(torch.fx.symbolic_trace(table)(tokens), table(tokens))


@paths
def test_a_symbolic_trace_keeps_layers_whole(path):
    """Its layers are those of the model, so that decay finds them and merging ends them."""
    model = factorize(
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)), rank_scale=0.3, path=path
    ).append(nn.Linear(5, 2))
    model.insert(1, TensorTrainConv2d(6, 6, 3, 0.5, padding=1))
    x = torch.randn(3, 4, 6, 6)
    traced = torch.fx.symbolic_trace(model)
    assert list(factorized_modules(traced)) == list(factorized_modules(model)) == ["0", "1", "4"]
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == list("012345")
    torch.testing.assert_close(traced(x), model(x))
    optimizer = torch.optim.SGD(parameter_groups(traced, 0.0), lr=0.1)
    FrobeniusDecay(traced, 0.1).attach(optimizer)
    torch.testing.assert_close(merge(traced)(x), model(x), rtol=1e-4, atol=1e-5)
    features = create_feature_extractor(model.eval(), {"3": "flat"})
    torch.testing.assert_close(features(x)["flat"], model[:4](x))


def test_jit_tracing():
    """The path is that of the example, the function holds for every size."""
    for layer in layers():
        x = inputs(layer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the choice of the path, and of `torch.jit` itself
            traced = torch.jit.trace(layer.eval(), x)
        more = torch.cat([x] * 50)
        torch.testing.assert_close(traced(more), layer(more), rtol=1e-4, atol=1e-5)


@paths
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch(path, strict):
    for layer in layers(path):
        x = inputs(layer)
        program = export(layer.eval(), (x,), dynamic_shapes=({0: Dim("batch")},), strict=strict).module()
        for batch in (x, x[:1].expand(300, *x.shape[1:])):
            torch.testing.assert_close(program(batch), layer(batch), rtol=1e-4, atol=1e-5)


def test_the_path_of_an_exported_program_is_that_of_the_example():
    layer = FactorizedLinear(256, 256, 200)
    for rows, composed in ((2, False), (4096, True)):
        program = export(layer, (torch.randn(rows, 256),), dynamic_shapes=({0: Dim("batch")},), strict=False)
        products = [node for node in program.graph.nodes if "linear" in str(node.target)]
        assert (len(products) == 1) == composed


def test_whole_modules_are_saved_and_copied():
    model = nn.Sequential(
        FactorizedConv2d(4, 6, 3, 2, memory_format=torch.channels_last), TensorTrainConv2d(6, 4, 3, 0.5)
    )
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=1.0)
    FrobeniusDecay(model, 0.1).attach(optimizer, in_backward=True)
    torch.save(model, io.BytesIO())
    x = torch.randn(1, 4, 8, 8)
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(x), model(x))
    assert other[0].memory_format == torch.channels_last
    assert all(layer.kernel_decay is None for layer in other)


@pytest.mark.parametrize("rank_of_weight", [0, 2])
@pytest.mark.parametrize("square", [False, True])
def test_directions_without_a_singular_value_can_learn(rank_of_weight, square):
    """The product is the weight, and from its zero directions gradients still reach `U`."""
    dense = nn.Linear(9, 6)
    weight = torch.randn(6, rank_of_weight) @ torch.randn(rank_of_weight, 9)
    with torch.no_grad():
        dense.weight.copy_(weight)
    layer = FactorizedLinear.from_dense(dense, rank=4, square=square)
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-5)
    zero = layer.VT[rank_of_weight:].detach()
    torch.testing.assert_close(zero @ zero.T, torch.eye(4 - rank_of_weight))
    torch.testing.assert_close(
        layer.VT[:rank_of_weight] @ zero.T, torch.zeros(rank_of_weight, 4 - rank_of_weight), rtol=0, atol=1e-5
    )
    assert layer.U[:, rank_of_weight:].norm() < 1e-5
    (layer(torch.randn(20, 9)) - 1).square().sum().backward()
    assert (layer.U.grad.norm(dim=0) > 1e-3).all()


def test_a_batch_may_hold_a_zero_matrix():
    batch = torch.randn(3, 8, 5)
    batch[1] = 0
    U, VT = spectral_init(batch, 3)
    error = torch.linalg.matrix_norm(U @ VT - batch)
    best = torch.linalg.svdvals(batch)[:, 3:].square().sum(1).sqrt()
    torch.testing.assert_close(error, best, rtol=1e-4, atol=1e-6)
    assert U[1].count_nonzero() == 0
    torch.testing.assert_close(VT[1] @ VT[1].mT, torch.eye(3))


def test_balancing_leaves_zero_products_able_to_learn():
    U, VT = torch.zeros(2, 8, 3), torch.randn(2, 3, 8)
    batch_spectral_init(U, VT)
    assert U.count_nonzero() == 0
    torch.testing.assert_close(VT @ VT.mT, torch.eye(3).expand(2, 3, 3), rtol=0, atol=1e-5)


class Tripled(nn.Module):
    def forward(self, x):
        return 3 * x


def test_all_factors_may_be_reparametrized():
    layer = FactorizedLinear(7, 5, 2, bias=False)
    weight, x = layer.weight.detach(), torch.randn(3, 7)
    for name in ("U", "VT"):
        parametrize.register_parametrization(layer, name, Tripled())
    torch.testing.assert_close(layer.weight, 9 * weight)
    torch.testing.assert_close(layer(x), 9 * x @ weight.T, rtol=1e-4, atol=1e-5)


class Quantized(torch.Tensor):
    """A tensor whose entries are not what they seem, as those of quantization libraries."""


def test_weights_of_other_kinds_are_left_alone():
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(torch.randn(4, 6).as_subclass(Quantized))
    assert "is a Quantized" in FactorizedLinear.obstacle(layer)
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        layer = nn.Linear(6, 4)
        layer.weight = nn.Parameter(torch.randn(4, 6).to(dtype), requires_grad=False)
        assert f"of {str(dtype)[6:]}" in FactorizedLinear.obstacle(layer)
        assert type(factorize(nn.Sequential(layer, nn.Linear(4, 4)), rank_scale=0.5)[0]) is nn.Linear
    lazy = nn.LazyConv2d(4, 3)
    assert "run one batch" in FactorizedConv2d.obstacle(lazy) and "run one batch" in TensorTrainConv2d.obstacle(lazy)


@pytest.mark.parametrize("make", [FactorizedConv2d.from_dense, TensorTrainConv2d.from_dense])
def test_arguments_that_cannot_be_meant(make):
    layer = nn.Conv2d(4, 6, 3)
    with pytest.raises(TypeError, match="for a rank of 4 give rank=4, for a scale 4.0"):
        make(layer, 4)
    with pytest.raises(TypeError, match="rank_scale must be a positive number, not '0.5'"):
        make(layer, "0.5")
    with pytest.raises(ValueError, match="rank_scale must be a positive number, not nan"):
        make(layer, float("nan"))
    with pytest.raises(ValueError, match="on the meta device, where weights have no values"):
        make(nn.Conv2d(4, 6, 3, device="meta"), 0.5)


@pytest.mark.parametrize("square", [False, True])
def test_a_zero_layer_learns_whichever_inputs_are_alive(square):
    """Its start reads all inputs: any one that is alive moves every direction."""
    dense = nn.Linear(9, 6)
    nn.init.zeros_(dense.weight)
    layer = FactorizedLinear.from_dense(dense, rank=3, square=square)
    for alive in range(9):
        layer.zero_grad()
        (layer(torch.eye(9)[alive]) - 1).square().sum().backward()
        assert (layer.U.grad.norm(dim=0) > 1e-3).all()
    U, VT = torch.randn(2, 8, 3), torch.zeros(2, 3, 8)
    batch_spectral_init(U, VT)
    assert U.count_nonzero() == 0 and VT.count_nonzero() == VT.numel()
    torch.testing.assert_close(VT @ VT.mT, torch.eye(3).expand(2, 3, 3), rtol=0, atol=1e-5)


def test_a_start_without_singular_values_costs_no_random_numbers():
    state = torch.get_rng_state()
    first, second = (spectral_init(torch.zeros(6, 9), 3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first[1], second[1])
