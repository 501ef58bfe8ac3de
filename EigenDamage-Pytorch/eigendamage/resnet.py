"""Wide ResNets for small images: basic blocks of 64, 128 and 256 channels, projection shortcuts.

He et al. 2015 (https://arxiv.org/abs/1512.03385), section 4.2, with four times its channels. With n blocks in each of
three stages the depth is 6n + 2.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .flow import Flow, Layer, Norm, Step, Sum, plain_sum
from .stages import blocks_of, projection, shortcut_of, stage


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalization, and a shortcut, normalized by `bn3` where it is a projection."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = projection(in_planes, planes, stride)
        self.bn3 = nn.BatchNorm2d(planes) if self.downsample is not None else None
        self.sum = plain_sum

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            x = self.bn3(self.downsample(x))
        return F.relu(self.sum(out, x))

    def flow(self, name: str, reads: str) -> tuple[list[Step], str]:
        """Return the steps of the block of this name on a map, and the map that it writes."""
        inner, branch, result = (f"{name}.{part}" for part in ("conv1", "conv2", "sum"))
        steps: list[Step] = [Layer(inner, reads, inner), Norm(f"{name}.bn1", inner)]
        steps += [Layer(branch, inner, branch), Norm(f"{name}.bn2", branch)]
        shortcut, steps_there = shortcut_of(self, name, reads)
        steps += [*steps_there, *([Norm(f"{name}.bn3", shortcut)] if steps_there else [])]
        return [*steps, Sum(name, branch, shortcut, result)], result


class ResNet(nn.Module):
    """Stem, three stages of `blocks` blocks, average over the map, `linear`."""

    # The layers that the paper factorizes: every convolution of the blocks, not the stem and not the classifier.
    FACTORIZED, DENSE = ("layer*.*.conv*", "layer*.*.downsample"), ()
    FACTOR_INIT = "kaiming"

    def __init__(self, blocks: int, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.layer1 = stage(BasicBlock, blocks, 64, 64, 1)
        self.layer2 = stage(BasicBlock, blocks, 64, 128, 2)
        self.layer3 = stage(BasicBlock, blocks, 128, 256, 2)
        self.linear = nn.Linear(256, num_classes)
        self.start()

    def start(self) -> None:
        """Draw the weights of convolutions and classifier."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        x = F.relu(self.bn(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))

    def flow(self) -> Flow:
        """Return how the channels run."""
        steps: list[Step] = [Layer("conv1", "", "conv1"), Norm("bn", "conv1")]
        inner, last = blocks_of(self, "conv1")
        return (*steps, *inner, Layer("linear", last, None))
