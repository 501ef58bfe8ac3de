"""The best product of factors for a weight that is not seen by all inputs and outputs alike.

For a layer `y = W x` with the second moment `A = E[x x^T]` of its inputs and a metric `G` of its outputs (the identity,
or the second moment of the loss's gradient there), the product of rank `r` with the smallest

    |G^1/2 (W - W') A^1/2|_F    is    W' = G^-1/2 P P^T G^1/2 W

where the columns of `P` are the leading left singular vectors of `G^1/2 W A^1/2`: eigenvectors of
`G^1/2 W A W^T G^1/2`, so that `A` may be singular. A diagonal `A` is that of ASVD (https://arxiv.org/abs/2312.05821), a
whole one that of SVD-LLM (https://arxiv.org/abs/2403.07378), a diagonal `G` that of FWSVD
(https://arxiv.org/abs/2207.00112). Either may be given as its diagonal.
"""

import scipy.linalg
import torch
from torch import Tensor

from . import krylov
from .spectral import few_eigenvectors, rebalanced, spectral_init

# What a metric is raised by in all directions, as a share of its mean: where there are no data, W itself decides.
_RIDGE = 1e-6

_MANY = 2**22  # elements of a matrix of which few directions are found without all others, in single precision

# By how much the error of few directions may exceed the smallest possible one: less than a sample of data can tell.
_TOLERANCE = 1e-3

# Random vectors that the error of a large product is estimated from.
_PROBES = 32

# What each of few directions takes, in multiplications by the weighted matrix, and what eigenvectors of its Gram matrix
# take, in products of two of that size: chosen from timings of a matrix of 4096 x 11008.
_PER_DIRECTION, _EIGENVECTORS = 3.5, 3


