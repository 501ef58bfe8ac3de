"""The counter against the study's table, and its command line."""

import count
import pytest
import torch
from deficient.convs import conv_class
from deficient.counting import multiply_adds
from deficient.darts import DARTS
from deficient.networks import Config, skeleton

from lab.cli import UserError

TEN = tuple("0123456789")

WIDE_RESNETS = {
    (28, 10): {
        "Conv": 5_245_638_922, "Sep": 629_696_778, "TensorTrain_0.234": 629_696_778, "Tucker_0.68": 629_696_778,
        "SepHashed_0.2": 629_696_778, "Hashed_0.1": 5_245_638_922, "Generic_0.1": 171_206_922,
        "Shuffle_4": 117_201_162, "LR_0.1": 176_187_658,
    },
    (40, 2): {
        "Conv": 328_303_882, "Sep": 44_832_010, "Generic_0.1": 15_586_570, "Shuffle_4": 9_086_218,
        "LR_0.1": 15_734_026,
    },
    (16, 4): {"Conv": 393_087_498, "Sep": 52_619_786},
}  # fmt: skip


@pytest.mark.parametrize(("shape", "conv"), [(shape, conv) for shape in WIDE_RESNETS for conv in WIDE_RESNETS[shape]])
def test_wide_resnets(shape, conv):
    model = skeleton(Config("WideResNet", TEN, conv, depth=shape[0], width=shape[1]))
    counts = multiply_adds(model, 32)
    assert counts.total == WIDE_RESNETS[shape][conv]
    assert (counts.composing > 0) == conv.startswith(("TensorTrain", "Tucker", "LR"))
    assert counts.unknown == []


@pytest.mark.parametrize(
    ("network", "conv", "expected"),
    [
        ("WRN_50_2", "Conv", 11_412_824_040),
        ("WRN_50_2", "Sep", 4.86099e9),
        ("MobileNetV2", "Conv", 300_774_272),
        ("MobileNetV2", "Shuffle_4", 1.05372e8),
    ],
)
def test_imagenet(network, conv, expected):
    counts = multiply_adds(skeleton(Config(network, tuple(map(str, range(1000))), conv)), 224)
    assert counts.total == expected if isinstance(expected, int) else counts.total == pytest.approx(expected, rel=1e-5)


def test_darts():
    with torch.device("meta"):
        assert multiply_adds(DARTS(conv_class("Sep"), auxiliary=False), 32).total == 537_399_946


def test_acdc_counts_fast_transforms():
    with torch.device("meta"):
        counts = multiply_adds(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), conv_class("ACDC_3")(8, 8, 3)), 4)
    assert counts.total == 16 * 24 + 4 * (9 * 8 + 2 * (4 * 8 + 5 * 8 * 3))


def test_command_line(capsys):
    count.main(["cifar10", "--wrn_depth", "28", "--wrn_width", "10", "--conv", "TensorTrain_0.234"])
    assert capsys.readouterr().out.startswith("Mult-Adds: 6.29697E+08\nParams: 6.07160E+05\n")
    count.main(["cifar10", "--wrn_depth", "28", "--wrn_width", "10", "--conv", "Conv", "--target-ratio", "0.06667"])
    assert "Params: 2.43503E+06" in capsys.readouterr().out
    count.main(["cifar10", "--network", "DARTS", "--conv", "Sep"])
    assert capsys.readouterr().out.startswith("Mult-Adds: 5.37400E+08\nParams: 3.34934E+06\n")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "give --conv"),
        (["--conv", "Banana"], "unknown"),
        (["--conv", "Sep", "--rank-scale", "0.1"], "--conv Conv"),
        (["--conv", "Sep", "--wrn_depth", "11"], "6n"),
        (["--conv", "Sep", "--network", "VGG"], "invalid choice"),
    ],
)
def test_mistakes(flags, complaint):
    with pytest.raises(UserError, match=complaint):
        count.main(["cifar10", *flags])
