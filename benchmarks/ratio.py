"""Finding the rank scale for a target ratio by counting, against rebuilding the model at every step of the bisection.

Target: at least 1000x, ResNet56 to a tenth of its parameters (the rebuilding way: 21 deep copies, each factorized).
"""

import copy

from resnet_step import BLOCK_CONVS
from resnet_step import build_resnet as build
from timing import describe, medians
from torch import nn

import factorized

TARGET = 0.1


def by_rebuilding(model: nn.Module) -> float:
    """Bisect on models that are really built."""
    total = factorized.parameter_count(model)
    lower, upper, tried = 0.0, 1.0, []
    while True:
        middle = (lower + upper) / 2
        options = {"rule": "paper", "init": "kaiming", "include": BLOCK_CONVS}
        built = factorized.factorize(copy.deepcopy(model), rank_scale=middle, **options)
        ratio = factorized.parameter_count(built) / total
        tried.append((abs(ratio - TARGET), len(tried), middle))
        if upper - lower < 1e-6 or abs(ratio - TARGET) < 1e-6:
            return min(tried)[-1]
        lower, upper = (middle, upper) if ratio < TARGET else (lower, middle)


def main() -> None:
    """Print both times and their ratio."""
    print(describe())
    model = build(56)
    found = factorized.find_rank_scale(model, TARGET, include=BLOCK_CONVS)
    assert found.rank_scale == by_rebuilding(model), "the two ways disagree"
    seconds = medians({"rebuilding": lambda: by_rebuilding(model)}, repeats=5)
    counting = {"counting": lambda: factorized.find_rank_scale(model, TARGET, include=BLOCK_CONVS)}
    seconds |= medians(counting, repeats=101, warm_up=10)
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value:.2f} ms")
    print(f"rebuilding / counting: {seconds['rebuilding'] / seconds['counting']:.0f}  (target >= 1000)")


if __name__ == "__main__":
    main()
