"""Grouped convolutions as batches of products, against PyTorch's convolutions of each group."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorized import (
    ChannelConv2d,
    FactorizedConv1d,
    FactorizedConv2d,
    FactorizedConv3d,
    FrobeniusDecay,
    collect,
    deploy,
    factorize,
    factorized_modules,
    find_rank_scale,
    layer_metrics,
    load,
    merge,
    parameter_groups,
    save,
    summary,
)
from factorized.budget import parameter_count
from tests.factorized.networks import relative_error

KINDS = {
    "1-D": (FactorizedConv1d, nn.Conv1d, F.conv1d),
    "spatial": (FactorizedConv2d, nn.Conv2d, F.conv2d),
    "channel": (ChannelConv2d, nn.Conv2d, F.conv2d),
    "3-D": (FactorizedConv3d, nn.Conv3d, F.conv3d),
}
each_kind = pytest.mark.parametrize("form", KINDS)


def images(form: str, channels: int = 6, **options) -> Tensor:
    dimensions = {"1-D": 1, "3-D": 3}.get(form, 2)
    return torch.randn(2, channels, *(9, 7, 8)[:dimensions], dtype=torch.float64, **options)


def kernels_of(layer: nn.Module, form: str) -> list[Tensor]:
    """Return the kernel of each group, contracted index by index."""
    kernels = []
    for group in range(layer.groups):
        U, R = layer.U[group], layer.VT[group] if layer.M is None else layer.M[group] @ layer.VT[group]
        if form == "spatial":
            kh, kw = layer.kernel_size
            parts = U.reshape(-1, kh, layer.rank), R.reshape(layer.rank, -1, kw)
            kernels.append(torch.einsum("oiq,qcj->ocij", *parts))
        else:
            kernels.append(torch.einsum("oq,qc...->oc...", U, R.reshape(layer.rank, -1, *layer.kernel_size)))
    return kernels


def computed_by_group(layer: nn.Module, form: str, x: Tensor, stride=1, padding=0, dilation=1) -> Tensor:
    """Return the output of a layer as that of a convolution of each group."""
    convolve = KINDS[form][2]
    outputs = [
        convolve(part, kernel, None, stride, padding, dilation)
        for part, kernel in zip(x.chunk(layer.groups, dim=1), kernels_of(layer, form))
    ]
    y = torch.cat(outputs, dim=1)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * (x.dim() - 2))


@each_kind
@pytest.mark.parametrize("square", [False, True])
def test_both_paths_are_a_convolution_of_each_group(form, square):
    """To 1e-10 in double precision, over strides, paddings and dilations."""
    kind, x = KINDS[form][0], images(form)
    for kernel, stride, padding, dilation in itertools.product([1, 3], [1, 2], [0, 1], [1, 2]):
        geometry = stride, padding, dilation
        layer = kind(6, 9, kernel, 2, *geometry, groups=3, square=square, dtype=torch.float64)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        expected = computed_by_group(layer, form, x, *geometry)
        torch.testing.assert_close(layer.weight, torch.cat(kernels_of(layer, form)))
        for layer.path in ("composed", "two_step", "auto"):
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(layer(x[0]), expected[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(layer.to_steps()(x), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(layer.to_dense()(x), expected, rtol=0, atol=1e-10)


@each_kind
@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_gradients_are_those_of_each_group(form, path):
    layer = KINDS[form][0](6, 9, 2, 2, 2, 1, groups=3, square=True, path=path, dtype=torch.float64)
    inputs = [images(form, requires_grad=True), *layer.parameters()]
    expected = torch.autograd.grad(computed_by_group(layer, form, inputs[0], 2, 1).square().sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad(layer(inputs[0]).square().sum(), inputs), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def matrices_of(dense: nn.Module, form: str) -> Tensor:
    """Return the matrix of each group of a kernel, (groups, m, n)."""
    weights = dense.weight.detach().chunk(dense.groups)
    if form == "spatial":
        return torch.stack([w.transpose(1, 2).reshape(-1, w.shape[1] * w.shape[3]) for w in weights])
    return torch.stack([w.flatten(1) for w in weights])


@each_kind
def test_each_group_starts_from_its_best_product(form):
    """Against singular value decompositions; at full rank the function stays."""
    kind, dense_kind, _ = KINDS[form]
    dense = dense_kind(6, 9, 3, padding=1, groups=3, dtype=torch.float64)
    matrices = matrices_of(dense, form)
    P, sigma, QT = torch.linalg.svd(matrices, full_matrices=False)
    layer = kind.from_dense(dense, rank=2)
    assert layer.U.shape == (3, matrices.shape[1], 2) and layer.VT.shape == (3, 2, matrices.shape[2])
    torch.testing.assert_close(layer.product(), P[..., :2] * sigma[:, None, :2] @ QT[:, :2])
    torch.testing.assert_close(layer.U.mT @ layer.U, torch.diag_embed(sigma[:, :2]), atol=1e-8, rtol=1e-6)
    whole, x = kind.from_dense(dense, rank=min(matrices.shape[1:])), images(form)
    for whole.path in ("composed", "two_step"):
        torch.testing.assert_close(whole(x), dense(x), rtol=1e-6, atol=1e-7)
    back = whole.to_dense()
    assert type(back) is dense_kind and back.groups == 3
    torch.testing.assert_close(back.weight, dense.weight, rtol=1e-6, atol=1e-7)
    whole.weight = layer.weight  # is assigned group by group
    torch.testing.assert_close(whole.weight, layer.weight)


def test_other_starts_have_the_fans_of_a_group():
    dense = nn.Conv2d(64, 128, 3, groups=4)
    for init, fan in (("fan_in", 16 * 9), ("fan_out", 32 * 9), ("kaiming", None)):
        layer = FactorizedConv2d.from_dense(dense, rank=20, init=init)
        for factor in (layer.U, layer.VT):
            expected = 2 / (fan or factor.shape[-1])
            assert abs(factor.var().item() / expected - 1) < 0.2, init


@pytest.mark.parametrize("square", [False, True])
def test_the_decay_is_that_of_the_kernel(square):
    """Batched and in the backward pass, by automatic differentiation of half the squared norm of the kernel."""
    model = nn.Sequential(FactorizedConv2d(6, 9, 3, 2, groups=3, square=square, path="composed", dtype=torch.float64))
    layer = model[0]
    expected = torch.autograd.grad(0.1 * layer.weight.square().sum() / 2, layer.factors())
    FrobeniusDecay(model, 0.1).add_gradients()
    for factor, gradient in zip(layer.factors(), expected):
        torch.testing.assert_close(factor.grad, gradient)
    model.zero_grad()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=1.0)
    FrobeniusDecay(model, 0.1).attach(optimizer, in_backward=True)
    before = [factor.detach().clone() for factor in layer.factors()]
    (model(images("spatial")) * 0).sum().backward()
    optimizer.step()
    for factor, old, gradient in zip(layer.factors(), before, expected):
        torch.testing.assert_close(factor, old - gradient)
    assert layer_metrics([layer], 0.1)["metric/FrobNorm"] == pytest.approx(
        layer.product().detach().norm(dim=(1, 2)).mean().item()
    )


class Block(nn.Module):
    """A block of a ResNeXt: a grouped convolution between two pointwise ones, beside its input."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=4, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, channels, 1, bias=False)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, channels, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.shortcut(x) + self.conv3(y))


