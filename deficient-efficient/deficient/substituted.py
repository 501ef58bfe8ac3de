"""WRN-50-2 and MobileNetV2 by torchvision's definitions, with the convolution class put in.

WRN-50-2 (https://arxiv.org/abs/1605.07146): the class takes the place of every convolution but the stem.
MobileNetV2 (https://arxiv.org/abs/1801.04381): of every 1 x 1 convolution, and of the classifier as one with a bias.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2 as TorchvisionMobileNetV2
from torchvision.models import ResNet
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import Bottleneck

from .convs import MakeConv
from .layers import initialize
from .outputs import Outputs

BLOCKS, WIDTH = (3, 4, 6, 3), 128  # of the four stages of a WRN-50-2; of the 3 x 3 convolutions in its first


class WideResNet50(ResNet):
    """WRN-50-2; taps after each of the four stages."""

    def __init__(self, conv: MakeConv, num_classes: int = 1000, spectral: bool = False):
        super().__init__(Bottleneck, list(BLOCKS), num_classes, width_per_group=WIDTH)
        substitute(self, conv, lambda name: name != "conv1")
        initialize(self, spectral)

    def forward(self, x: Tensor, full: bool = False) -> Tensor | Outputs:
        """Map images (batch, 3, height, width) to logits (batch, num_classes), or to all of `Outputs` if `full`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        taps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            taps.append(x)
        logits = self.fc(self.avgpool(x).flatten(1))
        return Outputs(logits, taps) if full else logits


class MobileNetV2(TorchvisionMobileNetV2):
    """MobileNetV2 of width 1 without dropout; taps after every inverted residual of stride 2."""

    def __init__(self, conv: MakeConv, num_classes: int = 1000, spectral: bool = False):
        super().__init__(num_classes, dropout=0.0)
        self.classifier = nn.Conv2d(self.last_channel, num_classes, 1)
        substitute(self, conv, lambda name: self.get_submodule(name).kernel_size == (1, 1))
        initialize(self, spectral)
        for module in self.modules():
            if isinstance(getattr(module, "bias", None), nn.Parameter):  # of a convolution of whatever class
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, full: bool = False) -> Tensor | Outputs:
        """Map images (batch, 3, height, width) to logits (batch, num_classes), or to all of `Outputs` if `full`."""
        taps = []
        for part in self.features:
            x = part(x)
            if isinstance(part, InvertedResidual) and part.stride == 2:
                taps.append(x)
        logits = self.classifier(nn.functional.adaptive_avg_pool2d(x, 1)).flatten(1)
        return Outputs(logits, taps) if full else logits


@torch.no_grad()
def substitute(model: nn.Module, conv: MakeConv, chosen: Callable[[str], bool]) -> None:
    """Replace the convolutions of `model` whose names are chosen by ones of class `conv`."""
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and chosen(name)]
    for name in convolutions:
        old = model.get_submodule(name)
        new = conv(
            old.in_channels, old.out_channels, old.kernel_size[0], stride=old.stride[0], padding=old.padding[0],
            dilation=old.dilation[0], bias=old.bias is not None,
        )  # fmt: skip
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
