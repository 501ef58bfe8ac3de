"""Norms and diagnostics of factorized and dense layers (section 3 and appendix of Khodak et al. 2021).

Every function takes matrices or batches of them; a dense convolution enters through `FactorizedConv2d.matrix_of`, so
that dense and factorized networks are measured on the same matrix.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .model import matrix_of
from .patterns import group_by_shape, stack_factors
from .usage import check_matrices


def frobenius_norm(*factors: Tensor) -> Tensor:
    """Return `|product of factors|_F`, shape (...), of one, two or three factors (..., m, r), ..., (..., r, n).

    Multiplies out where that is the smaller job; otherwise takes `sqrt(trace((VT VT^T)(U^T U)))` in double precision,
    since the Gram matrices square the magnitudes twice.

    Raises:
        TypeError: for what are no matrices, as in all functions of factors here.
    """
    check_matrices("frobenius_norm", factors)
    if len(factors) == 1:
        return torch.linalg.matrix_norm(factors[0])
    U, VT = factors[0], factors[-1] if len(factors) == 2 else factors[1] @ factors[2]
    (m, r), n = U.shape[-2:], VT.shape[-1]
    if m * n < r * (m + n):
        return torch.linalg.matrix_norm(U @ VT)
    U64, VT64 = U.double(), VT.double()
    trace = ((VT64 @ VT64.mT) * (U64.mT @ U64)).sum((-2, -1))
    return trace.clamp_min(0).sqrt().to(U.dtype)


def _singular_values(*factors: Tensor) -> Tensor:
    """Return those of the product of one, two or three factors, shape (..., min(r, m, n)), at least float32."""
    check_matrices("nuclear_norm", factors)
    wide = [f if f.dtype == torch.float64 else f.float() for f in factors]  # there is no 16-bit decomposition
    if len(wide) == 1:
        return torch.linalg.svdvals(wide[0])
    U, VT = wide[0], wide[-1] if len(wide) == 2 else wide[1] @ wide[2]
    if U.shape[-1] < min(U.shape[-2], VT.shape[-1]):
        # The singular values of U VT are those of the r x r product of the triangles.
        return torch.linalg.svdvals(torch.linalg.qr(U).R @ torch.linalg.qr(VT.mT).R.mT)
    return torch.linalg.svdvals(U @ VT)


def nuclear_norm(*factors: Tensor) -> Tensor:
    """Return the sum of singular values of the product of one, two or three factors, shape (...), at least float32."""
    return _singular_values(*factors).sum(-1)


def imbalance(*factors: Tensor) -> Tensor:
    """Return `|L^T L - R R^T|_F`, shape (...), with `L R` the product: `U, VT`, or `U M, VT`.

    Zero for balanced factors, such as those of spectral initialization. Gradient flow on the product keeps the
    difference, and Frobenius decay does, too; L2 decay of the factors shrinks it.
    """
    check_matrices("imbalance", factors)
    U, VT = factors[0].double(), factors[-1].double()  # the Gram matrices square the magnitudes
    left = U if len(factors) == 2 else U @ factors[1].double()
    return torch.linalg.matrix_norm(left.mT @ left - VT @ VT.mT).to(factors[0].dtype)


def nuclear_norm_bound(*factors: Tensor) -> Tensor:
    """Return `(|L|_F^2 + |R|_F^2) / 2 >= |L R|_*`, shape (...), with `L R` the product: `U, VT`, or `U M, VT`.

    Equal to the nuclear norm for balanced orthogonal factors.
    """
    check_matrices("nuclear_norm_bound", factors)
    U, VT = factors[0], factors[-1]
    left = U if len(factors) == 2 else U @ factors[1]
    return (left.square().sum((-2, -1)) + VT.square().sum((-2, -1))) / 2


def non_orthogonality(U: Tensor, VT: Tensor) -> tuple[Tensor, Tensor]:
    """Return `|G - diag(G)|_F / |G|_F` for `G = U^T U` and `G = VT VT^T`, each of shape (...); 0 for a zero factor."""

    def off_diagonal_share(gram: Tensor) -> Tensor:
        total = torch.linalg.matrix_norm(gram)
        off = torch.linalg.matrix_norm(gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)))
        return torch.where(total > 0, off / total, torch.zeros_like(total))

    U64, VT64 = U.double(), VT.double()
    return off_diagonal_share(U64.mT @ U64).to(U.dtype), off_diagonal_share(VT64 @ VT64.mT).to(U.dtype)


@torch.no_grad()
def frobenius_norms(layers: Sequence[nn.Module]) -> Tensor:
    """Return the norms of the products of factorized `layers`, shape (len(layers),), on their device.

    For a layer with a batch of products, such as those of attention heads, the mean over them.
    """
    norms: list[Any] = [None] * len(layers)
    for group in group_by_shape(layers):
        for position, norm in zip(group, frobenius_norm(*stack_factors([layers[i] for i in group])).unbind()):
            norms[position] = norm.mean()
    return torch.stack(norms)


@torch.no_grad()
def layer_metrics(layers: Iterable[nn.Module], lr: float) -> dict[str, float]:
    """Return averages over `layers`, which are all factorized or all dense, under their TensorBoard tags.

    Every product of a batch, such as those of attention heads, counts as one.

    `metric/FrobNorm`, `metric/NucNorm`, and for products of factors `metric/NucNorm-bound` and (two factors)
    `metric/NonOrth`; `hyper/lr` and the effective learning rates `hyper/lr-eff_frob = lr / F` and
    `hyper/lr-eff_frobsq = lr / F^2`; `layers/stable-rank` is `|W|_F^2 / |W|_2^2`; for products of factors also
    `layers/imbalance` and `layers/nuclear-over-bound`, the nuclear norm as a fraction of its bound.
    """
    layers = list(layers)
    factorized = [layer for layer in layers if hasattr(layer, "factors")]
    if factorized:
        stacks = [stack_factors([layers[i] for i in group]) for group in group_by_shape(layers)]
    else:
        stacks = [[matrix_of(layer).float()] for layer in layers]
    frobenius = torch.cat([frobenius_norm(*stack).flatten() for stack in stacks]).double()
    singular = [_singular_values(*stack) for stack in stacks]
    nuclear = torch.cat([values.sum(-1).flatten() for values in singular])
    spectral = torch.cat([values[..., 0].flatten() for values in singular]).double()
    metrics = {
        "metric/FrobNorm": frobenius.mean().item(),
        "metric/NucNorm": nuclear.mean().item(),
        "hyper/lr": lr,
        "hyper/lr-eff_frob": (lr / frobenius).mean().item(),
        "hyper/lr-eff_frobsq": (lr / frobenius.square()).mean().item(),
        "layers/stable-rank": (frobenius / spectral).square().nan_to_num(0).mean().item(),
    }
    if factorized:
        if all(len(stack) > 1 for stack in stacks):
            bounds = torch.cat([nuclear_norm_bound(*stack).flatten() for stack in stacks])
            metrics["metric/NucNorm-bound"] = bounds.mean().item()
            metrics["layers/nuclear-over-bound"] = (nuclear / bounds).nan_to_num(0).mean().item()
            metrics["layers/imbalance"] = torch.cat([imbalance(*stack).flatten() for stack in stacks]).mean().item()
        if all(len(stack) == 2 for stack in stacks):
            shares = [share.flatten() for stack in stacks for share in non_orthogonality(*stack)]
            metrics["metric/NonOrth"] = torch.cat(shares).mean().item()
    return metrics
