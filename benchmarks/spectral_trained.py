"""The spectral start of one matrix with a flat and with decaying spectra, against full and randomized decompositions.

Trained weights have decaying spectra: singular values as k^-1, and exp(-k / rank), stand for them. Side by side, in
turns: ours, PyTorch's full SVD, its randomized one (`torch.svd_lowrank` with 4 iterations), and ours when it may be as
far off as that one. pissa.py compares with the starts of LoRA layers that are made of these two.

Targets: at most 0.6 of the full SVD on decaying spectra up to a quarter of the rank, with an error within 1e-5 of the
smallest possible one; never slower than the exact start; within 2 times of the randomized one
at its own error.
"""

import argparse
from collections.abc import Callable

import torch
from timing import begin, medians
from torch import Tensor

from factorized import spectral_init


def spectra(count: int, rank: int) -> dict[str, Tensor]:
    """Return singular values by the name of their law; "flat" is that of a random matrix."""
    k = torch.arange(1, count + 1, dtype=torch.float)
    return {"flat": torch.linspace(2, 0, count), "k^-1": 1 / k, "exponential": torch.exp(-k / rank)}


def matrix_of(sigma: Tensor, m: int, n: int) -> Tensor:
    """Return a matrix (m, n) with these singular values and random directions."""
    P, Q = (torch.linalg.qr(torch.randn(size, len(sigma))).Q for size in (m, n))
    return (P * sigma) @ Q.mT


def main() -> None:
    """Print times, their ratios to ours, and by how much the errors exceed the smallest possible one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(4096, 4096, 128), metavar=("M", "N", "RANK"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, for a busy machine")
    args = parser.parse_args()
    clock = begin(args.cpu_time)
    m, n, rank = args.size
    torch.manual_seed(0)
    for name, sigma in spectra(min(m, n), rank).items():
        matrix = matrix_of(sigma, m, n)
        best = sigma[rank:].double().square().sum().sqrt().item()

        def excess(U: Tensor, VT: Tensor, matrix=matrix, best=best) -> float:
            return (matrix.double() - U.double() @ VT.double()).norm().item() / best - 1

        P, values, Q = torch.svd_lowrank(matrix, q=rank, niter=4)
        randomized = excess(P * values, Q.mT)
        candidates: dict[str, Callable[[], object]] = {
            "ours": lambda matrix=matrix: spectral_init(matrix, rank),
            "ours at the randomized one's error": lambda matrix=matrix, error=randomized: spectral_init(
                matrix, rank, error
            ),
            "full SVD": lambda matrix=matrix: torch.linalg.svd(matrix, full_matrices=False),
            "randomized": lambda matrix=matrix: torch.svd_lowrank(matrix, q=rank, niter=4),
        }
        seconds = medians(candidates, repeats=args.repeats, warm_up=0, clock=clock)
        ours, loose = (value for name, value in seconds.items() if name.startswith("ours"))
        print(f"{m} x {n}, rank {rank}, {name}:")
        for other, value in seconds.items():
            shares = (
                "" if other.startswith("ours") else f", ours takes {ours / value:.2f} and {loose / value:.2f} of it"
            )
            print(f"  {other}: {value:.2f} s{shares}")
        errors = {
            "ours": excess(*spectral_init(matrix, rank)),
            "ours at the randomized one's": excess(*spectral_init(matrix, rank, randomized)),
            "the randomized one": randomized,
        }
        for which, share in errors.items():
            print(f"  error of {which} over the smallest: {share:.1e}")


if __name__ == "__main__":
    main()
