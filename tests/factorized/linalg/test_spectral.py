"""Spectral initialization against a full singular value decomposition."""

import pytest
import torch

from factorized import batch_spectral_init, non_orthogonality, spectral_init
from tests.factorized.networks import matrix_with_spectrum, relative_error


def best_approximation(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    P, sigma, QT = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (P[..., :rank] * sigma[..., None, :rank]) @ QT[..., :rank, :]


@pytest.fixture
def svd_calls(monkeypatch):
    """The number of full decompositions so far, as the length of a list."""
    calls, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: calls.append(args) or svd(*args, **kwargs))
    return calls


@pytest.mark.parametrize("rank", [1, 3, 6, 8])
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8), (3, 12, 8), (2, 3, 8, 12)])
def test_factors_are_balanced_and_their_product_is_the_best_approximation(shape, rank):
    """`U VT` truncates the SVD and `U^T U = VT VT^T = diag(sigma)`."""
    matrix = torch.randn(shape, dtype=torch.float64)
    U, VT = spectral_init(matrix, rank)
    assert U.shape == (*shape[:-1], rank) and VT.shape == (*shape[:-2], rank, shape[-1])
    assert relative_error(U @ VT, best_approximation(matrix, rank)) < 1e-9
    sigma = torch.diag_embed(torch.linalg.svdvals(matrix)[..., :rank])
    assert relative_error(U.mT @ U, sigma) < 1e-8
    assert relative_error(VT @ VT.mT, sigma) < 1e-8


@pytest.mark.parametrize("rank", [8, 30], ids=["selected eigenvectors", "all eigenvectors"])
@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_gram_route_matches_the_truncation_error(shape, rank, svd_calls):
    """A well-conditioned matrix needs no SVD and loses nothing: the error is that of Eckart and Young."""
    sigma = torch.linspace(1, 0.06, 60)
    matrix = matrix_with_spectrum(sigma, *shape)
    U, VT = spectral_init(matrix, rank)
    assert not svd_calls
    error = torch.linalg.matrix_norm(matrix - U @ VT)
    assert error.item() == pytest.approx(sigma[rank:].square().sum().sqrt().item(), rel=1e-5)
    assert max(non_orthogonality(U, VT)) < 1e-5


@pytest.mark.parametrize(
    "dtype, last, full",
    [(torch.float32, 0.01, 0), (torch.float32, 1e-5, 0), (torch.float64, 1e-7, 1), (torch.float64, 1e-11, 1)],
)
@pytest.mark.parametrize("shape", [(50, 40), (40, 50)])
def test_ill_conditioned_matrices_keep_their_small_directions(shape, dtype, last, full, svd_calls):
    """Squaring the spectrum would lose them: single precision is squared in double, for double there is only an SVD."""
    sigma = torch.logspace(0, torch.tensor(last).log10().item(), 40, dtype=dtype)
    matrix = matrix_with_spectrum(sigma, *shape)
    U, VT = spectral_init(matrix, 40)
    assert sum(50 in matrices.shape for matrices, *_ in svd_calls) == full
    assert relative_error(U @ VT, matrix) < 100 * torch.finfo(dtype).eps
    for factor in (U, VT.mT):
        columns = torch.nn.functional.normalize(factor, dim=0)
        assert (columns.mT @ columns - torch.eye(40, dtype=dtype)).abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(300, 280), (280, 300), (60, 50), (2, 60, 50)])
@pytest.mark.parametrize("rank", [10, 20])
def test_below_the_precision_of_the_matrix_directions_stay_orthogonal(shape, rank):
    """Rank 12 and a spectrum that ends there at 1e-6: beyond it there are rounding errors or nothing."""
    sigma = torch.logspace(0, -6, 12)
    lead = (shape[0],) if len(shape) == 3 else ()
    matrix = matrix_with_spectrum(sigma, *shape[-2:]).expand(*lead, -1, -1)
    U, VT = spectral_init(matrix, rank)
    assert (matrix - U @ VT).abs().max() < sigma[rank:].sum() + 1e-6
    rows = torch.nn.functional.normalize(VT, dim=-1)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(rank).expand(*lead, -1, -1), rtol=0, atol=1e-5)


