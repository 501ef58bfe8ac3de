"""Networks and matrices that several test files use, and the measure of agreement between two tensors."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from factorized import FactorizedConv2d, FactorizedLayer, FactorizedLinear


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def matrix_with_spectrum(sigma: Tensor, m: int, n: int) -> Tensor:
    """Return a random m x n matrix with these singular values, in their precision."""
    k = len(sigma)
    P = torch.linalg.qr(torch.randn(m, k, dtype=torch.float64)).Q
    Q = torch.linalg.qr(torch.randn(n, k, dtype=torch.float64)).Q
    return ((P * sigma.double()) @ Q.mT).to(sigma.dtype)


def cifar_resnet(depth: int, num_classes: int = 10) -> nn.Sequential:
    """Return a chain with the names and parameters of the CIFAR ResNet of this depth, without its shortcuts."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                bn1=nn.BatchNorm2d(outputs),
                conv2=nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(outputs),
            )
        )

    def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        others = [block(outputs, outputs, 1) for _ in range((depth - 2) // 6 - 1)]
        return nn.Sequential(block(inputs, outputs, stride), *others)

    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            layer1=stage(16, 16, 1),
            layer2=stage(16, 32, 2),
            layer3=stage(32, 64, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(64, num_classes),
        )
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return model


def small_cnn() -> nn.Sequential:
    """Return a network of convolutions and linear layers; input (batch, 3, 8, 8). `body` holds two of equal shape."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 6, 3, padding=1),
            norm=nn.BatchNorm2d(6),
            body=nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1)),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(24, 10),
            act=nn.Tanh(),
            head=nn.Linear(10, 4),
        )
    )


def dense_and_factorized(kind: str, **options) -> tuple[nn.Module, FactorizedLayer]:
    """Return a dense `linear` or `conv` layer of unequal sides, and its factorized form built with `options`."""
    dense, factorized = {
        "linear": (nn.Linear(7, 5), FactorizedLinear),
        "conv": (nn.Conv2d(3, 5, (2, 3), stride=2, padding=1), FactorizedConv2d),
    }[kind]
    return dense, factorized.from_dense(dense, **options)


def example_input(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an input for the layers of `dense_and_factorized`."""
    return torch.randn({"linear": (4, 7), "conv": (4, 3, 6, 9)}[kind], dtype=dtype)
