"""The networks: published parameter counts, attention taps, starts, and the same function as torchvision's."""

import pytest
import torch
import torchvision
from deficient.convs import conv_class
from deficient.darts import DARTS, FactorizedReduce
from deficient.decay import structured_parameters
from deficient.networks import Config, build, conv_for_budget, count, reference, skeleton
from deficient.substituted import MobileNetV2, WideResNet50
from deficient.wide_resnet import BLOCK_CONVS, WideResNet

from factorized import find_rank_scale, parameter_count

TEN = tuple("0123456789")
HUNDRED = tuple(map(str, range(100)))

# parameters (and structured ones) of WRN-28-10 and WRN-40-2
WIDE_RESNETS = {
    "Conv": ((36_479_194, 0), (2_243_546, 0)),
    "Sep": ((4_380_138, 0), (288_362, 0)),
    "TensorTrain_0.234": ((607_160, 248_782), (60_726, 19_660)),
    "TensorTrain_0.705": ((2_434_702, 2_076_324), (180_062, 138_996)),
    "Tucker_0.211": ((608_501, 250_123), (58_277, 17_211)),
    "Tucker_0.68": ((2_444_223, 2_085_845), (202_522, 161_456)),
    "Generic_0.1": ((1_190_634, 832_256), (88_442, 47_376)),
    "LR_0.1": ((788_458, 430_080), (65_258, 24_192)),
    "Shuffle_4": ((823_674, 540_320), (55_514, 37_632)),
    "Hashed_0.1": ((3_911_898, 3_619_584), (243_117, 222_547)),
    "HashedDecimate": ((3_911_898, 3_619_584), (243_117, 222_547)),
    "SepHashed_0.2": ((1_171_690, 813_312), (93_192, 52_126)),
    "SepHashedDecimate": ((3_911_898, 3_553_520), (243_117, 202_051)),
    "ACDC": ((555_498, 197_120), None),
}
MORE_28_10 = {
    "Hashed_0.01": 654_272, "SepHashed_0.05": 568_426, "Generic_0.03": 601_162, "Generic_0.24": 2_344_910,
    "Shuffle_1": 2_384_150, "Shuffle_3": 1_343_830, "Shuffle_7": 719_994, "Shuffle_8": 563_594, "Shuffle_16": 437_354,
    "Shuffle_32": 378_314, "TensorTrain_0.26": 664_226, "Tucker_0.25": 681_248,
}  # fmt: skip
OTHERS = {
    "WRN_50_2": {
        "Conv": 68_883_240, "Sep": 28_712_104, "Generic_0.03": 4_353_832, "Generic_0.21": 17_548_264,
        "Shuffle_7": 6_041_960, "Shuffle_1": 17_717_096, "TensorTrain_0.27": 4_341_430, "Tucker_0.25": 4_244_560,
        "Hashed_0.1": 8_836_314,
    },
    "MobileNetV2": {
        "Conv": 3_504_872, "Shuffle_4": 919_442, "Hashed_0.1": 450_541, "TensorTrain_0.234": 309_816,
        "Tucker_0.211": 310_516, "Generic_0.1": 1_666_096,
    },
}  # fmt: skip
DARTS_COUNTS = {
    "Sep": 3_349_342, "TensorTrain_0.27": 469_185, "TensorTrain_0.41": 825_341, "TensorTrain_0.59": 1_403_184,
    "Tucker_0.24": 504_613, "Tucker_0.37": 826_226, "Tucker_0.54": 1_398_503, "Generic_0.03": 488_494,
    "Generic_0.06": 783_766, "Generic_0.12": 1_398_106, "Shuffle_1": 1_415_440, "Shuffle_2": 783_640,
    "Shuffle_4": 446_680, "SepHashedDecimate": 1_821_115, "Conv": 17_569_702,
}  # fmt: skip


@pytest.mark.parametrize("conv", WIDE_RESNETS)
def test_wide_resnet_counts(conv):
    for (depth, width, more), expected in zip(((28, 10, 57_690), (40, 2, 11_610)), WIDE_RESNETS[conv]):
        if expected is None:
            continue
        model = skeleton(Config("WideResNet", TEN, conv, depth=depth, width=width))
        assert (parameter_count(model), sum(p.numel() for p in structured_parameters(model))) == expected
        if conv in ("Conv", "TensorTrain_0.234"):
            assert count(Config("WideResNet", HUNDRED, conv, depth=depth, width=width)) == expected[0] + more


