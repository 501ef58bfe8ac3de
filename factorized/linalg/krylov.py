"""Few leading singular triples of large matrices, at a fraction of the time that the Gram matrix alone takes.

A block Krylov space (Musco and Musco 2015, https://arxiv.org/abs/1504.05477): start with a few random vectors, multiply
by `W^T W` again and again, keep an orthonormal basis of all that appears, and take the eigenvectors within it. On the
flat spectrum of a random kernel, 14 directions of 1536 take a basis of about 210. On spectra that decay, as those of
trained weights, a basis of half as many directions again as are wanted is often enough, whatever their number.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Metric = Callable[[Tensor], Tensor]

_BLOCKS = 16, 128  # vectors multiplied at a time: enough for matrix products at full speed, few enough to stop in time
_SMALLEST_SIZE = 256  # below that LAPACK is as fast
# Shares, of directions and of the basis that they take, up to which this is faster if the spectrum is flat.
_FEW_DIRECTIONS = 1 / 40, 1 / 5
_SOME = 0.3  # share of the directions up to which it is faster if the spectrum decays
_MOST = 1 / 2, 3 / 4  # share of the directions that the basis may take, if flat and if the spectrum decays
TOLERANCE = 1e-5  # by which the error of the truncated product may exceed the smallest possible one, relative to that
_CAUTION = 2  # factor on the estimate of that excess, which is too low by up to a third on flat spectra
_HOPE = 0.75  # the excess falls faster and faster: share of the way to its end that its fall so far predicts
_CANCELLED = 1e-4  # share of the squared norm below which the difference of the whole and the kept is not exact
_ROUNDING = 1e-6  # share of the norm that any decomposition in single precision misses
_FLAT = 1 / 8  # share of the directions that a flat spectrum has at least, see `flat`


def flat(batch: Tensor) -> bool:
    """Tell whether the singular values of matrices `(b, m, n)`, m >= n, are of one size for the most part.

    Seen as equal ones, they would be `(sum sigma^2)^2 / sum sigma^4` in number: two thirds of all for a random square
    kernel, a few for spectra that decay. The denominator is estimated from products with random vectors.
    """
    n = batch.shape[-1]
    block = _start(batch, _BLOCKS[0])
    scaled = batch / batch.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(batch.dtype).tiny)
    squares = scaled.square().sum((-2, -1))
    fourths = (scaled.mT @ (scaled @ block)).square().sum((-2, -1)) / block.shape[-1]
    return bool((squares.square() >= _FLAT * n * fourths).all())


def pays(batch: Tensor, count: int, is_flat: bool) -> bool:
    """Tell whether this is the fast way for matrices `(b, m, n)`, m >= n. It is for single precision only."""
    n = batch.shape[-1]
    if batch.dtype != torch.float32 or n < _SMALLEST_SIZE:
        return False
    few = count <= _FEW_DIRECTIONS[0] * n or _basis_of_flat(n, count) <= _FEW_DIRECTIONS[1] * n
    return few if is_flat else few or count <= _SOME * n


def leading_directions(
    batch: Tensor, count: int, is_flat: bool, tolerance: float = TOLERANCE, metric: Metric | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return orthonormal columns `Q (b, n, count)` that span the leading right singular vectors, and `W Q`.

    Columns of `W Q` are orthogonal up to rounding, too, and descend in length; the third tensor (b, count) holds their
    squared lengths. With a metric, which multiplies (m, k) by a symmetric matrix `A (m, m)`, the vectors are those of
    `A^1/2 W`, and columns are orthogonal and have their lengths in the sense of `A`.

    Their truncation error exceeds the smallest possible one by about `tolerance` at most, relative to that.
    None if it does not pay or not converge in a basis of n / 2 vectors, or numbers over- or underflow. The start is the
    same every time, and no random number of the global generator is drawn.
    """
    if not pays(batch, count, is_flat):
        return None
    found = []
    for matrix in batch:
        parts = _of_matrix(matrix, count, is_flat, tolerance, metric)
        if parts is None:
            return None
        found.append(parts)
    columns, images, squares = zip(*found)
    return torch.stack(columns), torch.stack(images), torch.stack(squares)


def _basis_of_flat(n: int, count: int) -> float:
    """Return what random kernels need at least: the largest eigenvalues lie n^(-2/3) apart: n^(1/3) steps."""
    return n ** (1 / 3) * (6 + 3.2 * count**0.5)


def _start(matrix: Tensor, columns: int) -> Tensor:
    start = torch.randn(matrix.shape[-1], columns, generator=torch.Generator().manual_seed(0))
    return start.to(matrix)


