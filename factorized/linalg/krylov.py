"""Few leading singular triples of large matrices, at a fraction of the time that the Gram matrix alone takes.

A block Krylov space (Musco and Musco 2015, https://arxiv.org/abs/1504.05477): start with a few random vectors, multiply
by `W^T W` again and again, keep an orthonormal basis of all that appears, and take the eigenvectors within it. On the
flat spectrum of a random kernel, 14 directions of 1536 take a basis of about 210.
"""

import torch
from torch import Tensor

_BLOCK = 16  # vectors multiplied at a time: enough for matrix products at full speed, few enough to stop in time
_SMALLEST_SIZE = 256  # below that LAPACK is as fast
_FEW = 1 / 40  # share of the directions up to which this is faster
_TOLERANCE = 1e-5  # by which the error of the truncated product may exceed the smallest possible one, relative to that
_CAUTION = 1.375  # factor on the estimate of that excess
_SMALLEST = 2.5e-3  # eigenvalue, relative to the first: squared, smaller directions drown in rounding errors


def pays(batch: Tensor, count: int) -> bool:
    """Tell whether this is the fast way for matrices `(b, m, n)`, m >= n. It is for single precision only."""
    n = batch.shape[-1]
    return batch.dtype == torch.float32 and n >= _SMALLEST_SIZE and count <= _FEW * n


def leading_singular_triples(batch: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return `P (b, m, count)`, `sigma (b, count)` descending and `QT (b, count, n)` of every matrix `(b, m, n)`.

    None if it does not pay or not converge in a basis of n / 2 vectors, or numbers over- or underflow. The start is the
    same every time, and no random number of the global generator is drawn.
    """
    found = []
    for matrix in batch if pays(batch, count) else ():
        triples = _of_matrix(matrix, count)
        if triples is None:
            return None
        found.append(triples)
    if not found:
        return None
    P, sigma, QT = map(torch.stack, zip(*found))
    return P, sigma, QT


def _of_matrix(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | None:
    m, n = matrix.shape
    total = matrix.norm().square()  # the sum of all squared singular values
    if not 0 < total < torch.inf:
        return None
    most = n // 2 // _BLOCK * _BLOCK
    # Columns are contiguous. In products the large matrix is on the left: that is what BLAS splits among threads.
    basis, images = matrix.new_empty(most, n).mT, matrix.new_empty(most, m).mT  # images = W basis
    gram = matrix.new_empty(most, most)  # lower triangle of images^T images
    start = torch.randn(n, _BLOCK, generator=torch.Generator().manual_seed(0))
    block = torch.linalg.qr(start.to(matrix)).Q
    # What random kernels need at least: their largest eigenvalues lie n^(-2/3) apart, which takes n^(1/3) steps.
    enough = n ** (1 / 3) * (6 + 3.2 * count**0.5)
    for width in range(_BLOCK, most + 1, _BLOCK):
        new = slice(width - _BLOCK, width)
        basis[:, new] = block
        images[:, new] = matrix @ block
        block, R, coordinates = _orthonormal(matrix.mT @ images[:, new], basis[:, :width])
        gram[new, :width] = coordinates.mT
        if width < enough and width < most:
            continue
        eigenvalues, vectors = torch.linalg.eigh(gram[:width, :width])
        eigenvalues, vectors = eigenvalues[-count:].flip(0), vectors[:, -count:].flip(1)
        # W^T W leads out of the basis only from its last block, to the next.
        excess = relative_excess(R @ vectors[-_BLOCK:], eigenvalues, total)
        if excess <= _TOLERANCE and eigenvalues[-1] > _SMALLEST * eigenvalues[0]:
            sigma = eigenvalues.sqrt()
            return images[:, :width] @ vectors / sigma, sigma, (basis[:, :width] @ vectors).mT
    return None


def relative_excess(residuals: Tensor, eigenvalues: Tensor, total: Tensor) -> Tensor:
    """Return an estimate of what the truncation error exceeds the smallest possible one by, relative to that.

    Within a basis, eigenvalues come out too small by about `residual^2` over their distance to those that the residual
    is made of. Spread below the last one kept, densest in the middle as on a semicircle, these act from a distance of a
    quarter of it. On random kernels that estimate was too low by up to a fourth, which `_CAUTION` makes up for.

    Args:
        residuals: `W^T W q - lambda q` for every eigenvector, in columns.
        eigenvalues: descending.
        total: the sum of all eigenvalues, kept or not.
    """
    missing = _CAUTION * 4 * residuals.square().sum() / eigenvalues[-1]
    error = (total - eigenvalues.sum()).clamp_min(torch.finfo(total.dtype).eps * total)
    return missing / (2 * error)


def _orthonormal(columns: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis of what `columns` have beyond those of `known`, and both coordinates."""
    size = columns.norm(dim=0)
    coordinates = known.mT @ columns
    Q, R = torch.linalg.qr(columns - known @ coordinates)
    if (R.diagonal().abs() < 0.1 * size).any():  # most has cancelled, and rounding errors stand out
        Q, again = torch.linalg.qr(Q - known @ (known.mT @ Q))
        R = again @ R
    return Q, R, coordinates