def resnext() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = (Block(16, 32, 1), Block(16, 32, 2))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, *head).eval()


@pytest.mark.parametrize("split", ["spatial", "channel"])
def test_a_resnext_from_start_to_deployment(split, tmp_path, capsys):
    dense, x = resnext(), torch.randn(8, 3, 12, 12)
    form = FactorizedConv2d if split == "spatial" else ChannelConv2d
    whole = factorize(copy.deepcopy(dense), ranks={"**.conv2": 24 if split == "spatial" else 8}, split=split)
    assert [*factorized_modules(whole)] == ["1.conv2", "2.conv2"] and type(whole[1].conv2) is form
    assert relative_error(whole(x), dense(x)) < 1e-5

    model = factorize(resnext(), ratio=0.5, split=split, others=False)
    assert type(model[2].conv2) is form and model[2].conv2.groups == 4
    found = find_rank_scale(resnext(), 0.5, rule="compact", others=False)
    assert abs(parameter_count(model) / parameter_count(dense) - 0.5) < 0.03
    assert split == "channel" or parameter_count(model) == found.parameters
    row = {row.name: row for row in summary(model, x).rows}["2.conv2"]
    layer = model[2].conv2
    assert row.matrix == (4, *layer.U.shape[1:2], layer.VT.shape[-1]) and row.parameters == parameter_count(layer)
    assert row.dense_parameters == 32 * 8 * 9 and row.dense_multiply_adds == 8 * 36 * 32 * 8 * 9
    P, W = layer.product().detach(), matrices_of(dense[2].conv2, split)
    assert row.error == pytest.approx(float((P - W).norm() / W.norm()), rel=1e-3)

    decay = FrobeniusDecay(model, 1e-2)
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=0.05)
    decay.attach(optimizer)
    before = [factor.detach().clone() for factor in layer.factors()]
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x), torch.arange(8)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] and not any(torch.equal(*pair) for pair in zip(before, layer.factors()))

    model.eval()
    expected = model(x).detach()
    save(model, tmp_path / "saved")
    assert torch.equal(load(resnext(), tmp_path / "saved")(x), expected)
    merged = merge(copy.deepcopy(model))
    assert type(merged[2].conv2) is nn.Conv2d and merged[2].conv2.groups == 4
    assert relative_error(merged(x), expected) < 1e-4
    plain = deploy(copy.deepcopy(model), x, measure=False)
    assert not factorized_modules(plain) and "2.conv2" in capsys.readouterr().out
    assert relative_error(plain(x), expected) < 1e-4
    exported = torch.export.export(plain, (x,)).module()
    assert relative_error(exported(x), expected) < 1e-4