def _of_matrix(
    matrix: Tensor, count: int, is_flat: bool, tolerance: float, metric: Metric | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    m, n = matrix.shape
    total = torch.linalg.vector_norm(matrix).double().square()  # the sum of all squared singular values
    if not 0 < total < torch.inf:
        return None
    known = metric is None  # the total is; with a metric it would take longer than all else, and that of the basis does
    step = _BLOCKS[0] if is_flat else min(max(_BLOCKS[0], count // 8 // 16 * 16), _BLOCKS[1])
    most = int(n * _MOST[not is_flat]) // step * step
    # Columns are contiguous. In products the large matrix is on the left: that is what BLAS splits among threads.
    basis, images = matrix.new_empty(most, n).mT, matrix.new_empty(most, m).mT  # images = W basis
    gram = matrix.new_empty(most, most, dtype=torch.float64)  # lower triangle of images^T images
    block = torch.linalg.qr(_start(matrix, step)).Q
    enough = 1.4 * count + 2 * step
    if is_flat:  # the excess falls by a factor with every vector
        enough = _basis_of_flat(n, count) * min(1, math.log(tolerance) / math.log(TOLERANCE))
    before: tuple[int, float] | None = None
    for width in range(step, most + 1, step):
        new = slice(width - step, width)
        basis[:, new] = block
        images[:, new] = matrix @ block
        measured = images[:, new] if metric is None else metric(images[:, new])
        gram[new, :width] = measured.mT @ images[:, :width]
        block, R = _orthonormal(matrix.mT @ measured, basis[:, :width], once=is_flat)
        if width < enough and width < most:
            continue
        # In double precision: squared, small singular values drown in the rounding errors of large ones.
        eigenvalues, vectors = torch.linalg.eigh(gram[:width, :width])
        eigenvalues, vectors = eigenvalues.flip(0), vectors[:, -count:].flip(1)
        total = total if known else eigenvalues.sum()
        # W^T W leads out of the basis only from its last block, to the next.
        excess = _excess(R.double() @ vectors[-step:], eigenvalues, count, total, n)
        if excess <= tolerance:
            vectors = vectors.to(matrix)
            return basis[:, :width] @ vectors, images[:, :width] @ vectors, eigenvalues[:count]
        enough = width + max(step, width // 16)
        if not is_flat:  # a wider basis is cheap, and a look at it is not
            steps = math.log10(excess / tolerance)  # at first guess: a decade each
            if before is not None:
                decades = math.log10(before[1] / excess) / ((width - before[0]) / step)
                steps = steps / decades if decades > 0 else math.inf
                if width + _HOPE * steps * step > most:
                    return None
            enough = max(enough, width + _HOPE * steps * step)
            before = width, excess
    return None


def _excess(residuals: Tensor, eigenvalues: Tensor, count: int, total: Tensor, n: int) -> float:
    """Return an estimate of what the truncation error exceeds the smallest possible one by, relative to that.

    Within a basis, eigenvalues come out too small by about `residual^2` over their distance to those that the residual
    is made of. Those are the ones outside the basis, and act as if they were near the last one kept, at a quarter of
    its distance to their mean: random kernels, and flat spectra from which a few stand out, ask for that much caution.

    Args:
        residuals: `W^T W q - lambda q` for every eigenvector kept, in columns.
        eigenvalues: within the basis, descending.
        count: how many of them are kept.
        total: the sum of all `n` eigenvalues of the matrix.
    """
    kept, left = eigenvalues[:count], eigenvalues[count:].clamp_min(0).sum()
    rounding = _ROUNDING**2 * total
    last, mean = kept[-1].clamp_min(rounding), (total - kept.sum() - left).clamp_min(0) / (n - len(eigenvalues))
    distance = (last - mean).clamp_min(torch.finfo(torch.float32).eps * last) / 4
    error = total - kept.sum()
    if error < _CANCELLED * total:
        error = left  # of the basis only, which is less and errs on the safe side
    missing = (_CAUTION * residuals.square().sum() / distance - rounding).clamp_min(0)
    return (missing / (2 * error.clamp_min(rounding))).item()


def _orthonormal(columns: Tensor, known: Tensor, once: bool) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of what `columns` have beyond those of `known`, and the coordinates in it.

    Where most cancels, rounding errors stand out, and that `known` is not quite orthonormal does. So it is done again,
    also where little cancels unless `once`: a tenfold loss in each of many blocks is no small one in the end.
    """
    size, coordinates, least = columns.norm(dim=0), None, 0.1 if once else torch.inf
    while True:
        columns, R = torch.linalg.qr(columns - known @ (known.mT @ columns))
        coordinates = R if coordinates is None else R @ coordinates
        if not (R.diagonal().abs() < least * size).any():
            return columns, coordinates
        size, least = torch.ones_like(size), 0.7
