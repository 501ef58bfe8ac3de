"""Leading directions of matrices with decaying spectra, against their known decompositions."""

import pytest
import torch
from torch import Tensor

from factorized import spectral_init
from factorized.linalg import decaying

SPECTRA = {
    "power": 1 / torch.arange(1, 301, dtype=torch.float),
    "exponential": torch.exp(-torch.arange(300) / 25),
}


def matrix_of(sigma: Tensor, m: int, n: int) -> Tensor:
    P, Q = (torch.linalg.qr(torch.randn(size, len(sigma), dtype=torch.float64)).Q for size in (m, n))
    return ((P * sigma) @ Q.mT).float()


def excess(matrix: Tensor, U: Tensor, VT: Tensor) -> float:
    """Return by how much the error of `U @ VT` exceeds the smallest possible one for its rank, as a share of that."""
    sigma = torch.linalg.svdvals(matrix.double())
    error = torch.linalg.matrix_norm(matrix.double() - U.double() @ VT.double())
    return (error / sigma[U.shape[1] :].square().sum().sqrt() - 1).item()


@pytest.mark.parametrize("rank", [4, 40, 75])
@pytest.mark.parametrize("shape", [(300, 300), (520, 300), (300, 520)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_error_is_the_smallest_possible(spectrum, shape, rank, monkeypatch):
    """Up to a quarter of the directions no decomposition of the whole matrix is needed."""
    matrix = matrix_of(SPECTRA[spectrum], *shape)
    svd = torch.linalg.svd

    def small(part: Tensor, *args, **options):
        assert max(part.shape) < 300
        return svd(part, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", small)
        patch.setattr("factorized.linalg.spectral._leading_gram_eigenvectors", None)
        U, VT = spectral_init(matrix, rank)
    assert abs(excess(matrix, U, VT)) < 1e-5
    torch.testing.assert_close(U.mT @ U, VT @ VT.mT, rtol=1e-3, atol=1e-5)


def test_flat_spectra_do_not_decay():
    assert not decaying.decays(torch.randn(520, 300))
    assert not decaying.decays(torch.zeros(520, 300))
    assert not decaying.decays(torch.full((520, 300), 1e30))
    assert decaying.decays(matrix_of(SPECTRA["power"], 520, 300))


def test_many_directions_take_the_gram_matrix_in_double_precision(monkeypatch):
    matrix = matrix_of(SPECTRA["power"], 300, 300)
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", None)
        U, VT = spectral_init(matrix, 200)
    assert abs(excess(matrix, U, VT)) < 1e-5
