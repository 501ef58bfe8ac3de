"""The network that DARTS found on CIFAR-10 (Liu et al. 2018, https://arxiv.org/abs/1806.09055), with any convolutions.

20 cells, of which 6 and 13 halve the map and double the channels C = 36. A cell has two inputs, the outputs of the two
cells before it, and four nodes, each the sum of two operations; its output is the nodes' concatenation.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convs import MakeConv
from .layers import initialize
from .outputs import Outputs

CHANNELS, CELLS, REDUCTIONS = 36, 20, (6, 13)

# (operation, source) of nodes 2 to 5, two for each; sources 0 and 1 are the inputs.
NORMAL = (("sep3", 0), ("sep3", 1), ("sep3", 0), ("sep3", 1), ("sep3", 1), ("skip", 0), ("skip", 0), ("dil3", 2))
REDUCTION = (("max3", 0), ("max3", 1), ("skip", 2), ("max3", 1), ("max3", 0), ("skip", 2), ("skip", 2), ("max3", 1))


class FactorizedReduce(nn.Module):
    """Halves the map: two 1 x 1 convolutions of stride 2, the second on the image shifted by a pixel."""

    def __init__(self, in_channels: int, out_channels: int, conv: MakeConv):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = conv(in_channels, out_channels // 2, 1, stride=2)
        self.conv_2 = conv(in_channels, out_channels // 2, 1, stride=2)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def _operation(name: str, channels: int, stride: int, conv: MakeConv) -> nn.Module:
    if name == "max3":
        return nn.MaxPool2d(3, stride, padding=1)
    if name == "skip":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, conv)
    if name == "dil3":
        convolution = conv(channels, channels, 3, stride=stride, padding=2, dilation=2)
        return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(channels))
    return nn.Sequential(
        nn.ReLU(), conv(channels, channels, 3, stride=stride, padding=1), nn.BatchNorm2d(channels),
        nn.ReLU(), conv(channels, channels, 3, padding=1), nn.BatchNorm2d(channels),
    )  # fmt: skip


def _preprocess(in_channels: int, channels: int, conv: MakeConv) -> nn.Module:
    return nn.Sequential(nn.ReLU(), conv(in_channels, channels, 1), nn.BatchNorm2d(channels))


class Shape(NamedTuple):
    """What the inputs and the nodes of a cell look like."""

    before_last: int
    """The channels of input 0."""
    last: int
    channels: int
    """The channels of a node."""
    reduction: bool
    after_reduction: bool
    """Whether input 0 still has the larger map."""


class Cell(nn.Module):
    """A cell; in training each operation but the identity is dropped, per image, with probability `drop`."""

    def __init__(self, shape: Shape, conv: MakeConv):
        super().__init__()
        first = FactorizedReduce if shape.after_reduction else _preprocess
        self.preprocess0 = first(shape.before_last, shape.channels, conv)
        self.preprocess1 = _preprocess(shape.last, shape.channels, conv)
        genotype = REDUCTION if shape.reduction else NORMAL
        self.sources = [source for _, source in genotype]
        strides = [2 if shape.reduction and source < 2 else 1 for source in self.sources]
        self.operations = nn.ModuleList(
            _operation(name, shape.channels, stride, conv) for (name, _), stride in zip(genotype, strides)
        )

    def forward(self, s0: Tensor, s1: Tensor, drop: Tensor) -> Tensor:
        nodes = [self.preprocess0(s0), self.preprocess1(s1)]
        done = []
        for operation, source in zip(self.operations, self.sources):
            y = operation(nodes[source])
            if self.training and not isinstance(operation, nn.Identity):
                kept = torch.rand(len(y), 1, 1, 1, device=y.device) >= drop
                y = y * kept / (1 - drop)
            done.append(y)
            if len(done) % 2 == 0:
                nodes.append(done[-2] + done[-1])
        return torch.cat(nodes[2:], dim=1)


class AuxiliaryHead(nn.Module):
    """A classifier on 8 x 8 maps, used in training only; its convolutions stay dense."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(), nn.AvgPool2d(5, stride=3, count_include_pad=False),
            nn.Conv2d(in_channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class DARTS(nn.Module):
    """The whole network, for 32 x 32 images. Taps are the inputs of the two reduction cells.

    Layers keep PyTorch's own initialization. `drop` is the probability of dropping an operation; the trainer raises it
    with the epochs. Nothing is computed twice to save memory: batch statistics are updated once a step.
    """

    def __init__(self, conv: MakeConv, num_classes: int = 10, *, auxiliary: bool = True, spectral: bool = False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(3 * CHANNELS))
        self.cells = nn.ModuleList()
        before_last = last = 3 * CHANNELS
        channels = CHANNELS
        for cell in range(CELLS):
            channels *= 2 if cell in REDUCTIONS else 1
            shape = Shape(before_last, last, channels, cell in REDUCTIONS, cell - 1 in REDUCTIONS)
            self.cells.append(Cell(shape, conv))
            before_last, last = last, 4 * channels
        self.auxiliary_head = AuxiliaryHead(4 * channels, num_classes) if auxiliary else None
        self.classifier = nn.Linear(4 * channels, num_classes)
        self.register_buffer("drop", torch.zeros(()), persistent=False)
        initialize(self, spectral, fan_out=False)

    def forward(self, x: Tensor, full: bool = False) -> Tensor | Outputs:
        """Map images (batch, 3, 32, 32) to logits (batch, num_classes), or to all of `Outputs` if `full`."""
        s0 = s1 = self.stem(x)
        taps, auxiliary = [], None
        for index, cell in enumerate(self.cells):
            if index in REDUCTIONS:
                taps.append(s1)
            s0, s1 = s1, cell(s0, s1, self.drop)
            if full and self.training and index == REDUCTIONS[1] and self.auxiliary_head is not None:
                auxiliary = self.auxiliary_head(s1)
        logits = self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1))
        return Outputs(logits, taps, auxiliary) if full else logits
