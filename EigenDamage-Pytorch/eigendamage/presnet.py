"""Pre-activation ResNets (He et al. 2016, https://arxiv.org/abs/1603.05027), with blocks of three convolutions.

With n blocks in each of three stages the depth is 9n + 2. Batch normalization and ReLU come before each convolution;
the shortcut takes the block's input as it is.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .flow import Flow, Layer, Norm, Step, Sum, plain_sum
from .stages import blocks_of, projection, shortcut_of, stage


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions. The first block of a stage keeps the width of its input inside."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, in_planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(in_planes)
        self.conv2 = nn.Conv2d(in_planes, in_planes, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(in_planes)
        self.conv3 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.downsample = projection(in_planes, planes, stride)
        self.sum = plain_sum

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return self.sum(out, x if self.downsample is None else self.downsample(x))

    def flow(self, name: str, reads: str) -> tuple[list[Step], str]:
        """Return the steps of the block of this name on a map, and the map that it writes."""
        first, second, branch, result = (f"{name}.{part}" for part in ("conv1", "conv2", "conv3", "sum"))
        steps: list[Step] = [Norm(f"{name}.bn1", reads), Layer(first, reads, first), Norm(f"{name}.bn2", first)]
        steps += [Layer(second, first, second), Norm(f"{name}.bn3", second), Layer(branch, second, branch)]
        shortcut, steps_there = shortcut_of(self, name, reads)
        return [*steps, *steps_there, Sum(name, branch, shortcut, result)], result


class PreResNet(nn.Module):
    """Stem, three stages of `blocks` blocks of 64, 128 and 256 channels, average over the map, `fc`."""

    # The layers to factorize: every convolution of the blocks, not the stem and not the classifier.
    FACTORIZED, DENSE = ("layer*.*.conv*", "layer*.*.downsample"), ()
    FACTOR_INIT = "kaiming"

    def __init__(self, blocks: int, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.layer1 = stage(Bottleneck, blocks, 64, 64, 1)
        self.layer2 = stage(Bottleneck, blocks, 64, 128, 2)
        self.layer3 = stage(Bottleneck, blocks, 128, 256, 2)
        self.bn = nn.BatchNorm2d(256)
        self.fc = nn.Linear(256, num_classes)
        self.start()

    def start(self) -> None:
        """Draw the weights of convolutions, and let normalizations begin."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))

    def flow(self) -> Flow:
        """Return how the channels run."""
        steps, last = blocks_of(self, "conv1")
        return (Layer("conv1", "", "conv1"), *steps, Norm("bn", last), Layer("fc", last, None))
