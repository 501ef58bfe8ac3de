"""Norms and diagnostics against dense linear algebra."""

import pytest
import torch
from torch import nn

from factorized import (
    factorize,
    factorized_modules,
    frobenius_norm,
    frobenius_norms,
    imbalance,
    layer_metrics,
    non_orthogonality,
    nuclear_norm,
    nuclear_norm_bound,
    spectral_init,
)
from tests.factorized.networks import cifar_resnet, small_cnn

# (m, r, n): the first is multiplied out by `frobenius_norm`, the others go through Gram matrices.
SHAPES = [(4, 20, 5), (30, 3, 40), (40, 3, 30), (12, 12, 12)]


def product_of(factors):
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    return product


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("m, r, n", SHAPES)
def test_norms_equal_those_of_the_product(m, r, n, number, batch):
    shapes = {1: [(m, n)], 2: [(m, r), (r, n)], 3: [(m, r), (r, r), (r, n)]}[number]
    factors = [torch.randn(*batch, *shape, dtype=torch.float64) for shape in shapes]
    W = product_of(factors)
    torch.testing.assert_close(frobenius_norm(*factors), W.square().sum((-2, -1)).sqrt(), rtol=1e-10, atol=0)
    torch.testing.assert_close(nuclear_norm(*factors), torch.linalg.matrix_norm(W, "nuc"), rtol=1e-8, atol=0)


@pytest.mark.parametrize("magnitude", [1e12, 1e-12])
def test_frobenius_norm_of_extreme_magnitudes(magnitude):
    """The trace of Gram matrices squares the magnitude twice, and would overflow or vanish."""
    U, VT = torch.randn(40, 3) * magnitude, torch.randn(3, 40) * magnitude
    expected = torch.linalg.matrix_norm(U.double() @ VT.double()).item()
    assert frobenius_norm(U, VT).item() == pytest.approx(expected, rel=1e-5)


def test_frobenius_norm_of_a_product_that_cancels_is_not_nan():
    """Rounding leaves traces of such products on either side of zero."""
    U = torch.randn(50, 40, 1, dtype=torch.float64).repeat(1, 1, 2)
    VT = torch.randn(50, 1, 40, dtype=torch.float64)
    norms = frobenius_norm(U, torch.cat([VT, -(1 + 1e-10) * VT], 1))
    assert norms.isfinite().all() and norms.max() < 1e-5


def test_sixteen_bit_factors():
    U, VT = torch.randn(20, 3).bfloat16(), torch.randn(3, 20).bfloat16()
    W = U.double() @ VT.double()
    assert frobenius_norm(U, VT).item() == pytest.approx(torch.linalg.matrix_norm(W).item(), rel=1e-2)
    assert nuclear_norm(U, VT).item() == pytest.approx(torch.linalg.matrix_norm(W, "nuc").item(), rel=1e-5)
    assert nuclear_norm(W.bfloat16()).item() == pytest.approx(torch.linalg.matrix_norm(W, "nuc").item(), rel=1e-1)


@pytest.mark.parametrize("m, r, n", SHAPES)
def test_nuclear_norm_bound(m, r, n):
    """`(|L|_F^2 + |R|_F^2) / 2 >= |L R|_*`, for `U, VT` and for `U M, VT`."""
    U, M, VT = torch.randn(m, r).double(), torch.randn(r, r).double(), torch.randn(r, n).double()
    assert nuclear_norm_bound(U, VT).item() == pytest.approx((U.norm() ** 2 + VT.norm() ** 2).item() / 2)
    assert nuclear_norm_bound(U, VT) >= nuclear_norm(U, VT)
    assert nuclear_norm_bound(U, M, VT).item() == pytest.approx(((U @ M).norm() ** 2 + VT.norm() ** 2).item() / 2)
    assert nuclear_norm_bound(U, M, VT) >= nuclear_norm(U, M, VT)


def test_three_factor_bound_where_the_reference_failed():
    """With all factors 2 the norm is 8; the three-factor bound of the code of 2021 is none."""
    two = torch.full((1, 1), 2.0)
    assert nuclear_norm(two, two, two) == 8 and nuclear_norm_bound(two, two, two) == 10


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (3, 20, 30)])
@pytest.mark.parametrize("rank", [2, 20])
def test_spectral_start_is_orthogonal_and_tight(shape, rank):
    """In single precision."""
    U, VT = spectral_init(torch.randn(shape), rank)
    assert max(share.max() for share in non_orthogonality(U, VT)) < 1e-5
    torch.testing.assert_close(nuclear_norm_bound(U, VT), nuclear_norm(U, VT), rtol=1e-5, atol=0)


def test_non_orthogonality_by_hand():
    """`G = U^T U = [[1, 1], [1, 2]]`: the two ones off the diagonal against all entries."""
    U = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    shares = non_orthogonality(U, torch.diag(torch.tensor([3.0, 4.0])))
    assert [share.item() for share in shares] == pytest.approx([(2 / 7) ** 0.5, 0])
    both = torch.stack([U, torch.eye(2)])
    assert non_orthogonality(both, both)[0].tolist() == pytest.approx([(2 / 7) ** 0.5, 0])


def test_non_orthogonality_of_extreme_and_zero_factors():
    """Zero where a factor is zero, not NaN, and no overflow of the squares."""
    zero = torch.zeros(3, 2)
    assert [share.item() for share in non_orthogonality(zero, zero.mT)] == [0, 0]
    U = torch.randn(5, 3)
    expected = non_orthogonality(U, U.mT)[0].item()
    for magnitude in (1e15, 1e-15):
        found = non_orthogonality(U * magnitude, U.mT * magnitude)
        assert [share.item() for share in found] == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize("square", [False, True])
