"""Leading singular triples of large matrices whose spectrum decays, as those of trained weights do.

A block Krylov space, as in `krylov`, for more directions: some twice those wanted hold them. The singular values are
those of `W` on the space, and not the roots of eigenvalues, so that directions a thousand times smaller than the first
come out as accurately.
"""

import torch
from torch import Tensor

from .krylov import relative_excess

_SMALLEST_SIZE = 256  # below that LAPACK is as fast
_FEW = 0.26  # share of the directions up to which this is faster than a Gram matrix in double precision
_PROBE = 16  # directions that tell whether the spectrum decays
_BLOCK = 32  # vectors multiplied at a time: more take a larger space, fewer run at less than full speed
_FIRST, _NEXT = 1.6, 1.12  # the space is looked at when it holds so many times the directions wanted, then as it grows
_TOLERANCE = 1e-5  # by which the error of the truncated product may exceed the smallest possible one, relative to that


def decays(matrix: Tensor) -> bool:
    """Tell whether a few directions hold most of what there is in `matrix` (m, n), with m >= n.

    On the flat spectrum of a random kernel they hold at most four times their share of the directions.
    """
    n = matrix.shape[1]
    if n < _SMALLEST_SIZE:
        return False
    start = torch.randn(n, _PROBE, generator=torch.Generator().manual_seed(0)).to(matrix)
    basis = torch.linalg.qr(matrix.mT @ (matrix @ start)).Q
    held = (matrix @ basis).square().sum() / matrix.square().sum()
    return bool(held > max(0.1, 8 * _PROBE / n))  # false, too, for NaN from an overflow


def leading_singular_triples(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return `P (m, count)`, `sigma (count,)` descending and `QT (count, n)` of a matrix (m, n), m >= n, in float32.

    None if there are too many to pay, or they are not found in a space of 3/4 n directions. The start is the same every
    time, and no random number of the global generator is drawn.
    """
    m, n = matrix.shape
    most = 3 * n // 4
    if count > _FEW * n:
        return None
    total = matrix.square().sum()
    start = torch.randn(n, _BLOCK, generator=torch.Generator().manual_seed(0)).to(matrix)
    new = torch.linalg.qr(start).Q
    basis, images = matrix.new_empty(most, n).mT, matrix.new_empty(most, m).mT  # columns are contiguous
    enough = _FIRST * count + 2 * _BLOCK
    for width in range(_BLOCK, most + 1, _BLOCK):
        last = slice(width - _BLOCK, width)
        basis[:, last] = new
        images[:, last] = matrix @ new
        beyond = matrix.mT @ images[:, last]
        for _ in range(2):  # the second time for what rounding has left: most of it cancels
            beyond = beyond - basis[:, :width] @ (basis[:, :width].mT @ beyond)
        if width >= enough:
            enough = _NEXT * width
            left, R = torch.linalg.qr(images[:, :width])
            if not R.isfinite().all():
                return None
            P, sigma, QT = torch.linalg.svd(R)
            P, sigma, Q = P[:, :count], sigma[:count], QT[:count].mT
            # W^T W leads out of the space only from its last block.
            if relative_excess(beyond @ Q[-_BLOCK:], sigma.square(), total) <= _TOLERANCE:
                return left @ P, sigma, (basis[:, :width] @ Q).mT
        new = torch.linalg.qr(beyond).Q
    return None
