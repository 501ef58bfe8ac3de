"""Every parameter of every layer has a start: PyTorch fills memory that nobody has set with NaN, and none is left."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import factorized
from factorized import (
    ChannelConv2d,
    ComposedConv2d,
    ComposedWeight,
    CPConv2d,
    FactorizedAttention,
    FactorizedConv1d,
    FactorizedConv2d,
    FactorizedConv3d,
    FactorizedEmbedding,
    FactorizedLayer,
    FactorizedLinear,
    FactorizedTransposedLinear,
    OutputValue,
    QueryKey,
    SeparableConv2d,
    TensorConv2d,
    TensorTrainConv2d,
    Tucker2Conv2d,
    TuckerConv2d,
    factorize,
    merge,
)
from tests.factorized.networks import small_cnn


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


# Of each class a layer made by its sizes, and a dense layer that it can stand for.
PRODUCTS = {
    FactorizedLinear: (lambda **options: FactorizedLinear(6, 5, 2, **options), lambda: nn.Linear(6, 5)),
    FactorizedTransposedLinear: (lambda **o: FactorizedTransposedLinear(6, 5, 2, **o), lambda: Conv1D(5, 6)),
    FactorizedConv1d: (lambda **options: FactorizedConv1d(6, 4, 3, 2, **options), lambda: nn.Conv1d(6, 4, 3)),
    FactorizedConv2d: (lambda **options: FactorizedConv2d(6, 4, 3, 2, **options), lambda: nn.Conv2d(6, 4, 3)),
    ChannelConv2d: (lambda **options: ChannelConv2d(6, 4, 3, 2, **options), lambda: nn.Conv2d(6, 4, 3)),
    FactorizedConv3d: (lambda **options: FactorizedConv3d(6, 4, 3, 2, **options), lambda: nn.Conv3d(6, 4, 3)),
    FactorizedEmbedding: (lambda **options: FactorizedEmbedding(9, 4, 2, **options), lambda: nn.Embedding(9, 4)),
}
TENSORS = (TensorTrainConv2d, TuckerConv2d, CPConv2d)


def assert_started(*modules: nn.Module) -> None:
    for module in modules:
        assert list(module.parameters())
        for name, tensor in module.state_dict().items():
            assert tensor.isfinite().all(), f"{name} of {module}"


def test_every_class_is_here():
    """A new class has to be added to these tests."""
    bases = {FactorizedLayer, ComposedConv2d, TensorConv2d}
    parts = {QueryKey, OutputValue}  # of attention
    public = {getattr(factorized, name) for name in factorized.__all__}
    modules = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert modules - bases - parts == {
        *PRODUCTS,
        *TENSORS,
        Tucker2Conv2d,
        SeparableConv2d,
        FactorizedAttention,
        ComposedWeight,
    }


@pytest.mark.filterwarnings("ignore:spectral initialization pads")
@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(kind, square, dtype):
    make, dense = PRODUCTS[kind]
    layer = make(square=square, dtype=dtype)
    assert_started(layer, layer.to_dense())
    for init in ("spectral", "kaiming", "fan_in", "fan_out", nn.init.ones_):
        for scale in (0.5, 1.5):  # above 1 with directions to spare
            layer = kind.from_dense(dense().to(dtype), scale, init=init, square=square)
            assert_started(layer, layer.to_dense())


@pytest.mark.filterwarnings("ignore:spectral initialization pads")
@pytest.mark.parametrize("kind", TENSORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("kernel", [1, 3])
def test_tensor_networks(kind, kernel):
    layer = kind(6, 4, kernel, 0.5)
    assert_started(layer, layer.to_dense(), kind.from_dense(nn.Conv2d(6, 4, kernel), 0.5))
    layer.spectral_()
    assert_started(layer)


@pytest.mark.parametrize("kernel", [1, 3])
def test_tucker2(kernel):
    layer = Tucker2Conv2d(6, 4, kernel, 0.5)
    assert_started(layer, layer.to_dense(), Tucker2Conv2d.from_dense(nn.Conv2d(6, 4, kernel), (2, 3)))


@pytest.mark.parametrize("square", [False, True])
def test_composed_weight(square):
    assert_started(ComposedWeight((12, 6), 2, square=square), ComposedWeight((12, 6), 2, products=3, square=square))
    for init in ("spectral", "kaiming", "fan_in", "fan_out", nn.init.ones_):
        model = factorize(nn.GRU(6, 5), rank_scale=0.5, init=init, square=square)
        assert_started(model, merge(model))


def test_attention():
    attention = FactorizedAttention(8, 2, 0.5)
    assert_started(attention)
    for products in (attention.query_key, attention.output_value):
        products.spectral_init()
    assert_started(attention)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("spectral", [False, True])
def test_whole_models(square, spectral):
    model = factorize(small_cnn(), rank_scale=0.5, square=square, spectral=spectral)
    assert_started(model)
    assert_started(merge(model))
