"""How the networks start: the distributions of the study, and the norms it reports."""

import math

import pytest
import torch
from eigendamage.networks import build, factorize
from torch import nn

from factorized import factorized_modules, layer_metrics, matrix_of
from tests.eigendamage.tiny import DEPTH
from tests.harness import asked


def convs(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def assert_normal(values: torch.Tensor, std: float) -> None:
    """Check mean and standard deviation of independent normal values, to five standard errors."""
    count = values.numel()
    assert abs(values.mean()) < 5 * std / math.sqrt(count)
    assert values.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count))


@pytest.mark.parametrize("network", ["vgg", "resnet", "presnet"])
def test_dense_start(network):
    model = build(network, {"vgg": 11}.get(network, DEPTH[network]), 10)
    for conv in convs(model).values():
        fan = conv.out_channels if network == "presnet" else conv.in_channels
        assert_normal(conv.weight, math.sqrt(2 / (fan * conv.kernel_size[0] ** 2)))
    scales = {module.weight.unique().item() for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert scales == {0.5 if network == "presnet" else 1.0}


@pytest.mark.parametrize(
    ("network", "kaiming", "std"), [("vgg", False, 0.01), ("vgg", True, 0.0625), ("resnet", False, math.sqrt(2 / 256))]
)
def test_classifier_start(network, kaiming, std):
    model = build(network, {"vgg": 11}.get(network, 8), 200, kaiming)
    head = model.classifier if network == "vgg" else model.linear
    assert_normal(head.weight, std)
    assert not head.bias.any()


@pytest.mark.parametrize("network", ["vgg", "resnet", "presnet"])
@pytest.mark.parametrize("kaiming", [False, True])
@pytest.mark.parametrize("flags", [{"rank_scale": 0.1}, {"target_ratio": 0.1}])
def test_factor_start(network, kaiming, flags):
    model = build(network, {"vgg": 11}.get(network, 20), 10, kaiming)
    dense = {name.removesuffix(".0"): conv for name, conv in convs(model).items() if "downsample" in name}
    dense |= convs(model)
    model, _ = factorize(model, asked(kaiming=kaiming, **flags))
    for name, layer in factorized_modules(model).items():
        if network == "vgg" and not kaiming:
            variances = [2 / (9 * dense[name].in_channels)] * 2
        else:
            variances = [2 / layer.rank, 2 / layer.VT.shape[1]]
        for factor, variance in zip(layer.factors(), variances):
            assert_normal(factor, math.sqrt(variance))


@pytest.mark.parametrize("kaiming", [False, True])
def test_spectral_start_wins_and_keeps_the_dense_weights(kaiming):
    model = build("vgg", 11, 10, kaiming)
    matrices = {name: matrix_of(conv) for name, conv in convs(model).items()}
    model, _ = factorize(model, asked(rank_scale=0.05, spectral=True, kaiming=kaiming))
    for name, layer in factorized_modules(model).items():
        singular = torch.linalg.svdvals(matrices[name].double())
        error = torch.linalg.norm(matrices[name].double() - layer.product().double()).item()
        assert error == pytest.approx(singular[layer.rank :].square().sum().sqrt().item(), rel=1e-5)


# Mean Frobenius norm and non-orthogonality over the factorized layers, 10 classes.
PUBLISHED = {
    ("resnet", 0.1, True): (7.006, 0.0),
    ("resnet", 0.02, True): (3.190, 0.0),
    ("vgg", 0.1, True): (10.907, 0.0),
    ("vgg", 0.02, True): (5.066, 0.0),
    ("resnet", 0.1, False): (39.95, 0.208),
    ("resnet", 0.02, False): (39.78, 0.069),
    ("vgg", 0.1, False): (4.978, 0.218),
    ("vgg", 0.02, False): (2.203, 0.092),
}


SLOW = ("vgg", 0.1, True)  # its ranks are many, so the eigenvectors come from LAPACK


@pytest.mark.parametrize(
    ("network", "ratio", "spectral"), [pytest.param(*k, marks=[pytest.mark.slow] * (k == SLOW)) for k in PUBLISHED]
)
def test_published_norms(network, ratio, spectral):
    model, _ = factorize(build(network, DEPTH[network], 10), asked(target_ratio=ratio, spectral=spectral))
    found = layer_metrics(factorized_modules(model).values(), lr=0.1)
    norm, share = PUBLISHED[network, ratio, spectral]
    assert found["metric/FrobNorm"] == pytest.approx(norm, rel=1e-3 if spectral else 1.5e-2)
    assert found["metric/NonOrth"] == pytest.approx(share, abs=1e-5 if spectral else 3e-3)
