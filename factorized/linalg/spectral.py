"""Spectral initialization: balanced factors of the best low-rank approximation (Khodak et al. 2021, section 3.1).

For `W = P diag(sigma) Q^T` with singular values in descending order, rank `r` gives

    U = P[:, :r] diag(sqrt(sigma[:r]))        VT = diag(sqrt(sigma[:r])) Q[:, :r]^T

so that `U VT` is the best rank-`r` approximation of `W` and `U^T U = VT VT^T = diag(sigma[:r])`.
"""

import numpy
import scipy.linalg
import torch
from torch import Tensor

from ..usage import checked_rank
from . import krylov

# The Gram route squares singular values, so a direction loses about eps * (sigma_1 / sigma_r)^2 of its orthogonality.
# Below this fraction of sigma_1 the Gram matrix is not used in that precision. float32: 0.05, float64: 2e-6.
_SMALLEST = {torch.float32: 5e-2, torch.float64: 2e-6}

# Images of vectors that are not longer than this share of the longest one are not orthogonal in single precision.
_SHORT = 5e-4

_ROWS = 1024  # of a matrix that are converted at a time

# Up to this share of the spectrum, LAPACK's selected-eigenvector driver beats a full eigendecomposition on a CPU.
_FEW_EIGENVECTORS = 0.25


def spectral_init(matrix: Tensor, rank: int, tolerance: float = krylov.TOLERANCE) -> tuple[Tensor, Tensor]:
    """Return `(U, VT)`, the balanced factors of the best rank-`rank` approximation of `matrix`.

    Args:
        matrix: shape `(..., m, n)`; leading dimensions are a batch of independent matrices.
        rank: number of columns of `U`. Above `min(m, n)` the surplus columns of `U` and rows of `VT` are zero, as
            published: they count as parameters, but in a two-factor layer their gradient is exactly zero for ever.
        tolerance: by about how much the error of `U VT` may exceed the smallest possible one, as a share of that. It
            only matters to large matrices of which few directions are kept, which a looser one makes faster.

    Returns:
        `U` of shape `(..., m, rank)` and `VT` of shape `(..., rank, n)`, in the dtype and on the device of `matrix`. A
        direction of `matrix` whose singular value is zero gets a zero column of `U` and a row of `VT` of unit length,
        orthogonal to the others, so that it can learn.

    Raises:
        TypeError: if `rank` is no integer, or `matrix` no tensor of floating-point numbers.
        ValueError: if `rank` is below 1, `tolerance` not between 0 and 1, or `matrix` has fewer than two dimensions.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        given = matrix.dtype if isinstance(matrix, Tensor) else f"a {type(matrix).__name__}"
        raise TypeError(f"spectral_init needs a tensor of floating-point numbers, such as layer.weight, not {given}")
    if matrix.dim() < 2:
        raise ValueError(f"spectral_init needs a matrix or a batch of them, not a shape of {tuple(matrix.shape)}")
    checked_rank(rank)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, not {tolerance}")
    work = matrix.detach()
    if work.dtype not in _SMALLEST:
        work = work.float()
    batch = work.reshape(-1, *work.shape[-2:])
    kept = min(rank, *batch.shape[-2:])
    P, sigma, QT = _leading_singular_triples(batch, kept, tolerance)
    U = batch.new_zeros(*batch.shape[:-1], rank)
    VT = batch.new_zeros(batch.shape[0], rank, batch.shape[-1])
    left, right, zero = _shares(sigma, max(batch.shape[-2:]))
    if zero.any():
        left, QT = left.masked_fill(zero, 0), _spread(QT, zero)
    U[..., :kept] = P * left[:, None, :]
    VT[:, :kept] = right[:, :, None] * QT
    lead = matrix.shape[:-2]
    return U.reshape(*lead, *U.shape[1:]).to(matrix.dtype), VT.reshape(*lead, *VT.shape[1:]).to(matrix.dtype)


@torch.no_grad()
def batch_spectral_init(U: Tensor, VT: Tensor) -> None:
    """Rebalance batches of factors in place, slice by slice, keeping every product `U[b] @ VT[b]`.

    Args:
        U: shape `(..., m, r)`. May be a view into another parameter: the values are written through it.
        VT: shape `(..., r, n)`, likewise.

    Raises:
        ValueError: if the shapes do not form a product.
    """
    if U.shape[:-2] != VT.shape[:-2] or U.shape[-1] != VT.shape[-2]:
        raise ValueError(f"U {tuple(U.shape)} and VT {tuple(VT.shape)} do not form a product")
    rank = U.shape[-1]
    if rank >= min(U.shape[-2], VT.shape[-1]):
        new_U, new_VT = spectral_init(U @ VT, rank)
    else:
        new_U, new_VT = rebalanced(U, VT)
    U.copy_(new_U)
    VT.copy_(new_VT)


def rebalanced(U: Tensor, VT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the balanced factors of the product of narrow ones, (..., m, r) and (..., r, n), without forming it.

    With `U = Q_1 R_1` and `VT^T = Q_2 R_2` the product is `Q_1 (R_1 R_2^T) Q_2^T`, whose middle is small, `(r, r)`.
    """
    work = U.dtype if U.dtype in _SMALLEST else torch.float32
    Q1, R1 = torch.linalg.qr(U.to(work))
    Q2, R2 = torch.linalg.qr(VT.mT.to(work))
    P, sigma, QT = torch.linalg.svd(R1 @ R2.mT)
    left, right, zero = _shares(sigma, max(U.shape[-2], VT.shape[-1]))
    rows = QT @ Q2.mT
    free = zero & (VT == 0).all(-1).all(-1)[..., None]  # where there are rows, what they read is kept
    if free.any():
        rows = _spread(rows, free)
    return Q1 @ (P * left[..., None, :]), right[..., :, None] * rows


