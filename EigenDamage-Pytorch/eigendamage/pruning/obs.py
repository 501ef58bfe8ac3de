"""Optimal brain surgeon for whole filters (Hassibi et al. 1993; Wang et al. 2019, section 3).

The loss grows by tr(dW^T G dW A) / 2 with a change dW of a layer's weight (out, in kh kw), by K-FAC. To take out the
filters S is to set those rows to zero; the change of the others that costs the least is

    dW_K = G_KK^-1 G_KS W_S                      for the rows K that are kept, whatever A is
"""

import torch
from torch import Tensor


def damped(matrix: Tensor, damping: float) -> Tensor:
    """Return a symmetric matrix in double precision with `damping` times its mean eigenvalue added to all of them.

    A matrix of zeros becomes the identity, which is as good as any.
    """
    matrix = matrix.double()
    mean = matrix.diagonal().mean()
    if not mean > 0:
        return torch.eye(len(matrix)).to(matrix)
    return matrix + damping * mean * torch.eye(len(matrix)).to(matrix)


def inverse(matrix: Tensor, damping: float) -> Tensor:
    """Return the inverse of a damped symmetric positive matrix, in double precision.

    Raises:
        ValueError: if it is singular in spite of the damping.
    """
    return torch.cholesky_inverse(_cholesky(damped(matrix, damping)))


def _cholesky(matrix: Tensor) -> Tensor:
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError:
        raise ValueError("the statistics have a matrix that cannot be inverted; more damping makes it so") from None


def joint(weight: Tensor, G: Tensor, removed: Tensor, damping: float) -> Tensor:
    """Return the weight without some filters, the others corrected for all of them at once: the optimum.

    Args:
        weight: (out, in kh kw).
        G: (out, out).
        removed: mask (out,).
    """
    kept = ~removed
    G = damped(G, damping)
    correction = torch.cholesky_solve(G[kept][:, removed] @ weight[removed].double(), _cholesky(G[kept][:, kept]))
    new = weight.clone()
    new[kept] += correction.to(weight)
    new[removed] = 0
    return new


def single(weight: Tensor, G: Tensor, removed: Tensor, damping: float) -> Tensor:
    """Return the weight with the corrections for each removed filter alone added up, as published.

    Exact for one filter only. Arguments as of `joint`.
    """
    inverted = inverse(G, damping)
    scaled = weight[removed].double() / inverted.diagonal()[removed][:, None]
    return _without(weight - (inverted[:, removed] @ scaled).to(weight), removed)


def single_weights(weight: Tensor, G: Tensor, A: Tensor, removed: Tensor, damping: float) -> Tensor:
    """Return the weight with the corrections for each removed weight alone added up, as published for C-OBS.

    Arguments as of `joint`, and A of shape (in kh kw, in kh kw).
    """
    G_inverse, A_inverse = inverse(G, damping), inverse(A, damping)
    scale = G_inverse.diagonal()[removed][:, None] * A_inverse.diagonal()
    change = G_inverse[:, removed] @ (weight[removed].double() / scale) @ A_inverse
    return _without(weight - change.to(weight), removed)


def _without(weight: Tensor, removed: Tensor) -> Tensor:
    weight[removed] = 0
    return weight
