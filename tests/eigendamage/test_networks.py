"""The networks against the published parameter counts, and against their definitions written out once more."""

import pytest
import torch
import torch.nn.functional as F
from eigendamage.networks import build, factorize
from torch import nn

from factorized import factorized_modules, find_rank_scale, parameter_count
from tests.eigendamage.tiny import DEPTH
from tests.harness import asked

CLASSES = {"cifar10": 10, "cinic-10": 10, "cifar100": 100, "tiny_imagenet": 200}

DENSE = {
    ("vgg", 11): (9_228_362, 9_274_532, 9_325_832),
    ("vgg", 13): (9_413_066, 9_459_236, 9_510_536),
    ("vgg", 16): (14_724_042, 14_770_212, 14_821_512),
    ("vgg", 19): (20_035_018, 20_081_188, 20_132_488),
    ("resnet", 20): (4_327_754, 4_350_884, 4_376_584),
    ("resnet", 32): (7_427_914, 7_451_044, 7_476_744),
    ("resnet", 44): (10_528_074, 10_551_204, 10_576_904),
    ("resnet", 56): (13_628_234, 13_651_364, 13_677_064),
    ("resnet", 110): (27_578_954, 27_602_084, 27_627_784),
    ("presnet", 20): (1_286_986, 1_310_116, 1_335_816),
    ("presnet", 29): (2_235_850, 2_258_980, 2_284_680),
    ("presnet", 164): (16_468_810, 16_491_940, 16_517_640),
}

# network, classes, target ratio, rank scale, parameters, ratio, rank by width ("ds": a 1 x 1 shortcut)
TARGETS = """
resnet cifar10       0.1  0.0478515625   743_370   0.100078 64:9 128:18 256:37 ds128:6 ds256:12
resnet cifar10       0.05 0.02392578125  373_194   0.050242 64:5 128:9 256:18 ds128:3 ds256:6
resnet cifar10       0.02 0.0087890625   150_090   0.020206 64:2 128:3 256:7 ds128:1 ds256:2
resnet cifar100      0.1  0.046875       751_524   0.100862 64:9 128:18 256:36 ds128:6 ds256:12
resnet cifar100      0.05 0.02197265625  370_020   0.049660 64:4 128:8 256:17 ds128:3 ds256:6
resnet cifar100      0.02 0.00732421875  154_404   0.020722 64:1 128:3 256:6 ds128:1 ds256:2
resnet tiny_imagenet 0.15 0.0693359375   1_117_448 0.149457 64:13 128:27 256:53 ds128:9 ds256:18
resnet tiny_imagenet 0.1  0.04541015625  754_760   0.100948 64:9 128:17 256:35 ds128:6 ds256:12
resnet tiny_imagenet 0.05 0.0205078125   380_360   0.050872 64:4 128:8 256:16 ds128:3 ds256:5
resnet tiny_imagenet 0.02 0.005859375    142_664   0.019081 64:1 128:2 256:4 ds128:1 ds256:2
vgg    cifar10       0.1  0.047607421875 1_996_618 0.099656 64:9 128:18 256:37 512:73
vgg    cifar10       0.05 0.023681640625 992_650   0.049546 64:5 128:9 256:18 512:36
vgg    cifar10       0.02 0.00927734375  397_642   0.019847 64:2 128:4 256:7 512:14
vgg    cifar100      0.1  0.046875       2_013_220 0.100254 64:9 128:18 256:36 512:72
vgg    cifar100      0.05 0.022705078125 1_008_868 0.050239 64:4 128:9 256:17 512:35
vgg    cifar100      0.02 0.00830078125  412_900   0.020562 64:2 128:3 256:6 512:13
vgg    tiny_imagenet 0.1  0.0458984375   2_011_144 0.099895 64:9 128:18 256:35 512:70
vgg    tiny_imagenet 0.05 0.021484375    1_005_448 0.049942 64:4 128:8 256:16 512:33
vgg    tiny_imagenet 0.02 0.007080078125 410_440   0.020387 64:1 128:3 256:5 512:11
""".strip().splitlines()  # fmt: skip

