"""The convolution classes: their names, what they compute, and that everything in them trains."""

import pytest
import torch
import torch.nn.functional as F
from deficient.acdc import ACDCConv2d, dct
from deficient.convs import KINDS, conv_class
from deficient.hashed import HashedConv2d
from deficient.layers import LowRankPointwise, ShuffleConv2d, TiedConv2d, initialize
from torch import nn

import factorized
from factorized import ComposedConv2d
from factorized.layers.composed import ComposedConv2d as Composed

EXAMPLES = [
    "Conv",
    "Sep",
    "TensorTrain_0.5",
    "Tucker_0.5",
    "CP_0.5",
    "Generic_0.5",
    "LR_0.5",
    "Shuffle_2",
    "Hashed_0.3",
]
EXAMPLES += ["Hashed_0.3", "SepHashed_0.5", "HashedDecimate", "SepHashedDecimate", "ACDC_3", "ACDC", "OriginalACDC"]


def test_every_family_has_an_example():
    assert {example.split("_")[0] for example in EXAMPLES} == set(KINDS)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("out_channels", [16, 32])
def test_shapes_gradients_and_state(name, kernel_size, out_channels):
    if name == "SepHashedDecimate" and kernel_size == 1:
        pytest.skip("the same as any hashed 1 x 1")
    make = conv_class(name)
    torch.manual_seed(1)
    conv = make(16, out_channels, kernel_size, stride=2, padding=kernel_size // 2)
    initialize(conv)
    x = torch.randn(2, 16, 7, 7)
    y = conv(x)
    assert y.shape == (2, out_channels, 4, 4)
    y.square().sum().backward()
    for parameter_name, parameter in conv.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name
    other = make(16, out_channels, kernel_size, stride=2, padding=kernel_size // 2)
    other.load_state_dict(conv.state_dict())
    torch.testing.assert_close(other(x), y)
    if isinstance(conv, ComposedConv2d):
        torch.testing.assert_close(conv.to_dense()(x), y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Tensortrain_0.2", "did you mean TensorTrain"),
        ("Banana", "choose Conv, Sep"),
        ("", "unknown"),
        ("TensorTrain", "needs a rank scale"),
        ("TensorTrain_0.1_0.2", "more than one underscore"),
        ("TensorTrain_0", "above 0 and at most 1, not 0"),
        ("Tucker_-1", "above 0 and at most 1"),
        ("CP_1.5", "at most 1"),
        ("Tucker_nan", "rank scale must be"),
        ("Generic_inf", "rank scale must be"),
        ("LR_x", "rank scale must be"),
        ("Shuffle_0", "at least 1"),
        ("Shuffle_-3", "at least 1"),
        ("Hashed_0", "above 0"),
        ("Hashed_2", "at most 1"),
        ("ACDC_1", "at least 2"),
        ("Conv_3", "takes no hyper-parameter"),
        ("HashedDecimate_3", "takes no hyper-parameter"),
        ("Sep_", "takes no hyper-parameter"),
        ("Shuffle_", "number of groups must be"),
    ],
)
def test_names_that_are_none(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        conv_class(name)


def test_separable_and_low_rank():
    sep = conv_class("Sep")(8, 12, 3, stride=2, padding=1)
    x = torch.randn(1, 8, 6, 6)
    middle = F.conv2d(x, sep.grouped.weight, None, 2, 1, groups=8)
    torch.testing.assert_close(sep(x), F.conv2d(middle, sep.pointwise.weight))
    low = conv_class("Generic_0.26")(8, 12, 3, padding=1)
    assert low.pointwise.rank == 3  # 0.26 * 12, rounded down
    assert conv_class("Generic_0.01")(8, 12, 3).pointwise.rank == 1
    torch.testing.assert_close(
        low(x), F.conv2d(low.grouped(x), (low.pointwise.U @ low.pointwise.VT)[:, :, None, None]), rtol=1e-4, atol=1e-5
    )


def test_low_rank_starts():
    layer = LowRankPointwise(400, 600, 1, rank_scale=0.5)
    layer.fan_out_()
    assert layer.VT.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.05)
    assert layer.U.std().item() == pytest.approx((2 / 600) ** 0.5, rel=0.05)
    layer.spectral_()
    torch.testing.assert_close(layer.U.mT @ layer.U, layer.VT @ layer.VT.mT, rtol=1e-3, atol=1e-4)


def test_tied():
    layer = TiedConv2d(4, 12, 1, rank_scale=0.5, bias=True).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(4, dtype=torch.float64)
    expected = layer.shared.mT @ (layer.shared @ x.repeat(3)) + layer.bias
    torch.testing.assert_close(layer(x.view(1, 4, 1, 1)).flatten(), expected)
    assert layer.rank == 6 and layer.structured() == (layer.shared, layer.bias)


def test_shuffle():
    layer = ShuffleConv2d(12, 24, 3, padding=1, groups=4)
    assert layer.squeeze.groups == layer.expand.groups == 3  # 4 does not divide 24 // 4
    x = torch.randn(1, 12, 4, 4)
    middle = layer.squeeze(x)
    order = [(c % 2) * 3 + c // 2 for c in range(6)]  # i * 2 + j goes to j * 3 + i
    shuffled = torch.empty_like(middle)
    shuffled[:, order] = middle
    torch.testing.assert_close(layer(x), layer.expand(layer.grouped(shuffled)))


def test_hashed():
    layer = HashedConv2d(6, 4, 3, entries=5, separable=False)
    assert layer.index.dtype == torch.int32 and set(layer.index.tolist()) == set(range(5))
    torch.testing.assert_close(layer.weight, layer.table[layer.index.long()].view(4, 6, 3, 3))
    assert layer.table.abs().max() <= (6 * 9) ** -0.5
    one = HashedConv2d(6, 4, 3, entries=1, separable=False, bias=False)
    assert one.bias is None and one.weight.unique().numel() == 1
    assert conv_class("Hashed_0.1")(6, 4, 3).bias is not None
    assert conv_class("HashedDecimate")(6, 4, 3).table.numel() == 21
    assert conv_class("SepHashedDecimate")(16, 32, 3).table.numel() == 460 - 144
    assert layer.structured() == (layer.table,)
    assert len(HashedConv2d(6, 4, 3, entries=5, separable=True).structured()) == 2


def test_acdc_golden_values():
    layer = ACDCConv2d(4, 4, 1, layers=2)
    with torch.no_grad():
        layer.A.copy_(torch.tensor([[1.0, 2, 3, 4]]))
        layer.D.copy_(torch.tensor([[1.0, -1, 2, 0.5]]))
    expected = [
        [0.613252, -0.179594, -0.626969, 1.193311],
        [1.517701, -0.738571, 0.656179, 0.564691],
        [1.183293, 1.796062, 1.327526, -1.306881],
        [-3.066136, 3.800769, 3.425483, -0.160116],
    ]
    torch.testing.assert_close(layer.contract(), torch.tensor(expected), rtol=0, atol=2e-6)
    layer.original = True
    first = torch.tensor([0.359835, 0.015165, -0.515165, 1.140165])
    torch.testing.assert_close(layer.contract()[0], first, rtol=0, atol=2e-6)


def test_acdc_shapes():
    for size in (6, 1280):  # large arguments of the cosine need more digits than single precision has
        torch.testing.assert_close(dct(size).mT @ dct(size), torch.eye(size), rtol=0, atol=2e-6)
    wide = ACDCConv2d(6, 16, 1, layers=4).double()  # 6 + 2 divides 16
    square = torch.linalg.multi_dot(list(wide.matrices(wide.A, wide.D)))
    x = torch.randn(6, dtype=torch.float64)
    expected = square @ torch.cat([x, x[:2]]).repeat(2)
    torch.testing.assert_close(wide(x.view(1, 6, 1, 1)).flatten(), expected)
    narrow = ACDCConv2d(8, 4, 1, layers=2).double()
    x = torch.randn(8, dtype=torch.float64)
    expected = (narrow.matrices(narrow.A, narrow.D)[0] @ x).view(4, 2).sum(1)
    torch.testing.assert_close(narrow(x.view(1, 8, 1, 1)).flatten(), expected)
    assert ACDCConv2d(4, 4, 1, layers=12).A.shape == (11, 4)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: TiedConv2d(4, 6, 1, rank_scale=0.5), "multiple"),
        (lambda: ShuffleConv2d(4, 3, 1, groups=1), "at least 4"),
        (lambda: HashedConv2d(4, 4, 3, entries=0, separable=False), "at least one entry"),
        (lambda: ACDCConv2d(4, 4, 3, bias=True, layers=3), "no bias"),
        (lambda: ACDCConv2d(3, 5, 3, layers=3), "even"),
        (lambda: ACDCConv2d(6, 4, 3, layers=3), "divide"),
        (lambda: LowRankPointwise(4, 4, 1, rank_scale=-1.0), "rank_scale"),
    ],
)
def test_shapes_that_cannot_be(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize("name", [name for name in EXAMPLES if KINDS[name.split("_")[0]].frobenius])
def test_frobenius_decay_of_every_class(name):
    conv = conv_class(name)(8, 16, 3, padding=1)
    (layer,) = factorized.factorized_modules(conv).values()
    weight = layer.contract() if isinstance(layer, Composed) else layer.product()
    expected = torch.autograd.grad(weight.square().sum() / 2, layer.factors())
    factorized.FrobeniusDecay(conv, 0.1).add_gradients()
    for factor, gradient in zip(layer.factors(), expected):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(factor.grad, 0.1 * gradient)


def test_low_rank_pointwise_starts_as_pytorch_starts_convolutions():
    """Variance 1 / (3 fan-in), of both factors; networks that start otherwise say so."""
    layer = LowRankPointwise(200, 400, 1, rank_scale=0.5)
    assert layer.VT.var().item() == pytest.approx(1 / (3 * 200), rel=0.05)
    assert layer.U.var().item() == pytest.approx(1 / (3 * 200), rel=0.05)
