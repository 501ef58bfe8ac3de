"""Few leading directions of large matrices, against decompositions in double precision."""

import pytest
import torch

from factorized import spectral_init
from factorized.linalg import krylov
from tests.factorized.networks import matrix_with_spectrum


def excess(matrix: torch.Tensor, U: torch.Tensor, VT: torch.Tensor) -> float:
    """Return by how much the error of `U @ VT` exceeds the smallest possible one for its rank, as a share of that."""
    sigma = torch.linalg.svdvals(matrix.double())
    error = torch.linalg.matrix_norm(matrix.double() - U.double() @ VT.double())
    return (error / sigma[U.shape[1] :].square().sum().sqrt() - 1).item()


@pytest.fixture
def no_gram_matrix(monkeypatch):
    """Make the slower ways fail."""
    for name in ("svd", "eigh"):
        true = getattr(torch.linalg, name)

        def small(matrix, *args, true=true, **options):
            assert max(matrix.shape) < 512
            return true(matrix, *args, **options)

        monkeypatch.setattr(torch.linalg, name, small)
    monkeypatch.setattr("scipy.linalg.eigh", None)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(512, 600), (600, 512)])
@pytest.mark.parametrize("rank", [1, 12])
def test_random_kernels_lose_nothing(shape, rank, no_gram_matrix):
    """The flat spectrum of a random kernel is the hard case."""
    matrix = torch.randn(shape) / 30
    U, VT = spectral_init(matrix, rank)
    torch.testing.assert_close(U.mT @ U, VT @ VT.mT, rtol=0, atol=2e-5)
    assert (U.mT @ U - torch.diag(torch.diag(U.mT @ U))).abs().max() < 2e-5


@pytest.mark.parametrize(
    "shape, rank",
    [
        ((256, 256), 1),
        ((256, 256), 6),
        ((512, 256), 6),
        ((600, 512), 1),
        ((600, 512), 12),
        ((768, 768), 7),
        pytest.param((1536, 1536), 14, marks=pytest.mark.slow),
        pytest.param((1536, 1536), 38, marks=pytest.mark.slow),
    ],
)
def test_error_is_the_smallest_possible(shape, rank):
    """On several random kernels, to the tolerance of the method."""
    for _ in range(3):
        matrix = torch.randn(shape) / 30
        assert krylov.leading_directions(matrix[None], rank, is_flat=True) is not None
        assert abs(excess(matrix, *spectral_init(matrix, rank))) < 1e-5


@pytest.mark.parametrize("kind", ["trained", "low rank", "equal", "zero", "huge"])
def test_other_spectra(kind):
    sigma = {
        "trained": torch.logspace(0, -2, 512),
        "low rank": torch.cat([torch.linspace(1, 0.5, 8), torch.zeros(504)]),
        "equal": torch.ones(512),
        "zero": torch.zeros(512),
        "huge": torch.linspace(1e30, 1e28, 512),
    }[kind]
    matrix = matrix_with_spectrum(sigma, 530, 512)
    U, VT = spectral_init(matrix, 8)
    assert U.isfinite().all() and VT.isfinite().all()
    error = torch.linalg.matrix_norm(matrix.double() - U.double() @ VT.double()).item()
    best = sigma.double()[8:].square().sum().sqrt().item()
    assert error == pytest.approx(best, rel=1e-6, abs=1e-5)
    # A row of length zero could never learn.
    scale = sigma[0] if kind != "zero" else 1.0
    lengths = sigma[:8] if kind != "zero" else torch.ones(8)
    assert (VT @ VT.mT / scale).diagonal().numpy() == pytest.approx((lengths / scale).numpy(), rel=1e-4, abs=1e-6)


def test_same_result_every_time_without_global_random_numbers():
    matrix = torch.randn(512, 512)
    state = torch.get_rng_state()
    first, second = spectral_init(matrix, 3), spectral_init(matrix, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(first, second))


