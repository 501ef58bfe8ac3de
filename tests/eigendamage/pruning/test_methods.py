"""Scores and corrections against explicit curvature matrices, constrained minimization, and the loss itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from eigendamage.pruning import obs
from eigendamage.pruning.methods import METHODS, Scoring, corrected, directions
from eigendamage.pruning.statistics import KINDS, collect
from eigendamage.pruning.step import rotated
from torch import nn

from factorized import Tucker2Conv2d
from tests.eigendamage.pruning.small import Tiny, tiny_batches

LAYERS = ("first", "second")
EXACT = Scoring(damping=0.0)


def metric(size: int, seed: int) -> torch.Tensor:
    factor = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.mT / size


def example():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G, A = metric(6, 1), metric(8, 2)
    moments = {"G": G, "A": A, "power": torch.stack([w @ A @ w for w in weight]), "row_sums": A.sum(1)}
    return weight, moments


def loss_growth(change, moments):
    """The quadratic form of the explicit curvature matrix of all weights."""
    return (change.flatten() @ torch.kron(moments["G"], moments["A"]) @ change.flatten()).item()


def constrained_minimum(weight, moments, removed):
    """Return the change that costs the least among those that set rows to zero, by Lagrange multipliers."""
    H = torch.kron(moments["G"], moments["A"])
    rows = torch.eye(weight.numel(), dtype=torch.float64)[removed[:, None].expand_as(weight).flatten()]
    system = torch.cat([torch.cat([H, rows.mT], 1), torch.cat([rows, torch.zeros(len(rows), len(rows))], 1)])
    right = torch.cat([torch.zeros(weight.numel()), -(rows @ weight.flatten())])
    return torch.linalg.solve(system, right.double())[: weight.numel()].view_as(weight)


def test_kron_obd_is_the_loss_growth_of_removing_one_filter():
    weight, moments = example()
    scores = METHODS["kron-obd"].score(weight, moments, EXACT)
    for n in range(6):
        change = torch.zeros_like(weight)
        change[n] = -weight[n]
        assert scores[n].item() == pytest.approx(loss_growth(change, moments))


def test_kron_obs_is_the_loss_growth_of_removing_one_filter_and_correcting_the_others():
    weight, moments = example()
    scores = METHODS["kron-obs"].score(weight, moments, EXACT)
    for n in range(6):
        removed = torch.arange(6) == n
        change = constrained_minimum(weight, moments, removed)
        assert scores[n].item() == pytest.approx(loss_growth(change, moments))
        for correction in (obs.joint, obs.single):
            torch.testing.assert_close(correction(weight, moments["G"], removed, 0.0), weight + change)


def test_c_obs_adds_up_the_growth_of_removing_single_weights():
    weight, moments = example()
    inverse = torch.linalg.inv(torch.kron(moments["G"], moments["A"])).diagonal().view_as(weight)
    scores = METHODS["c-obs"].score(weight, moments, EXACT)
    torch.testing.assert_close(scores, (weight.square() / inverse).sum(1))


def test_published_scores_take_row_sums_for_the_quadratic_form():
    weight, moments = example()
    published = Scoring(damping=0.0, published=True)
    for name, factor in (
        ("kron-obd", lambda G: G.diagonal()),
        ("kron-obs", lambda G: 1 / torch.linalg.inv(G).diagonal()),
    ):
        expected = factor(moments["G"]) * torch.einsum("nm,ml->n", weight.square(), moments["A"])
        torch.testing.assert_close(METHODS[name].score(weight, moments, published), expected)
        assert METHODS[name].needs(published) == ("G", "row_sums")


@pytest.mark.parametrize("gone", [[0], [1, 4], [0, 2, 3, 5]])
def test_the_joint_correction_is_the_constrained_minimum(gone):
    weight, moments = example()
    removed = torch.zeros(6, dtype=torch.bool)
    removed[gone] = True
    new = obs.joint(weight, moments["G"], removed, 0.0)
    torch.testing.assert_close(new, weight + constrained_minimum(weight, moments, removed))
    assert not new[removed].any()
    alone = obs.single(weight, moments["G"], removed, 0.0)
    growth = [loss_growth(w - weight, moments) for w in (new, alone)]
    assert growth[0] <= growth[1] * (1 + 1e-9) and (len(gone) == 1) == (growth[0] == pytest.approx(growth[1]))


def test_single_corrections_of_weights_are_the_published_formula():
    weight, moments = example()
    removed = torch.tensor([True, False, False, True, False, False])
    G, A = torch.linalg.inv(moments["G"]), torch.linalg.inv(moments["A"])
    C = torch.zeros_like(weight)
    for n in (0, 3):
        for m in range(8):
            C[n, m] = weight[n, m] / (G[n, n] * A[m, m])
    expected = weight - G @ C @ A
    expected[removed] = 0
    torch.testing.assert_close(obs.single_weights(weight, moments["G"], moments["A"], removed, 0.0), expected)
    for of_weights, function in ((True, expected), (False, obs.single(weight, moments["G"], removed, 0.0))):
        chosen = corrected(weight, moments, removed, Scoring(0.0, correction="single"), of_weights)
        torch.testing.assert_close(chosen, function)


def test_damping_is_relative():
    """The loss in other units changes scores by those units alone, also where a direction has no curvature."""
    weight, moments = example()
    G = moments["G"].clone()
    G[0] = G[:, 0] = 0
    scores = [METHODS["kron-obs"].score(weight, {**moments, "G": scale * G}, Scoring()) for scale in (1, 1e-12)]
    torch.testing.assert_close(scores[0] * 1e-12, scores[1])
    assert scores[0].isfinite().all()
    nothing = METHODS["kron-obs"].score(weight, {**moments, "G": torch.zeros(6, 6)}, Scoring())
    assert nothing.isfinite().all()


def test_a_matrix_that_cannot_be_inverted_is_said_to_be_one():
    weight, moments = example()
    singular = torch.zeros(6, 6)
    singular[0, 0] = 1
    with pytest.raises(ValueError, match="more damping"):
        METHODS["kron-obs"].score(weight, {**moments, "G": singular}, EXACT)
    with pytest.raises(ValueError, match="more damping"):
        obs.joint(weight, singular, torch.arange(6) == 1, 0.0)


def test_c_obd_is_the_diagonal_of_the_fisher_information():
    """Against the explicit Fisher matrix of all weights of a layer, from the gradients of single examples."""
    model, batches = Tiny(), tiny_batches()
    moments = collect(model, LAYERS, batches, ("diagonal",))
    for name in LAYERS:
        weight = getattr(model, name).weight
        fisher = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
        for images, labels in batches:
            for x, label in zip(images, labels):
                loss = F.cross_entropy(model(x[None]), label[None])
                (gradient,) = torch.autograd.grad(loss, [weight])
                fisher += torch.outer(gradient.flatten(), gradient.flatten()) / 9
        scores = METHODS["c-obd"].score(weight.detach().flatten(1), moments[name], EXACT)
        for n, score in enumerate(scores):
            change = torch.zeros_like(weight)
            change[n] = weight.detach()[n]
            diagonal = (change.flatten().square() * fisher.diagonal()).sum()
            assert score.item() == pytest.approx(diagonal.item(), rel=1e-4)


def test_scores_predict_the_loss():
    """What Kron-OBD says of small steps towards removal is the growth of the mean divergence from the predictions.

    The Fisher information is the Hessian of that divergence. K-FAC is exact for a layer that each example passes once,
    here a 1 x 1 convolution on one pixel, when there is one example.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(5, 4, 1, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)).double()
    x = torch.randn(1, 5, 1, 1, dtype=torch.float64)
    before = model(x).log_softmax(1).detach()
    generator = torch.Generator().manual_seed(0)
    many = [(x.expand(500, -1, -1, -1), torch.zeros(500, dtype=torch.long))] * 200
    moments = collect(model, ("0",), many, ("G", "power"), generator=generator)["0"]
    weight = model[0].weight.detach().clone()
    scores = METHODS["kron-obd"].score(weight.flatten(1), moments, EXACT)
    step = 1e-3
    for n in range(4):
        with torch.no_grad():
            model[0].weight.copy_(weight)
            model[0].weight[n] *= 1 - step
            divergence = F.kl_div(model(x).log_softmax(1), before, log_target=True, reduction="batchmean")
        assert (2 * divergence / step**2).item() == pytest.approx(scores[n].item(), rel=0.05)


