"""Wide residual networks for 32 x 32 images (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146).

With n blocks in each of three stages the depth is 6n + 4. Convolutions come before the activation, and the residual
branch is not normalized before it is added, so the start of `conv2` matters.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .convs import MakeConv
from .layers import initialize
from .outputs import Outputs

# What a low-rank network factorizes: all convolutions of the blocks, shortcuts included; not stem and classifier.
BLOCK_CONVS = ("block*.*.layer.*.conv*",)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions of a class and, where the channels change, a dense 1 x 1 shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int, conv: MakeConv):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.ReLU()
        self.conv1 = conv(in_planes, planes, 3, stride=stride, padding=1)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv2 = conv(planes, planes, 3, padding=1)
        self.convShortcut = None if in_planes == planes else nn.Conv2d(in_planes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(h)
        return shortcut + self.conv2(self.relu2(self.bn2(self.conv1(h))))


class SubBlock(nn.Module):
    """Some blocks of a stage, of which the first may change the shape."""

    def __init__(self, blocks: int, in_planes: int, planes: int, stride: int, conv: MakeConv, block: type[nn.Module]):
        super().__init__()
        shapes = [(in_planes, stride)] + [(planes, 1)] * (blocks - 1)
        self.layer = nn.Sequential(*(block(inputs, planes, s, conv) for inputs, s in shapes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """A stem, three stages of 16, 32 and 64 times `width` channels, average over the map, classifier.

    Args:
        depth: 6n + 4.
        width: may be fractional; channels are rounded down.
        splits: sub-blocks per stage, each of which ends in a tap. Must divide n.
        spectral: start layers that have one from their spectral initialization.

    Raises:
        ValueError: for a depth, width or number of splits that does not fit.
    """

    def __init__(
        self,
        depth: int,
        width: float,
        conv: MakeConv,
        num_classes: int = 10,
        *,
        splits: int = 1,
        block: type[nn.Module] = BasicBlock,
        spectral: bool = False,
    ):
        super().__init__()
        blocks = (depth - 4) // 6
        if blocks < 1 or depth != 6 * blocks + 4:
            raise ValueError(f"the depth must be 10, 16, 22, ... (6n + 4), not {depth}")
        if splits < 1 or blocks % splits:
            raise ValueError(f"{blocks} blocks per stage cannot be split into {splits} equal parts")
        planes = [16, int(16 * width), int(32 * width), int(64 * width)]
        if planes[1] < 1:
            raise ValueError(f"a width of {width:g} leaves no channels")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        for stage, (inputs, outputs) in enumerate(pairwise(planes), 1):
            first = SubBlock(blocks // splits, inputs, outputs, 1 if stage == 1 else 2, conv, block)
            others = (SubBlock(blocks // splits, outputs, outputs, 1, conv, block) for _ in range(splits - 1))
            setattr(self, f"block{stage}", nn.Sequential(first, *others))
        self.bn1 = nn.BatchNorm2d(planes[3])
        self.relu = nn.ReLU()
        self.fc = nn.Linear(planes[3], num_classes)
        initialize(self, spectral)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, full: bool = False) -> Tensor | Outputs:
        """Map images (batch, 3, height, width) to logits (batch, num_classes), or to all of `Outputs` if `full`."""
        x = self.conv1(x)
        taps = []
        for stage in (self.block1, self.block2, self.block3):
            for part in stage:
                x = part(x)
                taps.append(x)
        x = self.relu(self.bn1(x))
        logits = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return Outputs(logits, taps) if full else logits
