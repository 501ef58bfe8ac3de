"""The best product under a metric, against its definition and against closed forms."""

import pytest
import torch
from torch import Tensor

from factorized import spectral_init
from factorized.linalg import weighted
from factorized.linalg.weighted import squared_spectrum, weighted_init

SHAPES = [(7, 5), (5, 7), (12, 4), (6, 6)]


def moment(size: int, rank: int | None = None, seed: int = 1) -> Tensor:
    """Return the second moment of `rank` random samples."""
    samples = torch.randn(rank or 3 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return samples.mT @ samples


def root(metric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(torch.diag(metric) if metric.dim() == 1 else metric)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT


def truncated(matrix: Tensor, rank: int) -> Tensor:
    P, sigma, QT = torch.linalg.svd(matrix, full_matrices=False)
    return P[:, :rank] * sigma[:rank] @ QT[:rank]


def definition(W: Tensor, rank: int, A: Tensor, G: Tensor) -> Tensor:
    """Return the best product by whitening, truncating and going back, which needs both inverses."""
    A, G = root(A), root(G)
    return torch.linalg.solve(G, torch.linalg.solve(A, truncated(G @ W @ A, rank).mT).mT)


def metrics(m: int, n: int):
    diagonal = torch.linspace(0.2, 3, n, dtype=torch.float64), torch.linspace(2, 0.1, m, dtype=torch.float64)
    whole = moment(n), moment(m, seed=2)
    for inputs in (None, diagonal[0], whole[0]):
        for outputs in (None, diagonal[1], whole[1]):
            yield inputs, outputs


@pytest.mark.parametrize("m, n", SHAPES)
def test_the_product_is_the_best_one_under_its_metric(m, n):
    """All nine combinations: A = G = I (plain), diagonal (ASVD, FWSVD), whole (SVD-LLM)."""
    torch.manual_seed(3)
    W = torch.randn(m, n, dtype=torch.float64)
    for inputs, outputs in metrics(m, n):
        A = torch.eye(n).double() if inputs is None else inputs
        G = torch.eye(m).double() if outputs is None else outputs
        for rank in (1, 3):
            U, VT, error = weighted_init(W, rank, inputs, outputs)
            best = definition(W, rank, A, G)
            torch.testing.assert_close(U @ VT, best, rtol=1e-4, atol=1e-4)
            left = torch.linalg.matrix_norm(root(G) @ (W - best) @ root(A)) / torch.linalg.matrix_norm(
                root(G) @ W @ root(A)
            )
            assert abs(error - left) < 1e-4
            # Balanced, as the plain start.
            torch.testing.assert_close(U.mT @ U, VT @ VT.mT, rtol=0, atol=1e-8)
            assert (U.mT @ U - torch.diag(torch.diagonal(U.mT @ U))).abs().max() < 1e-8


def test_without_a_metric_it_is_the_plain_start():
    W = torch.randn(9, 6)
    U, VT, error = weighted_init(W, 2)
    plain = spectral_init(W, 2)
    assert torch.equal(U, plain[0]) and torch.equal(VT, plain[1])
    ones = weighted_init(W, 2, torch.ones(6), torch.eye(9))
    torch.testing.assert_close(ones[0] @ ones[1], U @ VT, rtol=0, atol=1e-5)
    assert abs(ones[2] - error) < 1e-5


@pytest.mark.parametrize("m, n", SHAPES)
def test_the_spectrum_is_that_of_the_weighted_matrix(m, n):
    W = torch.randn(m, n, dtype=torch.float64)
    for inputs, outputs in metrics(m, n):
        A = torch.eye(n).double() if inputs is None else root(inputs / _mean(inputs))
        G = torch.eye(m).double() if outputs is None else root(outputs / _mean(outputs))
        expected = torch.linalg.svdvals(G @ W @ A).square()
        torch.testing.assert_close(squared_spectrum(W, inputs, outputs), expected, rtol=1e-3, atol=1e-4)


def _mean(metric: Tensor) -> Tensor:
    return metric.mean() if metric.dim() == 1 else metric.diagonal().mean()


@pytest.mark.parametrize("m, n", [(8, 20), (20, 8)])
def test_data_of_low_rank_are_fine_and_kept_exactly(m, n):
    """Three kinds of input ever seen: a product of rank 3 computes the same on them, and its weights are finite."""
    torch.manual_seed(0)
    W, samples = torch.randn(m, n), torch.randn(50, 3) @ torch.randn(3, n)
    U, VT, error = weighted_init(W, 3, samples.mT @ samples)
    torch.testing.assert_close(samples @ (U @ VT).mT, samples @ W.mT, rtol=1e-3, atol=1e-3)
    assert error < 5e-3
    # With more rank than the data have, what is left goes to the directions of W.
    U, VT, _ = weighted_init(W, 6, samples.mT @ samples)
    torch.testing.assert_close(samples @ (U @ VT).mT, samples @ W.mT, rtol=1e-3, atol=1e-3)
    assert U.isfinite().all() and VT.isfinite().all() and torch.linalg.matrix_rank(U @ VT) == 6


def test_rows_that_never_count_are_no_obstacle():
    """An embedding: rows by how often they occur, some never; the others are kept as if those were not there."""
    torch.manual_seed(0)
    table, often = torch.randn(30, 6, dtype=torch.float64), torch.rand(30, dtype=torch.float64)
    often[10:] = 0
    for gradient in (None, moment(6)):
        U, VT, _ = weighted_init(table, 3, gradient, often)
        alone = weighted_init(table[:10], 3, gradient, often[:10])
        torch.testing.assert_close((U @ VT)[:10], alone[0] @ alone[1], rtol=1e-3, atol=1e-3)
        assert (U @ VT)[10:].norm() > 0.1


@pytest.mark.parametrize("m, n", [(60, 90), (90, 60)])
def test_a_full_rank_or_more_is_the_weight_itself(m, n):
    W = torch.randn(m, n)
    for rank in (60, 64):
        U, VT, error = weighted_init(W, rank, moment(n, 20), moment(m))
        assert U.shape == (m, rank) and error == 0
        torch.testing.assert_close(U @ VT, W, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_a_higher_one(dtype):
    W = torch.randn(16, 12, dtype=dtype)
    U, VT, _ = weighted_init(W, 4, moment(12).float())
    exact = weighted_init(W.double(), 4, moment(12))
    assert U.dtype == VT.dtype == dtype
    torch.testing.assert_close((U @ VT).double(), exact[0] @ exact[1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("m, n", [(300, 420), (420, 300)])
def test_few_directions_of_a_large_matrix(monkeypatch, m, n):
    """The shorter way to few directions of large matrices ends at the same error, and estimates it."""
    torch.manual_seed(0)
    W = torch.randn(m, n)
    samples = torch.randn(2000, n) * torch.logspace(0, -2, n)
    A, G = samples.mT @ samples, moment(m).float()
    for outputs in (None, G):
        exact = weighted_init(W, 20, A, outputs)
        with monkeypatch.context() as patch:
            patch.setattr(weighted, "_MANY", 0)
            patch.setattr(weighted, "_leading", None)
            found = weighted_init(W, 20, A, outputs)
        R, S = root(A.double()), torch.eye(m).double() if outputs is None else root(outputs.double())
        whole = torch.linalg.matrix_norm(S @ W.double() @ R)
        errors = [torch.linalg.matrix_norm(S @ (W - U @ VT).double() @ R) / whole for U, VT, _ in (exact, found)]
        assert errors[1] / errors[0] - 1 < 2e-3
        assert abs(exact[2] / errors[0] - 1) < 1e-3 and abs(found[2] / errors[0] - 1) < 0.1


def test_more_directions_of_a_large_matrix_come_from_its_gram_matrix(monkeypatch):
    """A fifth of the directions of a wide matrix, in single precision: the best ones, and nothing is estimated."""
    torch.manual_seed(0)
    m, n, rank = 300, 1200, 60
    W, samples = torch.randn(m, n), torch.randn(2000, n) * torch.logspace(0, -2, n)
    A = samples.mT @ samples / 1000
    given = A.clone()
    monkeypatch.setattr(weighted, "_MANY", 0)
    monkeypatch.setattr(weighted, "_few_leading", None)
    U, VT, error = weighted_init(W, rank, A)
    assert torch.equal(A, given)
    sigma = torch.linalg.svdvals(W.double() @ root(A.double())).square()
    best = (sigma[rank:].sum() / sigma.sum()).sqrt()
    left = torch.linalg.matrix_norm((W - U @ VT).double() @ root(A.double())) / sigma.sum().sqrt()
    assert abs(left / best - 1) < 1e-5 and abs(error / best - 1) < 1e-5


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_a_metric_does_not_matter(monkeypatch, size):
    """Second moments of gradients can be tiny; neither way to large matrices is troubled by that."""
    torch.manual_seed(0)
    W, A = torch.randn(300, 1200), moment(1200).float()
    monkeypatch.setattr(weighted, "_MANY", 0)
    for rank in (8, 60):
        expected, found = (weighted_init(W, rank, A * scale) for scale in (1, size))
        torch.testing.assert_close(found[0] @ found[1], expected[0] @ expected[1], rtol=0, atol=1e-2)
        assert abs(found[2] - expected[2]) < 1e-4
