"""What composing the weights of tensor layers costs, and what their Frobenius decay costs, in WRN-28-10.

For each tensor setting, over its layers, as shares of the layer's forward and backward pass at its own image size
(batch 32 on a CPU, 128 on a GPU): composing the weight, composing it and going back through that, and the decay that
the backward pass adds. On a CPU in CPU time, so that other programs do not count, and with one thread: the operations
are too small for two to keep in step. Targets: composing below 5 % in every layer; decay at most 1 % of all layers
together. Going back costs twice the composing in multiply-adds, whatever the order of contraction.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import describe, device, medians
from torch import Tensor, nn

from factorized import TensorConv2d
from factorized.layers.base import with_decay

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "deficient-efficient"))
from deficient.convs import conv_class  # noqa: E402  (an experiment's folder is not a package)

SETTINGS = ("TensorTrain_0.234", "TensorTrain_0.705", "Tucker_0.211", "Tucker_0.68")
BATCH, CLOCK = (128, time.perf_counter) if torch.cuda.is_available() else (32, time.process_time)

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


def back(layer: TensorConv2d, coefficient: float = 0.0) -> Callable[[], None]:
    """Return a function that composes the weight and goes back through it, with decay if there is a coefficient."""
    gradient = torch.ones(layer.out_channels, layer.in_channels, device=device())
    return lambda: torch.autograd.grad(with_decay(layer.contract(), coefficient), layer.factors(), gradient) and None


def make(setting: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    torch.manual_seed(0)
    return conv_class(setting)(inputs, outputs, 3, stride=stride, padding=1).to(device())


def main() -> None:
    print(f"{describe()}; batch {BATCH}, one thread")
    torch.set_num_threads(1)
    for setting in SETTINGS:
        totals = dict.fromkeys(("layer", "compose", "back", "decay"), 0.0)
        shares = []
        for inputs, outputs, size, stride, many in LAYERS:
            layer = make(setting, inputs, outputs, stride)
            x = torch.randn(BATCH, inputs, size, size, device=device(), requires_grad=True)
            seconds = medians(
                {"layer": whole(layer, x), "compose": layer.contract, "back": back(layer), "decay": back(layer, 5e-4)},
                repeats=11,
                clock=CLOCK,
            )
            one, both = (100 * seconds[name] / seconds["layer"] for name in ("compose", "back"))
            shares.append(f"{inputs}x{outputs} {one:.1f} ({both:.1f})")
            seconds["decay"] -= seconds["back"]
            totals = {name: totals[name] + many * seconds[name] for name in totals}
        print(f"{setting}: composing (and back), % of the layer: {', '.join(shares)}; target < 5")
        composing, both, decay = (100 * totals[name] / totals["layer"] for name in ("compose", "back", "decay"))
        print(
            f"    all layers: composing {composing:.1f} % (and back {both:.1f} %), decay {decay:+.2f} % (target <= 1 %)"
        )


if __name__ == "__main__":
    main()
