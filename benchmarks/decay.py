"""Frobenius decay's share of a training step: ResNet20 at rank scale 0.111, batch 128, two threads.

Target: at most 0.5 % of the step. Beside it a plain loop over the layers, and automatic differentiation of the penalty.
"""

import torch
from resnet_step import network, step
from timing import describe, medians

import factorized

COEFFICIENT = 1e-4


def plain_loop(layers: list) -> None:
    """The straightforward way: gradients of one layer after the other."""
    with torch.no_grad():
        for layer in layers:
            U, VT = layer.U, layer.VT
            dU, dVT = U @ (VT @ VT.T), (U.T @ U) @ VT
            U.grad.add_(dU, alpha=COEFFICIENT)
            VT.grad.add_(dVT, alpha=COEFFICIENT)


def autograd_penalty(layers: list) -> None:
    """Multiply every weight out and differentiate its squared norm."""
    (COEFFICIENT / 2 * sum((layer.U @ layer.VT).square().sum() for layer in layers)).backward()


def main() -> None:
    print(describe())
    model = network(0.111)
    layers = list(factorized.factorized_modules(model).values())
    decay = factorized.FrobeniusDecay(model, COEFFICIENT)
    train = step(model)
    train()
    candidates = {
        "batched (FrobeniusDecay)": decay.add_gradients,
        "plain loop": lambda: plain_loop(layers),
        "autograd of the penalty": lambda: autograd_penalty(layers),
    }
    seconds = medians({"training step": train}, repeats=11) | medians(candidates, repeats=201, warm_up=20)
    whole = seconds.pop("training step")
    print(f"training step without decay: {1e3 * whole:.1f} ms")
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value:.2f} ms, {100 * value / whole:.2f} % of the step")
    ratio = seconds["plain loop"] / seconds["batched (FrobeniusDecay)"]
    print(f"plain loop / batched: {ratio:.1f}  (target: share <= 0.5 %)")


if __name__ == "__main__":
    main()