def test_a_batch_equals_its_slices_one_by_one():
    """Slices are independent, also where one ill-conditioned slice sends the whole batch to the SVD."""
    batch = torch.randn(4, 9, 7, dtype=torch.float64)
    batch[2, :, 3] = batch[2, :, 4]
    U, VT = spectral_init(batch, 7)
    for matrix, left, right in zip(batch, U, VT):
        expected_U, expected_VT = spectral_init(matrix, 7)
        torch.testing.assert_close(left @ right, expected_U @ expected_VT, rtol=0, atol=1e-12)
        torch.testing.assert_close(left.mT @ left, expected_U.mT @ expected_U, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape, rank", [((5, 3), 8), ((3, 5), 4), ((2, 4, 4), 6)])
def test_surplus_directions_are_zero(shape, rank):
    """A rank above `min(m, n)` fills the first directions and pads with exact zeros."""
    matrix = torch.randn(shape, dtype=torch.float64)
    U, VT = spectral_init(matrix, rank)
    k = min(shape[-2:])
    assert U.shape[-1] == VT.shape[-2] == rank
    assert U[..., k:].count_nonzero() == 0 and VT[..., k:, :].count_nonzero() == 0
    assert relative_error(U @ VT, matrix) < 1e-10
    kept_U, kept_VT = spectral_init(matrix, k)
    assert torch.equal(U[..., :k], kept_U) and torch.equal(VT[..., :k, :], kept_VT)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_sixteen_bit_matrices(dtype, tolerance):
    """Factors come back in the dtype of the matrix, computed in single precision."""
    matrix = torch.randn(3, 20, 12).to(dtype)
    U, VT = spectral_init(matrix, 5)
    assert U.dtype == VT.dtype == dtype
    assert relative_error(U.double() @ VT.double(), best_approximation(matrix, 5)) < tolerance


@pytest.mark.parametrize("magnitude", [1e25, 1e-25])
def test_extreme_magnitudes(magnitude):
    """The Gram matrix of such entries over- or underflows single precision."""
    matrix = torch.randn(10, 6)
    U, VT = spectral_init(matrix * magnitude, 3)
    assert relative_error(U.double() @ VT.double() / magnitude, best_approximation(matrix, 3)) < 1e-4


def test_zero_and_non_finite_matrices():
    U, VT = spectral_init(torch.zeros(4, 3), 2)
    assert torch.equal(U @ VT, torch.zeros(4, 3))
    with pytest.raises(RuntimeError, match="non-finite"):
        spectral_init(torch.full((4, 3), float("nan")), 2)


def test_the_argument_is_left_alone_and_no_graph_is_built():
    matrix = torch.randn(5, 4, requires_grad=True)
    before = matrix.detach().clone()
    U, VT = spectral_init(matrix, 2)
    assert torch.equal(matrix, before) and not U.requires_grad and not VT.requires_grad


@pytest.mark.parametrize("shape, rank, message", [((4, 4), 0, "rank"), ((4, 4), -1, "rank"), ((4,), 1, "matrix")])
def test_wrong_arguments(shape, rank, message):
    with pytest.raises(ValueError, match=message):
        spectral_init(torch.randn(shape), rank)


@pytest.mark.parametrize("tolerance", [0, -1e-3, 1, float("nan")])
def test_tolerance_is_a_share(tolerance):
    with pytest.raises(ValueError, match="tolerance must be between 0 and 1"):
        spectral_init(torch.randn(4, 4), 2, tolerance)


@pytest.mark.parametrize("m, r, n", [(9, 4, 6), (6, 4, 9), (4, 7, 6), (3, 5, 8)])
def test_batch_init_rewrites_views_of_other_parameters(m, r, n):
    """Products are kept, factors become balanced, and values are written through views, at any rank."""
    left = torch.nn.Parameter(torch.randn(2, m, r + 1, dtype=torch.float64))
    right = torch.nn.Parameter(torch.randn(n, 2, r, dtype=torch.float64))
    U, VT = left[..., :r], right.permute(1, 2, 0)
    product, untouched = (U @ VT).detach().clone(), left[..., r].detach().clone()
    batch_spectral_init(U.detach(), VT.detach())
    assert relative_error(left[..., :r] @ right.permute(1, 2, 0), product) < 1e-12
    assert torch.equal(left[..., r], untouched)
    sigma = torch.linalg.svdvals(product)
    sigma = torch.diag_embed(torch.cat([sigma, sigma.new_zeros(2, max(0, r - sigma.shape[1]))], -1)[:, :r])
    for factor in (left[..., :r].mT, right.permute(1, 2, 0)):
        torch.testing.assert_close(factor @ factor.mT, sigma, rtol=0, atol=1e-7)


def test_batch_init_writes_into_leaf_parameters():
    U, VT = torch.nn.Parameter(torch.randn(3, 5, 2)), torch.nn.Parameter(torch.randn(3, 2, 4))
    product = (U @ VT).detach().clone()
    batch_spectral_init(U, VT)
    assert U.is_leaf and U.requires_grad and relative_error(U @ VT, product) < 1e-5
    assert max(share.max() for share in non_orthogonality(U, VT)) < 1e-5


@pytest.mark.parametrize("U, VT", [((2, 4, 3), (2, 4, 3)), ((2, 4, 3), (3, 3, 4)), ((4, 3), (2, 3, 4))])
def test_batch_init_rejects_what_forms_no_product(U, VT):
    with pytest.raises(ValueError, match="do not form a product"):
        batch_spectral_init(torch.randn(U), torch.randn(VT))
