"""Statistics of other composed weights, and the starts made of them, against computations by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factorized import collect, factorize, factorized_modules, summary
from factorized.layers.weight import ComposedWeight
from tests.factorized.moments import close, correlated, error, least_error, moment

# -- layers that PyTorch's have no factorized form of ------------------------------------------------------------------


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Multiplied(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


class Equalized(nn.Linear):
    """Applies another weight than its parameter."""

    def forward(self, x):
        return F.linear(x, self.weight * 0.3, self.bias)


class Standardized(nn.Conv2d):
    """Applies its kernel with the mean and the norm of each channel taken out."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight / weight.std((1, 2, 3), keepdim=True), self.bias, self.stride)


@pytest.mark.parametrize("kind", [Scaled, Multiplied, Equalized])
def test_subclasses_with_a_forward_of_their_own(kind):
    torch.manual_seed(0)
    dense, x = nn.Sequential(kind(12, 9)), correlated(40, 12)
    stats = collect(dense, [x[:15], x[15:]])
    close(stats["0"].inputs, moment(x))
    new = factorize(copy.deepcopy(dense), ranks={"0": 3}, stats=stats)
    assert type(factorized_modules(new)["0"]) is ComposedWeight
    assert error(x, dense[0].weight, new[0].weight) == pytest.approx(least_error(x, dense[0].weight, 3), rel=1e-2)


def test_gradients_of_such_layers():
    dense, x = nn.Sequential(Multiplied(6, 5)), correlated(8, 6)
    y = dense(x).detach().requires_grad_()
    [g] = torch.autograd.grad(y.pow(3).sum(), y)
    stats = collect(dense, lambda: dense(x).pow(3).sum().backward(), gradients=True)
    close(stats["0"].outputs, g.mT @ g)


