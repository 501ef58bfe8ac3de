"""Statistics of data and the starts made of them, against moments and products computed by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import factorized
from factorized import Moments, collect, factorize, recalibrate
from tests.factorized.networks import small_cnn


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def inputs_of(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """Return what a layer gets when the model runs in evaluation mode, by a hook."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return torch.cat(seen)


def unfolded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride).mT.flatten(0, 1)


def test_moments_are_those_of_unfolded_inputs():
    """Batch by batch as at once, in evaluation mode; the model is left in its mode, without gradients or hooks."""
    model, x = small_cnn(), images()
    before = copy.deepcopy(model.state_dict())
    stats = collect(model.train(), [x[:4], x[4:]])
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert list(stats) == ["stem", "body.0", "body.2", "hidden", "head"]
    for name in stats:
        rows = inputs_of(model, name, x)
        layer = model.get_submodule(name)
        rows = unfolded(rows, layer) if isinstance(layer, nn.Conv2d) else rows
        torch.testing.assert_close(stats[name].inputs, rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-5)
        assert stats[name].positions == len(rows) and stats[name].outputs is None


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": "same"},
        {"padding": "valid", "stride": 3},
    ],
)
def test_moments_follow_the_geometry(options):
    """`y = K patches`, so that moments of outputs follow from those of patches: `E[y y^T] = K A K^T`."""
    torch.manual_seed(0)
    for kind, sizes in ((nn.Conv1d, (9,)), (nn.Conv2d, (9, 7)), (nn.Conv3d, (5, 6, 7))):
        layer = kind(3, 4, 3, bias=False, dtype=torch.float64, **options)
        x = torch.randn(2, 3, *sizes, dtype=torch.float64)
        moments = collect(nn.Sequential(layer), [x], dtype=torch.float64)["0"]
        y = layer(x).movedim(1, -1).reshape(-1, 4)
        kernel = layer.weight.flatten(1)
        torch.testing.assert_close(kernel @ moments.inputs @ kernel.mT, y.mT @ y / len(y))


def test_sums_keep_their_precision_under_autocast():
    model, x = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), torch.randn(300, 5)
    with torch.autocast("cpu", torch.bfloat16):
        moments = collect(model, [x])["0"]
    torch.testing.assert_close(moments.inputs, x.mT @ x / 300)


def test_large_inputs_are_unfolded_in_parts(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)), images()
    whole = collect(model, [x])["0"].inputs
    monkeypatch.setattr(factorized.unfolding, "CHUNK", 1)
    torch.testing.assert_close(collect(model, [x])["0"].inputs, whole)


def test_wide_layers_keep_a_diagonal(monkeypatch):
    model, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(8, 5)
    monkeypatch.setattr(factorized.statistics, "_WIDEST", 4)
    torch.testing.assert_close(collect(model, [x])["0"].inputs, x.square().mean(0))
    factorize(model, ranks={"0": 2}, stats=collect(model, [x]))


def test_gradients_at_outputs():
    """Against gradients that autograd gives for the outputs themselves; those of parameters are as before."""
    model, x = small_cnn().eval(), images()
    model.stem.bias.grad = torch.ones(6)
    targets = torch.arange(6) % 4
    outputs = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: outputs.__setitem__(name, y))
        for name in ("stem", "body.2", "hidden", "head")
    ]
    loss = F.cross_entropy(model(x), targets)
    expected = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values()))))
    for handle in handles:
        handle.remove()
    halves = [(x[:3], targets[:3]), (x[3:], targets[3:])]
    stats = collect(model, lambda: [(F.cross_entropy(model(a), b) / 2).backward() for a, b in halves], gradients=True)
    for name, gradient in expected.items():
        g = gradient.movedim(1, -1).reshape(-1, gradient.shape[1])
        torch.testing.assert_close(stats[name].outputs, g.mT @ g, rtol=1e-4, atol=1e-8)
    assert torch.equal(model.stem.bias.grad, torch.ones(6)) and model.head.weight.grad is None


