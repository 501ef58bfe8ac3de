"""Training step of ResNet20 (batch 128) along each execution path, against dense, in every setting.

Targets: `auto` within 5 % of the better of composed and two-step everywhere; at rank scale 0.111, like for like, at
most 0.78 of the dense step in the best setting; and the fastest setting at 0.111 at most 0.45 of the straightforward
way (eager float32 in two steps with a loop over the layers for Frobenius decay, written out in `straightforward`).

    python benchmarks/paths.py [SETTING ...]        settings: see SETTINGS; default all (compiling takes minutes)
"""

import sys

import torch
from decay import plain_loop
from resnet_step import network, step
from timing import describe, medians

import factorized

SETTINGS = {
    "eager-fp32": {},
    "eager-fp32-last": {"channels_last": True},
    "eager-bf16": {"amp": torch.bfloat16},
    "eager-bf16-last": {"amp": torch.bfloat16, "channels_last": True},
    "compiled-fp32": {"compiled": True},
    "compiled-bf16": {"compiled": True, "amp": torch.bfloat16},
    "compiled-bf16-last": {"compiled": True, "amp": torch.bfloat16, "channels_last": True},
}
SCALES = (0.037, 0.111, 0.333, 1.0)
PATHS = ("composed", "two_step", "auto")


def straightforward():
    """Return the step of the straightforward way: no choice of path, no batching, no compilation."""
    model = network(0.111, "two_step")
    layers = list(factorized.factorized_modules(model).values())
    return step(model, before_step=lambda: plain_loop(layers))


def main(names: list[str]) -> None:
    """Print a table of ratios for each setting."""
    print(describe())
    torch._dynamo.config.recompile_limit = 64  # the networks of a setting share their code
    fastest = {}
    for name in names:
        options = SETTINGS[name]
        last = options.get("channels_last", False)
        torch._dynamo.reset()
        candidates = {"straightforward": straightforward(), "dense": step(network(channels_last=last), **options)}
        for scale in SCALES:
            for path in PATHS:
                candidates[f"{scale} {path}"] = step(network(scale, path, last), decay=True, **options)
        seconds = medians(candidates, repeats=9)
        dense, plain = seconds["dense"], seconds["straightforward"]
        fastest[name] = seconds["0.111 auto"] / plain
        print(f"\n{name}: dense {1e3 * dense:.0f} ms, straightforward {1e3 * plain:.0f} ms; steps / dense step:")
        for scale in SCALES:
            composed, two_step, auto = (seconds[f"{scale} {path}"] / dense for path in PATHS)
            excess = 100 * (auto / min(composed, two_step) - 1)
            ratios = f"composed {composed:.2f}  two-step {two_step:.2f}  auto {auto:.2f}"
            print(f"  {scale:5}  {ratios} ({excess:+.0f} % of the better)")
    best = min(fastest, key=fastest.get)
    print(f"\nfastest at 0.111: {best}, {fastest[best]:.2f} of the straightforward way (target <= 0.45)")


if __name__ == "__main__":
    main(sys.argv[1:] or list(SETTINGS))