@pytest.mark.parametrize("split", ["spatial", "channel"])
def test_a_kernel_that_is_standardized_before_it_is_applied(split):
    """Its patches are those of the convolution that is applied; the output is nearer than from the plain start."""
    torch.manual_seed(0)
    dense = nn.Sequential(Standardized(6, 8, 3)).eval()
    x = F.avg_pool2d(torch.randn(30, 6, 27, 27), 3) * torch.logspace(0.5, -1, 6)[:, None, None]
    stats = collect(dense, [x])
    close(stats["0"].inputs, moment(F.unfold(x, 3, padding=1).mT))
    weighted, plain = (
        factorize(copy.deepcopy(dense), ranks={"0": 4}, split=split, **options) for options in ({"stats": stats}, {})
    )
    errors = [(model(x) - dense(x)).square().sum().item() for model in (weighted, plain)]
    assert errors[0] < 0.95 * errors[1], errors


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(6, 4, 2, stride=2),
        nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2),
        nn.ConvTranspose2d(6, 4, (1, 3), stride=(1, 3)),
    ],
)
def test_transposed_convolutions(layer):
    """Channels of a position are what is multiplied, and without overlap each column is an output of its own."""
    torch.manual_seed(0)
    dense = nn.Sequential(layer).eval()
    sizes = (7,) if isinstance(layer, nn.ConvTranspose1d) else (5, 4)
    x = correlated(10, *sizes, 6).movedim(-1, 1)
    stats = collect(dense, [x], dtype=torch.float64)
    vectors = x.movedim(1, -1).reshape(-1, layer.groups, 6 // layer.groups).transpose(0, 1)
    found = stats["0"].inputs if layer.groups > 1 else stats["0"].inputs[None]
    for own, expected in zip(found.float(), vectors, strict=True):
        close(own, moment(expected))
    assert stats["0"].on_rows
    weighted, plain = (
        factorize(copy.deepcopy(dense), ranks={"0": 2}, split="channel", **o) for o in ({"stats": stats}, {})
    )
    errors = [(model(x) - dense(x)).square().sum().item() for model in (weighted, plain)]
    best = sum(
        least_error(v, W.flatten(1).mT, 2) for v, W in zip(vectors, layer.weight.chunk(layer.groups), strict=True)
    )
    assert errors[0] == pytest.approx(best, rel=1e-2) and errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("options", [{"stride": 2, "output_padding": 1}, {"padding": 1, "dilation": 2}, {"groups": 2}])
def test_gradients_of_transposed_convolutions(options):
    """`gradient of x = K g` of patches `g`, so that moments of one follow from those of the other."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(6, 4, 3, bias=False, dtype=torch.float64, **options)
    x = torch.randn(3, 6, 5, 6, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(layer(x).shape, dtype=torch.float64)
    [gradient] = torch.autograd.grad((layer(x) * factor).sum(), x)
    model = nn.Sequential(layer)
    moments = collect(model, lambda: (model(x) * factor).sum().backward(), True, torch.float64)["0"]
    kernels = layer.weight.detach().view(layer.groups, 6 // layer.groups, -1)
    g = gradient.movedim(1, -1).reshape(-1, layer.groups, 6 // layer.groups).transpose(0, 1)
    outputs = moments.outputs if layer.groups > 1 else moments.outputs[None]
    torch.testing.assert_close(kernels @ outputs @ kernels.mT, g.mT @ g)


class Looked(nn.Embedding):
    """A table with a forward of its own."""

    def forward(self, tokens):
        return super().forward(tokens) * 3


@pytest.mark.parametrize("kind", [Looked, nn.EmbeddingBag])
def test_tables_are_weighted_by_how_often_rows_are_looked_up(kind):
    torch.manual_seed(0)
    dense = nn.Sequential(kind(20, 6))
    tokens = torch.multinomial(torch.logspace(0, -3, 20), 300, replacement=True).view(100, 3)
    stats = collect(dense, [tokens])
    counts = torch.bincount(tokens.flatten(), minlength=20) / 300
    close(stats["0"].inputs, counts)
    new = factorize(copy.deepcopy(dense), ranks={"0": 3}, embeddings=True, stats=stats)
    rows = dense[0].weight.detach()[tokens.flatten()]
    found = (new[0].weight.detach()[tokens.flatten()] - rows).square().sum()
    assert float(found) == pytest.approx(float(torch.linalg.svdvals(rows)[3:].square().sum()), rel=1e-2)


# -- experts, and other parameters of modules --------------------------------------------------------------------------


class Experts(nn.Module):
    """Four experts in one parameter, (experts, outputs, inputs) or the other way about, applied in several ways."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way
        shape = (4, 12, 8) if way in ("bmm", "einsum turned") else (4, 8, 12)
        self.experts = nn.Parameter(torch.randn(shape) / 3)

    def forward(self, x, sizes):
        parts = x.split(sizes)
        if self.way == "linear":
            return torch.cat([F.linear(part, self.experts[e]) for e, part in enumerate(parts)])
        if self.way == "matmul":
            return torch.cat([part @ self.experts[e].T for e, part in enumerate(parts)])
        if self.way == "from the left":
            return torch.cat([(self.experts[e] @ part.T).T for e, part in enumerate(parts)])
        if self.way == "ragged":
            ends = torch.tensor(sizes).cumsum(0).int()
            return F.grouped_mm(x, self.experts.transpose(-2, -1), offs=ends)
        stacked = x.view(4, -1, 12)
        if self.way == "einsum":
            return torch.einsum("eti,eoi->eto", stacked, self.experts).flatten(0, 1)
        if self.way == "einsum turned":
            return torch.einsum("eio, eti -> teo", self.experts, stacked).transpose(0, 1).flatten(0, 1)
        return (torch.bmm(stacked, self.experts) if self.way == "bmm" else stacked @ self.experts.mT).flatten(0, 1)


@pytest.mark.parametrize(
    "way", ["linear", "matmul", "from the left", "ragged", "einsum", "einsum turned", "bmm", "batched"]
)
def test_experts_have_the_moments_of_their_own_tokens(way):
    torch.manual_seed(0)
    uneven = way in ("linear", "matmul", "from the left", "ragged")
    sizes = [32, 8, 24, 16] if uneven else [20] * 4
    dense, x = Experts(way), correlated(80, 12) * torch.linspace(1, 3, 80)[:, None]
    y = dense(x, sizes).detach().requires_grad_()
    [g] = torch.autograd.grad(y.pow(3).sum(), y)
    stats = collect(dense, lambda: dense(x, sizes).pow(3).sum().backward(), gradients=True)["experts"]
    assert stats.positions.tolist() == sizes and stats.on_rows == (way in ("bmm", "einsum turned"))
    for number, (part, own) in enumerate(zip(x.split(sizes), g.split(sizes))):
        close(stats.inputs[number], moment(part))
        torch.testing.assert_close(stats.outputs[number], own.mT @ own, rtol=1e-3, atol=1e-3)
    plainly = collect(dense, [(x, sizes)])
    new = factorize(copy.deepcopy(dense), ranks={"experts": 2}, stats=plainly)
    best = whole = 0.0
    for part, W in zip(x.split(sizes), dense.experts):
        W = W.mT if stats.on_rows else W
        best, whole = best + least_error(part, W, 2), whole + error(part, W, torch.zeros_like(W))
    found = float((new(x, sizes) - dense(x, sizes)).square().sum())
    assert found == pytest.approx(best, rel=1e-2)
    assert factorized_modules(new)["experts"].start_error == pytest.approx(math.sqrt(best / whole), rel=1e-2)
    factorize(copy.deepcopy(dense), ratio=0.6, allocate="error", stats={"experts": stats})


def test_an_expert_without_tokens_starts_from_its_weight():
    torch.manual_seed(0)
    dense, x = Experts("linear"), correlated(40, 12)
    stats = collect(dense, [(x, [20, 0, 20, 0])])
    new = factorize(copy.deepcopy(dense), ranks={"experts": 2}, stats=stats)
    P, sigma, QT = torch.linalg.svd(dense.experts[1].detach(), full_matrices=False)
    close(new.experts[1], P[:, :2] * sigma[:2] @ QT[:2])
    assert 0 < factorized_modules(new)["experts"].start_error < 1


def test_experts_in_a_model_of_transformers():
    """However its package applies them, the moments are those of the tokens that the router gave each."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model, tokens = transformers.MixtralModel(config).eval(), torch.randint(50, (3, 9))
    experts = next(module for module in model.modules() if hasattr(module, "gate_up_proj"))
    [name] = [name for name, module in model.named_modules() if module is experts]
    seen = []
    handle = experts.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, *kwargs.values())), with_kwargs=True
    )
    stats = collect(model, [{"input_ids": tokens}])
    handle.remove()
    x, chosen = seen[0][:2]
    x = x.reshape(-1, 16)
    for expert in range(4):
        own = x[(chosen.reshape(len(x), -1) == expert).any(1)]
        close(stats[f"{name}.gate_up_proj"].inputs[expert], moment(own))
        gate, up = (own @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        close(stats[f"{name}.down_proj"].inputs[expert], moment((F.silu(gate) * up).detach()))


# -- shared weights ----------------------------------------------------------------------------------------------------


def test_what_two_modules_see_of_one_weight_adds_up():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 9))
    dense[2].weight = dense[0].weight
    x = correlated(50, 9)
    stats = collect(dense, [x])
    both = torch.cat([x, dense[:2](x).detach()])
    close(stats["0"].inputs, moment(both))
    new = factorize(copy.deepcopy(dense), ranks={"0": 3}, stats=stats)
    assert new[0].weight is not None and len(factorized_modules(new)) == 1
    assert error(both, dense[0].weight, new[0].weight) == pytest.approx(least_error(both, dense[0].weight, 3), rel=1e-2)


def test_a_weight_that_is_read_from_both_sides_starts_plainly_and_that_is_said():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 20, bias=False))
    dense[2].weight = dense[0].weight
    stats = collect(dense, [torch.randint(20, (8,))])
    assert list(stats) == ["1"]
    with pytest.warns(UserWarning, match="no statistics of 0, which start from their weights alone"):
        new = factorize(copy.deepcopy(dense), ranks={"**": 3}, embeddings=True, stats=stats)
    close(new[0].weight, factorize(copy.deepcopy(dense), ranks={"0": 3}, embeddings=True)[0].weight)
    notes = {row.name: row.note for row in summary(new).rows}
    assert notes == {"0": "started from its weight alone, as no inputs of it are known", "1": ""}


def test_nothing_is_left_behind_by_data_that_fail():
    model = nn.Sequential(Equalized(6, 6), nn.LSTM(6, 6))
    for data in ([torch.randn(4, 5)], [torch.randn(4, 6), "text"]):
        with pytest.raises((RuntimeError, TypeError, AttributeError)):
            collect(model, data)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.overrides._get_current_function_mode_stack() == []
    assert collect(model, [torch.randn(4, 6)]).keys() == {"0", "1.weight_ih_l0", "1.weight_hh_l0"}


def test_ranks_by_error_are_those_of_the_data_for_composed_weights():
    """A recurrent layer whose inputs have three directions keeps no more of them."""
    torch.manual_seed(0)
    dense = nn.LSTM(20, 20)
    x = torch.randn(9, 40, 3) @ torch.randn(3, 20)
    found = factorize(copy.deepcopy(dense), ratio=0.6, allocate="error", stats=collect(dense, [x]))
    layers = factorized_modules(found)
    assert layers["weight_ih_l0"].rank == 3 < layers["weight_hh_l0"].rank and layers["weight_ih_l0"].start_error < 1e-2