def test_deployed_in_steps_it_is_two_grouped_convolutions(tmp_path):
    model = nn.Sequential(FactorizedConv2d(64, 64, 3, 2, padding=1, groups=4)).eval()
    x = torch.randn(16, 64, 16, 16)
    expected = model(x)
    steps = deploy(model, x, measure=False)[0]
    assert [(type(step), step.groups, step.out_channels) for step in steps] == [(nn.Conv2d, 4, 8), (nn.Conv2d, 4, 64)]
    assert relative_error(steps(x), expected) < 1e-5
    exported = torch.export.export(nn.Sequential(steps), (x,)).module()
    assert relative_error(exported(x), expected) < 1e-5
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(found), expected) < 1e-4


def test_multiply_adds_can_be_the_budget():
    x = torch.randn(1, 3, 12, 12)
    model = factorize(resnext(), ratio=0.6, cost="multiply-adds", example_input=x)
    row = {row.name: row for row in summary(model, x).rows}["1.conv2"]
    layer = model[1].conv2
    assert layer.path == "two_step"
    assert row.multiply_adds == 4 * layer.rank * (144 * layer.VT.shape[-1] + 144 * layer.U.shape[1])
    assert abs(summary(model, x).multiply_adds / summary(resnext(), x).multiply_adds - 0.6) < 0.05


def test_ranks_by_error_see_all_groups():
    """The layer with the steeper spectra is cut further, whatever the size of its numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 16, 3, groups=2))
    with torch.no_grad():
        low = FactorizedConv2d.from_dense(model[0], rank=3).weight
        model[0].weight.copy_(10 * low + 0.01 * model[0].weight)
    found = factorize(model, ratio=0.5, allocate="error")
    assert found[0].rank == 3 < found[1].rank


def test_what_stays_dense():
    """Depthwise kernels, and groups that are vectors, with the reason."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv1d(8, 16, 3, groups=8), nn.Conv2d(8, 2, 1, groups=2))
    rows = summary(factorize(nn.Sequential(model, nn.Linear(8, 8)), rank_scale=0.5)).rows
    reasons = [row.reason for row in rows]
    depthwise = "a depthwise one: a grouped convolution of one channel each"
    assert reasons == [depthwise, depthwise, "as a matrix 1x4 it is no smaller as a product", ""]


@pytest.mark.parametrize("split", ["spatial", "channel"])
def test_the_start_is_weighted_group_by_group(split):
    """A channel split is the best product of each group at the outputs on the data, as alternating least squares is."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2, bias=False)).eval()
    x = F.avg_pool2d(torch.randn(30, 6, 27, 27), 3) * torch.tensor([4, 1, 0.2, 0.1, 2, 3])[:, None, None]
    stats = collect(dense, [x[:20], x[20:]])
    patches = F.unfold(x, 3).mT.flatten(0, 1).view(-1, 2, 27).transpose(0, 1)
    torch.testing.assert_close(stats["0"].inputs, patches.mT @ patches / patches.shape[1], rtol=1e-4, atol=1e-4)
    weighted, plain = (
        factorize(copy.deepcopy(dense), ranks={"0": 2}, split=split, **options) for options in ({"stats": stats}, {})
    )
    error, other = ((model(x) - dense(x)).square().sum() for model in (weighted, plain))
    assert error < 0.9 * other
    if split == "channel":
        best = 0.0
        for rows, kernel in zip(patches.double(), dense[0].weight.detach().double().view(2, 4, 27)):
            target = rows @ kernel.mT
            best += float(torch.linalg.svdvals(target)[2:].square().sum())
        assert float(error) == pytest.approx(best, rel=1e-3)
        assert weighted[0].start_error == pytest.approx(float((error / dense(x).square().sum()).sqrt()), rel=1e-3)
