"""VGG networks without hidden fully connected layers (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556).

Every 3 x 3 convolution is followed by batch normalization and ReLU. There are four 2 x 2 max-pools, none at the end:
images of 32 pixels leave a map of 2 x 2, images of 64 pixels one of 4 x 4, which is averaged.
"""

from torch import Tensor, nn

from .flow import Flow, Layer, Norm, Step

POOL = 0
PLANS = {
    11: (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512),
    13: (64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512),
    16: (64, 64, POOL, 128, 128, POOL, *3 * (256,), POOL, *3 * (512,), POOL, *3 * (512,)),
    19: (64, 64, POOL, 128, 128, POOL, *4 * (256,), POOL, *4 * (512,), POOL, *4 * (512,)),
}


class VGG(nn.Module):
    """Convolutions in one flat sequence `feature`, average over the map, `classifier`.

    Args:
        depth: one of `PLANS`.
        kaiming: start the classifier Kaiming normal, too, not with a standard deviation of 0.01.
    """

    # The layers that the paper factorizes: every convolution but the first.
    FACTORIZED, DENSE = ("feature",), ("feature.0",)
    # How its factors start: normal with the variance of the dense kernel.
    FACTOR_INIT = "fan_in"

    def __init__(self, depth: int, num_classes: int = 10, kaiming: bool = False):
        super().__init__()
        self.feature = nn.Sequential()
        channels = 3
        for width in PLANS[depth]:
            if width == POOL:
                self.feature.append(nn.MaxPool2d(2))
            else:
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight)
                self.feature.extend([conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
                channels = width
        self.classifier = nn.Linear(channels, num_classes)
        self._start_classifier(kaiming)

    def start(self) -> None:
        """Draw the weights of convolutions and classifier, that one with a standard deviation of 0.01."""
        for module in self.feature:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self._start_classifier(False)

    def _start_classifier(self, kaiming: bool) -> None:
        if kaiming:
            nn.init.kaiming_normal_(self.classifier.weight)
        else:
            nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        return self.classifier(self.feature(x).mean((2, 3)))

    def flow(self) -> Flow:
        """Return how the channels run."""
        steps: list[Step] = []
        reads = ""
        for index, module in enumerate(self.feature):
            if isinstance(module, nn.BatchNorm2d):
                steps.append(Norm(f"feature.{index}", reads))
            elif not isinstance(module, (nn.ReLU, nn.MaxPool2d)):
                steps.append(Layer(f"feature.{index}", reads, f"feature.{index}"))
                reads = f"feature.{index}"
        return (*steps, Layer("classifier", reads, None))
