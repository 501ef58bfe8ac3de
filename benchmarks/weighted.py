"""The start of one matrix weighted by the second moment of its inputs, against a full SVD of the matrix alone.

The SVD is what the plain start would take in the straightforward way, and the weighted one would take a decomposition
of the metric besides. Spectra decay, as those of trained weights and of activations. With what each takes of memory
beyond the matrix and the metric (of this process, so on a CPU only).

Target: at least 5 times as fast.
"""

import argparse
import resource

import torch
from timing import begin
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


def peak() -> float:
    """Return the most memory that the process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print times, their ratio, memory, and the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(4096, 11008, 1024), metavar=("M", "N", "RANK"))
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, for a busy machine")
    args = parser.parse_args()
    clock = begin(args.cpu_time)
    m, n, rank = args.size
    matrix, metric = problem(m, n)
    before, start = peak(), clock()
    U, VT, error = weighted_init(matrix, rank, metric)
    weighted = clock() - start
    print(f"{m} x {n}, rank {rank}: weighted start {weighted:.1f} s, {peak() - before:.2f} GiB", flush=True)
    start = clock()
    P, sigma, QT = torch.linalg.svd(matrix, full_matrices=False)
    plain = clock() - start
    print(f"full SVD {plain:.1f} s, {peak() - before:.2f} GiB")
    print(f"full SVD / weighted start: {plain / weighted:.1f} (target >= 5)")

    def left(product: Tensor) -> float:
        missing = matrix - product
        return float((((missing @ metric) * missing).sum() / ((matrix @ metric) * matrix).sum()).sqrt())

    print(f"error under the metric: weighted {left(U @ VT):.4f} (estimated as {error:.4f}), ", end="")
    print(f"plain {left(P[:, :rank] * sigma[:rank] @ QT[:rank]):.4f}")


if __name__ == "__main__":
    main()
