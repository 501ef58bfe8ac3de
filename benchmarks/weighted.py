"""The start of one matrix weighted by the second moment of its inputs, against a full SVD of the matrix alone.

The SVD is what the plain start would take in the straightforward way, and the weighted one would take a decomposition
of the metric besides. Spectra decay, as those of trained weights and of activations. With what each takes of memory
beyond the matrix and the metric (of this process, so on a CPU only).

Target: at least 5 times as fast.
"""

import argparse

import torch
from timing import begin, measured
from torch import Tensor

from factorized.linalg.weighted import weighted_init


def problem(m: int, n: int) -> tuple[Tensor, Tensor]:
    """Return a matrix (m, n) and a metric (n, n), with spectra that decay as about k^-1/2 and k^-1."""
    torch.manual_seed(0)
    few = min(m, n) // 4
    steps = torch.arange(1, min(m, n) + 1)
    matrix = torch.randn(m, min(m, n)) * steps**-0.5 @ torch.randn(min(m, n), n)
    samples = torch.randn(n, few) * steps[:few] ** -0.5
    return matrix, samples @ samples.mT / few + 0.1 * torch.diag(torch.rand(n))


def main() -> None:
    """Print times, their ratio, memory, and the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(4096, 11008), metavar=("M", "N"))
    parser.add_argument("--ranks", type=int, nargs="+", default=(512, 1024))
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, for a busy machine")
    args = parser.parse_args()
    clock = begin(args.cpu_time)
    m, n = args.size
    matrix, metric = problem(m, n)
    sizes = f"{matrix.nbytes / 2**30:.2f} and {metric.nbytes / 2**30:.2f} GiB"
    print(f"{m} x {n}; matrix and metric have {sizes}", flush=True)

    def left(product: Tensor) -> float:
        missing = matrix - product
        return float((((missing @ metric) * missing).sum() / whole).sqrt())

    starts = {}
    for rank in args.ranks:
        starts[rank] = measured(lambda rank=rank: weighted_init(matrix, rank, metric), clock)
        print(f"weighted start at rank {rank}: {starts[rank][1]:.1f} s, {starts[rank][2]:.2f} GiB", flush=True)
    (P, sigma, QT), plain, taken = measured(lambda: torch.linalg.svd(matrix, full_matrices=False), clock)
    print(f"full SVD: {plain:.1f} s, {taken:.2f} GiB", flush=True)
    for rank, (_, seconds, _) in starts.items():
        print(f"full SVD / weighted start at rank {rank}: {plain / seconds:.1f} (target >= 5)", flush=True)
    whole = ((matrix @ metric) * matrix).sum()
    for rank, ((U, VT, error), _, _) in starts.items():
        errors = f"weighted {left(U @ VT):.4f} (estimated as {error:.4f}), plain "
        print(f"error under the metric at rank {rank}: {errors}{left(P[:, :rank] * sigma[:rank] @ QT[:rank]):.4f}")


if __name__ == "__main__":
    main()
