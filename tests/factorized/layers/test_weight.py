"""Composed weights: parameters of any module as products of factors."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from factorized import (
    ComposedWeight,
    FrobeniusDecay,
    TensorTrainConv2d,
    deploy,
    describe_decay,
    factorize,
    factorized_modules,
    find_rank_scale,
    layer_metrics,
    merge,
    parameter_count,
    parameter_groups,
    summary,
)
from factorized.eligible import obstacles
from tests.factorized.composing import COMPOSED, Everything, Scaled, tokens
from tests.factorized.networks import relative_error


def built(**options) -> nn.Module:
    return factorize(Everything().eval(), embeddings=True, **options)


def test_every_matrix_is_reached_and_a_full_rank_keeps_the_outputs():
    dense, x = Everything().eval(), tokens()
    model = factorize(copy.deepcopy(dense), rank_scale=1.0, embeddings=True)
    assert {*factorized_modules(model)} == {*COMPOSED, "experts.router"}
    for name, layer in factorized_modules(model).items():
        if name in COMPOSED:
            assert type(layer) is ComposedWeight and (layer.U @ layer.VT).shape == COMPOSED[name], name
    assert relative_error(model(x), dense(x)) < 1e-5
    with torch.no_grad():  # the fast paths of PyTorch's own modules
        assert relative_error(model(x), dense(x)) < 1e-5


@pytest.mark.parametrize(
    "name, pieces",
    [
        ("attention.in_proj_weight", lambda w: w.chunk(3)),
        ("recurrent.weight_hh_l0", lambda w: w.chunk(4)),
        ("experts.gate_up_proj", lambda w: w.unbind()),
        ("scaled.weight", lambda w: [w]),
        ("transposed.weight", lambda w: [w.flatten(1)]),
        ("grouped.weight", lambda w: [half.transpose(1, 2).reshape(24, 24) for half in w.chunk(2)]),
    ],
)
def test_each_gate_third_expert_and_group_is_the_best_product_of_its_rank(name, pieces):
    """Against the singular value decomposition of each piece."""
    dense = Everything()
    path, _, own = name.rpartition(".")
    model = factorize(copy.deepcopy(dense), ranks={name.removesuffix(".weight"): 5})
    for old, new in zip(*(pieces(getattr(m.get_submodule(path), own).detach()) for m in (dense, model)), strict=True):
        U, S, VT = torch.linalg.svd(old)
        torch.testing.assert_close(new, (U[:, :5] * S[:5]) @ VT[:5], rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_factors_through_everything():
    model = built(rank_scale=0.4)
    model.train()(tokens()).square().mean().backward()
    for name, layer in factorized_modules(model).items():
        assert all(factor.grad.norm() > 0 for factor in layer.factors()), name


def test_the_decay_of_a_product_is_that_of_its_weight():
    """By automatic differentiation of half the squared norm of each parameter, which a tie has once."""
    model = built(rank_scale=0.4)
    weights = [layer.weight for layer in factorized_modules(model).values()]
    (0.3 / 2 * sum(weight.square().sum() for weight in weights)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    decay = FrobeniusDecay(model, 0.3)
    decay.add_gradients()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name not in expected), name
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
    free = {id(p) for p in parameter_groups(model, 1e-3)[1]["params"]}
    assert free == {id(p) for n, p in model.named_parameters() if n in expected}
    assert "on 22 tensors of 11 layers" in describe_decay(parameter_groups(model, 1e-3), decay)


def test_decay_in_the_backward_pass_is_that_before_the_step():
    """Of modules of PyTorch's that read their weights several times, too: they compose them once."""
    module, x = nn.Sequential(nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)), torch.randn(5, 2, 8)
    found = []
    for in_backward in (False, True):
        model = factorize(copy.deepcopy(module), rank_scale=0.4)
        optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.1)
        FrobeniusDecay(model, 0.3).attach(optimizer, in_backward=in_backward)
        y, _ = model[0](x, x, x)
        model[1](y)[0].square().mean().backward()
        optimizer.step()
        found.append(list(model.parameters()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_shared_weights_have_one_pair_of_factors_and_are_shared_again_after_merging():
    model = built(rank_scale=0.4)
    first, second = (m.parametrizations.weight[0] for m in (model.embedding, model.output))
    assert (
        first is second and obstacles(Everything(), embeddings=True)["output"] == "its weight is shared with embedding"
    )
    assert "embeddings=True" in obstacles(Everything())["embedding"]
    assert merge(model).embedding.weight is model.output.weight
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    plain[1].weight = plain[0].weight
    assert list(factorized_modules(factorize(plain, rank_scale=0.5))) == ["0"]


def test_merging_gives_back_classes_parameters_and_their_order():
    dense, x = Everything().eval(), tokens()
    model = factorize(copy.deepcopy(dense), rank_scale=0.4, embeddings=True)
    model.grouped.to(memory_format=torch.channels_last)
    expected = model(x)
    merge(model)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in dense.named_modules()]
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in dense.named_parameters()]
    assert relative_error(model(x), expected) < 1e-6
    model.recurrent.to(torch.float64)(torch.randn(1, 2, 32, dtype=torch.float64))