def test_weights_that_other_modules_read_are_seen():
    """A module that reads its layers' weights, as Swin's attention does, and an embedding with keyword arguments."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(7, 5), nn.Linear(5, 4)

        def forward(self, tokens):
            return F.linear(self.embed(tokens), self.layer.weight, self.layer.bias)

    model, tokens = Reader(), torch.tensor([[0, 1, 1], [1, 2, 0]])
    stats = collect(model, [{"tokens": tokens}])
    torch.testing.assert_close(stats["embed"].inputs, torch.tensor([2, 3, 1, 0, 0, 0, 0]) / 6)
    rows = model.embed(tokens).flatten(0, 1).detach()
    torch.testing.assert_close(stats["layer"].inputs, rows.mT @ rows / 6)


def error_of(model: nn.Module, other: nn.Module, name: str, x: Tensor) -> float:
    """Return the squared error of a layer's outputs for the inputs that it has in `model`."""
    seen = inputs_of(model, name, x)
    with torch.no_grad():
        error = other.get_submodule(name)(seen) - model.get_submodule(name)(seen)
    error = error.movedim(1, -1).reshape(-1, error.shape[1])
    return float(error.square().sum())


def test_the_start_has_the_smallest_error_on_the_data():
    """No product of the same rank does better at the layer's own outputs: alternating least squares ends there, too."""
    torch.manual_seed(1)
    dense, x = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7)).eval(), torch.randn(60, 12) ** 3
    stats = collect(dense, [x])
    weighted = factorize(copy.deepcopy(dense), ranks={"**": 3}, stats=stats)
    plain = factorize(copy.deepcopy(dense), ranks={"**": 3})
    for name in ("0", "2"):
        seen, layer = inputs_of(dense, name, x).double(), weighted.get_submodule(name)
        W = dense.get_submodule(name).weight.detach().double()
        target = seen @ W.mT
        VT = torch.randn(3, W.shape[1], dtype=torch.float64)
        for _ in range(500):  # alternating least squares from a random start, knowing nothing of the closed form
            U = torch.linalg.lstsq(seen @ VT.mT, target).solution.mT
            VT = torch.linalg.lstsq(U, torch.linalg.lstsq(seen, target).solution.mT).solution
        best = (seen @ (U @ VT).mT - target).square().sum()
        found = (seen @ (layer.U @ layer.VT).detach().double().mT - target).square().sum()
        assert found <= best * 1.0001 and found < 0.9 * error_of(dense, plain, name, x)
        whole = target.square().sum()
        assert abs(layer.start_error - (found / whole).sqrt()) < 1e-4


@pytest.mark.parametrize("split", ["channel", "spatial"])
def test_convolutions_keep_more_of_what_they_compute(split):
    torch.manual_seed(0)
    model = small_cnn().eval()
    x = F.avg_pool2d(torch.randn(40, 3, 24, 24), 3)  # neighbours are alike, as in images
    stats = collect(model, [x])
    options = {"ranks": {"body": 4}, "split": split}
    weighted = factorize(copy.deepcopy(model), stats=stats, **options)
    plain = factorize(copy.deepcopy(model), **options)
    for name in ("body.0", "body.2"):
        assert error_of(model, weighted, name, x) < 0.8 * error_of(model, plain, name, x)


