"""Training step (forward, backward, Frobenius decay, SGD; batch 32) of ResNet32 with 64 to 256 channels and of VGG19.

Networks at a tenth, a twentieth and a fiftieth of their parameters, against the dense network in the same setting.
Targets at a twentieth, in the best setting: at most 0.30 (ResNet32) and 0.25 (VGG19) of the dense step. The
straightforward way, two convolutions a layer and decay in a loop over the layers, is timed beside them.

    python benchmarks/compression_step.py [SETTING ...]        settings: see SETTINGS; default: those without compiling
"""

import argparse
import sys

import torch
from compression_setup import build, factorize
from decay import plain_loop
from resnet_step import step
from timing import describe, device, medians
from torch import nn

import factorized

NETWORKS = {"resnet": (32, 0.30), "vgg": (19, 0.25)}
RATIOS = (0.1, 0.05, 0.02)
SETTINGS = {
    "eager-fp32": {},
    "eager-fp32-last": {"channels_last": True},
    "compiled-fp32": {"compiled": True},
    "compiled-fp32-last": {"compiled": True, "channels_last": True},
}
BATCH, REPEATS = 32, 7


def network(name: str, ratio: float, path: str = "auto", channels_last: bool = False) -> nn.Module:
    """Return the network on the device, dense if `ratio` is 0."""
    torch.manual_seed(0)
    flags = {"rank_scale": 0.0, "target_ratio": ratio, "strict": True, "spectral": False, "kaiming": False}
    model, _ = factorize(build(name, NETWORKS[name][0], 10), argparse.Namespace(**flags, rank_path=path))
    order = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device(), memory_format=order).train()


def straightforward(name: str):
    """Return the step of the straightforward way at a twentieth: no choice of path, no batching of the decay."""
    model = network(name, 0.05, "two_step")
    layers = list(factorized.factorized_modules(model).values())
    return step(model, before_step=lambda: plain_loop(layers), batch=BATCH)


def main(settings: list[str]) -> None:
    """Print a line of ratios for each network and setting."""
    print(describe())
    torch._dynamo.config.recompile_limit = 64  # the networks of a setting share their code
    for name, (depth, target) in NETWORKS.items():
        best = float("inf")
        for setting in settings:
            options = {**SETTINGS[setting], "batch": BATCH}
            last = options.get("channels_last", False)
            torch._dynamo.reset()
            candidates = {"straightforward": straightforward(name)}
            candidates["dense"] = step(network(name, 0.0, channels_last=last), **options)
            for ratio in RATIOS:
                candidates[f"{ratio}"] = step(network(name, ratio, channels_last=last), decay=True, **options)
            seconds = medians(candidates, REPEATS)
            dense = seconds.pop("dense")
            shares = {candidate: value / dense for candidate, value in seconds.items()}
            best = min(best, shares["0.05"])
            line = "  ".join(f"{candidate} {share:.2f}" for candidate, share in shares.items())
            print(f"{name}{depth} {setting}: dense {1e3 * dense:.0f} ms; steps / dense step: {line}", flush=True)
        print(f"{name}{depth} at 0.05: {best:.2f} of the dense step (target <= {target:.2f})")


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name in SETTINGS if "compiled" not in name])
