"""Tucker-2 convolutions: the decomposition and its weights, both execution paths, decay, saving."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import factorized
from factorized import FrobeniusDecay, SeparableConv2d, Tucker2Conv2d, tucker2

DOUBLE = {"dtype": torch.float64}


def metric(size: int, seed: int, rank: int | None = None) -> torch.Tensor:
    """Return a symmetric matrix, positive definite unless its rank is below its size."""
    factor = torch.randn(size, rank or size, generator=torch.Generator().manual_seed(seed), **DOUBLE)
    return factor @ factor.mT / size


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kernel = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0), **DOUBLE)
    return kernel, metric(5, 1), metric(6, 2)


def cost(error: torch.Tensor, A: torch.Tensor, G: torch.Tensor) -> float:
    """The quadratic form of the Kronecker product of the metrics, one position after another."""
    whole = torch.kron(G, A)
    return sum(
        (error[:, :, i, j].flatten() @ whole @ error[:, :, i, j].flatten()).item()
        for i in range(error.shape[2])
        for j in range(error.shape[3])
    )


def multiplied(U, core, VT):
    return torch.einsum("op,pqij,qc->ocij", U, core, VT)


SETTINGS = {"hosvd": (False, False, "singular"), "activations": (True, False, "singular"),
            "weighted": (True, True, "singular"), "eigendamage": (True, True, "eigen")}  # fmt: skip


def setting(name: str):
    kernel, A, G = example()
    with_A, with_G, basis = SETTINGS[name]
    found = tucker2(kernel, A if with_A else None, G if with_G else None, basis)
    return kernel, A if with_A else torch.eye(5, **DOUBLE), G if with_G else torch.eye(6, **DOUBLE), found


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_is_lost_with_all_directions(name):
    kernel, _, _, found = setting(name)
    torch.testing.assert_close(multiplied(found.U, found.core, found.VT), kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_scores_are_the_cost_of_leaving_out_one_direction(name):
    kernel, A, G, found = setting(name)
    for index in range(6):
        kept = [i for i in range(6) if i != index]
        left = multiplied(*found.kept(kept, range(5)))
        assert found.output_scores[index].item() == pytest.approx(cost(kernel - left, A, G), rel=1e-3, abs=1e-4)
    for index in range(5):
        kept = [i for i in range(5) if i != index]
        left = multiplied(*found.kept(range(6), kept))
        assert found.input_scores[index].item() == pytest.approx(cost(kernel - left, A, G), rel=1e-3, abs=1e-4)


def test_scores_of_hosvd_are_singular_values():
    kernel, _, _, found = setting("hosvd")
    torch.testing.assert_close(found.output_scores, torch.linalg.svdvals(kernel.flatten(1)) ** 2)
    torch.testing.assert_close(found.input_scores, torch.linalg.svdvals(kernel.transpose(0, 1).flatten(1)) ** 2)


def test_eigen_directions_are_those_of_the_metrics():
    """The published formula, entry by entry: d_g d_a times the square of the rotated weight."""
    kernel, A, G, found = setting("eigendamage")
    d_a, Q_a = torch.linalg.eigh(A)
    d_g, Q_g = torch.linalg.eigh(G)
    for n in range(6):
        expected = 0.0
        for m in range(5):
            for tap in range(9):
                rotated = Q_g[:, n] @ kernel[:, :, tap // 3, tap % 3] @ Q_a[:, m]
                expected += (d_g[n] * d_a[m] * rotated**2).item()
        assert found.output_scores[n].item() == pytest.approx(expected)


@pytest.mark.parametrize("rank", [(3, 2), (2, 4)])
def test_weights_pay_in_what_they_weigh(rank):
    kernel, A, G = example()
    A[0] *= 30
    A[:, 0] *= 30
    found = {name: cost(kernel - multiplied(*setting_of(kernel, A, G, name).best(rank)), A, G) for name in SETTINGS}
    assert found["weighted"] < found["hosvd"] and found["weighted"] <= found["eigendamage"] * 1.001


def setting_of(kernel, A, G, name):
    with_A, with_G, basis = SETTINGS[name]
    return tucker2(kernel, A if with_A else None, G if with_G else None, basis)


def test_a_metric_of_low_rank_is_used_for_what_it_knows():
    kernel, _, _ = example()
    A = metric(5, 3, rank=2)
    for basis in ("singular", "eigen"):
        left = multiplied(*tucker2(kernel, A, None, basis).best((6, 2)))
        assert cost(kernel - left, A, torch.eye(6, **DOUBLE)) < 1e-3 * cost(kernel, A, torch.eye(6, **DOUBLE))
    zeros = tucker2(kernel, torch.zeros(5, 5), None)
    torch.testing.assert_close(multiplied(zeros.U, zeros.core, zeros.VT), kernel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": "fourier"}, "basis must be one of singular, eigen, not 'fourier'"),
        ({"A": torch.eye(4)}, "the metric of 5 inputs has the shape (5, 5), not (4, 4)"),
        ({"G": torch.eye(5)}, "the metric of 6 outputs has the shape (6, 6), not (5, 5)"),
        ({"A": torch.full((5, 5), torch.nan)}, "NaN"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message):
    with pytest.raises(ValueError, match="metric|basis") as error:
        tucker2(example()[0], **change)
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["auto", "composed", "two_step"])
@pytest.mark.parametrize(
    "geometry", [(3, 1, 1, 1), (3, 2, 2, 2), (1, 2, 0, 1), (1, 1, 1, 1), ((3, 1), (2, 1), (1, 0), 1)]
)
def test_layer_is_the_convolution_of_its_kernel(path, geometry):
    kernel_size, *others = geometry
    layer = Tucker2Conv2d(5, 6, kernel_size, (3, 2), *others, path=path, **DOUBLE)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 9, 8, **DOUBLE)
    kernel = multiplied(*layer.factors())
    expected = F.conv2d(x, kernel, layer.bias, *others)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.weight, kernel)
    torch.testing.assert_close(layer.contract(), kernel.flatten(1))
    torch.testing.assert_close(layer.to_dense()(x), expected)


def test_parameters_and_ranks():
    layer = Tucker2Conv2d(64, 128, 3, (20, 10), bias=False)
    assert factorized.parameter_count(layer) == 64 * 10 + 9 * 10 * 20 + 20 * 128
    assert Tucker2Conv2d(64, 128, 3, 0.25).rank == (32, 16)
    assert Tucker2Conv2d(3, 128, 3, 0.1).rank == (13, 1)
    with pytest.raises(TypeError, match="a pair"):
        Tucker2Conv2d(3, 4, 3, (1, 2, 3))
    with pytest.raises(ValueError, match="at least 1"):
        Tucker2Conv2d(3, 4, 3, (0, 2))
    with pytest.raises(TypeError, match="fraction"):
        Tucker2Conv2d(3, 4, 3, 8)


def test_multiply_adds_are_those_of_the_path():
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(2, 8, 10, 10)
    for path in ("composed", "two_step"):
        layer = Tucker2Conv2d(8, 12, 3, (4, 3), stride=2, padding=1, bias=False, path=path)
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert 2 * layer.multiply_adds(x.shape) == counter.get_total_flops()


@pytest.mark.parametrize("rank", [(6, 5), (3, 2)])
def test_from_dense(rank):
    dense = nn.Conv2d(5, 6, 3, stride=2, padding=1, **DOUBLE).to(memory_format=torch.channels_last).eval()
    dense.weight.requires_grad_(False)
    layer = Tucker2Conv2d.from_dense(dense, rank, A=metric(5, 1), G=metric(6, 2), basis="eigen")
    expected = tucker2(dense.weight, metric(5, 1), metric(6, 2), "eigen").best(rank)
    torch.testing.assert_close(layer.weight, multiplied(*expected))
    if rank == (6, 5):
        torch.testing.assert_close(layer.weight, dense.weight)
    assert not layer.U.requires_grad and layer.bias.requires_grad and not layer.training
    back = layer.to_dense()
    assert back.weight.is_contiguous(memory_format=torch.channels_last) and back.stride == (2, 2)


def test_a_start_keeps_the_variance_of_its_input():
    torch.manual_seed(0)
    layer = Tucker2Conv2d(64, 64, 3, (40, 40), padding=1)
    x = torch.randn(4, 64, 12, 12)
    assert layer(x)[..., 1:-1, 1:-1].var().item() == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("path", ["composed", "two_step"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_decay_is_that_of_the_kernel(path, in_backward):
    layer = Tucker2Conv2d(4, 6, 3, (3, 2), path=path, **DOUBLE)
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 4, 6, 6, **DOUBLE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    FrobeniusDecay(layer, 0.3).attach(optimizer, in_backward=in_backward)
    layer(x).square().mean().backward()
    optimizer.step()
    loss = twin(x).square().mean() + 0.15 * multiplied(*twin.factors()).square().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter -= 0.1 * parameter.grad
    for one, other in zip(layer.parameters(), twin.parameters()):
        torch.testing.assert_close(one, other)


def depthwise(U, core, VT):
    return torch.einsum("or,rij,rc->ocij", U, core.squeeze(1), VT)


@pytest.mark.parametrize("path", ["auto", "composed", "two_step"])
@pytest.mark.parametrize("geometry", [(3, 1, 1, 1), (3, 2, 2, 2), (1, 2, 0, 1)])
def test_separable_layer_is_the_convolution_of_its_kernel(path, geometry):
    kernel_size, *others = geometry
    layer = SeparableConv2d(5, 6, kernel_size, (3, 3), *others, path=path, **DOUBLE)
    x = torch.randn(2, 5, 9, 8, **DOUBLE)
    kernel = depthwise(*layer.factors())
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, layer.bias, *others))
    torch.testing.assert_close(layer.weight, kernel)
    assert factorized.parameter_count(layer) == 3 * (5 + layer.kernel_size[0] ** 2 + 6) + 6


def test_separable_layer_of_a_kernel_that_is_one():
    """A kernel of that form is found again; of others what is found is no worse than any single sweep could tell."""
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 5, 3, bias=False, **DOUBLE)
    factors = (torch.randn(size, **DOUBLE) for size in ((5, 2), (2, 1, 3, 3), (2, 6)))
    dense.weight.data.copy_(depthwise(*factors))
    layer = SeparableConv2d.from_dense(dense, (2, 2))
    torch.testing.assert_close(layer.weight, dense.weight, rtol=1e-3, atol=1e-3)
    pointwise = nn.Conv2d(6, 5, 1, **DOUBLE)
    torch.testing.assert_close(SeparableConv2d.from_dense(pointwise, (5, 5)).weight, pointwise.weight)
    any_kernel = nn.Conv2d(6, 5, 3, **DOUBLE)
    one, other = (SeparableConv2d.from_dense(any_kernel, 1.0) for _ in range(2))
    assert one.rank == (5, 5) and torch.equal(one.weight, other.weight)
    assert (one.weight - any_kernel.weight).norm() < 0.7 * any_kernel.weight.norm()
    with pytest.raises(ValueError, match="as many outputs as inputs"):
        SeparableConv2d(4, 4, 3, (2, 3))


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 36, 4)
    )


@pytest.mark.parametrize(("kind", "rank"), [(Tucker2Conv2d, (6, 4)), (SeparableConv2d, (4, 4))])
def test_factorize_merge_save_and_load(tmp_path, kind, rank):
    torch.manual_seed(0)
    model = factorized.factorize(small_net(), rank_scale=0.5, layer={nn.Conv2d: kind}, exclude=["4"])
    assert [type(model[i]) for i in (0, 2)] == [kind] * 2 and model[2].rank == rank
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    factorized.save(model, tmp_path / "saved")
    loaded = factorized.load(small_net(), tmp_path / "saved")
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    skeleton = factorized.restructure(small_net(), factorized.structure(model))
    skeleton.load_state_dict(model.state_dict())
    torch.testing.assert_close(skeleton(x), expected, rtol=0, atol=0)
    merged = factorized.merge(copy.deepcopy(model))
    assert type(merged[2]) is nn.Conv2d
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)
    assert factorized.summary(model, x).factorized_layers == 2


def test_a_ratio_is_reached():
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3))
    dense = factorized.parameter_count(model)
    factorized.factorize(model, ratio=0.3, layer={nn.Conv2d: Tucker2Conv2d})
    assert factorized.parameter_count(model) / dense == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("path", ["auto", "composed", "two_step"])
def test_exported_and_half_precision(path):
    layer = Tucker2Conv2d(5, 6, 3, (3, 2), padding=1, path=path).eval()
    x = torch.randn(2, 5, 8, 8)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))
    half = copy.deepcopy(layer).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), rtol=0.1, atol=0.1)


def test_frozen_rotations_are_part_of_the_state_and_not_trained():
    layer = Tucker2Conv2d(4, 6, 3, (3, 2))
    layer.U.requires_grad_(False)
    layer.VT.requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    groups = factorized.parameter_groups(layer, 1e-2)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    FrobeniusDecay(layer, 1e-2).attach(optimizer)
    layer(torch.randn(2, 4, 6, 6)).square().mean().backward()
    optimizer.step()
    assert torch.equal(layer.U, before["U"]) and torch.equal(layer.VT, before["VT"])
    assert not torch.equal(layer.core, before["core"])