def test_norms_of_many_layers_in_order(square):
    model = factorize(small_cnn(), rank_scale=0.3, square=square)
    layers = list(factorized_modules(model).values())
    expected = torch.stack([layer.weight.norm() for layer in layers])
    torch.testing.assert_close(frobenius_norms(layers), expected)
    assert len(set(expected.tolist())) == len(layers)


def test_imbalance():
    """Zero after a spectral start; no loss of digits where both Gram matrices are large and nearly the same."""
    U, VT = spectral_init(torch.randn(3, 20, 30, dtype=torch.float64), 5)
    assert imbalance(U, VT).shape == (3,) and imbalance(U, VT).max() < 1e-10
    near = torch.full((1, 1), 1e4)
    assert imbalance(near, near + 1).item() == pytest.approx(20001, rel=1e-4)
    two = torch.full((1, 1), 2.0)
    assert imbalance(two, two, two).item() == 12


def test_a_layer_that_is_zero_has_metrics():
    layer = factorize(small_cnn(), rank_scale=0.3).hidden
    nn.init.zeros_(layer.U)
    metrics = layer_metrics([layer], lr=0.1)
    assert metrics["layers/stable-rank"] == 0 and metrics["metric/FrobNorm"] == 0


@pytest.mark.parametrize("square", [False, True])
def test_layer_metrics_by_hand(square):
    """Tags, and averages over the layers."""
    init = {"spectral": False, "square": square, "square_init": torch.tril}
    model = factorize(small_cnn(), rank_scale=0.3, **(init if square else {"spectral": False}))
    layers = list(factorized_modules(model).values())
    for layer in layers:
        for factor in layer.factors():
            nn.init.normal_(factor)
    metrics = layer_metrics(layers, lr=0.1)
    matrices = [product_of([factor.detach().double() for factor in layer.factors()]) for layer in layers]
    norms = torch.stack([W.norm() for W in matrices])
    bounds = [nuclear_norm_bound(*layer.factors()).item() for layer in layers]
    expected = {
        "metric/FrobNorm": norms.mean().item(),
        "metric/NucNorm": sum(torch.linalg.svdvals(W).sum().item() for W in matrices) / len(matrices),
        "metric/NucNorm-bound": sum(bounds) / len(bounds),
        "hyper/lr": 0.1,
        "hyper/lr-eff_frob": (0.1 / norms).mean().item(),
        "hyper/lr-eff_frobsq": (0.1 / norms**2).mean().item(),
    }
    squares = [W.square().sum() / torch.linalg.matrix_norm(W, 2) ** 2 for W in matrices]
    expected["layers/stable-rank"] = torch.stack(squares).mean().item()
    nuclear = [torch.linalg.svdvals(W).sum().item() for W in matrices]
    expected["layers/nuclear-over-bound"] = sum(a / b for a, b in zip(nuclear, bounds)) / len(bounds)
    sides = [(f[0] if len(f) == 2 else f[0] @ f[1], f[-1]) for f in (layer.factors() for layer in layers)]
    differences = [(left.T @ left - right @ right.T).norm().item() for left, right in sides]
    expected["layers/imbalance"] = sum(differences) / len(differences)
    if not square:
        shares = [sum(non_orthogonality(*layer.factors())).item() / 2 for layer in layers]
        expected["metric/NonOrth"] = sum(shares) / len(shares)
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_dense_and_full_rank_networks_have_the_same_metrics():
    """Both are measured on the same matrix of a kernel."""
    model = small_cnn().double()
    dense = layer_metrics([model.body[0], model.body[2], model.hidden], lr=0.1)
    factorize(model, include=["body", "hidden"], ranks={"body": 18, "hidden": 10})
    full = layer_metrics(factorized_modules(model).values(), lr=0.1)
    of_factors = {"metric/NucNorm-bound", "metric/NonOrth", "layers/imbalance", "layers/nuclear-over-bound"}
    assert dense.keys() == full.keys() - of_factors
    assert {tag: full[tag] for tag in dense} == pytest.approx(dense, rel=1e-5)


# ResNet20 at its start: FrobNorm, NucNorm, NucNorm-bound, NonOrth.
@pytest.mark.parametrize(
    "options, expected",
    [
        (None, (8.33, 75.0)),
        ({"rank_scale": 0.037}, (3.17, 6.84, 6.84, 0)),
        ({"rank_scale": 0.333}, (7.27, 45.48, 45.48, 0)),
        ({"rank_scale": 0.037, "spectral": False}, (20.4, 43.7, 117.8, 0.145)),
        ({"rank_scale": 0.111, "spectral": False}, (20.2, 71.4, 123.9, 0.291)),
    ],
)
def test_published_starting_values(options, expected):
    """Averages over 18 layers; the random numbers move the third digit."""
    model = cifar_resnet(20)
    if options:
        layers = factorized_modules(factorize(model, include=["layer*"], **options)).values()
    else:
        layers = [m for name, m in model.named_modules() if name.startswith("layer") and isinstance(m, nn.Conv2d)]
    metrics = layer_metrics(layers, lr=0.1)
    found = [metrics[tag] for tag in ("metric/FrobNorm", "metric/NucNorm")]
    found += [metrics[tag] for tag in ("metric/NucNorm-bound", "metric/NonOrth") if options]
    assert len(layers) == 18 and found == pytest.approx(expected, rel=0.04, abs=1e-5)
