"""Spectral initialization of all convolutions of a VGG19 at rank scale 0.1, against one full SVD per layer.

Targets: at least 3x faster, and the same truncation error to 1e-5 (relative to the norm of the weight).
"""

import torch
from timing import describe, device, medians
from torch import Tensor, nn
from torchvision.models import vgg19

import factorized

RANK_SCALE = 0.1


def full_svd(layer: nn.Conv2d, rank_scale: float = RANK_SCALE) -> tuple[Tensor, Tensor]:
    """Factor one layer by a full SVD."""
    rank = factorized.FactorizedConv2d.rank_of(layer, rank_scale)
    P, sigma, QT = torch.linalg.svd(factorized.matrix_of(layer).detach(), full_matrices=False)
    root = sigma[:rank].sqrt()
    return P[:, :rank] * root, root[:, None] * QT[:rank]


def main() -> None:
    """Print times, their ratio, and the largest difference of the truncation errors."""
    print(describe())
    torch.manual_seed(0)
    model = vgg19().features.to(device())
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)][1:]
    layers = [model.get_submodule(name) for name in names]
    copies = [nn.Sequential(*[vgg19().features.to(device())]) for _ in range(4)]
    for copy in copies:
        copy[0].load_state_dict(model.state_dict())
    waiting = iter(copies)

    def ours() -> None:
        factorized.factorize(next(waiting)[0], rank_scale=RANK_SCALE, rule="paper", include=names)

    candidates = {"full SVD": lambda: [full_svd(layer) for layer in layers], "factorize": ours}
    seconds = medians(candidates, repeats=3, warm_up=1)
    worst = 0.0
    for name, layer in zip(names, layers):
        weight = factorized.matrix_of(layer).detach()
        ours_error = (copies[0][0].get_submodule(name).product() - weight).norm() / weight.norm()
        U, VT = full_svd(layer)
        worst = max(worst, abs(ours_error.item() - ((U @ VT - weight).norm() / weight.norm()).item()))
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s")
    print(f"full SVD / factorize: {seconds['full SVD'] / seconds['factorize']:.1f}  (target >= 3)")
    print(f"largest difference of relative truncation errors: {worst:.1e}  (target <= 1e-5)")


if __name__ == "__main__":
    main()