@pytest.mark.parametrize("conv", MORE_28_10)
def test_more_wide_resnet_counts(conv):
    found = count(Config("WideResNet", TEN, conv, depth=28, width=10))
    assert found == pytest.approx(MORE_28_10[conv], abs=5 if MORE_28_10[conv] % 10 == 0 else 0.5)  # some were rounded


def test_other_wide_resnet_counts():
    expected = {(16, 4): 2_748_890, (40, 4): 8_949_210, (16, 1): 175_066, (10, 1): 77_850}
    assert {shape: count(Config("WideResNet", TEN, depth=shape[0], width=shape[1])) for shape in expected} == expected


@pytest.mark.parametrize(
    ("depth", "width", "ratio", "scale", "parameters"),
    [
        (28, 10, 0.01667, 0.007568359375, 610_282),
        (28, 10, 0.06667, 0.031982421875, 2_435_034),
        (40, 2, 0.06667, 0.03125, 150_266),
        pytest.param(40, 2, 0.01667, 0.0068359375, 41_306, marks=pytest.mark.filterwarnings("ignore:ratio")),
    ],
)
def test_low_rank_counts(depth, width, ratio, scale, parameters):
    config = Config("WideResNet", TEN, depth=depth, width=width)
    found = find_rank_scale(skeleton(config), ratio, include=BLOCK_CONVS)
    assert (found.rank_scale, found.parameters) == (scale, parameters)


def test_low_rank_ranks_and_scales():
    for depth, width, scale, parameters in ((28, 10, 0.1, 7_594_714), (40, 2, 0.1, 461_546), (40, 2, 0.25, 1_152_218)):
        assert count(Config("WideResNet", TEN, depth=depth, width=width, rank_scale=scale)) == parameters
    for splits in (1, 2):  # every sub-block of a stage is factorized
        assert count(Config("WideResNet", TEN, depth=16, width=1, splits=splits, rank_scale=0.1)) == 39_210


@pytest.mark.parametrize(("network", "conv"), [(network, conv) for network in OTHERS for conv in OTHERS[network]])
def test_imagenet_counts(network, conv):
    found = count(Config(network, tuple(map(str, range(1000))), conv))
    assert found == pytest.approx(OTHERS[network][conv], abs=5 if conv in ("TensorTrain_0.27", "Tucker_0.25") else 0.5)


@pytest.mark.parametrize("conv", DARTS_COUNTS)
def test_darts_counts(conv):
    with torch.device("meta"):
        assert parameter_count(DARTS(conv_class(conv), auxiliary=False)) == DARTS_COUNTS[conv]
    if conv == "Sep":
        assert count(Config("DARTS", TEN, conv)) == 3_825_768


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (Config("WRN_50_2", TEN, "LR_0.1"), "multiple"),
        (Config("DARTS", TEN, "LR_0.1"), "multiple"),
        (Config("MobileNetV2", TEN, "ACDC"), "divide"),
        (Config("WideResNet", TEN, depth=12), "6n"),
        (Config("WideResNet", TEN, depth=4), "6n"),
        (Config("WideResNet", TEN, depth=16, splits=3), "split"),
        (Config("WideResNet", TEN, depth=16, width=0.01), "no channels"),
        (Config("WideResNet", TEN, None, module="/nowhere.py"), "not a Python file"),
    ],
)
def test_networks_that_cannot_be(config, complaint):
    with pytest.raises(ValueError, match=complaint):
        count(config)


