"""The spectral start of a linear layer against peft's PiSSA start of the same layer: time, memory, error left.

Both begin with the same decomposition, `U VT` of the leading `rank` directions, shared out as the roots of the singular
values, and do different things with it:

    factorized.FactorizedLinear.from_dense   the factors stand for the weight; what they leave out is gone
    peft, `pissa`                            a full SVD; the factors go to an adapter, and what they leave out stays as
                                             a frozen dense weight, `W - U VT`, so that the output does not change
    peft, `pissa_niter_16`                   the same from `torch.svd_lowrank`, a randomized decomposition

So that the work is the same, ours is timed with that residual, too. Errors are `|W - U VT| / |W|`, and by how much that
exceeds the smallest one there is. Spectra as in spectral_trained.py. Memory is the most beyond what there was, of one
turn that is not timed (of this process, so on a CPU only).

Target: no slower than either, at no larger error.
"""

import argparse
from collections.abc import Callable

import torch
from spectral_trained import matrix_of, spectra
from timing import begin, measured, medians, needed
from torch import Tensor, nn

import factorized


def dense(matrix: Tensor) -> nn.Linear:
    """Return a linear layer with this weight, not a copy of it."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(matrix)
    return layer


def ours(matrix: Tensor, rank: int, residual: bool) -> Callable[[], Tensor | None]:
    """Return a call that makes a layer of ours, and gives what it leaves out if that is to be kept."""

    def start() -> Tensor | None:
        layer = factorized.FactorizedLinear.from_dense(dense(matrix), rank=rank)
        with torch.no_grad():
            return matrix - layer.U @ layer.VT if residual else None

    return start


def peft_start(matrix: Tensor, rank: int, kind: str) -> Callable[[], Tensor]:
    """Return a call that gives what a start of peft leaves out."""
    from peft import LoraConfig, get_peft_model

    def start() -> Tensor:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights=kind)
        model = get_peft_model(nn.Sequential(dense(matrix)), config)  # which replaces the weight and leaves the tensor
        return model.base_model.model[0].base_layer.weight.detach()

    return start


def main() -> None:
    """Print time, memory and errors of every start for every spectrum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(4096, 4096, 128), metavar=("M", "N", "RANK"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, for a busy machine")
    args = parser.parse_args()
    version = needed("peft", "peft")
    clock = begin(args.cpu_time)
    m, n, rank = args.size
    print(f"peft {version}; {m} x {n} at rank {rank}, medians of {args.repeats}")
    print("| singular values | start | time (s) | of ours with residual | memory (GiB) | error | over the smallest |")
    print("|---|---|---:|---:|---:|---:|---:|")
    torch.manual_seed(0)
    for name, sigma in spectra(min(m, n), rank).items():
        matrix = matrix_of(sigma, m, n)
        best, norm = sigma[rank:].double().norm().item(), sigma.double().norm().item()
        starts: dict[str, Callable[[], Tensor | None]] = {
            "ours": ours(matrix, rank, residual=False),
            "ours, with residual": ours(matrix, rank, residual=True),
            "peft, pissa": peft_start(matrix, rank, "pissa"),
            "peft, pissa_niter_16": peft_start(matrix, rank, "pissa_niter_16"),
        }
        first = {which: measured(start, clock) for which, start in starts.items()}
        seconds = medians(starts, repeats=args.repeats, warm_up=0, clock=clock)
        for which, (residual, _, memory) in first.items():
            kept = first["ours, with residual"][0] if residual is None else residual
            error = kept.double().norm().item()
            row = f"{seconds[which]:.2f} | {seconds[which] / seconds['ours, with residual']:.2f} | {memory:.2f}"
            print(f"| {name} | {which} | {row} | {error / norm:.5f} | {error / best - 1:.1e} |", flush=True)


if __name__ == "__main__":
    main()
