"""Factorized models as plain PyTorch ones: the same function, nothing of the library left, exported."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

import factorized
from factorized import deploy, deployment, factorize, factorized_modules, parameter_count
from tests.factorized.networks import relative_error, small_cnn

LAYERS = {
    "linear": (lambda: nn.Linear(12, 9), (3, 12), {"rank": 4}),
    "linear of three factors": (lambda: nn.Linear(12, 9, bias=False), (2, 3, 12), {"rank": 4, "square": True}),
    "channel": (lambda: nn.Conv2d(6, 8, 3, 2, 1), (2, 6, 9, 9), {"rank": 4, "kind": factorized.ChannelConv2d}),
    "1-D": (lambda: nn.Conv1d(6, 8, 3, dilation=2), (2, 6, 9), {"rank": 4}),
    "3-D": (lambda: nn.Conv3d(3, 8, 3, padding=1), (2, 3, 5, 5, 5), {"rank": 4}),
    "spatial": (lambda: nn.Conv2d(6, 8, (3, 2), (2, 1), (1, 2), 2), (2, 6, 9, 9), {"rank": 4}),
    "spatial, wide": (lambda: nn.Conv2d(6, 8, (1, 3), 2, (0, 1)), (2, 6, 9, 9), {"rank": 4}),
    "spatial, tall": (lambda: nn.Conv2d(6, 8, (3, 1), 2, bias=False), (2, 6, 9, 9), {"rank": 4}),
    "shortcut": (lambda: nn.Conv2d(6, 8, 1, 2), (2, 6, 9, 9), {"rank": 4}),
    "separable": (lambda: nn.Conv2d(6, 8, 3, 2, 1), (2, 6, 9, 9), {"kind": factorized.TensorTrainConv2d}),
    "Tucker-2": (lambda: nn.Conv2d(6, 8, 3, 2, 1), (2, 6, 9, 9), {"kind": factorized.Tucker2Conv2d, "pair": (4, 3)}),
}


def built(case: str) -> tuple[nn.Module, Tensor]:
    """Return a factorized layer with trained numbers, and an input."""
    torch.manual_seed(0)
    make, shape, options = LAYERS[case]
    options, dense = dict(options), make()
    kind, pair = options.pop("kind", None), options.pop("pair", None)
    if kind is None:
        kind = {nn.Linear: factorized.FactorizedLinear, nn.Conv1d: factorized.FactorizedConv1d}.get(
            type(dense),
            {nn.Conv2d: factorized.FactorizedConv2d, nn.Conv3d: factorized.FactorizedConv3d}.get(type(dense)),
        )
    layer = kind.from_dense(dense, *((pair or 0.5,) if not options else ()), **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, torch.randn(shape)


@pytest.mark.parametrize("case", LAYERS)
def test_steps_compute_the_same_function(case):
    layer, x = built(case)
    steps = layer.eval().to_steps()
    assert relative_error(steps(x), layer(x)) < 1e-5
    assert all(type(module).__module__.startswith("torch.nn") for module in steps.modules())
    assert not any(module.training for module in steps.modules())
    if case != "separable":  # whose pointwise part is composed; a middle factor is multiplied in
        assert parameter_count(steps) <= parameter_count(layer)


def test_steps_of_an_embedding():
    layer = factorized.FactorizedEmbedding(9, 5, 3, padding_idx=2, square=True)
    tokens = torch.tensor([[0, 2], [8, 1]])
    steps = layer.to_steps()
    assert relative_error(steps(tokens), layer(tokens)) < 1e-5 and steps[0].padding_idx == 2


def test_what_carries_over_and_what_has_no_steps():
    dense = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last).requires_grad_(False).double().eval()
    steps = factorized.FactorizedConv2d.from_dense(dense, rank=3).to_steps()
    assert steps[0].weight.is_contiguous(memory_format=torch.channels_last) and steps[0].weight.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in steps.parameters())
    assert factorized.TensorTrainConv2d(8, 8, 1, 0.5).to_steps() is None


def is_plain(model: nn.Module) -> bool:
    return not factorized_modules(model) and all(
        type(module).__module__.startswith(("torch.nn", "torchvision")) for module in model.modules()
    )


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("split", ["spatial", "channel"])
def test_a_deployed_model_is_plain_and_computes_the_same(measure, split, capsys):
    torch.manual_seed(0)
    model, x = factorize(small_cnn(), ratio=0.7, split=split).eval(), torch.randn(2, 3, 8, 8)
    layers, expected = list(factorized_modules(model)), model(x)
    found = deploy(model, x, measure=measure)
    assert found is model and is_plain(model) and relative_error(model(x), expected) < 1e-4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "layer" and [line.split()[0] for line in lines[1:-1]] == layers
    assert ("." in lines[1].split()[1]) == measure and f"{parameter_count(model):,} parameters" in lines[-1]


def test_the_faster_form_is_chosen(monkeypatch):
    """By times given by hand, by measured ones of layers for which there is no doubt, and by multiply-adds."""
    x = torch.randn(64, 512)

    def model() -> nn.Module:
        return nn.Sequential(
            factorized.FactorizedLinear(512, 512, 2), factorized.FactorizedLinear(512, 512, 500)
        ).eval()

    for measure in (True, False):
        plain = deploy(model(), x, measure)
        assert [type(layer) for layer in plain] == [nn.Sequential, nn.Linear]
    for seconds, expected in (((2.0, 1.0), nn.Sequential), ((1.0, 2.0), nn.Linear), ((1.0, 0.99), nn.Linear)):
        monkeypatch.setattr(deployment, "_seconds", lambda *args, seconds=seconds: seconds)
        plain, forms = deployment.deployed(model(), x, True)
        assert {type(layer) for layer in plain} == {expected}
        assert all((form.dense_seconds, form.steps_seconds) == seconds for form in forms)


class Reader(nn.Module):
    """Calls one layer, reads the weight of another, calls and reads a third, and never uses a fourth."""

    def __init__(self):
        super().__init__()
        for name in ("called", "read", "both", "idle"):
            self.add_module(name, nn.Linear(40, 40))

    def forward(self, x):
        x = F.linear(self.called(x), self.read.weight, self.read.bias)
        return self.both(x.to(self.both.weight.dtype))


def test_layers_whose_weight_is_read_stay_whole():
    torch.manual_seed(0)
    model, x = factorize(Reader(), ranks={"**": 3}).eval(), torch.randn(5, 40)
    expected = model(x)
    read = vars(factorized.FactorizedLinear).get("weight")
    plain, forms = deployment.deployed(model, x, False)
    assert relative_error(plain(x), expected) < 1e-5
    assert {form.name: (form.choice, form.reason) for form in forms} == {
        "called": ("steps", ""),
        "read": ("dense", "its weight is read"),
        "both": ("dense", "its weight is read"),
        "idle": ("dense", "the example does not call it"),
    }
    assert vars(factorized.FactorizedLinear).get("weight") is read  # nothing is left of the watching


def test_whole_models_are_exported():
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval()
    x = torch.randn(1, 3, 64, 64)
    factorize(model, ratio=0.4, split="channel")
    expected = model(x)
    deploy(model, x, measure=False)
    assert is_plain(model)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-3, atol=1e-4)


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model, x = factorize(small_cnn(), ratio=0.7).eval(), torch.randn(2, 3, 8, 8)
    deploy(model, x, measure=False)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-3, atol=1e-4)


def test_it_keeps_modes_and_hooks_and_says_what_it_cannot_replace():
    model = nn.Sequential(factorized.FactorizedAttention(8, 2), factorized.FactorizedLinear(8, 8, 2)).train()
    calls = []
    model[1].register_forward_hook(lambda *args: calls.append(1))
    with pytest.warns(UserWarning, match="0.query_key, 0.output_value stand for no layer of PyTorch's") as caught:
        deploy(model, torch.randn(1, 3, 8), measure=True)
    assert caught[0].filename == __file__
    assert all(module.training for module in model.modules())
    calls.clear()
    model(torch.randn(1, 3, 8))
    assert calls == [1]


def test_wrong_usage():
    with pytest.raises(ValueError, match="Sequential has no factorized layers to deploy: factorize it first"):
        deploy(small_cnn(), torch.randn(1, 3, 8, 8))
    model = factorize(small_cnn(), ratio=0.7)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        deploy(model, torch.randn(1, 4, 8, 8))
    assert model.state_dict().keys() == before.keys() and factorized_modules(model)