def test_count_draws_no_random_numbers():
    state = torch.get_rng_state()
    count(Config("WideResNet", TEN, "Tucker_0.2", depth=10, width=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_reference_networks():
    low = Config("WideResNet", TEN, depth=10, width=1, rank_scale=0.5)
    assert count(reference(low)) == 77_850
    assert reference(Config("DARTS", TEN, "Generic_0.1")).conv == "Sep"


@pytest.mark.parametrize("conv", ["TensorTrain_0.3", "Generic_0.4", "Shuffle_4"])
def test_budget(conv):
    shape = {"depth": 10, "width": 1}
    budget = count(Config("WideResNet", TEN, conv, **shape))
    found = conv_for_budget(Config("WideResNet", TEN, conv.split("_")[0], **shape), budget)
    assert count(Config("WideResNet", TEN, found, **shape)) == pytest.approx(budget, rel=0.02)


# What they compute


def test_wide_resnet_taps_and_starts():
    model = build(Config("WideResNet", TEN, "Conv", depth=16, width=2, splits=2))
    outputs = model(torch.randn(2, 3, 32, 32), full=True)
    assert [tuple(tap.shape[1:]) for tap in outputs.taps] == [(32, 32, 32)] * 2 + [(64, 16, 16)] * 2 + [(128, 8, 8)] * 2
    assert outputs.logits.shape == (2, 10)
    conv = model.block3[0].layer[0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.03)
    assert "block1.0.layer.0.convShortcut.weight" in model.state_dict()
    assert model.fc.bias.abs().max() == 0


def test_spectral_wide_resnets():
    tensor = build(Config("WideResNet", TEN, "TensorTrain_1.0", depth=10, width=1), spectral=True)
    weight = tensor.block3[0].layer[0].conv2.contract()
    assert weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    low = build(Config("WideResNet", TEN, depth=10, width=1, rank_scale=0.2), spectral=True)
    layer = low.block3[0].layer[0].conv2
    torch.testing.assert_close(layer.U.mT @ layer.U, layer.VT @ layer.VT.mT, rtol=1e-3, atol=1e-4)
    plain = build(Config("WideResNet", TEN, depth=10, width=1, rank_scale=0.2))
    assert plain.block3[0].layer[0].conv2.U.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("ours", "base", "size", "taps"),
    [
        (WideResNet50, torchvision.models.ResNet, 64, [16, 8, 4, 2]),
        (MobileNetV2, torchvision.models.MobileNetV2, 64, [16, 8, 4, 2]),
    ],
)
def test_the_same_function_as_torchvision(ours, base, size, taps):
    model = ours(conv_class("Conv"), 10).eval()
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        outputs = model(x, full=True)
        if base is torchvision.models.MobileNetV2:  # theirs ends in a linear layer
            theirs = torchvision.models.mobilenet_v2(num_classes=10).eval()
            state = model.state_dict()
            theirs.load_state_dict({name.replace("classifier", "classifier.1"): value for name, value in state.items()}
                                   | {"classifier.1.weight": state["classifier.weight"].flatten(1)})  # fmt: skip
            expected = theirs(x)
        else:
            expected = base._forward_impl(model, x)
    torch.testing.assert_close(outputs.logits, expected)
    assert [tap.shape[2] for tap in outputs.taps] == taps


def test_darts_auxiliary_taps_and_drop_path():
    model = DARTS(conv_class("Generic_0.03"))
    x = torch.randn(2, 3, 32, 32)
    outputs = model(x, full=True)
    assert outputs.auxiliary.shape == outputs.logits.shape == (2, 10)
    assert [tap.shape[2] for tap in outputs.taps] == [32, 16]
    outputs.logits.sum().backward()
    model.eval()
    with torch.no_grad():
        assert model(x, full=True).auxiliary is None
        expected = model(x)
        model.drop.fill_(0.9)
        torch.testing.assert_close(model(x), expected)  # nothing is dropped in evaluation
    assert "drop" not in model.state_dict()


def test_factorized_reduce_shifts_the_second_half():
    layer = FactorizedReduce(2, 4, conv_class("Conv")).eval()
    torch.nn.init.ones_(layer.conv_1.weight)
    torch.nn.init.ones_(layer.conv_2.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 2, 4, 4)
    y = layer(x) * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(y[0, 0], 2 * x[0, 0, ::2, ::2])
    torch.testing.assert_close(y[0, 2], 2 * x[0, 0, 1::2, 1::2])


def test_wide_resnet_takes_other_image_sizes():
    model = WideResNet(10, 0.5, conv_class("Conv"), 7)
    assert model(torch.randn(2, 3, 48, 40)).shape == (2, 7)