@torch.no_grad()
def weighted_init(
    matrix: Tensor, rank: int, inputs: Tensor | None = None, outputs: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return balanced factors of the best product under a metric, and its relative error under it.

    Args:
        matrix: (m, n), or a batch of matrices, which has a batch of each metric and one error.
        rank: number of columns of `U`.
        inputs: `A`, (n, n), or its diagonal, (n,); None for the identity.
        outputs: `G`, (m, m), or its diagonal, (m,); None for the identity.

    Returns:
        `U` (m, rank), `VT` (rank, n), in the dtype of `matrix`, and `|G^1/2 (W - U VT) A^1/2| / |G^1/2 W A^1/2|`, for
        few directions of large matrices an estimate within a few percent.
    """
    if matrix.dim() == 3:
        none = [None] * len(matrix)
        metrics = list(zip(none if inputs is None else inputs, none if outputs is None else outputs))
        found = [weighted_init(one, rank, *own) for one, own in zip(matrix, metrics)]
        wholes = torch.stack([_square_under(one, *own) for one, own in zip(matrix, metrics)])
        left = sum(whole * error**2 for whole, (_, _, error) in zip(wholes, found))
        U, VT = (torch.stack(parts) for parts in list(zip(*found))[:2])
        return U, VT, _error(left / wholes.sum().clamp_min(torch.finfo(wholes.dtype).tiny))
    if outputs is not None and (inputs is None or outputs.dim() < inputs.dim()):
        # Only `G` is inverted, and a diagonal, as of how often tokens occur, is more likely to hold zeros.
        VT, U, error = weighted_init(matrix.mT, rank, outputs, inputs)
        return U.mT, VT.mT, error
    if rank >= min(matrix.shape):
        return *spectral_init(matrix, rank), 0.0
    if inputs is None:
        U, VT = spectral_init(matrix, rank)
        kept = U.double().square().sum(0).square().sum() / _square(matrix)
        return U, VT, _error(1 - kept)
    X, A, inverse = _measured(matrix, inputs, outputs, _precise(matrix))
    P, PTX, error = (_few_leading(X, A, rank) if _few(X, A, rank) else None) or _leading(X, A, rank)
    U, VT = rebalanced(P if inverse is None else _times(inverse, P), PTX)
    return U.to(matrix.dtype), VT.to(matrix.dtype), error


@torch.no_grad()
def squared_spectrum(matrix: Tensor, inputs: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
    """Return all squared singular values of `G^1/2 W A^1/2`, descending, in double precision, on the CPU."""
    inputs = matrix.new_ones(matrix.shape[1]) if inputs is None else inputs
    X, A, _ = _measured(matrix, inputs, outputs, _precise(matrix))
    gram, _ = _small_gram(X, A)
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).double().cpu()


class _Metric:
    """A metric of mean 1, raised a little in all directions. A large one is not copied for that.

    Attributes:
        values: the metric as given, (n, n), or its diagonal, (n,).
        scale: what its mean is to be multiplied by.
    """

    def __init__(self, values: Tensor, dtype: torch.dtype):
        self.values = values.detach().to(dtype)
        mean = float(self.diagonal().mean())
        if not mean > torch.finfo(dtype).tiny:
            self.values, mean = torch.ones_like(self.diagonal()), 1.0
        self.scale = 1 / mean

    def diagonal(self) -> Tensor:
        return self.values if self.values.dim() == 1 else self.values.diagonal()

    def raised(self) -> Tensor:
        """Return the metric itself, (n, n) or (n,)."""
        metric = self.values * self.scale
        (metric if metric.dim() == 1 else metric.diagonal()).add_(_RIDGE)
        return metric

    def times(self, columns: Tensor) -> Tensor:
        """Return its product with (n, k)."""
        if self.values.dim() == 1:
            return self.raised()[:, None] * columns
        return torch.addmm(columns, self.values, columns, beta=_RIDGE, alpha=self.scale)

    def gram(self, X: Tensor) -> Tensor:
        """Return `X A X^T`, (m, m), of `X` (m, n); the lower triangle counts, which is all that decompositions read."""
        if self.values.dim() == 1 or X.device.type != "cpu":
            return self.times(X.mT).mT @ X.mT
        # With the lower triangle T of A and half of its diagonal, A = T + T^T: half the work of `X A`, and no copies.
        columns, lower = X.mT.numpy(), self.values.mT.numpy()
        trmm, syr2k = scipy.linalg.get_blas_funcs(("trmm", "syr2k"), (columns,))
        half = torch.from_numpy(trmm(self.scale, lower, columns, lower=1)).mT  # X T^T
        half.addcmul_(X, self.diagonal() * self.scale - _RIDGE, value=-0.5)
        return torch.from_numpy(syr2k(1.0, columns, half.mT.numpy(), trans=1, lower=1))


def _measured(
    matrix: Tensor, inputs: Tensor, outputs: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, _Metric, Tensor | None]:
    """Return `G^1/2 W`, `A`, and `G^-1/2` if there is a `G`."""
    A, X = _Metric(inputs, dtype), matrix.detach().to(dtype)
    if outputs is None:
        return X, A, None
    root, inverse = _roots(_Metric(outputs, dtype).raised())
    return _times(root, X), A, inverse


def _few(X: Tensor, A: _Metric, rank: int) -> bool:
    """Tell whether few directions are found sooner by themselves than from the whole Gram matrix."""
    m, n = X.shape
    if A.values.dim() == 1 or not krylov.pays((X if m > n else X.mT)[None], rank, is_flat=False):
        return False
    whole = m * n * (n / 2 + m) + _EIGENVECTORS * m**3
    return m > n or _PER_DIRECTION * rank * n * (2 * m + n) < whole


def _few_leading(X: Tensor, A: _Metric, rank: int) -> tuple[Tensor, Tensor, float] | None:
    """Return what `_leading` does, sooner and with an estimate of the error, or None if it would not be sooner."""
    found = krylov.leading_directions(X.mT[None], rank, False, _TOLERANCE, metric=A.times)
    if found is None:
        return None
    P, image, squares = (part[0] for part in found)
    return P, image.mT, _estimated_error(X, A, P, squares.sum())


def _leading(X: Tensor, A: _Metric, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return orthonormal leading left singular vectors `P` (m, rank) of `X A^1/2`, `P^T X`, and the error."""
    gram, image = _small_gram(X, A)
    eigenvalues, P = few_eigenvectors(gram, rank)
    if image is not None:
        P = torch.linalg.qr(image @ P).Q
    return P, P.mT @ X, _error(1 - eigenvalues.sum() / gram.trace())


def _small_gram(X: Tensor, A: _Metric) -> tuple[Tensor, Tensor | None]:
    """Return `B B^T` of `B = X A^1/2`, its lower triangle at least, or `B^T B` and `B` where that is smaller."""
    m, n = X.shape
    if m <= n:
        return A.gram(X), None
    B = _times(_roots(A.raised())[0], X.mT).mT
    return B.mT @ B, B


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root of a metric, and its inverse."""
    if metric.dim() == 1:
        return metric.sqrt(), metric.rsqrt()
    eigenvalues, vectors = torch.linalg.eigh(metric)
    root = eigenvalues.clamp_min(eigenvalues.mean() * _RIDGE).sqrt()
    return vectors * root @ vectors.mT, vectors / root @ vectors.mT


def _times(metric: Tensor, matrix: Tensor) -> Tensor:
    return metric[:, None] * matrix if metric.dim() == 1 else metric @ matrix


def _precise(matrix: Tensor) -> torch.dtype:
    """Return double precision, since squares are taken, unless there is none or it would take too long."""
    single = matrix.device.type == "mps" or matrix.numel() > _MANY and matrix.dtype != torch.float64
    return torch.float32 if single else torch.float64


def _square_under(matrix: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> Tensor:
    """Return `|G^1/2 W A^1/2|^2`."""
    X = matrix.detach().to(_precise(matrix))
    seen = X if inputs is None else _times(inputs.to(X), X.mT).mT
    return (seen * (X if outputs is None else _times(outputs.to(X), X))).sum()


def _square(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix.detach(), dtype=torch.float64).square()


def _estimated_error(X: Tensor, A: _Metric, P: Tensor, kept: Tensor) -> float:
    """Return the relative error of `P P^T X` under `A`, from random directions of the outputs.

    Args:
        kept: the squared norm of `P P^T X` under `A`.
    """
    probes = torch.randn(len(X), _PROBES, generator=torch.Generator().manual_seed(0)).to(X)
    seen = X.mT @ (probes - P @ (P.mT @ probes))
    dropped = (seen * A.times(seen)).sum() / _PROBES
    return _error(dropped / (dropped + kept))


def _error(share: Tensor) -> float:
    return float(share.clamp_min(0).sqrt())
