"""Setting up a VGG19 with `--target-ratio 0.02 --spectral`: finding the rank scale and starting the factors.

Target: at least 20 times as fast as the straightforward way: 21 rebuilt models, then a full SVD for each layer.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from timing import describe, device, medians
from torch import nn

import factorized

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "EigenDamage-Pytorch"))
from eigendamage.networks import build, factorize  # noqa: E402  (an experiment's folder is not a package)

TARGET, REPEATS = 0.02, 3


def ours(model: nn.Module) -> None:
    """Do as the trainer does."""
    flags = {"rank_scale": 0.0, "target_ratio": TARGET, "strict": True, "spectral": True, "kaiming": False}
    factorize(model, argparse.Namespace(**flags, rank_path="auto"))


def straightforward(model: nn.Module) -> None:
    """Bisect on models that are really built, and factor every layer by a full SVD."""
    chosen = {"include": model.FACTORIZED, "exclude": model.DENSE}
    total = factorized.parameter_count(model)
    lower, upper, tried = 0.0, 1.0, []
    while upper - lower >= 1e-6:
        middle = (lower + upper) / 2
        rebuilt = factorized.factorize(
            copy.deepcopy(model), rank_scale=middle, spectral=False, init=model.FACTOR_INIT, **chosen
        )
        ratio = factorized.parameter_count(rebuilt) / total
        tried.append((abs(ratio - TARGET), len(tried), middle))
        lower, upper = (middle, upper) if ratio < TARGET else (lower, middle)
    scale = min(tried)[-1]
    for layer in [layer for layer in model.feature if isinstance(layer, nn.Conv2d)][1:]:
        rank = factorized.FactorizedConv2d.rank_of(layer, scale)
        P, sigma, QT = torch.linalg.svd(factorized.matrix_of(layer).detach(), full_matrices=False)
        root = sigma[:rank].sqrt()
        _ = P[:, :rank] * root, root[:, None] * QT[:rank]


def main() -> None:
    """Print both times and their ratio."""
    print(describe())
    torch.manual_seed(0)
    model = build("vgg", 19, 10).to(device())
    copies = iter([copy.deepcopy(model) for _ in range(REPEATS + 1)])
    candidates = {"straightforward": lambda: straightforward(model), "ours": lambda: ours(next(copies))}
    seconds = medians(candidates, repeats=REPEATS, warm_up=1)
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s")
    print(f"straightforward / ours: {seconds['straightforward'] / seconds['ours']:.1f}  (target >= 20)")


if __name__ == "__main__":
    main()
