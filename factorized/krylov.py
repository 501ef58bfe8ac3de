"""Few leading singular triples of large matrices, at a fraction of the time that the Gram matrix alone takes.

A block Krylov space (Musco and Musco 2015, https://arxiv.org/abs/1504.05477): start with a few random vectors, multiply
by `W^T W` again and again, keep an orthonormal basis of all that appears, and take the eigenvectors within it. On the
flat spectrum of a random kernel, 14 directions of 1536 take a basis of about 250.
"""

import torch
from torch import Tensor

_BLOCK = 16  # vectors multiplied at a time: enough for matrix products at full speed, few enough to stop in time
_SMALLEST_SIZE = 512  # below that LAPACK is as fast
_FEW = 1 / 40  # share of the directions up to which this is faster
# Residuals |W^T W q - lambda q| / lambda_1 at which directions are good enough. The error of the truncated product then
# exceeds the smallest possible one by less than 1e-5 of it.
_TOLERANCE = 2e-2


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
    return tuple(map(torch.stack, zip(*found))) or None


def _of_matrix(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | None:
    m, n = matrix.shape
    most = n // 2 // _BLOCK * _BLOCK
    basis, images = matrix.new_empty(most, n), matrix.new_empty(most, m)  # in rows: images = basis @ W^T
    gram = matrix.new_empty(most, most)  # lower triangle of images @ images^T
    start = torch.randn(n, _BLOCK, generator=torch.Generator().manual_seed(0))
    block = torch.linalg.qr(start.to(matrix)).Q.mT
    examine_at = 4 * _BLOCK + 10 * count  # about what random kernels need
    for width in range(_BLOCK, most + 1, _BLOCK):
        new = slice(width - _BLOCK, width)
        basis[new] = block
        images[new] = block @ matrix.mT
        block, R, gram[new, :width] = _orthonormal(images[new] @ matrix, basis[:width])
        if width >= examine_at or width == most:
            if not gram[new, :width].isfinite().all():
                return None
            eigenvalues, vectors = torch.linalg.eigh(gram[:width, :width])
            eigenvalues, vectors = eigenvalues[-count:].flip(0), vectors[:, -count:].flip(1)
            # W^T W leads out of the basis only from its last block, to the next.
            residuals = (R @ vectors[-_BLOCK:]).norm(dim=0)
            # The second condition is that of the Gram route: squared, small directions drown in rounding errors.
            if (residuals <= _TOLERANCE * eigenvalues[0]).all() and eigenvalues[-1] > 2.5e-3 * eigenvalues[0]:
                sigma = eigenvalues.sqrt()
                return images[:width].mT @ vectors / sigma, sigma, vectors.mT @ basis[:width]
            examine_at = 1.15 * width
    return None


def _orthonormal(rows: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis, in rows, of what `rows` have beyond `known`, and both coordinates."""
    size = rows.norm(dim=1)
    coordinates = rows @ known.mT
    Q, R = torch.linalg.qr((rows - coordinates @ known).mT)
    if (R.diagonal().abs() < 0.1 * size).any():  # most has cancelled, and rounding errors stand out
        Q, again = torch.linalg.qr(Q - known.mT @ (known @ Q))
        R = again @ R
    return Q.mT, R, coordinates
