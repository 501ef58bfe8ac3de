"""Decompositions of a three-way tensor: tensor train, Tucker in hybrid storage, and canonical polyadic (CP).

    tensor train   W[i,j,k] = sum_ab   G1[i,a] G2[a,j,b] G3[b,k]
    Tucker         W[i,j,k] = sum_pqs  U1[i,p] U2[j,q] U3[k,s] C[p,q,s],   C itself a tensor train
    CP             W[i,j,k] = sum_c    F1[i,c] F2[j,c] F3[k,c]

The first two keep all of the norm in the first core: every other factor has orthonormal rows (or columns).
"""

import torch
from torch import Tensor

# Alternating least squares stops after so many sweeps, or when one improves the relative error by less than this.
_SWEEPS, _IMPROVEMENT = 25, 1e-4


def three_dimensions(size: int) -> tuple[int, int, int]:
    """Return the shape of a three-way tensor with `size` entries, as near to a cube as a greedy rule gets.

    An exact cube stays one. Otherwise the first two dimensions are, one after the other, the smallest divisor of what
    is left that is at least the rounded cube root of `size`.
    """
    root = round(size ** (1 / 3))
    if root**3 == size:
        return (root, root, root)
    first = next(d for d in range(min(root, size), size + 1) if size % d == 0)
    left = size // first
    second = next(d for d in range(min(root, left), left + 1) if left % d == 0)
    return first, second, left // second


def tensor_train(tensor: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return cores (n1, r1), (r1, n2, r2), (r2, n3) of a truncated train, by singular values from right to left.

    Args:
        tensor: shape (n1, n2, n3).
        ranks: (r1, r2), with r2 <= min(n1 n2, n3) and r1 <= min(n1, n2 r2).
    """
    n1, n2, n3 = tensor.shape
    r1, r2 = ranks
    P, sigma, QT = torch.linalg.svd(tensor.reshape(n1 * n2, n3), full_matrices=False)
    last = QT[:r2]
    P, sigma, QT = torch.linalg.svd((P * sigma)[:, :r2].reshape(n1, n2 * r2), full_matrices=False)
    return (P * sigma)[:, :r1], QT[:r1].reshape(r1, n2, r2), last


def tucker(tensor: Tensor, ranks: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Return `(G1, G2, G3, U1, U2, U3)` of the sequentially truncated HOSVD, in mode order 3, 2, 1.

    The core is kept as a train G1 (r1, R1), G2 (R1, r2, r3), G3 (r3, r3) with R1 = min(n1, r2 r3). That is more than a
    plain core of r1 r2 r3 numbers, but it is what the published parameter counts count. G3 starts at the identity: any
    orthogonal change of basis between it and G2 gives the same tensor.

    Args:
        tensor: shape (n1, n2, n3).
        ranks: r3 <= min(n3, n1 n2), r2 <= min(n2, n1 r3), r1 <= min(n1, r2 r3).
    """
    n1 = len(tensor)
    r1, r2, r3 = ranks
    U3 = _left_vectors(tensor.permute(2, 0, 1).flatten(1), r3)
    tensor = tensor @ U3  # (n1, n2, r3)
    U2 = _left_vectors(tensor.permute(1, 0, 2).flatten(1), r2)
    tensor = torch.einsum("ijs,jq->iqs", tensor, U2).reshape(n1, r2 * r3)
    Q, R = torch.linalg.qr(tensor.mT)  # tensor = L Q^T with L = R^T of shape (n1, R1)
    U1 = _left_vectors(R.mT, r1)
    return U1.mT @ R.mT, Q.mT.reshape(-1, r2, r3), torch.eye(r3).to(tensor), U1, U2, U3


def canonical_polyadic(
    tensor: Tensor, rank: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return factors (n1, r), (n2, r), (n3, r) by alternating least squares from the leading mode vectors.

    Where the rank exceeds a dimension, the surplus columns start random.

    Args:
        tensor: shape (n1, n2, n3).
        generator: of these, on the CPU; None is PyTorch's own on the tensor's device.
    """
    unfolded = [tensor.movedim(mode, 0).flatten(1) for mode in range(3)]
    factors = [_padded(_left_vectors(matrix, rank), rank, generator) for matrix in unfolded]
    norm, error = torch.linalg.vector_norm(tensor), torch.inf
    for _ in range(_SWEEPS):
        for mode, matrix in enumerate(unfolded):
            left, right = (factors[other] for other in range(3) if other != mode)
            columns = torch.einsum("jc,kc->jkc", left, right).flatten(0, 1)
            gram = (left.mT @ left) * (right.mT @ right)
            factors[mode] = matrix @ columns @ torch.linalg.pinv(gram, hermitian=True)
        previous, error = error, torch.linalg.vector_norm(matrix - factors[mode] @ columns.mT) / norm
        if not previous - error >= _IMPROVEMENT:  # also ends at a tensor of zeros, whose error is not a number
            break
    first, second, third = factors
    return first, second, third


def _left_vectors(matrix: Tensor, count: int) -> Tensor:
    """Return the leading left singular vectors, shape (rows, count) or as many as there are."""
    return torch.linalg.svd(matrix, full_matrices=False).U[:, :count]


def _padded(columns: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    device = columns.device if generator is None else generator.device
    size = len(columns), count - columns.shape[1]
    surplus = torch.randn(size, dtype=columns.dtype, device=device, generator=generator).to(columns.device)
    return torch.cat([columns, surplus / len(columns) ** 0.5], dim=1)