@pytest.mark.parametrize("freeze", [False, True])
def test_memory_format_and_frozen_weights_carry_over_and_back(freeze):
    layer = nn.ConvTranspose2d(8, 8, 3).to(memory_format=torch.channels_last).requires_grad_(not freeze)
    model = factorize(nn.Sequential(layer), rank_scale=0.5)
    assert all(factor.requires_grad is not freeze for factor in model[0].parametrizations.weight[0].factors())
    weight = merge(model)[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and isinstance(weight, nn.Parameter)
    assert weight.requires_grad is not freeze


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # a whole model, which users save so, and no weights alone


@pytest.mark.parametrize("again", [copied, pickled, saved, lambda m: copied(pickled(copied(m)))])
def test_copies_are_whole_and_independent(again):
    model, x = built(rank_scale=0.4), tokens()
    before = model(x).detach()
    other = again(model)
    assert torch.equal(other(x), before)
    merge(other)
    assert torch.equal(model(x), before) and type(other.recurrent) is nn.LSTM
    assert other.embedding.weight is other.output.weight


def test_another_ones_parametrization_is_left_alone():
    model = nn.Sequential(weight_norm(nn.Conv1d(8, 8, 3)), weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight"))
    x = torch.randn(4, 1, 8)
    before = model[1](x, x, x)[0]
    assert "hook or parametrization" in obstacles(model)["0"]
    assert "hook or parametrization" in obstacles(model)["1.in_proj_weight"]
    factorize(model, rank_scale=1.0)
    assert list(factorized_modules(model)) == ["1.out_proj"]
    assert relative_error(model[1](x, x, x)[0], before) < 1e-5
    parametrize.register_parametrization(model[1].out_proj, "weight", nn.Softplus(), unsafe=True)
    with pytest.raises(ValueError, match="weight of NonDynamically.* has another parametrization on top"):
        merge(model)
    assert list(factorized_modules(model)) == ["1.out_proj"]


def test_a_module_with_both_kinds_keeps_the_other():
    module = weight_norm(nn.MultiheadAttention(8, 2, kdim=8, vdim=6), "k_proj_weight")
    twin, q, v = copy.deepcopy(module), torch.randn(4, 1, 8), torch.randn(4, 1, 6)
    expected = module(q, q, v)[0]
    factorize(module, rank_scale=1.0, include=["q_proj_weight", "v_proj_weight"])
    assert list(factorized_modules(module)) == ["q_proj_weight", "v_proj_weight"]
    assert relative_error(module(q, q, v)[0], expected) < 1e-5
    assert relative_error(copy.deepcopy(module)(q, q, v)[0], expected) < 1e-5
    merge(module)
    assert relative_error(module(q, q, v)[0], expected) < 1e-5 and torch.equal(twin(q, q, v)[0], expected)
    assert list(module.parametrizations) == ["k_proj_weight"]


def test_a_weight_that_fits_can_be_assigned():
    model = factorize(nn.Sequential(Scaled(8, 6)), ranks={"0": 2})
    low = torch.randn(6, 2) @ torch.randn(2, 8)
    model[0].weight = nn.Parameter(low)
    torch.testing.assert_close(model[0].weight, low, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at most rank 2"):
        model[0].weight = torch.randn(6, 8)
    with pytest.raises(ValueError, match=r"has the shape \(6, 8\), not \(8, 6\)"):
        model[0].weight = torch.randn(8, 6)
    torch.testing.assert_close(model[0].weight, low, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module, args",
    [
        (nn.LSTM(8, 6, 2, proj_size=3, bidirectional=True), (torch.randn(5, 2, 8),)),
        (nn.GRU(8, 6, batch_first=True), (torch.randn(2, 5, 8),)),
        (nn.RNN(8, 6), (torch.randn(5, 2, 8),)),
        (nn.LSTMCell(8, 6), (torch.randn(2, 8),)),
        (nn.GRUCell(8, 6), (torch.randn(2, 8),)),
        (nn.Bilinear(6, 5, 4), (torch.randn(3, 6), torch.randn(3, 5))),
        (nn.ConvTranspose3d(8, 4, 2, groups=2), (torch.randn(1, 8, 3, 3, 3),)),
        (nn.ConvTranspose2d(6, 4, 3), (torch.randn(1, 6, 4, 4),)),
        (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (torch.randn(2, 6, 5, 5),)),
        (nn.Conv1d(6, 8, 2, padding="same"), (torch.randn(2, 6, 5),)),
        (nn.Conv3d(6, 9, 2, padding=1, groups=3, padding_mode="circular"), (torch.randn(2, 6, 3, 3, 3),)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("square", [False, True])
def test_modules_of_pytorch(module, args, square):
    """The output at full rank; after moving to another precision, from and in a copy; and what a merge gives."""
    expected = first(module(*args))
    model = factorize(copy.deepcopy(module), rank_scale=1.0, square=square)
    assert all(type(layer) is ComposedWeight for layer in factorized_modules(model).values())
    assert relative_error(first(model(*args)), expected) < 1e-5
    double = copy.deepcopy(model).double()
    assert relative_error(first(double(*(arg.double() for arg in args))).float(), expected) < 1e-5
    merged = merge(pickled(model))
    assert type(merged) is type(module) and list(merged.state_dict()) == list(module.state_dict())
    assert relative_error(first(merged(*args)), expected) < 1e-5


def first(output):
    return output if isinstance(output, torch.Tensor) else first(output[0])


def test_ratio_and_search_count_products():
    dense = parameter_count(Everything())
    for ratio in (0.3, 0.6):
        model = built(ratio=ratio)
        found = find_rank_scale(Everything(), ratio, rule="compact", embeddings=True)
        assert parameter_count(model) == found.parameters and abs(parameter_count(model) / dense - ratio) < 0.04


def test_the_report_says_composed_and_what_it_costs():
    model, x = built(rank_scale=0.4), tokens()
    rows = {row.name: row for row in summary(model, x).rows}
    row = rows["attention.in_proj_weight"]
    assert (
        row.matrix == (3, 16, 16)
        and row.rank == 6
        and row.path == f"composed, {3 * 16 * 6 * 16:,} multiply-adds each time"
    )
    assert row.dense_multiply_adds == 27 * 16 * 48 and row.multiply_adds == 27 * 16 * 48 + 3 * 16 * 6 * 16
    assert rows["recurrent.weight_hh_l0"].dense_multiply_adds == 27 * 96 * 24
    assert rows["depthwise"].reason == "a depthwise one: a grouped convolution of one channel each"
    assert rows["norm"].reason == "the scale of a normalization, entry by entry"
    total = parameter_count(Everything())
    reached = sum(torch.Size(shape).numel() for shape in COMPOSED.values()) + 4 * 16 + 4
    assert f"with {100 * reached / total:.1f} % of the dense parameters" in str(summary(model))
    assert summary(model).as_dict()["reached"] == pytest.approx(reached / total)


def test_deployed_they_are_parameters_again():
    model, x = built(ratio=0.5), tokens()
    expected = model(x)
    deployed = deploy(model, x, measure=False)
    assert not factorized_modules(deployed) and type(deployed.recurrent) is nn.LSTM
    assert relative_error(deployed(x), expected) < 1e-5


def test_metrics_take_products_and_batches_of_them():
    metrics = layer_metrics(factorized_modules(built(rank_scale=0.4)).values(), 0.1)
    assert metrics["metric/FrobNorm"] > 0 and metrics["layers/imbalance"] < 1e-3


def test_patterns_name_parameters():
    model = factorize(Everything(), rank_scale=0.4, include=["**.gate_up_proj", "attention.out_proj", "recurrent"])
    names = ["attention.out_proj", "experts.gate_up_proj", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0"]
    assert list(factorized_modules(model)) == names
    assert list(FrobeniusDecay(model, 1e-3, include=["**.gate_up_proj"]).modules) == ["experts.gate_up_proj"]
    model = factorize(Everything(), rank_scale=0.4, exclude=["experts", "attention"])
    assert not any(name.startswith(("experts", "attention")) for name in factorized_modules(model))
    with pytest.raises(ValueError, match="layers are called .*experts.gate_up_proj"):
        factorize(Everything(), rank_scale=0.4, include=["experts.gate_up"])


def test_others_can_be_left_dense():
    model = factorize(Everything(), rank_scale=0.4, others=False, include=["experts.router", "scaled"])
    assert list(factorized_modules(model)) == ["experts.router"]
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.GRU(8, 8))
    with pytest.warns(UserWarning, match="it is not a torch.nn.Conv2d|no factorized form"):
        one_for_all = factorize(copy.deepcopy(model), rank_scale=0.4, layer=TensorTrainConv2d)
    assert list(factorized_modules(one_for_all)) == ["0"]
    by_class = factorize(model, rank_scale=0.4, layer={nn.Conv2d: TensorTrainConv2d})
    assert list(factorized_modules(by_class)) == ["0", "2.weight_ih_l0", "2.weight_hh_l0"]


def test_tables_and_what_is_negligible_stay_dense_unless_asked_for():
    model = nn.ModuleDict({"body": nn.Linear(600, 600), "experts": Everything().experts})
    model["experts"].bias = nn.Parameter(torch.randn(8, 4))
    found = obstacles(model)
    assert (
        found["experts.positions"].startswith("a table")
        and found["experts.bias"] == "less than 0.025 % of the parameters"
    )
    assert obstacles(model, embeddings=True)["experts.positions"] is None


@pytest.mark.parametrize("init", ["kaiming", "fan_in", "fan_out", nn.init.ones_])
def test_other_starts_fill_every_product(init):
    model = factorize(nn.Sequential(nn.GRU(64, 64)), rank_scale=0.5, init=init)
    (layer, _) = factorized_modules(model).values()
    stds = {"kaiming": (2 / 32) ** 0.5, "fan_in": (2 / 64) ** 0.5, "fan_out": (2 / 64) ** 0.5}
    for U in layer.U:
        if isinstance(init, str):
            assert U.std().item() == pytest.approx(stds[init], rel=0.1)
        else:
            assert (U == 1).all()


def test_zero_weights_can_learn():
    module = nn.MultiheadAttention(8, 2)
    nn.init.zeros_(module.out_proj.weight)
    model, x = factorize(module, rank_scale=0.5), torch.randn(3, 1, 8)
    F.mse_loss(model(x, x, x)[0], torch.ones_like(x)).backward()
    assert model.out_proj.parametrizations.weight[0].U.grad.norm() > 0


def test_gradient_hooks_of_a_parameter_are_named_when_they_are_lost():
    module = nn.GRU(8, 8)
    module.weight_hh_l0.register_hook(lambda gradient: gradient)
    with pytest.warns(UserWarning, match="weight_hh_l0: gradient hooks of its weight_hh_l0"):
        factorize(module, rank_scale=0.5)


def test_parameters_in_lists_and_dictionaries():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrices = nn.ParameterList([torch.randn(8, 8) for _ in range(2)])
            self.named = nn.ParameterDict({"kernel": torch.randn(4, 8, 3)})

        def forward(self, x):
            for matrix in self.matrices:
                x = x @ matrix
            return F.conv1d(x[..., None].expand(-1, -1, 3), self.named["kernel"])

    model, x = Raw(), torch.randn(2, 8)
    expected = model(x)
    factorize(model, rank_scale=1.0)
    assert list(factorized_modules(model)) == ["matrices.0", "matrices.1", "named.kernel"]
    assert relative_error(model(x), expected) < 1e-5 and len(model.matrices) == 2
    assert relative_error(merge(copy.deepcopy(model))(x), expected) < 1e-5