# network, classes: parameters at all ranks 1, at rank scale 1
BOUNDS = {
    ("resnet", 10): (41_034, 15_251_274),
    ("resnet", 100): (64_164, 15_274_404),
    ("resnet", 200): (89_864, 15_300_104),
    ("vgg", 10): (49_162, 41_600_458),
    ("vgg", 100): (95_332, 41_646_628),
    ("vgg", 200): (146_632, 41_697_928),
}
SCALES = {
    ("resnet", 0.111): 1_703_178,
    ("resnet", 0.333): 5_093_130,
    ("resnet", 0.037): 569_610,
    ("vgg", 0.111): 4_620_682,
    ("vgg", 0.333): 13_854_922,
    ("vgg", 0.037): 1_557_706,
}


def on_meta(network: str, classes: int = 10, depth: int | None = None) -> nn.Module:
    """Return the network without values: counting needs none."""
    with torch.device("meta"):
        return build(network, depth or DEPTH[network], classes)


@pytest.mark.parametrize(("network", "depth"), DENSE)
def test_dense_counts(network, depth):
    counts = [parameter_count(on_meta(network, classes, depth)) for classes in (10, 100, 200)]
    assert counts == list(DENSE[network, depth])


@pytest.mark.parametrize("row", TARGETS)
def test_counts_at_target_ratios(row):
    network, data, target, scale, parameters, ratio, *ranks = row.split()
    model, counts = factorize(on_meta(network, CLASSES[data]), asked(target_ratio=float(target)))
    assert counts.rank_scale == float(scale)
    assert counts.compressed == int(parameters) == parameter_count(model)
    assert counts.ratio == pytest.approx(float(ratio), abs=5e-7)
    found = {
        f"{'ds' if 'downsample' in name else ''}{layer.out_channels}:{layer.rank}"
        for name, layer in factorized_modules(model).items()
    }
    assert found == set(ranks)


@pytest.mark.parametrize(("network", "scale"), SCALES)
def test_counts_at_rank_scales(network, scale):
    _, counts = factorize(on_meta(network), asked(rank_scale=scale))
    assert counts.compressed == SCALES[network, scale]


@pytest.mark.parametrize(("network", "classes"), BOUNDS)
def test_smallest_and_largest_counts(network, classes):
    found = [factorize(on_meta(network, classes), asked(rank_scale=scale))[1].compressed for scale in (1e-6, 1.0)]
    assert found == list(BOUNDS[network, classes])


def test_count_of_vgg11():
    _, counts = factorize(on_meta("vgg", depth=11), asked(target_ratio=0.1))
    assert (counts.compressed, round(counts.ratio, 6)) == (922_634, 0.099978)


def test_search_draws_no_random_numbers():
    model = on_meta("vgg")
    state = torch.get_rng_state()
    find_rank_scale(model, 0.02, include=model.FACTORIZED, exclude=model.DENSE)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unreachable_target_warns_with_what_is_reached():
    with pytest.warns(UserWarning, match=r"unreachable.*0\.005524"):
        factorize(on_meta("resnet"), asked(target_ratio=0.001))


# Which layers


def test_factorized_layers_of_vgg19():
    model, _ = factorize(on_meta("vgg"), asked(rank_scale=0.1))
    wanted = (3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49)
    assert list(factorized_modules(model)) == [f"feature.{index}" for index in wanted]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == [f"feature.{index + 1}" for index in (0, *wanted)]


@pytest.mark.parametrize(("network", "depth", "layers"), [("resnet", 32, 32), ("presnet", 20, 20)])
def test_factorized_layers_of_residual_networks(network, depth, layers):
    model, _ = factorize(on_meta(network), asked(rank_scale=0.1))
    names = list(factorized_modules(model))
    assert len(names) == layers
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert convs == ["conv1"]
    assert [name for name in names if "downsample" in name] == ["layer2.0.downsample", "layer3.0.downsample"]
    assert "layer2.0.downsample.VT" in model.state_dict()