def _shares(sigma: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what singular values (..., count), descending, give to the columns of `U` and to the rows of `VT`.

    The third tensor marks those that are zero up to rounding.

    Their square root, to each. But where both would be zero no gradient would ever reach either: directions that are
    zero up to rounding leave the row of `VT` at unit length, from which the column of `U` can learn.
    """
    root = sigma.sqrt()
    zero = sigma <= 4 * size**0.5 * torch.finfo(sigma.dtype).eps * sigma[..., :1]
    return torch.where(zero, sigma, root), torch.where(zero, torch.ones_like(root), root), zero


def _spread(QT: Tensor, free: Tensor) -> Tensor:
    """Return orthonormal rows (..., count, n) of which the `free` last ones (..., count) are replaced by random ones.

    A decomposition gives directions without a singular value as it likes, often single inputs, and a layer that reads
    nothing but inputs that are always zero can never learn. The numbers are fixed, and cost the run none of its own.
    """
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(QT.shape[-2:], generator=generator, dtype=torch.float64).to(QT)
    free = free[..., None]
    return torch.where(free, torch.linalg.qr(torch.where(free, random, QT).mT).Q.mT, QT)


def _leading_singular_triples(batch: Tensor, count: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return `P (b, m, count)`, `sigma (b, count)`, `QT (b, count, n)` of every matrix of `batch (b, m, n)`.

    Eigenvectors of the smaller Gram matrix cost a fraction of an SVD, and so do the leading ones within a Krylov space.
    Either is as good as an SVD if done in precision enough, which a spectrum that decays asks for. A full SVD is for
    what is left: matrices in double precision that are too ill-conditioned, and overflow.
    """
    if batch.shape[-2] < batch.shape[-1]:
        Q, sigma, PT = _leading_singular_triples(batch.mT, count, tolerance)
        return PT.mT, sigma, Q.mT
    single, is_flat = batch.dtype == torch.float32, krylov.flat(batch)
    if few := krylov.leading_directions(batch, count, is_flat, tolerance):
        return _triples_along(batch, *few[:2])
    if is_flat or not single:
        eigenvalues, Q = _leading_gram_eigenvectors(batch, count, batch.dtype)
        sigma = eigenvalues.clamp_min(0).sqrt()
        if (sigma[:, -1] > _SMALLEST[batch.dtype] * sigma[:, 0]).all():  # false, too, for NaN from an overflow
            return (batch @ Q) / sigma[:, None, :], sigma, Q.mT
    if single and batch.device.type != "mps":  # which has no double precision
        eigenvalues, Q = _leading_gram_eigenvectors(batch, count, torch.float64)
        if eigenvalues.isfinite().all():
            return _triples_along(batch, Q.float(), batch @ Q.float())
    P, sigma, QT = torch.linalg.svd(batch, full_matrices=False)
    return P[..., :count], sigma[:, :count], QT[:, :count]


def _triples_along(batch: Tensor, Q: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return leading singular triples of matrices `W` from their right vectors, (b, n, count), and `W Q`.

    Where the last ones are as short as the rounding errors of the first, which the vectors share with them, it takes a
    small SVD to tell them apart.
    """
    sigma = torch.linalg.vector_norm(images, dim=-2, dtype=torch.float64)  # which does not overflow
    if (sigma[:, -1] > _SHORT * sigma[:, 0]).all():
        sigma = sigma.to(images)
        return images / sigma[:, None, :], sigma, Q.mT
    Q = torch.linalg.qr(Q).Q
    left, R = torch.linalg.qr(batch @ Q)
    P, sigma, QT = torch.linalg.svd(R.double())
    return left @ P.to(left), sigma.to(left), QT.to(Q) @ Q.mT


def _leading_gram_eigenvectors(batch: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the `count` largest eigenvalues, descending, and eigenvectors of `A^T A`, `A` in `batch (b, m, n)`.

    They are computed in `dtype`, and all NaN where the Gram matrix overflows or its eigenvalues are not found.
    """
    if batch.device.type == "cpu" and count <= _FEW_EIGENVECTORS * batch.shape[-1]:
        found = [_few_gram_eigenvectors(matrix, count, dtype) for matrix in batch]
        eigenvalues, vectors = (torch.stack([torch.from_numpy(part) for part in parts]) for parts in zip(*found))
    else:
        parts = (rows.to(dtype) for rows in batch.split(_ROWS, dim=-2))
        gram = torch.stack([part.mT @ part for part in parts]).sum(0)
        if not gram.diagonal(dim1=-2, dim2=-1).isfinite().all():
            return gram.new_full((len(gram), count), torch.nan), gram[..., :count]
        eigenvalues, vectors = torch.linalg.eigh(gram)
        eigenvalues, vectors = eigenvalues[:, -count:], vectors[..., -count:]
    return eigenvalues.flip(-1), vectors.flip(-1)


def _few_gram_eigenvectors(matrix: Tensor, count: int, dtype: torch.dtype) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return eigenvalues (count,), ascending, and eigenvectors (n, count) of `matrix^T matrix`; NaN where it fails."""
    n = matrix.shape[1]
    first, *others = (rows.to(dtype).numpy().T for rows in matrix.split(_ROWS))
    syrk = scipy.linalg.get_blas_funcs("syrk", (first,))
    lower_gram = syrk(1.0, first, lower=1)
    for part in others:
        lower_gram = syrk(1.0, part, beta=1.0, c=lower_gram, lower=1, overwrite_c=1)
    is_finite = numpy.isfinite(lower_gram.diagonal()).all()
    found = _last_eigenvectors(lower_gram, count) if is_finite else None
    return found or (numpy.full(count, numpy.nan, lower_gram.dtype), numpy.zeros((n, count), lower_gram.dtype))


def _last_eigenvectors(lower: numpy.ndarray, count: int) -> tuple[numpy.ndarray, numpy.ndarray] | None:
    """Return the `count` largest eigenvalues, ascending, and eigenvectors of a matrix by its lower triangle.

    None where the driver loses some of many equal ones.
    """
    n = len(lower)
    values, vectors = scipy.linalg.eigh(lower, subset_by_index=[n - count, n - 1], driver="evr", check_finite=False)
    return (values, vectors) if len(values) == count else None


def few_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest eigenvalues, descending, and eigenvectors (n, count) of a symmetric matrix (n, n)."""
    found = None
    if matrix.device.type == "cpu" and count <= _FEW_EIGENVECTORS * len(matrix):
        found = _last_eigenvectors(matrix.numpy(), count)
    values, vectors = map(torch.from_numpy, found) if found else torch.linalg.eigh(matrix)
    return values[-count:].flip(0), vectors[:, -count:].flip(1)
