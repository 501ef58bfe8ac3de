"""Few leading singular triples of large matrices, at a fraction of the time that the Gram matrix alone takes.

A block Krylov space (Musco and Musco 2015, https://arxiv.org/abs/1504.05477): start with a few random vectors, multiply
by `W^T W` again and again, keep an orthonormal basis of all that appears, and take the eigenvectors within it. On the
flat spectrum of a random kernel, 14 directions of 1536 take a basis of about 300.
"""

import torch
from torch import Tensor

_BLOCK = 16  # vectors multiplied at a time: enough for matrix products at full speed, few enough to stop in time
_SMALLEST_SIZE = 512  # below that LAPACK is as fast
_FEW = 1 / 40  # share of the directions up to which this is faster
# Residuals |W^T W q - lambda q| / lambda_1 at which directions are good enough. The error of the truncated product then
# exceeds the smallest possible one by less than 1e-7 of it, the rounding error of single precision.
_TOLERANCE = 2e-3


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
    basis, images = matrix.new_empty(n, most), matrix.new_empty(m, most)  # images = matrix @ basis
    block = torch.randn(n, _BLOCK, generator=torch.Generator().manual_seed(0)).to(matrix)
    examine_at = max(4 * _BLOCK, count)
    for width in range(_BLOCK, most + 1, _BLOCK):
        known = basis[:, : width - _BLOCK]
        for _ in range(2):  # once leaves rounding errors as large as the block is small
            block = torch.linalg.qr(block - known @ (known.mT @ block)).Q
        basis[:, width - _BLOCK : width] = block
        image = images[:, width - _BLOCK : width] = matrix @ block
        if width >= examine_at or width == most:
            gram = images[:, :width].mT @ images[:, :width]
            if not gram.isfinite().all():
                return None
            eigenvalues, vectors = torch.linalg.eigh(gram)
            eigenvalues, vectors = eigenvalues[-count:].flip(0), vectors[:, -count:].flip(1)
            Q, left = basis[:, :width] @ vectors, images[:, :width] @ vectors
            residuals = (matrix.mT @ left - Q * eigenvalues).norm(dim=0)
            # The second condition is that of the Gram route: squared, small directions drown in rounding errors.
            if (residuals <= _TOLERANCE * eigenvalues[0]).all() and eigenvalues[-1] > 2.5e-3 * eigenvalues[0]:
                sigma = eigenvalues.sqrt()
                return left / sigma, sigma, Q.mT
            examine_at = 1.4 * width
        block = matrix.mT @ image
    return None