def test_names_of_the_dense_resnet():
    names = set(on_meta("resnet").state_dict())
    assert {"conv1.weight", "bn.weight", "linear.bias", "layer1.4.bn2.running_var", "layer2.0.bn3.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight"} <= names
    assert not any("downsample" in name or "bn3" in name for name in names if ".0." not in name)


# What they compute


def reference_resnet(weights: dict, x: torch.Tensor, blocks: int) -> torch.Tensor:
    def norm(name, x):
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = norm("bn", F.conv2d(x, weights["conv1.weight"], padding=1)).relu()
    for layer, block in [(layer, block) for layer in (1, 2, 3) for block in range(blocks)]:
        name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
        y = norm(f"{name}.bn1", F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)).relu()
        y = norm(f"{name}.bn2", F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1))
        if stride == 2:
            x = norm(f"{name}.bn3", F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=2))
        x = (x + y).relu()
    return F.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1), weights["linear.weight"], weights["linear.bias"])


def reference_presnet(weights: dict, x: torch.Tensor, blocks: int) -> torch.Tensor:
    def norm(name, x):
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts).relu()

    x = F.conv2d(x, weights["conv1.weight"], padding=1)
    for layer, block in [(layer, block) for layer in (1, 2, 3) for block in range(blocks)]:
        name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
        y = F.conv2d(norm(f"{name}.bn1", x), weights[f"{name}.conv1.weight"])
        y = F.conv2d(norm(f"{name}.bn2", y), weights[f"{name}.conv2.weight"], stride=stride, padding=1)
        y = F.conv2d(norm(f"{name}.bn3", y), weights[f"{name}.conv3.weight"])
        x = y + (F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=2) if stride == 2 else x)
    return F.linear(F.avg_pool2d(norm("bn", x), x.shape[-1]).flatten(1), weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize(
    ("network", "depth", "reference"), [("resnet", 14, reference_resnet), ("presnet", 20, reference_presnet)]
)
def test_residual_networks_compute_their_definition(network, depth, reference):
    model = build(network, depth, 10).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    model(images)  # gives the running statistics values of their own
    model.eval()
    torch.testing.assert_close(model(images), reference(model.state_dict(), images, 2))


@pytest.mark.parametrize("size", [32, 64])
def test_vgg_averages_the_last_map(size):
    model = build("vgg", 11, 10).eval()
    images = torch.randn(2, 3, size, size)
    pooled = F.avg_pool2d(model.feature(images), size // 16).flatten(1)
    torch.testing.assert_close(model(images), model.classifier(pooled))


@pytest.mark.parametrize(("network", "depth"), [("vgg", 11), ("resnet", 8), ("presnet", 11)])
@pytest.mark.parametrize("scale", [0.0, 0.05])
def test_every_parameter_gets_a_gradient(network, depth, scale, tmp_path):
    model, _ = factorize(build(network, depth, 7), asked(rank_scale=scale))
    logits = model(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.save(model.state_dict(), tmp_path / "saved")
    other, _ = factorize(build(network, depth, 7), asked(rank_scale=scale))
    other.load_state_dict(torch.load(tmp_path / "saved", weights_only=True))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(other.eval()(images), model.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "depth", "message"),
    [
        ("vgg", 12, "11, 13, 16, 19"),
        ("vgg", -1, "11"),
        ("resnet", 19, "6n"),
        ("resnet", 2, "6n"),
        ("presnet", 3, "9n"),
        ("resnet", 600_000_000_002, "6n"),
    ],
)
def test_impossible_depths(network, depth, message):
    with pytest.raises(ValueError, match=message):
        build(network, depth, 10)