DECAYING = {
    "inverse": lambda k, rank: 1 / k,
    "root": lambda k, rank: k**-0.5,
    "exponential": lambda k, rank: torch.exp(-3 * k / rank),
    "slowly exponential": lambda k, rank: torch.exp(-k / 55),
    "few above many": lambda k, rank: 0.2 + 3 / k,
}


@pytest.mark.parametrize("kind", DECAYING)
@pytest.mark.parametrize("shape, rank", [((512, 512), 16), ((640, 512), 64), ((512, 512), 128)])
def test_decaying_spectra_need_no_decomposition_of_the_whole(kind, shape, rank, monkeypatch):
    """The error is the smallest possible one and both factors are orthogonal, up to a quarter of the rank."""
    matrix = matrix_with_spectrum(DECAYING[kind](torch.arange(1.0, 513), rank), *shape)
    assert not krylov.flat(matrix[None])
    monkeypatch.setattr(torch.linalg, "svd", None)
    monkeypatch.setattr("factorized.linalg.spectral._leading_gram_eigenvectors", None)
    U, VT = spectral_init(matrix, rank)
    assert abs(excess(matrix, U, VT)) < 1e-5
    for factor in (U.mT, VT):
        rows = torch.nn.functional.normalize(factor, dim=-1)
        torch.testing.assert_close(rows @ rows.mT, torch.eye(rank), rtol=0, atol=2e-5)


def test_a_loose_tolerance_is_kept_with_less_work(monkeypatch):
    """Decompositions within the basis show how wide it grew."""
    matrix = torch.randn(512, 512) / 22
    widths, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: widths.append(len(gram)) or eigh(gram))
    exact, loose = spectral_init(matrix, 12), spectral_init(matrix, 12, tolerance=1e-2)
    assert excess(matrix, *exact) < 1e-5 < excess(matrix, *loose) < 2e-2
    assert widths[-1] < max(widths)


@pytest.mark.parametrize("exponent", [0, -1, -6])
def test_the_gram_matrix_takes_over_where_the_basis_would_be_too_wide(exponent, svd_of_whole):
    """A third of the directions or more."""
    sigma = torch.logspace(0, exponent, 256) if exponent else 1 / torch.arange(1.0, 257)
    matrix = matrix_with_spectrum(sigma, 300, 256)
    assert not krylov.pays(matrix[None], 120, is_flat=False)
    U, VT = spectral_init(matrix, 120)
    assert abs(excess(matrix, U, VT)) < 1e-5
    assert not svd_of_whole


@pytest.fixture
def svd_of_whole(monkeypatch):
    """The matrices decomposed so far that are not square."""
    seen, svd = [], torch.linalg.svd
    record = lambda matrix, **options: matrix.shape[-1] != matrix.shape[-2] and seen.append(matrix)  # noqa: E731
    monkeypatch.setattr(torch.linalg, "svd", lambda matrix, **o: (record(matrix), svd(matrix, **o))[1])
    return seen


def test_flatness():
    """A random kernel is flat, of any shape and size; one direction, or a spectrum that decays, is not."""
    for shape in ((300, 300), (1200, 300), (40, 30)):
        assert krylov.flat(torch.randn(2, *shape) * 1e25)
    assert krylov.flat(torch.zeros(1, 300, 300))
    assert not krylov.flat(torch.full((1, 520, 300), 1e30))
    assert not krylov.flat(torch.ones(1, 300, 300) + torch.randn(300, 300) / 100)
    assert not krylov.flat(torch.stack([torch.randn(300, 300), torch.ones(300, 300)]))


@pytest.mark.parametrize(("matrix", "count"), [(torch.ones(1, 255, 255), 2), (torch.ones(1, 512, 512), 13)])
def test_small_matrices_and_many_directions_take_the_other_way(matrix, count):
    assert not krylov.pays(matrix, count, is_flat=True)
    assert krylov.leading_directions(matrix, count, is_flat=True) is None
    for is_flat in (True, False):
        assert not krylov.pays(torch.ones(1, 512, 512, dtype=torch.float64), 2, is_flat)
