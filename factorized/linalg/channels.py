"""Tucker-2 decompositions of a convolution's kernel, weighted by what its inputs and its outputs mean to the loss.

    K[o, c] = sum_pq U[o, p] C[p, q] VT[q, c]        for every position of the kernel

The channels alone are decomposed, not the positions. An error dK of the kernel costs

    |G^(1/2) dK A^(1/2)|_F^2,    summed over the positions,

with metrics A of the input channels and G of the output channels; without them it is the Frobenius norm. Three known
methods are settings of one function:

    HOSVD                  no metrics                                       (De Lathauwer et al. 2000; Kim et al. 2016)
    activation-weighted    A the second moments of the inputs
    EigenDamage            A and G the factors of K-FAC, basis "eigen"      (Wang et al. 2019, section 4)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BASES = ("singular", "eigen")
_LEAST = 1e-6  # eigenvalue of a metric that has to be inverted, as a fraction of the mean one


class Tucker2(NamedTuple):
    """A kernel in terms of all its directions, in double precision: nothing is lost as long as none is left out."""

    U: Tensor
    """A column for each direction of the outputs, shape (out, out)."""
    core: Tensor
    """The kernel in terms of these directions, shape (out, in, kh, kw)."""
    VT: Tensor
    """A row for each direction of the inputs, shape (in, in)."""
    output_scores: Tensor
    """The cost of leaving out each direction of the outputs alone, up to rounding, shape (out,)."""
    input_scores: Tensor
    """The cost of leaving out each direction of the inputs alone, shape (in,)."""

    def kept(self, outputs: Tensor | Sequence[int], inputs: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(U, core, VT)` of the directions at these positions."""
        outputs, inputs = (torch.as_tensor(kept, device=self.U.device) for kept in (outputs, inputs))
        return self.U[:, outputs], self.core[outputs][:, inputs], self.VT[inputs]

    def best(self, rank: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(U, core, VT)` of the directions with the highest scores: `rank` of (outputs, inputs)."""
        scores = self.output_scores, self.input_scores
        outputs, inputs = (s.argsort(descending=True, stable=True)[:r] for s, r in zip(scores, rank))
        return self.kept(outputs, inputs)


def tucker2(kernel: Tensor, A: Tensor | None = None, G: Tensor | None = None, basis: str = "singular") -> Tucker2:
    """Return a kernel in terms of directions of its input and output channels, with what each is worth.

    Args:
        kernel: shape (out, in, kh, kw).
        A: metric of the inputs, (in, in), symmetric and positive semi-definite; None for the identity.
        G: metric of the outputs, (out, out), likewise.
        basis: `singular`, the left singular vectors of the weighted kernel's two unfoldings (HOSVD), for which
            metrics are raised to what can be inverted; or `eigen`, the eigenvectors of the metrics, in which their
            Kronecker product is diagonal, so that what is kept needs no correction for what is left out.

    Raises:
        ValueError: for an unknown basis, for metrics of another shape, or numbers that are not finite.
    """
    if basis not in BASES:
        raise ValueError(f"basis must be one of {', '.join(BASES)}, not {basis!r}")
    kernel = kernel.double()
    (d_g, Q_g), (d_a, Q_a) = (_spectrum(m, kernel, side) for m, side in ((G, 0), (A, 1)))
    if basis == "eigen":
        core = _both(Q_g.mT, kernel, Q_a)
        energy = core.square() * d_g[:, None, None, None] * d_a[:, None, None]
        return _scored(Q_g, core, Q_a.mT, energy)
    d_g, d_a = _invertible(d_g), _invertible(d_a)
    weighted = _both(d_g.sqrt()[:, None] * Q_g.mT, kernel, Q_a * d_a.sqrt())
    R_g, R_a = (_left_vectors(weighted.movedim(side, 0).flatten(1)) for side in (0, 1))
    core = _both(R_g.mT, weighted, R_a)
    return _scored((Q_g / d_g.sqrt()) @ R_g, core, R_a.mT @ (Q_a / d_a.sqrt()).mT, core.square())


def _scored(U: Tensor, core: Tensor, VT: Tensor, energy: Tensor) -> Tucker2:
    return Tucker2(U, core, VT, energy.sum((1, 2, 3)), energy.sum((0, 2, 3)))


def _both(left: Tensor, kernel: Tensor, right: Tensor) -> Tensor:
    """Return `left K right` for every position of a kernel."""
    return torch.einsum("po,ocij,cq->pqij", left, kernel, right)


def _spectrum(metric: Tensor | None, kernel: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, not negative, and eigenvectors of a metric."""
    size = kernel.shape[side]
    if metric is None:
        return kernel.new_ones(size), torch.eye(size).to(kernel)
    if metric.shape != (size, size):
        what = "inputs" if side else "outputs"
        raise ValueError(f"the metric of {size} {what} has the shape ({size}, {size}), not {tuple(metric.shape)}")
    if not metric.isfinite().all():
        raise ValueError("a metric holds NaN or infinite numbers")
    values, vectors = torch.linalg.eigh(metric.to(kernel))
    return values.clamp_min(0), vectors


def _invertible(values: Tensor) -> Tensor:
    mean = values.mean()
    return values.clamp_min(_LEAST * mean) if mean > 0 else torch.ones_like(values)


def _left_vectors(matrix: Tensor) -> Tensor:
    """Return all left singular vectors, shape (rows, rows), leading ones first.

    From the Gram matrix: what that loses of the smallest singular values in double precision changes no choice.
    """
    return torch.linalg.eigh(matrix @ matrix.mT).eigenvectors.flip(1)
