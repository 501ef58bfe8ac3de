"""What composing the weights of tensor layers costs, and what their Frobenius decay costs, in WRN-28-10.

For each tensor setting, over its layers: forward and backward of `contract()` as a share of the layer's, at the layer's
own image size (batch 32 on a CPU, 128 on a GPU); and the decay that the backward pass adds, as a share of the same.
Targets: composing below 5 % of its layer's step in every layer; decay at most 1 % of the layers' steps together.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import describe, device, medians
from torch import Tensor, nn

from factorized import TensorConv2d
from factorized.layer import with_decay

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "deficient-efficient"))
from deficient.convs import conv_class  # noqa: E402  (an experiment's folder is not a package)

SETTINGS = ("TensorTrain_0.234", "TensorTrain_0.705", "Tucker_0.211", "Tucker_0.68")
BATCH = 128 if torch.cuda.is_available() else 32

# (in, out, image size, stride, how many in the network)
LAYERS = [
    (16, 160, 32, 1, 1), (160, 160, 32, 1, 7), (160, 320, 32, 2, 1), (320, 320, 16, 1, 7), (320, 640, 16, 2, 1),
    (640, 640, 8, 1, 7),
]  # fmt: skip


def whole(layer: TensorConv2d, x: Tensor) -> Callable[[], None]:
    """Return a function that runs the layer forward and backward."""
    gradient = torch.ones_like(layer(x))
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, gradient) and None


def composing(layer: TensorConv2d, coefficient: float = 0.0) -> Callable[[], None]:
    """Return a function that composes the weight and goes back through it, with decay if there is a coefficient."""
    gradient = torch.ones(layer.out_channels, layer.in_channels, device=device())
    return lambda: torch.autograd.grad(with_decay(layer.contract(), coefficient), layer.factors(), gradient) and None


def make(setting: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    torch.manual_seed(0)
    return conv_class(setting)(inputs, outputs, 3, stride=stride, padding=1).to(device())


def main() -> None:
    print(f"{describe()}; batch {BATCH}")
    for setting in SETTINGS:
        totals = dict.fromkeys(("layer", "compose", "decay"), 0.0)
        shares = []
        for inputs, outputs, size, stride, many in LAYERS:
            layer = make(setting, inputs, outputs, stride)
            x = torch.randn(BATCH, inputs, size, size, device=device(), requires_grad=True)
            seconds = medians(
                {"layer": whole(layer, x), "compose": composing(layer), "decay": composing(layer, 5e-4)}, repeats=9
            )
            shares.append(f"{inputs}x{outputs} {100 * seconds['compose'] / seconds['layer']:.1f} %")
            seconds["decay"] = max(0.0, seconds["decay"] - seconds["compose"])
            totals = {name: totals[name] + many * seconds[name] for name in totals}
        print(f"{setting}: composing {', '.join(shares)}")
        print(
            f"    all layers: composing {100 * totals['compose'] / totals['layer']:.1f} % (target < 5 %), "
            f"decay {100 * totals['decay'] / totals['layer']:.2f} % (target <= 1 %)"
        )


if __name__ == "__main__":
    main()
