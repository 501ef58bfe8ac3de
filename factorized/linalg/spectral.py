"""Spectral initialization: balanced factors of the best low-rank approximation (Khodak et al. 2021, section 3.1).

For `W = P diag(sigma) Q^T` with singular values in descending order, rank `r` gives

    U = P[:, :r] diag(sqrt(sigma[:r]))        VT = diag(sqrt(sigma[:r])) Q[:, :r]^T

so that `U VT` is the best rank-`r` approximation of `W` and `U^T U = VT VT^T = diag(sigma[:r])`.
"""

import numpy
import scipy.linalg
import torch
from torch import Tensor

from . import decaying, krylov

# The Gram route squares singular values, so a direction loses about eps * (sigma_1 / sigma_r)^2 of its
# orthogonality. Below this fraction of sigma_1 the full SVD is used instead. float32: 0.05, float64: 2e-6.
_SMALLEST = {torch.float32: 5e-2, torch.float64: 2e-6}

# Up to this share of the spectrum, LAPACK's selected-eigenvector driver beats a full eigendecomposition on a CPU.
_FEW = 0.25


def spectral_init(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return `(U, VT)`, the balanced factors of the best rank-`rank` approximation of `matrix`.

    Args:
        matrix: shape `(..., m, n)`; leading dimensions are a batch of independent matrices.
        rank: number of columns of `U`. Above `min(m, n)` the surplus columns of `U` and rows of `VT` are zero, as
            published: they count as parameters, but in a two-factor layer their gradient is exactly zero for ever.

    Returns:
        `U` of shape `(..., m, rank)` and `VT` of shape `(..., rank, n)`, in the dtype and on the device of `matrix`. A
        direction of `matrix` whose singular value is zero gets a zero column of `U` and a row of `VT` of unit length,
        orthogonal to the others, so that it can learn.

    Raises:
        ValueError: if `rank` is below 1 or `matrix` has fewer than two dimensions.
    """
    if matrix.dim() < 2:
        raise ValueError(f"spectral_init needs a matrix or a batch of them, not a shape of {tuple(matrix.shape)}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    work = matrix.detach()
    if work.dtype not in _SMALLEST:
        work = work.float()
    batch = work.reshape(-1, *work.shape[-2:])
    kept = min(rank, *batch.shape[-2:])
    P, sigma, QT = _leading_singular_triples(batch, kept)
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
        new_U, new_VT = _rebalance(U, VT)
    U.copy_(new_U)
    VT.copy_(new_VT)


def _rebalance(U: Tensor, VT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the balanced factors of the product of narrow ones, without forming it.

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


def _leading_singular_triples(batch: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `P (b, m, count)`, `sigma (b, count)`, `QT (b, count, n)` of every matrix of `batch (b, m, n)`.

    Eigenvectors of the smaller Gram matrix cost a fraction of an SVD. They span the leading subspace accurately as
    long as `sigma_count` is not tiny against `sigma_1`. Where it is, as in trained weights, the Gram matrix is taken in
    double precision, and where that does not do or overflows, the full SVD. Few directions have faster ways.
    """
    if batch.shape[-2] < batch.shape[-1]:
        Q, sigma, PT = _leading_singular_triples(batch.mT, count)
        return PT.mT, sigma, Q.mT
    if batch.dtype == torch.float32 and any(map(decaying.decays, batch)):
        found = [decaying.leading_singular_triples(matrix, count) for matrix in batch]
        complete = [triples for triples in found if triples is not None]
        if len(complete) == len(found):
            P, sigma, QT = map(torch.stack, zip(*complete))
            return P, sigma, QT
        precisions = [torch.float64]
    else:
        if few := krylov.leading_singular_triples(batch, count):
            return few
        precisions = list(dict.fromkeys([batch.dtype, torch.float64]))
    for precision in precisions:
        work = batch.to(precision)
        eigenvalues, Q = _leading_gram_eigenvectors(work, count)
        sigma = eigenvalues.clamp_min(0).sqrt()
        if (sigma[:, -1] > _SMALLEST[precision] * sigma[:, 0]).all():  # false, too, for NaN from an overflow
            P = (work @ Q) / sigma[:, None, :]
            return P.to(batch.dtype), sigma.to(batch.dtype), Q.mT.to(batch.dtype)
    P, sigma, QT = torch.linalg.svd(batch, full_matrices=False)
    return P[..., :count], sigma[:, :count], QT[:, :count]


def _leading_gram_eigenvectors(batch: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest eigenvalues, descending, and eigenvectors of `A^T A`, `A` in `batch (b, m, n)`.

    All NaN where the Gram matrix overflows or its eigenvalues are not found.
    """
    if batch.device.type == "cpu" and count <= _FEW * batch.shape[-1]:
        found = [_few_gram_eigenvectors(matrix.numpy(), count) for matrix in batch]
        eigenvalues, vectors = (torch.stack([torch.from_numpy(part) for part in parts]) for parts in zip(*found))
    else:
        gram = batch.mT @ batch
        if not gram.diagonal(dim1=-2, dim2=-1).isfinite().all():
            return gram.new_full((len(gram), count), torch.nan), gram[..., :count]
        eigenvalues, vectors = torch.linalg.eigh(gram)
        eigenvalues, vectors = eigenvalues[:, -count:], vectors[..., -count:]
    return eigenvalues.flip(-1), vectors.flip(-1)


def _few_gram_eigenvectors(matrix: numpy.ndarray, count: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return eigenvalues (count,), ascending, and eigenvectors (n, count) of `matrix^T matrix`; NaN where it fails."""
    n = matrix.shape[1]
    lower_gram = scipy.linalg.get_blas_funcs("syrk", (matrix,))(1.0, matrix.T, lower=1)
    if not numpy.isfinite(lower_gram.diagonal()).all():
        return numpy.full(count, numpy.nan, matrix.dtype), numpy.zeros((n, count), matrix.dtype)
    values, vectors = scipy.linalg.eigh(
        lower_gram, subset_by_index=[n - count, n - 1], driver="evr", check_finite=False
    )
    if len(values) < count:  # the driver can lose some of many equal ones
        return numpy.full(count, numpy.nan, matrix.dtype), numpy.zeros((n, count), matrix.dtype)
    return values, vectors