def test_the_metric_of_a_spatial_split_is_that_of_its_lines():
    """With weights in a single line of the kernel nothing is neglected: the start is the best one at the outputs."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 5, (1, 3), bias=False)
    tall = nn.Conv2d(4, 5, 3, bias=False)
    x = torch.randn(20, 4, 9, 9) * torch.tensor([3, 1, 0.3, 0.1])[:, None, None]
    for layer in (conv, tall):
        patches = unfolded(x, layer).view(-1, 4, layer.kernel_size[0], 3)
        lines = patches.transpose(1, 2).flatten(2).flatten(0, 1)
        moments = collect(nn.Sequential(layer), [x])["0"]
        inputs, outputs = factorized.FactorizedConv2d.metrics(layer, moments.inputs, torch.diag(torch.arange(5.0)))
        torch.testing.assert_close(inputs, lines.mT @ lines / len(lines), rtol=1e-4, atol=1e-4)
        kh = layer.kernel_size[0]
        assert torch.equal(outputs.diagonal(), torch.arange(5.0).repeat_interleave(kh))
        diagonal, _ = factorized.FactorizedConv2d.metrics(layer, moments.inputs.diagonal(), torch.arange(5.0))
        torch.testing.assert_close(diagonal, inputs.diagonal())


def test_identity_moments_are_the_plain_start():
    model = small_cnn()
    stats = {
        name: Moments(torch.eye(factorized.matrix_of(layer).numel() // layer.weight.shape[0]), None, 1)
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    options = {"rank_scale": 0.3, "rule": "paper"}
    plain = factorize(copy.deepcopy(model), **options)
    weighted = factorize(copy.deepcopy(model), stats=stats, **options)
    for name, layer in factorized.factorized_modules(plain).items():
        torch.testing.assert_close(weighted.get_submodule(name).weight, layer.weight, rtol=1e-3, atol=1e-4)
        assert abs(weighted.get_submodule(name).start_error - layer.start_error) < 1e-3
        W, P = factorized.matrix_of(model.get_submodule(name)).detach(), layer.product().detach()
        assert abs(layer.start_error - (W - P).norm() / W.norm()) < 1e-3


def test_outputs_weigh_rows():
    """A layer of whose outputs the loss sees two: these are kept exactly, the others are not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False))
    x = torch.randn(30, 8)
    stats = collect(model, lambda: model(x)[:, :2].square().sum().backward(), gradients=True)
    found = factorize(copy.deepcopy(model), ranks={"0": 2}, stats=stats)
    error = (found(x) - model(x)).norm(dim=0)
    assert error[:2].max() < 1e-2 * error[2:].min()


def test_embeddings_are_weighted_by_how_often_rows_are_looked_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6))
    tokens = torch.multinomial(torch.logspace(0, -3, 20), 500, replacement=True)
    stats = collect(model, [tokens])
    weighted, plain = (
        factorize(copy.deepcopy(model), ranks={"0": 3}, embeddings=True, **options)
        for options in ({"stats": stats}, {})
    )
    errors = [(found(tokens) - model(tokens)).square().sum() for found in (weighted, plain)]
    often = stats["0"].inputs
    _, _, QT = torch.linalg.svd(often.sqrt()[:, None] * model[0].weight.detach())
    best = model[0].weight @ QT[:3].mT @ QT[:3]
    torch.testing.assert_close(weighted[0].weight, best, rtol=1e-3, atol=1e-3)
    assert errors[0] < 0.8 * errors[1]


def test_recalibrated_statistics_are_those_of_the_data():
    """Means of batch means and variances, by hand, of the norm's inputs; nothing else is in training mode."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.9), nn.BatchNorm2d(4), nn.ReLU())
    modes = [module.training for module in model.modules()]
    batches = [images(5), images(5, seed=1)]
    model[2].running_mean.fill_(9)
    assert recalibrate(model, batches) is model
    with torch.no_grad():
        seen = [model[0](x).movedim(1, -1).flatten(0, 2) for x in batches]
    torch.testing.assert_close(model[2].running_mean, torch.stack([s.mean(0) for s in seen]).mean(0))
    torch.testing.assert_close(model[2].running_var, torch.stack([s.var(0) for s in seen]).mean(0))
    assert [module.training for module in model.modules()] == modes and model[2].momentum == 0.1
    recalibrate(model.eval(), lambda: [model(x) for x in batches])
    assert not model.training and not model[2].training


def test_recalibration_that_fails_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_mean.fill_(9)
    for batches, error in (([], ValueError), ([images(), torch.zeros(1, 2, 8, 8)], RuntimeError)):
        with pytest.raises(error):
            recalibrate(model, batches)
        assert model[1].running_mean.eq(9).all() and model[1].momentum == 0.1 and model.training


def test_layers_without_statistics_start_from_their_weights_and_that_is_said():
    model = nn.ModuleDict({"used": nn.Linear(6, 6), "idle": nn.Linear(6, 6)})
    model.forward = lambda x: model["used"](x)
    stats = collect(model, lambda: model["used"](torch.randn(9, 6)))
    with pytest.warns(UserWarning, match="no statistics of idle, which start from their weights alone") as caught:
        found = factorize(copy.deepcopy(model), ranks={"**": 2}, stats=stats)
    assert caught[0].filename == __file__
    torch.testing.assert_close(found["idle"].weight, factorize(model, ranks={"idle": 2})["idle"].weight)
