"""Forward and backward pass of the library's convolutions against tltorch's factorized ones, at equal parameters.

Every row is a kernel of 3 x 3 at its own image size, with a bias, at about a tenth of the dense parameters; both sides
have the rank that comes nearest. What the two libraries compute is alike but not the same function:

    ours, tensor train, Tucker, CP    a depthwise convolution, and a 1 x 1 one whose (out, in) matrix is the network
    tltorch's                         the network is the whole kernel (out, in, 3, 3), in three or four convolutions
                                      one after the other ("factorized"; "mobilenet" for CP), or composed
                                      ("reconstructed"); the fastest of them is taken
    Tucker-2, separable               the same function on both sides: tltorch's Tucker with spatial modes left whole,
                                      and its CP with both of them in one factor, as near as it comes
    low rank                          tltorch has none; its tensor train, a chain of four convolutions, is the nearest

Each side is measured in both memory orders of images, and counts in its faster one. Target: at least 2 times as fast.
"""

import argparse
from collections.abc import Callable

import torch
from timing import begin, device, medians, needed
from torch import Tensor, nn

import factorized

SHARE = 0.1  # of the parameters of a dense kernel
BATCH = 32
ORDERS = {"usual": torch.contiguous_format, "channels-last": torch.channels_last}
LAYERS = [(64, 64, 32), (128, 128, 16), (256, 256, 8)]  # in, out, image size

Make = Callable[[float, str], nn.Module]  # from a scale and a device to a layer

# Ours by name; tltorch's factorization with its options; and which of its implementations there are.
PAIRS: dict[str, tuple[type[nn.Module], str, dict[str, str], tuple[str, ...]]] = {
    "tensor train": (factorized.TensorTrainConv2d, "tt", {}, ("factorized", "reconstructed")),
    "Tucker": (factorized.TuckerConv2d, "tucker", {}, ("factorized", "reconstructed")),
    "CP": (factorized.CPConv2d, "cp", {}, ("factorized", "mobilenet", "reconstructed")),
    "Tucker-2": (
        factorized.Tucker2Conv2d, "tucker", {"fixed_rank_modes": "spatial"}, ("factorized", "reconstructed"),
    ),
    "separable": (factorized.SeparableConv2d, "cp", {}, ("factorized", "mobilenet", "reconstructed")),
    "low rank, spatial": (factorized.FactorizedConv2d, "tt", {}, ("factorized", "reconstructed")),
    "low rank, channel": (factorized.ChannelConv2d, "tt", {}, ("factorized", "reconstructed")),
}  # fmt: skip


def ours(kind: type[nn.Module], inputs: int, outputs: int) -> Make:
    """Return what makes a layer of ours from a rank scale; from a share of the largest rank for products."""

    def make(scale: float, where: str) -> nn.Module:
        is_product = issubclass(kind, (factorized.FactorizedConv2d, factorized.ChannelConv2d))
        size = max(1, round(scale * min(inputs, outputs))) if is_product else scale
        return kind(inputs, outputs, 3, size, padding=1, device=where)

    return make


def theirs(factorization: str, implementation: str, options: dict[str, str], inputs: int, outputs: int) -> Make:
    """Return what makes a layer of tltorch from a share of the dense parameters."""
    from tltorch import FactorizedConv

    def make(share: float, where: str) -> nn.Module:
        layer = FactorizedConv(
            inputs, outputs, 3, order=2, padding=1, bias=True, rank=share, factorization=factorization,
            implementation=implementation, device=where, **options,
        )  # fmt: skip
        if where != "meta":
            layer.reset_parameters()
        return layer

    return make


def parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def nearest(make: Make, target: int) -> nn.Module:
    """Return the layer whose parameters come nearest to `target`, over scales from 1 % to 200 %."""
    scales = [step / 200 for step in range(2, 200)]
    best = min(scales, key=lambda scale: abs(parameters(make(scale, "meta")) - target))
    return make(best, str(device()))


def whole(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a function that runs the layer forward and backward, to its input and all parameters."""
    gradient = torch.ones_like(layer(x))
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, gradient)


def main() -> None:
    """Print, for every kind and layer, milliseconds of both, parameters of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=range(len(LAYERS)), help="which, from 0")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, for a busy machine")
    args = parser.parse_args()
    version = needed("tltorch", "tensorly-torch tensorly")
    clock = begin(args.cpu_time)
    print(f"tltorch {version}; batch {args.batch}; target: tltorch / ours >= 2")
    print("| layer | kind | ours (ms) | tltorch (ms) | faster orders and form | parameters | tltorch / ours |")
    print("|---|---|---:|---:|---|---:|---:|")
    for inputs, outputs, size in (LAYERS[index] for index in args.layers):
        torch.manual_seed(0)
        images = torch.randn(args.batch, inputs, size, size, device=device())
        target = round(SHARE * inputs * outputs * 9) + outputs
        for name, (kind, factorization, options, forms) in PAIRS.items():
            own = nearest(ours(kind, inputs, outputs), target)
            others = {
                form: nearest(theirs(factorization, form, options, inputs, outputs), parameters(own)) for form in forms
            }
            calls = {
                f"{side}, {order}": whole(layer, images.contiguous(memory_format=memory_format).requires_grad_())
                for side, layer in {"ours": own, **others}.items()
                for order, memory_format in ORDERS.items()
            }
            seconds = medians(calls, repeats=args.repeats, clock=clock)
            fast = {is_own: best(seconds, is_own) for is_own in (True, False)}
            times = (f"{1e3 * seconds[which]:.1f}" for which in fast.values())
            row = (
                f"{inputs} x {outputs}, {size} x {size}", name, *times,
                "; ".join(fast.values()), f"{parameters(own):,}, {parameters(next(iter(others.values()))):,}",
            )  # fmt: skip
            print(f"| {' | '.join(row)} | {seconds[fast[False]] / seconds[fast[True]]:.2f} |", flush=True)


def best(seconds: dict[str, float], is_own: bool) -> str:
    """Return the name of the fastest candidate of one side."""
    return min((name for name in seconds if name.startswith("ours") == is_own), key=seconds.__getitem__)


if __name__ == "__main__":
    main()
