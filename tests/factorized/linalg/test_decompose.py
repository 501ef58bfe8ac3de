"""Decompositions of three-way tensors: shapes, orthonormality, truncation against its definition, other libraries."""

import pytest
import torch

from factorized.linalg.decompose import canonical_polyadic, tensor_train, three_dimensions, tucker
from tests.factorized.networks import relative_error

DIMENSIONS = {
    256: (8, 8, 4), 512: (8, 8, 8), 1024: (16, 16, 4), 2560: (16, 16, 10), 3700: (20, 37, 5), 3888: (16, 27, 9),
    4096: (16, 16, 16), 5184: (18, 18, 16), 8192: (32, 32, 8), 16384: (32, 32, 16), 20736: (27, 32, 24),
    25600: (32, 32, 25), 51200: (40, 40, 32), 82944: (48, 48, 36), 102400: (50, 64, 32), 204800: (64, 64, 50),
    409600: (80, 80, 64), 1_280_000: (125, 128, 80), 2_097_152: (128, 128, 128), 7: (7, 1, 1), 1: (1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("size", DIMENSIONS)
def test_dimensions(size):
    assert three_dimensions(size) == DIMENSIONS[size]


def test_train_is_orthonormal_and_near_the_best():
    tensor = torch.randn(8, 10, 6, dtype=torch.float64)
    G1, G2, G3 = tensor_train(tensor, (4, 3))
    found = torch.einsum("ia,ajb,bk->ijk", G1, G2, G3)
    for rows in (G2.flatten(1), G3):
        torch.testing.assert_close(rows @ rows.mT, torch.eye(len(rows), dtype=torch.float64))
    assert found.norm() == pytest.approx(G1.norm().item())
    # What it loses is the tail of the last unfolding, and then the tail of the first one of what is left.
    tail = torch.linalg.svdvals(tensor.reshape(80, 6))[3:].square().sum()
    projected = torch.einsum("ijk,bk,bl->ijl", tensor, G3, G3)
    tail = tail + torch.linalg.svdvals(projected.reshape(8, 60))[4:].square().sum()
    assert (tensor - found).square().sum().item() == pytest.approx(tail.item())


def test_tucker_is_orthonormal_and_truncates_modes_3_2_1():
    tensor = torch.randn(9, 7, 6, dtype=torch.float64)
    G1, G2, G3, U1, U2, U3 = tucker(tensor, (4, 3, 2))
    core = torch.einsum("pa,aqb,bs->pqs", G1, G2, G3)
    found = torch.einsum("pqs,ip,jq,ks->ijk", core, U1, U2, U3)
    for columns in (U1, U2, U3, G3, G2.flatten(1).mT):
        torch.testing.assert_close(columns.mT @ columns, torch.eye(columns.shape[1], dtype=torch.float64))
    assert found.norm() == pytest.approx(G1.norm().item())
    expected = tensor
    for mode, rank in ((2, 2), (1, 3), (0, 4)):
        unfolded = expected.movedim(mode, 0)
        P = torch.linalg.svd(unfolded.flatten(1)).U[:, :rank]
        expected = torch.tensordot(P @ P.mT, unfolded, 1).movedim(0, mode)
    torch.testing.assert_close(found, expected)


def test_decompositions_lose_nothing_at_full_rank():
    tensor = torch.randn(5, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.einsum("ia,ajb,bk->ijk", *tensor_train(tensor, (5, 4))), tensor)
    G1, G2, G3, *U = tucker(tensor, (5, 6, 4))
    core = torch.einsum("pa,aqb,bs->pqs", G1, G2, G3)
    torch.testing.assert_close(torch.einsum("pqs,ip,jq,ks->ijk", core, *U), tensor)


def test_canonical_polyadic_finds_a_tensor_of_low_rank():
    factors = [torch.randn(n, 2, dtype=torch.float64) for n in (7, 6, 5)]
    tensor = torch.einsum("ic,jc,kc->ijk", *factors)
    found = torch.einsum("ic,jc,kc->ijk", *canonical_polyadic(tensor, 2))
    assert relative_error(found, tensor) < 0.1
    assert all(f.isfinite().all() for f in canonical_polyadic(torch.zeros(3, 3, 3), 2))


def test_optional_comparison_with_tntorch():
    tntorch = pytest.importorskip("tntorch", reason="tntorch is not installed")
    tensor = torch.randn(16, 16, 10, dtype=torch.float64)
    theirs = tntorch.Tensor(tensor, ranks_tt=[4, 2]).torch()
    torch.testing.assert_close(torch.einsum("ia,ajb,bk->ijk", *tensor_train(tensor, (4, 2))), theirs)
    theirs = tntorch.Tensor(tensor, ranks_tucker=[3, 3, 2]).torch()
    G1, G2, G3, *U = tucker(tensor, (3, 3, 2))
    core = torch.einsum("pa,aqb,bs->pqs", G1, G2, G3)
    torch.testing.assert_close(torch.einsum("pqs,ip,jq,ks->ijk", core, *U), theirs)


def test_optional_comparison_with_tensorly():
    tensorly = pytest.importorskip("tensorly", reason="tensorly is not installed")
    from tensorly.decomposition import partial_tucker

    tensor = torch.randn(6, 5, 4, dtype=torch.float64)
    G1, G2, G3, *U = tucker(tensor, (3, 3, 2))
    ours = torch.einsum("pqs,ip,jq,ks->ijk", torch.einsum("pa,aqb,bs->pqs", G1, G2, G3), *U)
    best = tensorly.tucker_to_tensor(partial_tucker(tensor.numpy(), rank=[3, 3, 2])[0])
    least = ((tensor.numpy() - best) ** 2).sum()
    assert least <= (tensor - ours).square().sum().item() <= 3 * least  # quasi-optimal: at most sqrt(3) off
