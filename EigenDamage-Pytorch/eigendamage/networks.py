"""The networks by name and depth, dense or factorized."""

import torch
from torch import nn

from factorized import Tucker2Conv2d
from lab import flags

from .presnet import PreResNet
from .resnet import ResNet
from .stages import unwrap_projections
from .vgg import PLANS, VGG

# Residual networks by name, with the convolutions that a block in each of the three stages adds to the depth.
_RESIDUAL = {"resnet": (ResNet, 6), "presnet": (PreResNet, 9)}
NETWORKS = ("vgg", *_RESIDUAL)


def check_depth(network: str, depth: int) -> None:
    """Raise ValueError for a depth that the network cannot have, or that no memory holds."""
    if network == "vgg":
        if depth not in PLANS:
            raise ValueError(f"a vgg has a depth of {', '.join(map(str, PLANS))}, not {depth}")
        return
    convs = _RESIDUAL[network][1]
    if not convs + 2 <= depth <= 10_000 or (depth - 2) % convs:
        examples = ", ".join(str(convs * n + 2) for n in (2, 3, 5, 18))
        raise ValueError(f"a {network} has a depth of {convs}n + 2 ({examples}, ...), not {depth}")


def build(network: str, depth: int, num_classes: int, kaiming: bool = False) -> nn.Module:
    """Return a dense network.

    Args:
        network: one of `NETWORKS`.
        kaiming: start the classifier of a VGG Kaiming normal; the other networks know one start only.

    Raises:
        ValueError: as `check_depth`.
    """
    check_depth(network, depth)
    if network == "vgg":
        return VGG(depth, num_classes, kaiming)
    kind, convs = _RESIDUAL[network]
    return kind((depth - 2) // convs, num_classes)


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Let a network of `build`, pruned perhaps, begin anew: draw its weights as if it had been built so.

    Args:
        generator: on the CPU; what is drawn follows from it alone.
    """
    devices = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.Linear, Tucker2Conv2d)):
                module.reset_parameters()
        model.start()


def factorize(model: nn.Module, args: flags.Factorized) -> tuple[nn.Module, flags.Factorization]:
    """Factorize a network of `build` as the flags (`lab.flags` and `kaiming`) ask; return it and its counts.

    Raises:
        ValueError: as `flags.apply`.
    """
    init = "kaiming" if args.kaiming else model.FACTOR_INIT
    model, counts = flags.apply(model, args, include=model.FACTORIZED, exclude=model.DENSE, init=init)
    unwrap_projections(model)
    return model, counts
