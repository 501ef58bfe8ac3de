"""ResNets for CIFAR-sized images (He et al. 2015, section 4.2, https://arxiv.org/abs/1512.03385).

With n blocks in each of three stages the depth is 6n + 2. Shortcuts have no parameters ("option A"): where the shape
changes they take every second pixel and pad the channels with zeros, half in front and half behind.
"""

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (20, 32, 44, 56, 110, 1202)

# The layers that the paper factorizes: both convolutions of every block, not the stem and not the classifier.
BLOCK_CONVS = ("layer*.*.conv*",)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalization, and a shortcut around them."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.padding = (planes - in_planes) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding or self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class ResNet(nn.Module):
    """Stem, three stages of `blocks` blocks with 16, 32 and 64 channels, average over the map, classifier."""

    def __init__(self, blocks: int, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(blocks, 16, 16, stride=1)
        self.layer2 = self._stage(blocks, 16, 32, stride=2)
        self.layer3 = self._stage(blocks, 32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, in_planes: int, planes: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_planes, planes, stride)
        return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))

    def block_convs(self) -> list[nn.Module]:
        """Return the convolutions of the blocks, dense or factorized, in module order."""
        return [conv for stage in (self.layer1, self.layer2, self.layer3) for b in stage for conv in (b.conv1, b.conv2)]


def build_resnet(depth: int, num_classes: int = 10) -> ResNet:
    """Return the network of this depth, one of `DEPTHS`."""
    return ResNet((depth - 2) // 6, num_classes)


resnet = build_resnet  # its name before 0.3, which programs that import this file may use