def test_directions_without_removal_change_nothing_twice_in_a_row():
    model, batches = Tiny(), tiny_batches()
    x = batches[0][0]
    expected = model(x)
    for basis in ("eigen", "singular", "eigen"):
        moments = collect(model, LAYERS, batches, ("G", "channels"))
        for name in LAYERS:
            layer = getattr(model, name)
            found = directions(layer, moments[name], basis)
            rank = found.core.shape[:2]
            setattr(model, name, rotated(layer, Tucker2Conv2d, *found.kept(range(rank[0]), range(rank[1]))))
            assert isinstance(getattr(model, name), Tucker2Conv2d)
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-8)


def test_later_rounds_score_the_core_with_the_statistics_that_are_there():
    """Metrics behind and before the rotations, against a hook on a real convolution of the core."""
    model, batches = Tiny(), tiny_batches()
    layer = Tucker2Conv2d.from_dense(model.second, (3, 2))
    U, core, VT = (factor.detach() for factor in layer.factors())
    model.second = layer
    parts = nn.Sequential(
        nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 3, 3, 2, 1, bias=False), nn.Conv2d(3, 5, 1, bias=False)
    ).double()
    for part, weight in zip(parts, (VT[:, :, None, None], core, U[:, :, None, None])):
        part.weight.data.copy_(weight)
    found = directions(layer, collect(model, ("second",), batches, ("G", "channels"))["second"], "eigen")
    model.second = parts
    inside = collect(model, ("second.1",), batches, ("G", "channels"))["second.1"]
    expected = directions(parts[1], inside, "eigen")
    torch.testing.assert_close(found.output_scores, expected.output_scores, rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(found.input_scores, expected.input_scores, rtol=1e-4, atol=1e-10)


def test_every_method_has_what_it_needs():
    for name, method in METHODS.items():
        assert {*method.kinds, *(method.published_kinds or ())} <= {*KINDS}, name
        assert method.of_directions == bool(method.basis)
    assert math.isfinite(Scoring().damping)
