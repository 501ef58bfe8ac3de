"""Small networks with everything that pruning can stumble over, and the same with parts masked."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from eigendamage.flow import Layer, Norm
from eigendamage.pruning.pruned import Pruned
from eigendamage.pruning.removal import maps
from torch import nn

NETWORKS = {"vgg": 11, "resnet": 14, "presnet": 20}


def pruned(network: str, seed: int = 0) -> Pruned:
    """Return a network on three classes whose normalizations do something, in evaluation mode."""
    torch.manual_seed(seed)
    found = Pruned.dense(network, NETWORKS[network], 3)
    for module in found.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    found.model.eval()
    return found


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Return images large enough for the four pools of a VGG."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def masked(model: nn.Module, units: Mapping[str, Sequence[int]], x: torch.Tensor) -> torch.Tensor:
    """Return a dense network's output with what is not in `units` set to zero, and after every normalization."""
    flow = model.flow()
    left = maps(flow, units)
    hooks = []
    for step in flow:
        kept = None
        if isinstance(step, Layer) and step.writes is not None:
            kept = units[step.name]
        elif isinstance(step, Norm):
            kept = left[step.map]
        if kept is None:
            continue

        def mask(module, inputs, output, kept=kept):
            zero = torch.zeros_like(output)
            zero[:, kept] = output[:, kept]
            return zero

        hooks.append(model.get_submodule(step.name).register_forward_hook(mask))
    try:
        with torch.no_grad():
            return model(x)
    finally:
        for hook in hooks:
            hook.remove()


class Tiny(nn.Module):
    """Two convolutions and a classifier, in double precision, small enough for explicit curvature matrices."""

    def __init__(self, stride: int = 2, padding: int = 1):
        super().__init__()
        torch.manual_seed(3)
        options = {"bias": False, "dtype": torch.float64}
        self.first = nn.Conv2d(3, 4, 3, padding=1, **options)
        self.second = nn.Conv2d(4, 5, 3, stride, padding, **options)
        self.classifier = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x):
        return self.classifier(F.relu(self.second(torch.tanh(self.first(x)))).mean((2, 3)))


def tiny_batches(sizes: Sequence[int] = (4, 4, 1)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of different sizes, the last of one example."""
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(n, 3, 6, 5, generator=generator, dtype=torch.float64), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]
