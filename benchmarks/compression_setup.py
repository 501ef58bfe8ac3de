"""Setting up a VGG19 with `--target-ratio 0.02 --spectral`: finding the rank scale and starting the factors.

Targets: at least 20 times as fast as the straightforward way (21 rebuilt models, then a full SVD for each layer), and
truncation errors within 1e-5 of those of the full SVD.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from spectral import full_svd
from timing import describe, device, medians
from torch import nn

import factorized

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "EigenDamage-Pytorch"))
from eigendamage.networks import build, factorize  # noqa: E402  (an experiment's folder is not a package)

TARGET, REPEATS = 0.02, 3


def ours(model: nn.Module) -> list[factorized.FactorizedConv2d]:
    """Do as the trainer does; return the factorized layers."""
    flags = {"rank_scale": 0.0, "target_ratio": TARGET, "strict": True, "spectral": True, "kaiming": False}
    model, _ = factorize(model, argparse.Namespace(**flags, rank_path="auto"))
    return list(factorized.factorized_modules(model).values())


def straightforward(model: nn.Module) -> list[factorized.FactorizedConv2d]:
    """Bisect on models that are really built, and factor every layer by a full SVD; return the factorized layers."""
    chosen = {"include": model.FACTORIZED, "exclude": model.DENSE}
    total = factorized.parameter_count(model)
    lower, upper, tried = 0.0, 1.0, []
    while True:
        middle = (lower + upper) / 2
        rebuilt = factorized.factorize(
            copy.deepcopy(model), rank_scale=middle, rule="paper", init=model.FACTOR_INIT, **chosen
        )
        ratio = factorized.parameter_count(rebuilt) / total
        tried.append((abs(ratio - TARGET), len(tried), middle))
        if upper - lower < 1e-6 or abs(ratio - TARGET) < 1e-6:
            break
        lower, upper = (middle, upper) if ratio < TARGET else (lower, middle)
    scale = min(tried)[-1]
    layers = []
    for dense in dense_layers(model):
        layers.append(factorized.FactorizedConv2d.from_dense(dense, scale, init=None))
        layers[-1].set_factors(*full_svd(dense, scale))
    return layers


def dense_layers(model: nn.Module) -> list[nn.Conv2d]:
    """Return the layers of a VGG that are factorized."""
    return [layer for layer in model.feature if isinstance(layer, nn.Conv2d)][1:]


def truncation_error(layer: factorized.FactorizedConv2d, dense: nn.Conv2d) -> float:
    """Return the norm of what the factors leave out of the weight."""
    return torch.linalg.norm(dense.weight.double() - layer.weight.double()).item()


@torch.no_grad()
def main() -> None:
    """Print both times, their ratio, and the largest relative difference of the truncation errors."""
    print(describe())
    torch.manual_seed(0)
    model = build("vgg", 19, 10).to(device())
    copies = iter([copy.deepcopy(model) for _ in range(REPEATS + 1)])
    layers = {}
    candidates = {
        "straightforward": lambda: layers.update(straightforward=straightforward(model)),
        "ours": lambda: layers.update(ours=ours(next(copies))),
    }
    seconds = medians(candidates, repeats=REPEATS, warm_up=1)
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s")
    print(f"straightforward / ours: {seconds['straightforward'] / seconds['ours']:.1f}  (target >= 20)")
    errors = [
        [truncation_error(layer, dense) for layer, dense in zip(layers[name], dense_layers(model))]
        for name in ("ours", "straightforward")
    ]
    worst = max(abs(found / least - 1) for found, least in zip(*errors))
    print(f"largest relative difference of truncation errors: {worst:.1e}  (target <= 1e-5)")


if __name__ == "__main__":
    main()
